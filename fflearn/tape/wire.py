"""The Bus of a step that is being recorded: it says whose each array is, and notes loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fflearn.base import LayerView, Settled, Signals, Update
from fflearn.bus import Bus, live_bytes
from fflearn.errors import RecordError
from fflearn.tape.traced import (
    SHARED,
    Op,
    Recorder,
    Ref,
    Traced,
    concrete,
    handed,
    leaves,
    mapped,
)

SETTINGS = ("progress", "lr", "weight_decay")
Slot = tuple[int, int]  # of a value that a view keeps: its layer, its number there


class Place(NamedTuple):
    """Memory that a settling loop reads and writes, and the slots that look into it."""

    whole: Traced
    slots: dict[Slot, Traced]


class TapeBus(Bus):
    """A Bus whose state, settings and batch are traced.

    Parameters
    ----------
    settings : tuple of Traced
        Progress, learning rate and weight decay.
    probes : mapping
        As `Engine.probes`.
    found : dict
        What they found goes here.
    """

    def __init__(
        self,
        *args: Any,
        rec: Recorder,
        settings: Any,
        probes: Mapping[str, Any],
        found: dict[str, Any],
    ):
        self._rec, self._now = rec, settings
        super().__init__(*args)
        self._probes, self.found = probes, found
        if probes and self._train:
            self._observe = self._probe
        if self._batch is not None and self._batch.weight is not None:
            for v in self._views:
                v._weight = handed(self._batch.weight, SHARED)

    def _settings(self) -> tuple[Any, Any, Any]:
        return self._now

    def _call(self, hook: str, v: LayerView, *args: Any) -> Any:
        layer = v.spec.index
        for s in args:
            if isinstance(s, Signals):
                s._named, s._top = handed(s._named, layer), handed(s._top, layer)
        with self._rec.inside(layer):
            out = super()._call(hook, v, *handed(args, layer))
        return handed(out, None)

    def _alive(self, tree: Any, own: set[int]) -> int:
        return live_bytes(concrete(tree), own)

    # -- probes ------------------------------------------------------------------------------------
    def _probe(self, v: LayerView, u: Update) -> None:
        for name, probe in self._probes.items():
            seen = Probed(probe, v)
            self.found[f"{name}/{v.spec.index}"] = self._rec.call(seen, *read(v, u), whole=True)

    # -- loops that stop on a value ----------------------------------------------------------------
    def settle(
        self,
        bottom: Any,
        top: Callable[[], Any] | None = None,
        steps: int = 50,
        tol: float = 0.0,
    ) -> Settled:
        """As `Bus.settle`; one sweep is recorded, and repeated until its change is small.

        The first sweep may make arrays that were not there, so it is recorded by itself; arrays
        that the second changes get a place of their own each, which every further sweep reads
        and writes.
        """
        if steps < 1:
            return super().settle(bottom, top, steps, tol)
        rec = self._rec
        change = self.relax(bottom, top)
        sweeps = 1
        if steps > 1:
            moved = self._moved(bottom, top)
            places = self._settled_in(moved)
            values = [place.whole._value.copy() for place in places]
            counted = self._counts()
            loop, outside = Loop(change._ref, steps, tol), rec.ops
            rec.ops, start = loop.ops, rec.count
            new = self._sweep(bottom, top, places)
            if float(change._value) >= tol:
                sweeps, change = 2, new
            else:  # recorded for the steps that need it
                for place, value in zip(places, values, strict=True):
                    place.whole._value[...] = value
                self._restore(counted)
            loop.changed = new._ref
            while sweeps < steps and float(change._value) >= tol:
                rec.ops, rec.count = [], start  # the same operations, on the same buffers
                sweeps, change = sweeps + 1, self._sweep(bottom, top, places)
            rec.ops = outside
            found: Any = rec.loop(loop, sweeps, float(change._value))
        else:
            found = sweeps, rec.call(float_of, change, whole=True)
        self._rise(bottom)
        return Settled(*found)

    def _moved(self, bottom: Any, top: Any) -> list[list[Slot]]:
        """Which slots of the views a sweep changes: tried, and undone.

        Slots that looked into one array before and look into one after are of one group.
        """
        rec = self._rec
        ops, count, counted, before = rec.ops, rec.count, self._counts(), self._slots()
        held = [(dict(v.traces), dict(v.state), dict(v.reports)) for v in self._views]
        own = dict(vars(self))
        rec.ops = []
        self.relax(bottom, top)
        after = self._slots()
        rec.ops, rec.count = ops, count
        vars(self).update(own)
        self._restore(counted)
        for v, (traces, state, reports) in zip(self._views, held, strict=True):
            v.traces, v.state, v.reports = traces, state, reports
        if [layout(t) for t in before.values()] != [layout(t) for t in after.values()]:
            raise RecordError(
                "a settling sweep gives what it settles another shape, dtype or layout. Let relax "
                "set arrays like those it found, for instance by .copy()."
            )
        groups: dict[Any, list[Slot]] = {}
        for at, t in after.items():
            was, now = before[at]._ref, t._ref
            if not now.same(was):
                groups.setdefault((was.buffer.index, now.buffer.index), []).append(at)
        return list(groups.values())

    def _settled_in(self, moved: list[list[Slot]]) -> list[Place]:
        """A place of its own for each group, with what its slots hold now."""
        slots, places = self._slots(), []
        for group in moved:
            whole = self._rec.whole(slots[group[0]]).copy()
            places.append(Place(whole, {at: self._rec.inner(whole, slots[at]) for at in group}))
        self._fill(places)
        return places

    def _sweep(self, bottom: Any, top: Any, places: list[Place]) -> Any:
        """A sweep after which every slot is in its place again; its largest change."""
        rec, change = self._rec, self.relax(bottom, top)
        slots, homes = self._slots(), {p.whole._ref.buffer.index for p in places}
        moved = []
        for place in places:
            new = slots[next(iter(place.slots))]
            if new._ref.buffer is not place.whole._ref.buffer:
                whole, held = rec.whole(new), new._ref.buffer.index in homes
                # What another place holds is copied before that is written to.
                moved.append((place.whole, whole.copy() if held else whole))
        for home, value in moved:
            home[...] = value
        self._fill(places)
        return change

    def _slots(self) -> dict[Slot, Traced]:
        """Every value that the views keep, by layer and number."""
        return {
            (v.spec.index, i): t
            for v in self._views
            for i, t in enumerate(leaves((v.traces, v.state), Traced))
        }

    def _fill(self, places: list[Place]) -> None:
        settled = {at: t for place in places for at, t in place.slots.items()}
        for v in self._views:
            number = iter(range(1 << 30))

            def put(t: Traced, v: LayerView = v, number: Any = number) -> Traced:
                return settled.get((v.spec.index, next(number)), t)

            v.traces, v.state = mapped(put, Traced, ({**v.traces}, {**v.state}))

    def _counts(self) -> dict[str, Any]:
        return {} if self.ledger is None else copy.deepcopy(vars(self.ledger))

    def _restore(self, counts: dict[str, Any]) -> None:
        if self.ledger is not None:
            vars(self.ledger).update(counts)


def float_of(a: Any) -> float:
    """As a Python number."""
    return float(a)


def layout(t: Traced) -> tuple[Any, ...]:
    """What must stay for a loop to be repeated."""
    return t._ref[1:]


def read(v: LayerView, u: Update) -> tuple[Any, ...]:
    """What a probe may read, as a nest of arrays."""
    held = {**v.params}, {**v.aux}, {**v.traces}, {**v.state}
    return u, v.key.step, *held, v.env.side, v._weight


class Loop(Op):
    """Operations that are repeated while the change they make is not small."""

    __slots__ = ("changed", "ops", "steps", "tol")

    def __init__(self, first: Ref, steps: int, tol: float):
        super().__init__(Loop, (first,), {}, [], [], None)
        self.steps, self.tol = steps, tol
        self.ops: list[Op] = []
        self.changed: Any = None

    def reads(self) -> list[Ref]:
        return [*self.args, self.changed, *(r for op in self.ops for r in op.reads())]


class Probed:
    """A probe, as a function of what its layer's view holds."""

    def __init__(self, probe: Any, v: LayerView):
        self.probe, self.view = probe, copy.copy(v)
        own, k = self.view, v.k.plain  # without anything of this recording
        own.k, own.key, own._weight = k, v.key.using(k).at(0), None
        own.params = own.aux = own.traces = own.state = own.reports = {}
        key = None if v.env.key is None else v.env.key.using(k).at(0)
        own.env = v.env._replace(side={}, key=key)
        self.__name__ = f"the probe {getattr(probe, '__name__', probe)}"

    def __eq__(self, other: object) -> bool:
        mine = self.probe, self.view.spec.index
        return isinstance(other, Probed) and mine == (other.probe, other.view.spec.index)

    __hash__ = None  # type: ignore[assignment]

    def __call__(
        self,
        u: Update,
        step: int,
        params: Any,
        aux: Any,
        traces: Any,
        state: Any,
        side: Any,
        weight: Any,
    ) -> Any:
        v = copy.copy(self.view)
        v.key, v._weight = v.key.at(step), weight
        v.params, v.aux, v.traces, v.state, v.reports = params, aux, traces, state, {}
        key = None if v.env.key is None else v.env.key.at(step)
        v.env = v.env._replace(side=side, key=key)
        return self.probe(v, u)
