"""A recording made executable: memory for what a step makes, and calls on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.state import State
from fflearn.tape.record import Recording, inputs
from fflearn.tape.traced import Buffer, Op, Ref, leaves, mapped
from fflearn.tape.wire import SETTINGS, Loop

LINE = 64  # bytes of a cache line: where buffers begin


class Program:
    """A step that runs without the rule's code, on one state.

    Parameters
    ----------
    recording : Recording
    state : State
        Its arrays are read and written where they are; they must not move (`state.Slots`).
    batch : Batch
        What a batch looks like.
    """

    def __init__(self, recording: Recording, state: State, batch: Batch):
        self.recording, self._state = recording, weakref.ref(state)
        self._objects: dict[Buffer, Any] = {}
        self._memory = state.arrays()
        ops = needed(recording.ops, recording.info)
        self.arena = plan(ops, recording.info)
        self._batch = self._places(batch)
        self._calls = [self._call(op) for op in ops]
        self._info = {n: self._reader(value) for n, value in recording.info.items()}
        self._homes = {b.home: b for b in buffers(ops, recording.info) if b.home}

    def of(self, state: State) -> bool:
        """Whether it runs on this state."""
        return self._state() is state

    def __call__(self, step: int, settings: tuple[float, ...], batch: Batch) -> dict[str, Any]:
        """A step; what it reports."""
        for name, value in inputs(batch).items():
            if name in self._batch:
                self._batch[name][...] = value
            elif name in self._homes:
                self._objects[self._homes[name]] = value
        for name, value in zip(("step", *SETTINGS), (step, *settings), strict=True):
            if name in self._homes:
                self._objects[self._homes[name]] = value
        for call in self._calls:
            call()
        return {n: read() for n, read in self._info.items()}

    # -- binding -----------------------------------------------------------------------------------
    def _places(self, batch: Batch) -> dict[str, np.ndarray]:
        """Fixed memory for the arrays of a batch."""
        made = {n: a.copy() for n, a in inputs(batch).items() if isinstance(a, np.ndarray)}
        self._memory |= made
        return made

    def view(self, ref: Ref) -> np.ndarray:
        """The array that a ref names."""
        b = ref.buffer
        if b.at is None:
            b.at = self._memory[b.home].reshape(-1).view(np.uint8)
        return np.ndarray(ref.shape, ref.dtype, b.at, ref.offset, ref.strides)

    def _reader(self, item: Any) -> Callable[[], Any]:
        """A function that gives the value of a nest of refs now."""
        if isinstance(item, Ref):
            if item.kind == "object":
                objects, b = self._objects, item.buffer
                return lambda: objects[b]
            view = self.view(item)
            if item.kind == "scalar":
                return lambda: view[()]
            return lambda: view.copy(order="K")
        if leaves(item, Ref):
            return lambda: mapped(lambda ref: self._reader(ref)(), Ref, item)
        return lambda: item

    def _argument(self, item: Any) -> Any:
        """Views in the place of arrays; other refs stay, to be read at each call."""
        return mapped(lambda r: self.view(r) if r.kind == "array" else r, Ref, item)

    def _call(self, op: Op) -> Callable[[], None]:
        if isinstance(op, Loop):
            return self._loop(op)
        fn, args, kwargs = op.fn, self._argument(op.args), self._argument(op.kwargs)
        keep = self._keeper(op.outs)
        changing = leaves((args, kwargs), Ref)
        if not changing:
            return lambda: keep(fn(*args, **kwargs))
        read = {ref.buffer: self._reader(ref) for ref in changing}

        def now(ref: Ref) -> Any:
            return read[ref.buffer]()

        return lambda: keep(fn(*mapped(now, Ref, args), **mapped(now, Ref, kwargs)))

    def _keeper(self, outs: list[Ref | None]) -> Callable[[Any], None]:
        """A function that puts a result where it belongs."""
        objects = self._objects
        if not any(out is not None for out in outs):
            return lambda result: None
        if len(outs) == 1:
            (out,) = outs
            assert out is not None
            if out.kind == "object":
                b = out.buffer
                return lambda result: objects.__setitem__(b, result)
        places = [None if out is None or out.kind == "object" else self.view(out) for out in outs]

        def keep(result: Any) -> None:
            for out, place, value in zip(outs, places, results(result), strict=True):
                if place is not None:
                    place[...] = value
                elif out is not None:
                    objects[out.buffer] = value

        return keep

    def _loop(self, op: Loop) -> Callable[[], None]:
        calls = [self._call(inner) for inner in op.ops]
        first, changed = self._reader(op.args[0]), self._reader(op.changed)
        objects, (sweeps, change) = self._objects, op.outs

        def loop() -> None:
            n, found = 1, float(first())
            while n < op.steps and found >= op.tol:
                for call in calls:
                    call()
                n, found = n + 1, float(changed())
            objects[sweeps.buffer], objects[change.buffer] = n, found

        return loop


def results(result: Any) -> list[Any]:
    """The parts of a result, as `Recorder` lists them."""
    if isinstance(result, (tuple, list)):
        return [part for item in result for part in results(item)]
    return [] if result is None else [result]


# ---- passes -------------------------------------------------------------------------------------


def needed(ops: list[Op], info: dict[str, Any]) -> list[Op]:
    """The operations that the state or the report depends on."""
    wanted = {ref.buffer for ref in leaves(info, Ref)}
    kept = []
    for op in reversed(ops):
        made = [ref.buffer for ref in (*op.outs, *op.writes) if ref is not None]
        if any(b in wanted or b.home for b in made):
            kept.append(op)
            wanted |= {ref.buffer for ref in op.reads()}
    return kept[::-1]


def touched(op: Op) -> list[Ref]:
    """Every ref of an operation, and of those it repeats."""
    own = [*op.reads(), *op.writes, *(out for out in op.outs if out is not None)]
    return own + [r for inner in (op.ops if isinstance(op, Loop) else []) for r in touched(inner)]


def buffers(ops: list[Op], info: dict[str, Any]) -> set[Buffer]:
    """Every buffer in use."""
    refs = [ref for op in ops for ref in touched(op)] + leaves(info, Ref)
    return {ref.buffer for ref in refs}


def plan(ops: list[Op], info: dict[str, Any]) -> np.ndarray:
    """Memory for the step's own buffers: two that are never in use together may share it."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, op in enumerate(ops):
        for ref in touched(op):
            first.setdefault(ref.buffer, i)
            last[ref.buffer] = i
    for ref in leaves(info, Ref):
        last[ref.buffer] = len(ops)
    begin: dict[int, list[Buffer]] = {}
    for b, i in first.items():
        b.at = None
        if not b.home and b.nbytes:
            begin.setdefault(i, []).append(b)
    free: list[tuple[int, int]] = []  # (start, end), in order, none adjacent
    ends: dict[int, list[tuple[int, int]]] = {}
    top, at = 0, {}
    for i in range(len(ops)):
        for b in begin.get(i, []):
            size = -(-b.nbytes // LINE) * LINE
            fit = next((j for j, (lo, hi) in enumerate(free) if hi - lo >= size), None)
            if fit is None:
                start, top = top, top + size
            else:
                start, end = free.pop(fit)
                if start + size < end:
                    free.insert(fit, (start + size, end))
            at[b] = start
            ends.setdefault(last[b], []).append((start, start + size))
        for block in ends.get(i, []):
            free = _joined(sorted([*free, block]))
    arena = np.zeros(top + LINE, np.uint8)
    base = -arena.__array_interface__["data"][0] % LINE
    for b, start in at.items():
        b.at = arena[base + start : base + start + b.nbytes]
    return arena


def _joined(blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for lo, hi in blocks:
        if found and found[-1][1] == lo:
            found[-1] = (found[-1][0], hi)
        else:
            found.append((lo, hi))
    return found
