"""The control: a trained read-out of random features, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch, Update
from fflearn.checks import bench, learned
from fflearn.engine import Engine
from fflearn.errors import LocalityError, SpecError
from fflearn.optim import optimizer
from fflearn.registry import rule


def test_the_output_layer_learns_as_under_backprop_and_the_others_do_not():
    engine, state, batch = bench(lambda: rule("frozen"))
    bp, _, _ = bench(lambda: rule("backprop"))
    updates = engine.updates(state, batch)
    assert updates[:-1] == [Update()] * 3
    exact = dict(learned(bp, bp.updates(state, batch)))
    for path, g in learned(engine, updates):
        assert g.tobytes() == exact[path].tobytes()
    before = state.copy()
    engine.step(state, batch)
    for i, (now, then) in enumerate(zip(state.params, before.params, strict=True)):
        assert all((now[n] == then[n]).all() for n in now) == (i < 3)


def test_it_finds_the_least_squares_read_out():
    engine = Engine(
        "dense 5 tanh | dense 2",
        rule("frozen"),
        (3,),
        2,
        optimizer("sgd", lr=0.5, momentum=0.9),
        "mse",
        dtype="float64",
    )
    state, rng = engine.init(0), np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    for _ in range(3000):
        engine.step(state, Batch(x, y))
    hidden = np.tanh(x @ state.params[0]["W"])
    best, *_ = np.linalg.lstsq(np.c_[hidden, np.ones(40)], y, rcond=None)
    np.testing.assert_allclose(state.params[1]["W"], best[:-1], atol=1e-5)
    np.testing.assert_allclose(state.params[1]["b"], best[-1], atol=1e-5)


def test_a_step_computed_by_hand():
    # x = 2, a1 = 6, W2 = (1, -1), e = (5, -6): only 6 e is learned.
    engine = Engine("dense 1 | dense 2", rule("control"), (1,), 2, objective="mse")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"] = 3, [[1, -1]]
    batch = Batch(np.array([[2.0]]), np.array([[1.0, 0.0]]))
    first, second = engine.updates(state, batch)
    assert first == Update()
    np.testing.assert_allclose(engine.kernels.formed(second.grads["W"]), [[30, -36]])
    assert engine.step(state, batch)[1].per_sample() == {"activity": 1}


def test_a_hidden_layer_cannot_read_the_output_error():
    class Reaches(type(rule("frozen"))):
        def update(self, v, s):
            return Update({"b": s.top.mean(0)})

    engine, state, batch = bench(Reaches)
    with pytest.raises(LocalityError, match="'top' reaches the output layer alone"):
        engine.step(state, batch)
    with pytest.raises(SpecError, match="no parameter 'lr'"):
        rule("frozen", lr=0.1)
