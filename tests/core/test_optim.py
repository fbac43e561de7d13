"""Schedules and optimizers, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fflearn import kernels
from fflearn.errors import SpecError
from fflearn.kernels.reference import Product
from fflearn.optim import OPTIMIZERS, Schedule, optimizer


@pytest.mark.parametrize(
    ("spec", "epochs", "values"),
    [
        ("constant", 10, {0: 1, 9.5: 1}),
        ("cosine", 10, {0: 1, 5: 0.5, 2.5: (1 + math.sqrt(0.5)) / 2, 10: 0, 12: 0}),
        # Hinton's code: constant for half of the run, then 2 (E - e) / E by whole epochs.
        ("halves", 10, {0: 1, 4.9: 1, 5: 1, 6: 0.8, 6.9: 0.8, 9: 0.2, 10: 0}),
        ("step:20,30:0.5", 40, {0: 1, 19.9: 1, 20: 0.5, 29: 0.5, 30: 0.25, 39: 0.25}),
        ("warmup:2+constant", 10, {0: 0, 1: 0.5, 2: 1, 5: 1}),
        ("warmup:4+cosine", 8, {2: 0.5 * 0.5 * (1 + math.cos(math.pi / 4)), 4: 0.5, 8: 0}),
        ("warmup:2+step:1:0.1", 4, {0.5: 0.25, 1: 0.05, 3: 0.1}),
    ],
)
def test_schedules_by_hand(spec, epochs, values):
    schedule = Schedule(spec)
    for epoch, factor in values.items():
        assert schedule(epoch, epochs) == pytest.approx(factor, abs=1e-15), epoch


@pytest.mark.parametrize(
    "spec", ["linear", "", "cosine:3", "step", "step:3", "constant:1", "warmup:2", "warmup:2+fast"]
)
def test_unknown_schedules_are_told(spec):
    with pytest.raises(SpecError, match="unknown schedule"):
        Schedule(spec)


@pytest.mark.parametrize("spec", ["step:x:0.5", "step:3:y", "warmup:z+cosine"])
def test_a_schedules_numbers_are_checked(spec):
    with pytest.raises(SpecError, match="needs a number from 0 on where it has '[xyz]'"):
        Schedule(spec)


def test_settings_over_time():
    o = optimizer("adamw", lr=0.1, schedule="cosine", weight_decay=(0.3, 0.2, 0.1))
    assert o.settings_at(0.0, 4) == (0.1, 0.3)
    assert o.settings_at(1.9, 4)[1] == 0.2
    assert o.settings_at(2.0, 4) == (pytest.approx(0.05), 0.1)
    assert o.settings_at(3.9, 4)[1] == 0.1  # the last one is repeated
    assert o.settings()["name"] == "adamw" and o.settings()["weight_decay"] == (0.3, 0.2, 0.1)


def run(o, gradients, w=1.0, lr=0.1, weight_decay=0.0, backend="reference"):
    k, w = kernels.load(backend), np.array([[w]])
    opt = o.slots("W", w)
    path = []
    for t, g in enumerate(gradients, 1):
        o.apply(k, "W", w, np.array([[float(g)]]), opt, lr, weight_decay, t)
        path.append(w.item())
    return path, opt


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_steps_by_hand(backend):
    path, opt = run(optimizer("sgd"), [2, 3], backend=backend)
    assert path == pytest.approx([0.8, 0.5]) and opt == {}
    path, _ = run(optimizer("sgd"), [2], weight_decay=0.5, backend=backend)
    assert path == pytest.approx([1 - 0.1 * 2.5])
    path, opt = run(optimizer("sgd", momentum=0.5), [2, 3], backend=backend)
    assert path == pytest.approx([0.8, 0.8 - 0.1 * 4]) and opt["m.W"] == pytest.approx(4)
    # Adam's first step is lr sign(g); its second, after g = 3 then -1 with betas 1/2:
    # m = 3/4 - 1/2 = 1/4, v = 9/4 + 1/2 = 11/4, both over 1 - 1/4.
    o = optimizer("adam", beta1=0.5, beta2=0.5)
    path, opt = run(o, [3, -1], backend=backend)
    second = 0.1 * (1 / 3) / math.sqrt(11 / 3)
    assert path == pytest.approx([0.9, 0.9 - second])
    assert (opt["m.W"].item(), opt["v.W"].item()) == pytest.approx((1 / 4, 11 / 4))
    # Decoupled decay shrinks the weight, the other one goes into the gradient (and its sign).
    assert run(optimizer("adamw"), [1], weight_decay=0.5)[0] == pytest.approx([0.95 - 0.1])
    assert run(optimizer("adam"), [-0.1], weight_decay=0.5)[0] == pytest.approx([1 - 0.1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_product_is_formed_on_the_way(name):
    rng, o = np.random.default_rng(0), optimizer(name)
    x, da, w = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=(3, 2))
    for backend in ("reference", "numba"):
        k, found = kernels.load(backend), []
        for g in (Product(x, da, 5), x.T @ da / 5):
            own = w.copy()
            o.apply(k, "W", own, g, o.slots("W", own), 0.1, 0.01, 1)
            found.append(own)
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_gradient_and_no_decay_is_no_change(name):
    assert run(optimizer(name), [0, 0])[0] == [1, 1]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: optimizer("rmsprop"), "unknown optimizer 'rmsprop'; known: sgd, adam, adamw"),
        (lambda: optimizer("sgd", beta1=0.9), "sgd has no setting 'beta1'; it has lr, momentum"),
        (lambda: optimizer("sgd", momentum=1.0), r"momentum in \[0, 1\); got 1.0"),
        (lambda: optimizer("adam", beta2=1), "beta1 and beta2"),
        (lambda: optimizer("adam", eps=0.0), "eps above 0"),
        (lambda: optimizer("adam", lr=-1), "lr to be 0 or more; got -1"),
        (lambda: optimizer("adam", lr=math.nan), "lr to be 0 or more; got nan"),
        (lambda: optimizer("adam", lr="fast"), "lr to be 0 or more; got 'fast'"),
        (lambda: optimizer("adam", weight_decay=(0.1, -1)), "weight_decay to be 0 or more; got -1"),
        (lambda: optimizer("adam", schedule="fast"), "unknown schedule 'fast'"),
    ],
)
def test_wrong_settings_are_told(make, told):
    with pytest.raises(SpecError, match=told):
        make()
