"""Every rule with numbers to predict: it learns them, or it says that it needs classes."""

from __future__ import annotations

import numpy as np
import pytest
from test_every_rule import MADE

from fflearn import registry
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import FFLearnError, SpecError

NET = "dense 24 tanh | dense 24 tanh"
N_IN = 5
MUST = ("backprop", "dfa", "fa", "frozen", "sign_symmetry")  # no labels in their equations


def problem(columns, rows=64):
    """Numbers that are a linear map of the features, and a little more."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, N_IN))
    return Batch(x, x @ rng.normal(size=(N_IN, columns)) + 0.5)


def engine_of(rule, columns):
    return Engine(
        f"{NET} | dense {columns}",
        rule,
        (N_IN,),
        columns,
        objective="mse",
        task="regression",
        dtype="float64",
    )


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_it_learns_numbers_or_is_refused_by_name(make, columns):
    rule = make()
    if rule.needs_classes:
        assert registry.name_of(rule) not in MUST
        with pytest.raises(
            SpecError, match=f"^{type(rule).__name__} learns from classes; here are numbers"
        ):
            engine_of(rule, columns)
        return
    engine, batch = engine_of(rule, columns), problem(columns)
    state = engine.init(0)
    assert engine.predict(state, batch.x).shape == (64, columns)
    losses = [float(engine.step(state, batch)[0]["loss"]) for _ in range(150)]
    assert np.isfinite(losses).all() and losses[-1] < 0.3 * losses[0]
    wrong = batch.y - engine.predict(state, batch.x)
    assert (wrong**2).mean() < 0.3 * batch.y.var()


@pytest.mark.torch
def test_the_reference_learns_what_backprop_learns():
    pytest.importorskip("torch")
    from fflearn.reference import TorchEngine

    ours, batch = engine_of(registry.rule("backprop"), 2), problem(2)
    theirs = TorchEngine(f"{NET} | dense 2", (N_IN,), 2, None, "mse", "float64", task="regression")
    a, b = ours.init(0), theirs.init(0)
    for _ in range(20):
        one, other = (e.step(s, batch)[0]["loss"] for e, s in ((ours, a), (theirs, b)))
        assert float(one) == pytest.approx(float(other), rel=1e-9)


@pytest.mark.parametrize(
    ("outputs", "given", "told"),
    [
        (1, {}, "at least 2 classes; got 1"),
        (1, {"objective": "mse"}, "at least 2 classes; got 1"),
        (0, {"objective": "mse", "task": "regression"}, "at least 1 number to predict; got 0"),
        (1, {"task": "regression"}, "softmax_cross_entropy compares with classes.*objective=mse"),
        (1, {"task": "regression", "objective": "binary_cross_entropy"}, "compares with classes"),
        (2, {"task": "regression", "objective": "mse"}, "one output per number: 2; the last layer"),
        (1, {"task": "numbers"}, "one of classification, regression; got 'numbers'"),
    ],
)
def test_what_does_not_go_together_is_told(outputs, given, told):
    with pytest.raises(FFLearnError, match=told):
        Engine("dense 4 relu | dense 1", registry.rule("dfa"), (N_IN,), outputs, **given)


def test_classes_may_be_learned_by_squared_error_by_every_rule():
    for make in MADE.values():
        Engine(f"{NET} | dense 3", make(), (N_IN,), 3, objective="mse")
