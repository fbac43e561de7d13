"""Angles between what two rules would learn."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.alignment import alignment
from fflearn.base import Batch
from fflearn.checks import bench, same_bits, samples
from fflearn.engine import Engine
from fflearn.registry import rule


def two(name: str, hidden: str = "dense 17 tanh | dense 12 relu"):
    engine, state, batch = bench(lambda: rule(name), hidden)
    return engine, bench(lambda: rule("backprop"), hidden).engine, state, batch


@pytest.mark.parametrize("angle", [0, 60, 90, 180])
def test_an_angle_by_hand(angle):
    # One sample x = 1 and linear units: dW1 is e B for DFA and e W2^T for backprop.  With e = (1, 0)
    # these are the first row of B and the first column of W2, here (1, 0).
    net = "dense 2 bias=false | dense 2 bias=false"
    dfa, bp = (
        Engine(net, rule(name), (1,), 2, objective="mse", dtype="float64")
        for name in ("dfa", "backprop")
    )
    state, turn = dfa.init(0), np.radians(angle)
    state.params[0]["W"], state.params[1]["W"] = [[1, 0]], np.eye(2)
    state.aux[0]["B"] = 3 * np.array([[np.cos(turn), np.sin(turn)], [7, 7]])
    found = alignment(dfa, bp, state, Batch(np.ones((1, 1)), np.zeros((1, 2))))
    assert found == pytest.approx({0: angle, 1: 0}, abs=1e-5)


def test_it_uses_the_weights_of_the_state_and_changes_nothing():
    engine, other, state, batch = two("dfa")
    first = alignment(engine, other, state, batch)
    for _ in range(5):
        engine.step(state, batch)
    before = state.copy()
    later = alignment(engine, other, state, batch)
    assert same_bits(before, state) is None and state.step == 5
    assert later[0] != first[0] and later[2] < 1e-5


def test_layers_without_a_gradient_are_left_out():
    engine, other, state, batch = two("frozen", "dense 17 tanh | act relu")
    assert alignment(engine, other, state, batch) == pytest.approx({2: 0}, abs=1e-5)
    engine, other, state, batch = two("dfa", "dense 17 relu | dense 12 tanh")
    state.params[0]["b"] = -100.0  # all silent: no gradient
    assert alignment(engine, other, state, batch).keys() == {1, 2}


def test_random_feedback_starts_unrelated_and_comes_to_agree():
    """Feedback alignment, measured: weights turn until random feedback points the right way."""
    engine, other, state, _ = two("dfa", "dense 64 tanh | dense 64 tanh")
    batch = samples(64, 3)
    start = alignment(engine, other, state, batch)
    for _ in range(60):
        engine.step(state, batch)
    end = alignment(engine, other, state, batch)
    for layer in (0, 1):
        assert 60 < start[layer] < 120 and end[layer] < start[layer] - 15, (start, end)
