"""Recording a step, and telling whether two recordings are of the same step."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.errors import RecordError
from fflearn.state import State
from fflearn.tape.traced import (
    SHARED,
    Op,
    Recorder,
    Ref,
    Traced,
    TracedKernels,
    concrete,
    name_of,
    noted,
    root,
)
from fflearn.tape.wire import SETTINGS, Loop, TapeBus

PARTS = ("params", "aux", "opt")


class TracedSlots(Mapping[str, Any]):
    """Arrays of the state in a recording: as `state.Slots`."""

    def __init__(self, rec: Recorder, slots: Any, home: str, owner: int):
        self._traced = {n: rec.outside(f"{home}/{n}", a, owner) for n, a in slots.items()}
        self.readable = {n: rec.outside(f"{home}/{n}", a, owner) for n, a in slots.readable.items()}

    def __getitem__(self, name: str) -> Traced:
        return self._traced[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._traced[name][...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._traced)

    def __len__(self) -> int:
        return len(self._traced)


class TracedState:
    """A state in a recording."""

    def __init__(self, rec: Recorder, state: State):
        self.step = rec.outside("step", state.step, SHARED)
        self.seed, self.arrays = state.seed, state.arrays
        self.params, self.aux, self.opt = (
            [
                TracedSlots(rec, slots, f"{part}/{i}", i)
                for i, slots in enumerate(getattr(state, part))
            ]
            for part in PARTS
        )


@dataclass
class Recording:
    """The operations of a step, and what it reported.

    Attributes
    ----------
    ops : list of Op
    info : dict
        What the step reports: refs, or values that are the same in every step.
    """

    ops: list[Op]
    info: dict[str, Any]


def inputs(batch: Batch) -> dict[str, Any]:
    """What a step gets from outside besides the state, by name."""
    found = {"batch.x": batch.x, "batch.y": batch.y}
    if batch.weight is not None:
        found["batch.weight"] = batch.weight
    for name, a in batch.side.items():
        found[f"side.{name}"] = a
    return found


def own(given: dict[str, Any]) -> dict[str, Any]:
    """The inputs, each array with all of some memory to itself."""
    found: dict[str, Any] = {}
    for name, a in given.items():
        if isinstance(a, np.ndarray):
            alone = a.flags.c_contiguous and root(a).nbytes == a.nbytes
            others = (b for b in found.values() if isinstance(b, np.ndarray))
            if not alone or any(np.may_share_memory(a, b) for b in others):
                a = a.copy()
        found[name] = a
    return found


def record(
    engine: Any, state: State, batch: Batch, variant: Hashable, train: bool = True
) -> tuple[Recording, dict[str, Any], Any]:
    """Do a step and write it down; without ``train`` the state stays as it is.

    Returns
    -------
    recording : Recording
    info : dict
        What the step reported.
    ledger : Ledger
    """
    rec = Recorder()
    given = {name: rec.outside(name, a, None) for name, a in own(inputs(batch)).items()}
    side = {n: handed_to_all(given[f"side.{n}"]) for n in batch.side}
    traced = Batch(given["batch.x"], given["batch.y"], side, given.get("batch.weight"))
    now = engine.settings_at(state.step)
    settings = [rec.outside(n, value, SHARED) for n, value in zip(SETTINGS, now, strict=True)]
    found: dict[str, Any] = {}
    wire = partial(TapeBus, rec=rec, settings=tuple(settings), probes=engine.probes, found=found)
    k = TracedKernels(engine.kernels, rec)
    info, ledger = engine.run(TracedState(rec, state), traced, variant, train, wire=wire, k=k)
    info |= found
    return Recording(rec.ops, noted(info)), concrete(info), ledger


def handed_to_all(t: Traced) -> Traced:
    """The same value, which every layer may read."""
    return Traced(t._rec, t._value, t._ref, SHARED)


# ---- comparing ------------------------------------------------------------------------------------


def difference(one: Recording, two: Recording) -> str:
    """What is not the same in two recordings, in words; "" where nothing is."""
    told = _ops_differ(one.ops, two.ops)
    if told:
        return told
    if one.info.keys() != two.info.keys():
        return f"the steps report {sorted(one.info)} and {sorted(two.info)}"
    for name, value in one.info.items():
        if not alike(value, two.info[name]):
            return f"the steps report {name} = {value!r} and {two.info[name]!r}"
    return ""


def _ops_differ(one: list[Op], two: list[Op]) -> str:
    for a, b in zip(one, two, strict=False):
        if a.fn != b.fn and name_of(a.fn) != name_of(b.fn):
            return f"{name_of(a.fn)} in layer {a.layer}, then {name_of(b.fn)} in layer {b.layer}"
        same = a.layer == b.layer and alike(a.outs, b.outs) and alike(a.writes, b.writes)
        if not same or not alike(a.args, b.args) or not alike(a.kwargs, b.kwargs):
            where = "the schedule" if a.layer is None else f"layer {a.layer}"
            return f"{name_of(a.fn)} in {where} got {a.args!r}, then {b.args!r}"
        if isinstance(a, Loop) and isinstance(b, Loop) and (told := _ops_differ(a.ops, b.ops)):
            return told
    if len(one) != len(two):
        return f"{len(one)} operations, then {len(two)}"
    return ""


def alike(a: Any, b: Any) -> bool:
    """Whether two arguments are the same, arrays to the bit."""
    if isinstance(a, Ref):
        return isinstance(b, Ref) and a.same(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        same = a.shape == b.shape and a.dtype == b.dtype and a.strides == b.strides
        return same and a.tobytes() == b.tobytes()
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(value, b[n]) for n, value in a.items())
    return bool(a == b) or repr(a) == repr(b)


def checked(one: Recording, two: Recording, who: str) -> Recording:
    """The second; RecordError where the first is of another step."""
    told = difference(one, two)
    if told:
        raise RecordError(
            f"two steps of {who} differ ({told[:400]}), so none can be repeated: something hidden "
            f"changes between steps. Draw noise from v.key or bus.key, keep what lasts in aux, and "
            f'take step, progress and rates as the bus gives them; or type mode="eager", FFLEARN_EAGER=1.'
        )
    return two
