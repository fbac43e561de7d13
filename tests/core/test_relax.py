"""Relaxation: the order of a sweep, layers without a state, how settling ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from fflearn.base import Channel, Rule, Settled, Update
from fflearn.checks import bench


@dataclass(frozen=True)
class Counting(Rule):
    """States are counters: a layer's is one more than what comes from above."""

    op_by_op: ClassVar = "the tests look at values"
    channels: ClassVar = frozenset({Channel.FEEDBACK})
    log: ClassVar[list[Any]]
    act: ClassVar[Any]

    def step(self, bus, batch):
        bus.forward(batch.x)
        bus.each(self.start)
        type(self).act(bus, batch)
        return {"loss": np.zeros(())}

    def start(self, v, s):
        v.state["s"] = np.zeros_like(v.trace.y)

    def has_state(self, v):
        return v.activation != "identity"

    def relax(self, v, below, above):
        self.log.append(("relax", v.index, above is None))
        total = 0.0 if above is None else float(above.max())
        v.state["s"] = np.full_like(v.state["s"], total + self.has_state(v.spec))

    def feedback(self, v, m):
        self.log.append(("feedback", v.index, m is None))
        total = v.state["s"].max() if self.has_state(v.spec) else m.max()
        return np.full((len(v.state["s"]), *v.in_shape), total)

    def update(self, v, s):
        return Update()


def run(act, hidden: str) -> list[Any]:
    made = type("Made", (Counting,), {"log": [], "act": staticmethod(act)})
    engine, state, batch = bench(made, hidden)
    engine.step(state, batch)
    return made.log


def test_activity_rises_through_layers_without_a_state_then_every_layer_from_the_top():
    found = run(lambda bus, batch: bus.relax(batch.x, lambda: batch.y), "dense 7 tanh | dense 5")
    up = [("relax", 1, True), ("relax", 2, True)]
    down = [("feedback", 2, False), ("feedback", 1, False), ("relax", 0, False)]
    assert found == [*up, *down, ("feedback", 0, False)]


@pytest.mark.parametrize("hidden", ["dense 7 tanh | dense 7 tanh", "dense 7 tanh | act tanh"])
def test_what_enters_at_the_top_reaches_the_lowest_layer_in_one_sweep(hidden):
    reached = {}

    def act(bus, batch):
        bus.relax(batch.x, lambda: 10 * batch.y)
        bus.each(bus.rule.note)

    def note(self, v, s):
        reached[v.index] = v.state["s"].max()

    made = type("Made", (Counting,), {"log": [], "act": staticmethod(act), "note": note})
    engine, state, batch = bench(made, hidden)
    engine.step(state, batch)
    assert reached == {0: 12, 1: 11, 2: 0}  # a layer without a state passes 10 on as it is


def test_messages_of_branches_are_added_at_the_fork_and_copied_at_the_sum():
    made = "dense 7 tanh | residual(dense 7 tanh; dense 7)"
    seen = {}

    def act(bus, batch):
        bus.relax(batch.x, lambda: 10 * batch.y)
        bus.each(bus.rule.note)

    def note(self, v, s):
        seen[v.index] = v.state["s"].max()

    kind = type("Made", (Counting,), {"log": [], "act": staticmethod(act), "note": note})
    engine, state, batch = bench(kind, made)
    engine.step(state, batch)
    assert (seen[1], seen[0]) == (11, 1 + 11 + 10)


def test_settling_tells_its_sweeps_and_the_last_change_and_ends_with_activity_rising():
    ends = []

    def act(bus, batch):
        # In the first sweep states go from 0 to 11 and 12, then they stay.
        ends.append(bus.settle(batch.x, lambda: 10 * batch.y, 9, 1e-3))
        ends.append(bus.settle(batch.x, lambda: 90 * batch.y, 1, 1e-3))

    log = run(act, "dense 7 tanh | dense 5 tanh")
    assert ends == [Settled(2, 0.0), Settled(1, 80.0)]
    assert log[-1] == ("relax", 2, True)


def test_a_complex_state_changes_by_its_absolute_value():
    def act(bus, batch):
        assert bus.relax(batch.x, lambda: batch.y) == 2
        bus.each(bus.rule.turn)
        assert bus.relax(batch.x, lambda: batch.y) == pytest.approx(np.hypot(2, 3))

    def turn(self, v, s):
        v.state["s"] = v.state["s"] * 0 - 3j if v.index == 0 else v.state["s"]

    def relax(self, v, below, above):
        old = v.state["s"]
        Counting.relax(self, v, below, above)
        v.state["s"] = v.state["s"].real.astype(old.dtype)

    made = type(
        "Made", (Counting,), {"log": [], "act": staticmethod(act), "turn": turn, "relax": relax}
    )
    engine, state, batch = bench(made, "dense 7 tanh")
    engine.step(state, batch)


@pytest.mark.parametrize(("moves", "value", "steps"), [(0, 5, 1), (1, 5, 1), (1, np.nan, 9)])
def test_the_change_is_that_of_the_layer_that_moves_most_and_no_number_ends_it(moves, value, steps):
    ends = []

    def act(bus, batch):
        ends.append(bus.settle(batch.x, lambda: batch.y, steps, 1e-3))

    def relax(self, v, below, above):
        v.state["s"] = np.full_like(v.state["s"], value if v.index == moves else 0.5)

    made = type("Made", (Counting,), {"log": [], "act": staticmethod(act), "relax": relax})
    engine, state, batch = bench(made, "dense 7 tanh | dense 5 tanh")
    engine.step(state, batch)
    np.testing.assert_equal(ends, [Settled(1, value)])
