"""What a tape could not repeat fails while it is recorded, with what to write instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from test_same_bits import batch

from fflearn.base import Channel, Rule, Update
from fflearn.checks import same_bits
from fflearn.engine import Engine
from fflearn.errors import LocalityError, RecordError


@dataclass(frozen=True)
class Ours(Rule):
    """Learns each layer from the error; ``f(v, s, g)`` does something to its gradient."""

    channels: ClassVar = frozenset({Channel.ERROR})
    f: ClassVar[Any] = None

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.update(error=out.error, top=out.error)
        return {"loss": bus.mean(out.loss)}

    def update(self, v, s):
        dy = s.top if v.is_output else v.trace.y * s.error.sum(1, keepdims=True)
        g = v.param_vjp(v.trace, v.act_vjp(v.trace, dy))
        return Update({"W": type(self).f(v, s, v.k.formed(g["W"])), "b": g["b"]})


def engine_with(f: Any, strict: bool = True, **options: Any) -> Engine:
    made = type("Ours", (Ours,), {"f": staticmethod(f)})
    options = {"backend": "reference", **options}
    engine = Engine("dense 7 relu | dense 3", made(), (11,), 3, **options)
    if engine.tapes is not None:
        engine.tapes.strict = strict
    return engine


def steps(engine: Engine, n: int = 3) -> Any:
    state = engine.init(0)
    for i in range(n):
        engine.step(state, batch(i))
    return state


counted: list[int] = []
leaked: list[Any] = []


def smuggle(v, s, g):
    leaked.append(g.sum())
    return g * leaked[0]


REFUSED = {
    "a branch": (lambda v, s, g: g if g.sum() > 0 else -g, "a branch"),
    "and": (lambda v, s, g: g * ((g.sum() > 0) and 2), "a branch"),
    "max": (lambda v, s, g: g * max(g.sum(), 1.0), "a branch"),
    "float": (lambda v, s, g: g * float(g.sum()), r"float\(\)"),
    "int": (lambda v, s, g: g * int(g.sum()), r"int\(\)"),
    "range": (lambda v, s, g: g * len(range(g.argmax())), "a count"),
    "item": (lambda v, s, g: g * g.sum().item(), r"\.item"),
    "tolist": (lambda v, s, g: g * g.tolist()[0][0], r"\.tolist"),
    "asarray": (lambda v, s, g: np.asarray(g), "np.asarray"),
    "equal": (lambda v, s, g: g * np.array_equal(g, g), "what array_equal gives"),
    "sort": (lambda v, s, g: g.sort(), r"\.sort"),
    "random": (lambda v, s, g: g * np.random.rand(), "two steps of Ours differ"),  # noqa: NPY002
    "a random array": (lambda v, s, g: g * np.random.rand(1), "two steps of Ours"),  # noqa: NPY002
    "a counter": (lambda v, s, g: g * len(counted.append(0) or counted), "two steps of Ours"),
    "growing work": (lambda v, s, g: grow(g), "two steps of Ours differ"),
}


def grow(g):
    counted.append(0)
    for _ in counted:
        g = g + 1
    return g


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_repeated_is_refused_with_what_to_write(what):
    f, message = REFUSED[what]
    counted.clear()
    with pytest.raises(RecordError, match=message) as told:
        steps(engine_with(f))
    assert 'mode="eager"' in str(told.value) and "FFLEARN_EAGER" in str(told.value)


def test_the_message_names_the_layer_and_the_operation():
    with pytest.raises(RecordError, match=r"mul in layer 1 got .*, then "):
        steps(engine_with(lambda v, s, g: g * np.random.rand() if v.index else g))  # noqa: NPY002


def test_an_array_that_was_not_sent_is_refused():
    leaked.clear()
    with pytest.raises(
        LocalityError, match="layer 1 used an array of layer 0 in mul.* only the Bus"
    ):
        steps(engine_with(smuggle, strict=False))
    leaked.clear()
    steps(engine_with(smuggle, mode="eager"))  # what recording sees and running does not


def test_an_array_of_the_schedule_is_refused_too():
    class Kept(Ours):
        def step(self, bus, batch):
            leaked[:] = [batch.y.sum()]
            return super().step(bus, batch)

    made = type("Kept", (Kept,), {"f": staticmethod(lambda v, s, g: g * leaked[0])})
    engine = Engine("dense 7 relu | dense 3", made(), (11,), 3, backend="reference")
    with pytest.raises(LocalityError, match="an array of the schedule"):
        steps(engine)


def test_a_step_that_cannot_be_repeated_is_undone_and_run_by_its_code():
    def f(v, s, g):
        return g * (1 + float(np.sign(g.sum()))) if v.is_output else g

    engine, eager = engine_with(f, strict=False), engine_with(f, mode="eager")
    assert same_bits(steps(engine), steps(eager)) is None
    assert "float()" in engine.tapes.why and engine.tapes._programs == {}


def test_other_ways_to_fail_in_a_recording_alone_are_undone_too():
    def into(v, s, g):
        host = np.zeros(3)
        host[0] = g.sum()
        return g * host[0]

    engine, eager = engine_with(into, strict=False), engine_with(into, mode="eager")
    assert same_bits(steps(engine), steps(eager)) is None and engine.tapes.why
    with pytest.raises(ValueError, match="setting an array element"):
        steps(engine_with(into))


def test_what_the_code_itself_raises_is_raised():
    def wrong(v, s, g):
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        steps(engine_with(wrong, strict=False))


def test_a_rule_may_say_that_its_steps_cannot_be_recorded():
    made = type("Ours", (Ours,), {"f": staticmethod(lambda v, s, g: g), "op_by_op": "it prints"})
    assert Engine("dense 3", made(), (11,), 3).tapes is None


def test_a_settling_sweep_needs_arrays_that_stay_as_they_are():
    class Settles(Ours):
        channels: ClassVar = frozenset({Channel.ERROR, Channel.FEEDBACK})

        def step(self, bus, batch):
            bus.forward(batch.x)
            bus.settle(batch.x, None, 4)
            return super().step(bus, batch)

        def forward(self, v, m, s):
            v.state["s"] = m.x
            return super().forward(v, m, s)

        def relax(self, v, below, above):
            s = v.state["s"]
            if self.turns:
                v.state["s"] = s.T.copy().T if s.flags.c_contiguous else s.copy()
            else:
                v.state["s"], v.state["sum"] = s * 0.5, s.sum()

        def feedback(self, v, m):
            return None

    f = {"f": staticmethod(lambda v, s, g: g)}
    for turns, message in ((True, "another shape, dtype or layout"), (False, "a number is none")):
        made = type("Settles", (Settles,), {**f, "turns": turns})
        engine = Engine("dense 11 relu | dense 3", made(), (11,), 3, backend="reference")
        engine.tapes.strict = True
        with pytest.raises(RecordError, match=message):
            steps(engine)
