"""Backpropagation: finite differences, a hand-computed step, wrong use."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.checks import BRANCHES, bench
from fflearn.engine import Engine
from fflearn.errors import LocalityError, ShapeError
from fflearn.registry import rule


def loss_at(engine, state, batch) -> float:
    out = engine.objective(engine.kernels, engine.predict(state, batch.x), batch.y)
    w = np.ones(len(batch.x)) if batch.weight is None else batch.weight
    return float((w * out.loss).sum() / w.sum())


@pytest.mark.parametrize("objective", ["softmax_cross_entropy", "mse", "binary_cross_entropy"])
def test_the_gradient_is_the_slope_of_the_loss(objective):
    engine, state, batch = bench(lambda: rule("backprop"), BRANCHES.replace("relu", "gelu"))
    engine = Engine(engine.net, engine.rule, (11,), 3, objective=objective, dtype="float64")
    batch = batch._replace(weight=np.linspace(0.5, 2, 7))
    updates, h = engine.updates(state, batch), 1e-6
    for u, slots in zip(updates, state.params, strict=True):
        for name, g in u.grads.items():
            direction = np.cos(np.arange(slots[name].size)).reshape(slots[name].shape)
            start = slots[name].copy()
            slots[name] = start + h * direction
            up = loss_at(engine, state, batch)
            slots[name] = start - h * direction
            down = loss_at(engine, state, batch)
            slots[name] = start
            slope = float((engine.kernels.formed(g) * direction).sum())
            assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_a_step_computed_by_hand():
    # x = 2, W1 = 3, so a1 = 6; W2 = (1, -1), so y = (6, -6); target (1, 0), so e = (5, -6).
    engine = Engine("dense 1 | dense 2", rule("backprop"), (1,), 2, objective="mse")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"] = 3, [[1, -1]]
    batch = Batch(np.array([[2.0]]), np.array([[1.0, 0.0]]))
    first, second = engine.updates(state, batch)
    formed = engine.kernels.formed
    np.testing.assert_allclose(formed(second.grads["W"]), [[30, -36]])
    np.testing.assert_allclose(second.grads["b"], [5, -6])
    np.testing.assert_allclose(formed(first.grads["W"]), [[22]])  # 2 (5 1 + (-6)(-1))
    np.testing.assert_allclose(first.grads["b"], [11])
    info, ledger = engine.step(state, batch)
    assert info["loss"] == pytest.approx((25 + 36) / 2)
    assert ledger.per_sample() == {"activity": 1, "transpose": 1}
    assert (ledger.transposes, ledger.forward_passes) == (1, 1)


def test_a_network_that_does_not_end_in_one_output_per_class_is_told():
    with pytest.raises(ShapeError, match="End it with dense 3"):
        Engine("dense 4 relu | dense 2", rule("backprop"), (5,), 3)


def test_without_its_channel_it_is_stopped():
    class Undeclared(type(rule("backprop"))):
        channels = frozenset()

    engine, state, batch = bench(Undeclared)
    with pytest.raises(LocalityError, match="Channel.TRANSPOSE"):
        engine.step(state, batch)
