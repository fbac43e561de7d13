"""Layer by layer: every rule that can train so, found by its parameter ``order``."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from fflearn import registry
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.optim import optimizer

RULES = [n for n in registry.names() if "order" in registry.rule_class(n).choices]
NET, HIDDEN = "dense 13 tanh | act identity | dense 12 relu | dense 3", (0, 2)
STEPS = 4  # of each stage: two hidden layers and a read-out


def runs(name, order, steps):
    """An engine, its state after so many steps of one batch, and of each step what moved and was told."""
    rng, params = np.random.default_rng(1), {"order": order}
    if "negatives" in {f.name for f in fields(registry.rule_class(name))}:
        params["negatives"] = "wrong"  # drawn from the data alone, and not from what has learned
    batch = Batch(rng.normal(size=(8, 7)), np.eye(3)[rng.integers(0, 3, 8)])
    made = registry.rule(name, **params)
    settings = {"dtype": "float64", "horizon": (1, 3 * STEPS)}
    engine = Engine(NET, made, (7,), 3, optimizer("adam", lr=0.01), **settings)
    state, told = engine.init(0), []
    for _ in range(steps):
        before = {path: a.copy() for path, a in state.arrays().items()}
        info, ledger = engine.step(state, batch)
        moved = {
            int(path.split("/")[1])
            for path, a in state.arrays().items()
            if path.startswith("params") and (a != before[path]).any()
        }
        told.append((moved, info, ledger.forward_passes))
    return engine, state, told


def test_there_are_three():
    assert {"forward_forward", "local_loss", "self_contrastive"} <= set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_one_layer_learns_at_a_time_and_those_above_do_not_fire(name):
    engine, _, told = runs(name, "greedy", 3 * STEPS)
    readout = {s.index for s in engine.specs if s.is_output}
    for step, (moved, info, passes) in enumerate(told):
        stage = step // STEPS
        assert moved == ({HIDDEN[stage]} if stage < 2 else readout), step
        assert {"loss", "head_loss"} & set(info)
        of_layers = {path for path in info if path.startswith("loss/")}
        assert of_layers == ({f"loss/{HIDDEN[stage]}"} if stage < 2 else set())
        lowest = told[0][2]
        assert passes == lowest if stage == 0 else passes > lowest


@pytest.mark.parametrize("name", RULES)
def test_the_first_layer_learns_what_it_learns_beside_the_others(name):
    """It reads the data alone; the second learns on what the first one ended with."""
    _, greedy, _ = runs(name, "greedy", STEPS)
    _, together, _ = runs(name, "simultaneous", STEPS)
    _, later, _ = runs(name, "greedy", 3 * STEPS)
    first = [path for path in greedy.arrays() if path.startswith("params/0/")]
    assert first
    for path in first:
        np.testing.assert_array_equal(greedy.arrays()[path], together.arrays()[path])
        np.testing.assert_array_equal(greedy.arrays()[path], later.arrays()[path])
    assert (later.arrays()["params/2/W"] != together.arrays()["params/2/W"]).any()
