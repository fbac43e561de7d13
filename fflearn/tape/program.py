"""A recording made executable: memory for what a step makes, and calls on it."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.state import State
from fflearn.tape.passes import LINE, Body, Cell, Made, Row, plan, touched
from fflearn.tape.record import Recording, inputs
from fflearn.tape.traced import Buffer, Op, Ref, address, leaves, mapped
from fflearn.tape.wire import SETTINGS

# Operators that call these for arrays, and which can be told where to put the result.
UFUNCS: dict[Any, np.ufunc] = {
    operator.add: np.add,
    operator.sub: np.subtract,
    operator.mul: np.multiply,
    operator.truediv: np.true_divide,
    operator.matmul: np.matmul,
    operator.neg: np.negative,
    operator.abs: np.absolute,
    **{getattr(operator, n): getattr(np, f) for n, f in {
        "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal",
        "eq": "equal", "ne": "not_equal",
    }.items()},
}  # fmt: skip


class Program:
    """A step that runs without the rule's code, on one state.

    Parameters
    ----------
    recording : Recording
    state : State
        Its arrays are read and written where they are; they must not move (`state.Slots`).
    batch : Batch
        What a batch looks like.
    kernels : Kernels

    Attributes
    ----------
    calls : list of callable
        What a step is, on fixed memory: runs of native kernels, and single calls from Python.
    """

    def __init__(self, recording: Recording, state: State, batch: Batch, kernels: Any):
        self._state = weakref.ref(state)
        self._objects: dict[Buffer, Any] = {}
        self._native: Any = getattr(kernels.lowerings, "native", None)
        made = Made(recording.ops, recording.info, kernels)
        arrays = {n: a for n, a in inputs(batch).items() if isinstance(a, np.ndarray)}
        self._at: dict[Buffer, np.ndarray] = {b: flat(a) for b, a in made.constants.items()}
        self._homes = state.arrays()
        self._arena = self._allocated(made, set(arrays))
        self._arrays = [
            (_field(b.home), np.ndarray(arrays[b.home].shape, arrays[b.home].dtype, memory))
            for b, memory in self._at.items()
            if b.home in arrays
        ]
        read = [ref for part in (*made.before, *made.parts) for ref in touched(part)]
        read += leaves(made.info, Ref)
        objects = {ref.buffer for ref in read if ref.kind == "object"}
        objects |= set(made.numbers.moving.values())
        given, times = {b.home: b for b in objects if b.home}, ("step", *SETTINGS)
        self._times = [(i, given[name]) for i, name in enumerate(times) if name in given]
        self._others = [(_field(name), b) for name, b in given.items() if name not in times]
        self._now: list[Any] = []
        self._numbers = {
            whole: np.array(values or [0], np.int64 if whole else np.float64)
            for whole, values in made.numbers.values.items()
        }
        self._moving = [
            (self._numbers[cell.whole], cell.at, b) for cell, b in made.numbers.moving.items()
        ]
        self._before = [self._call(op) for op in made.before]
        self.calls = self._bound(made.parts)
        self._info = {n: self._reader(value) for n, value in made.info.items()}

    def of(self, state: State) -> bool:
        """Whether it runs on this state."""
        return self._state() is state

    def __call__(self, step: int, settings: tuple[float, ...], batch: Batch) -> dict[str, Any]:
        """A step on a batch; what it reports."""
        objects, times = self._objects, (step, *settings)
        for field, array in self._arrays:
            array[...] = field(batch)
        for field, b in self._others:
            objects[b] = field(batch)
        now = [times[i] for i, _ in self._times]
        if now != self._now or self._others:  # else what is a function of these holds still
            self._now = now
            for value, (_, b) in zip(now, self._times, strict=True):
                objects[b] = value
            for call in self._before:
                call()
            for numbers, i, b in self._moving:
                numbers[i] = objects[b]
        for call in self.calls:
            call()
        return {n: read() for n, read in self._info.items()}

    # -- memory ------------------------------------------------------------------------------------
    def _allocated(self, made: Made, given: set[str]) -> np.ndarray:
        size, at = plan(made.parts, made.info, given)
        arena = np.zeros(size + LINE, np.uint8)
        base = -address(arena) % LINE
        for b, start in at.items():
            if b not in self._at:
                self._at[b] = arena[base + start : base + start + b.nbytes]
        return arena

    def _bytes(self, b: Buffer) -> np.ndarray:
        if b not in self._at:
            self._at[b] = flat(self._homes[b.home])
        return self._at[b]

    def view(self, ref: Ref) -> np.ndarray:
        """The array that a ref names."""
        return np.ndarray(ref.shape, ref.dtype, self._bytes(ref.buffer), ref.offset, ref.strides)

    def _reader(self, item: Any) -> Callable[[], Any]:
        """A function that gives the value of a nest of refs now."""
        if isinstance(item, Ref):
            if item.kind == "object":
                return partial(self._objects.__getitem__, item.buffer)
            view = self.view(item)
            if item.kind == "scalar":
                return partial(view.__getitem__, ())
            return partial(view.copy, order="K")
        if leaves(item, Ref):
            return lambda: mapped(lambda ref: self._reader(ref)(), Ref, item)
        return lambda: item

    # -- calls -------------------------------------------------------------------------------------
    def _bound(self, parts: list[Any]) -> list[Callable[[], Any]]:
        calls: list[Callable[[], Any]] = []
        rows: list[list[int]] = []
        for part in [*parts, None]:
            if isinstance(part, Row):
                rows.append([part.kernel.address, *map(self._word, part.words)])
                continue
            if rows:
                calls.append(self._run(rows))
                rows = []
            if part is not None:
                calls.append(self._loop(part) if isinstance(part, Body) else self._call(part))
        return calls

    def _run(self, rows: list[list[int]]) -> Callable[[], Any]:
        """Native calls, all in one."""
        code = np.zeros((len(rows), self._native.WIDTH), np.int64)
        for words, row in zip(code, rows, strict=True):
            words[: len(row)] = row
        return partial(self._native.run, code)

    def _word(self, word: Any) -> int:
        if isinstance(word, Ref):
            return address(self._bytes(word.buffer)) + word.offset
        if isinstance(word, Cell):
            return address(self._numbers[word.whole]) + 8 * word.at
        return int(word)

    def _argument(self, item: Any) -> Any:
        """Views in the place of arrays; other refs stay, to be read at each call."""
        return mapped(lambda r: self.view(r) if r.kind == "array" else r, Ref, item)

    def _call(self, op: Op) -> Callable[[], Any]:
        fn, args, kwargs = op.fn, self._argument(op.args), self._argument(op.kwargs)
        changing = leaves((args, kwargs), Ref)
        if not changing and (direct := self._direct(op, args, kwargs)):
            return direct
        keep = self._keeper(op.outs)
        if not changing:
            return lambda: keep(fn(*args, **kwargs))
        if len(leaves(args, Ref)) == sum(isinstance(a, Ref) for a in args) and not kwargs:
            each = [self._reader(a) if isinstance(a, Ref) else partial(_same, a) for a in args]
            return lambda: keep(fn(*[read() for read in each]))
        read = {ref: self._reader(ref) for ref in changing}

        def now(ref: Ref) -> Any:
            return read[ref]()

        return lambda: keep(fn(*mapped(now, Ref, args), **mapped(now, Ref, kwargs)))

    def _direct(self, op: Op, args: tuple[Any, ...], kwargs: dict) -> Callable[[], Any] | None:
        """A call that puts its result where it belongs by itself."""
        fn: Any = UFUNCS.get(op.fn, op.fn) if isinstance(op.fn, Hashable) else op.fn
        places = [out for out in op.outs if out is not None]
        if not places:
            return partial(fn, *args, **kwargs)
        one = isinstance(fn, np.ufunc) and fn.nout == len(op.outs) == 1 and not kwargs
        if one and places[0].kind == "array":
            return partial(fn, *args, out=self.view(places[0]))
        return None

    def _keeper(self, outs: list[Ref | None]) -> Callable[[Any], None]:
        """A function that puts a result where it belongs."""
        objects = self._objects
        if len(outs) == 1 and outs[0] is not None and outs[0].kind == "object":
            return partial(objects.__setitem__, outs[0].buffer)
        if outs and all(out is not None and out.kind == "object" for out in outs):
            names = [out.buffer for out in outs if out is not None]
            return lambda found: objects.update(zip(names, found, strict=True))
        places = [None if out is None or out.kind == "object" else self.view(out) for out in outs]

        def keep(result: Any) -> None:
            for out, place, value in zip(outs, places, results(result), strict=True):
                if place is not None:
                    place[...] = value
                elif out is not None:
                    objects[out.buffer] = value

        return keep

    def _loop(self, body: Body) -> Callable[[], None]:
        calls, loop = self._bound(body.parts), body.loop
        first, changed = self._reader(loop.args[0]), self._reader(loop.changed)
        objects, (sweeps, change) = self._objects, loop.outs

        def run() -> None:
            n, found = 1, float(first())
            while n < loop.steps and found >= loop.tol:
                for call in calls:
                    call()
                n, found = n + 1, float(changed())
            objects[sweeps.buffer], objects[change.buffer] = n, found

        return run


def _field(name: str) -> Callable[[Batch], Any]:
    """What takes an input, named as by `record.inputs`, from a batch."""
    part, _, key = name.partition(".")
    return operator.attrgetter(key) if part == "batch" else lambda batch: batch.side[key]


def flat(a: np.ndarray) -> np.ndarray:
    """The memory of an array without gaps, as bytes."""
    return np.ndarray(a.nbytes, np.uint8, a)


def _same(value: Any) -> Any:
    return value


def results(result: Any) -> list[Any]:
    """The parts of a result, as `Recorder` lists them."""
    if isinstance(result, (tuple, list)):
        return [part for item in result for part in results(item)]
    return [] if result is None else [result]
