"""Feedback alignment: it is backprop where B = W, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.checks import BRANCHES, CHAIN, bench, learned
from fflearn.engine import Engine
from fflearn.errors import LocalityError, SpecError
from fflearn.optim import optimizer
from fflearn.probes import Probing
from fflearn.random import Key
from fflearn.registry import rule

CONVOLUTIONS = [
    "conv 6 relu",
    "conv 6 relu stride=2",
    "conv 6 tanh groups=2",
    "conv 8 relu groups=4 stride=2 kernel=5",
    "conv 4 gelu kernel=2 stride=3 padding=0 norm=rms",
    "conv 5 kernel=1 padding=1 bias=false | max_pool",
    "conv 6 bias=false | batch_norm relu | residual(conv 8 tanh stride=2; conv 8 kernel=1 stride=2)",
]
BLOCKS = "dense 17 relu | block(dense 9 tanh | residual(dense 9 gelu)) | dense 5 relu norm=rms"


@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES, BLOCKS])
def test_with_the_forward_weights_it_is_backprop(hidden):
    fa, state, batch = bench(lambda: rule("fa"), hidden)
    bp, _, _ = bench(lambda: rule("backprop"), hidden)
    random = dict(learned(fa, fa.updates(state, batch)))
    for aux, params in zip(state.aux, state.params, strict=True):
        for name in aux:
            aux[name] = params[name]
    exact = dict(learned(bp, bp.updates(state, batch)))
    assert exact.keys() == random.keys()
    for path, g in learned(fa, fa.updates(state, batch)):
        np.testing.assert_allclose(g, exact[path], rtol=1e-12, atol=1e-15, err_msg=path)
    # With its own random matrices it is not backprop, but in the layer that reads no message.
    same = [path for path, g in random.items() if np.allclose(g, exact[path], rtol=1e-3)]
    assert 0 < len(same) < len(random)
    first = [path for path in random if path.startswith("0/")]
    assert not set(first) & set(same)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_with_the_forward_kernels_a_convolution_is_backprops(convolution, backend):
    """Feedback has the forward convolution's geometry, and its own kernels alone."""
    net = f"conv 4 tanh | {convolution} | flatten | dense 3"
    engines = [
        Engine(net, rule(name), (8, 7, 2), 3, backend=backend, dtype="float64")
        for name in ("fa", "backprop")
    ]
    key = Key(0).fold("images")
    x = key.normal((5, 8, 7, 2), np.float64)
    batch = Batch(x, np.eye(3)[[0, 1, 2, 0, 1]])
    state = engines[0].init(0)
    random = dict(learned(engines[0], engines[0].updates(state, batch)))
    for aux, params in zip(state.aux, state.params, strict=True):
        for name in aux:
            assert aux[name].shape == params[name].shape
            aux[name] = params[name]
    mine, exact = (dict(learned(e, e.updates(state, batch))) for e in engines)
    for path, g in exact.items():
        np.testing.assert_allclose(mine[path], g, rtol=1e-12, atol=1e-14, err_msg=path)
    assert not np.allclose(random["0/grads/W"], exact["0/grads/W"], rtol=1e-2)


def test_feedback_is_drawn_as_the_weights_and_stays_fixed():
    engine, state, batch = bench(lambda: rule("fa"), "dense 301 relu | dense 211 tanh")
    b, w = state.aux[1]["W"].copy(), state.params[1]["W"].copy()
    assert list(state.aux[0]) == []
    assert (
        b.std() == pytest.approx(w.std(), rel=0.02)
        and abs(np.corrcoef(b.flat, w.flat)[0, 1]) < 0.02
    )
    engine.step(state, batch)
    assert (state.aux[1]["W"] == b).all() and (state.params[1]["W"] != w).any()


def test_weight_decay_leaves_feedback_alone():
    engine, state, batch = bench(lambda: rule("fa"))
    engine.optimizer = optimizer("adamw", lr=0.1, weight_decay=0.5)
    state = engine.init(0)
    before = state.copy()
    engine.step(state, batch)
    for now, then in zip(state.aux, before.aux, strict=True):
        assert all((now[n] == then[n]).all() for n in now)


def test_a_step_computed_by_hand():
    # As for backprop (x = 2, a1 = 6, e = (5, -6)), with B = (2, 1) in place of W2 = (1, -1).
    engine = Engine("dense 1 | dense 2", rule("fa"), (1,), 2, objective="mse", dtype="float64")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"], state.aux[1]["W"] = 3, [[1, -1]], [[2, 1]]
    first, _ = engine.updates(state, Batch(np.array([[2.0]]), np.array([[1.0, 0.0]])))
    np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), [[2 * (5 * 2 - 6 * 1)]])


def test_its_own_weights_are_no_feedback_weights():
    class Cheat(type(rule("fa"))):
        def feedback(self, v, dy):
            v.state["da"] = da = v.act_vjp(v.trace, dy)
            return None if v.is_input else v.input_vjp(v.trace, da, {"W": v.params["W"]})

    engine, state, batch = bench(Cheat)
    with pytest.raises(LocalityError, match="its own forward weights"):
        engine.step(state, batch)
    with pytest.raises(SpecError, match=r"no parameter 'scale' \(it has: none\)"):
        rule("fa", scale=2.0)


def test_the_feedback_angle_is_right_at_first_and_falls_as_it_learns():
    engine, state, batch = bench(lambda: rule("fa"), "dense 64 tanh | dense 64 tanh")
    probing = Probing(engine, batch, ["feedback_angle"])
    start = probing.measure(state)
    assert start["feedback_angle/0"] is None  # it sends nothing down
    assert all(75 < start[f"feedback_angle/{i}"] < 105 for i in (1, 2))
    for _ in range(100):
        engine.step(state, batch)
    assert probing.measure(state)["feedback_angle/2"] < start["feedback_angle/2"] - 10
    state.aux[1]["W"] = 3 * state.params[1]["W"]
    state.aux[2]["W"] = -state.params[2]["W"]
    found = probing.measure(state)
    assert found["feedback_angle/1"] == pytest.approx(0, abs=1e-5)
    assert found["feedback_angle/2"] == pytest.approx(180, abs=1e-5)
