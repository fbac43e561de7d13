"""From a recording to a list of calls and the memory they need."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from fflearn.tape.traced import Buffer, Kernel, Named, Op, Ref, leaves, mapped
from fflearn.tape.wire import Loop

LINE = 64  # bytes of a cache line: where buffers begin


class Cell(NamedTuple):
    """A number in memory that native kernels read: float64, or a whole one."""

    whole: bool
    at: int


class Row(NamedTuple):
    """A call of a native kernel; words are refs, cells and whole numbers."""

    kernel: Any
    words: tuple[Any, ...]


class Body(NamedTuple):
    """A loop with its parts made ready."""

    loop: Loop
    parts: list[Any]


class Cannot(Exception):
    """An operation that has no native form."""


class Numbers:
    """Numbers that native kernels read, and those among them that change from step to step."""

    def __init__(self) -> None:
        self.values: dict[bool, list[Any]] = {False: [], True: []}
        self.moving: dict[Cell, Buffer] = {}
        self._known: dict[Any, Cell] = {}

    def cell(self, value: Any, whole: bool) -> Cell:
        """Where a number or an object of the step is."""
        key = (value.buffer if isinstance(value, Ref) else value), whole
        if key not in self._known:
            cell = self._known[key] = Cell(whole, len(self.values[whole]))
            self.values[whole].append(0 if isinstance(value, Ref) else value)
            if isinstance(value, Ref):
                self.moving[cell] = value.buffer
        return self._known[key]


class Made:
    """A recording in the form in which it runs.

    Attributes
    ----------
    before : list of Op
        On Python objects alone (rates, the step's number): done first, each once.
    parts : list of Row, Op and Body
    numbers : Numbers
    constants : dict of Buffer to array
    """

    def __init__(self, ops: list[Op], info: dict[str, Any], kernels: Any):
        self.kernels, self.tables = kernels, kernels.lowerings
        self.numbers, self.constants = Numbers(), dict[Buffer, np.ndarray]()
        self._same: dict[Buffer, Buffer] = {}  # an object -> an equal one that is made earlier
        self._ready: set[Buffer] = set()
        self._done: dict[Any, list[Any]] = {}
        self.before: list[Op] = []
        ops = needed(ops, info)
        for op in ops:
            self._ready |= {r.buffer for r in op.reads() if r.kind == "object" and r.buffer.home}
        rest = [op for op in ops if not self._hoisted(op)]
        self.parts = self._lowered(rest)
        self.info = mapped(self._one, Ref, info)

    # -- Python objects ----------------------------------------------------------------------------
    def _one(self, ref: Ref) -> Ref:
        return ref._replace(buffer=self._same.get(ref.buffer, ref.buffer))

    def _hoisted(self, op: Op) -> bool:
        """Whether it is done before the others: it reads and makes objects alone."""
        reads, outs = op.reads(), [out for out in op.outs if out is not None]
        objects = all(r.kind == "object" and r.buffer in self._ready for r in reads)
        if isinstance(op, Loop) or op.writes or not objects or not reads:
            return False
        if any(out.kind != "object" for out in outs):
            return False
        found = self._once(op.fn, mapped(self._one, Ref, (op.args, op.kwargs)), outs)
        self._same |= {out.buffer: one.buffer for out, one in zip(outs, found, strict=True)}
        return True

    def _once(self, fn: Any, given: tuple[tuple, dict], outs: list[Ref]) -> list[Ref]:
        """What a function of objects gives: of equal calls, the first."""
        args, kwargs = given
        try:
            key = fn, args, tuple(kwargs.items())
            hash(key)
        except TypeError:
            key = None
        if key is not None and key in self._done:
            return self._done[key]
        self.before.append(Op(fn, args, kwargs, list(outs), [], None))
        self._ready |= {out.buffer for out in outs}
        if key is not None:
            self._done[key] = outs
        return outs

    # -- native kernels ----------------------------------------------------------------------------
    def _lowered(self, ops: list[Op]) -> list[Any]:
        found: list[Any] = []
        for op in ops:
            if isinstance(op, Loop):
                found.append(Body(op, self._lowered(op.ops)))
                continue
            args, kwargs = mapped(self._one, Ref, op.args), mapped(self._one, Ref, op.kwargs)
            op = Op(op.fn, args, kwargs, op.outs, op.writes, op.layer)
            found += self._native(op) or [op]
        return found

    def _native(self, op: Op) -> list[Any]:
        """The calls that an operation is; [] where it has no native form."""
        lowering = self._table(op.fn)
        self._parts: list[Any] = []
        if lowering is None:
            return []
        args = mapped(self._constant, np.ndarray, op.args)
        try:
            done = lowering(self, op.outs, *args, **op.kwargs)
        except (Cannot, TypeError):  # TypeError: arguments that the lowering does not know
            done = False
        return [] if done is False else self._parts

    def _table(self, fn: Any) -> Callable[..., Any] | None:
        if self.tables is None:
            return None
        if isinstance(fn, Kernel):
            return self.tables.KERNELS.get(fn.name)
        if isinstance(fn, Named):
            return None if fn.attribute else self.tables.METHODS.get(fn.name)
        try:
            return self.tables.FUNCTIONS.get(fn)
        except TypeError:
            return None

    # -- what lowerings use ------------------------------------------------------------------------
    def call(self, kernel: Any, *words: Any) -> None:
        """Add a call of a native kernel."""
        self._parts.append(Row(kernel, words))

    def then(self, fn: Any, args: tuple[Any, ...], written: Ref) -> None:
        """Add a call from Python, which writes to one of its arguments."""
        self._parts.append(Op(fn, args, {}, [], [written], None))

    def scratch(self, shape: tuple[int, ...]) -> Ref:
        """A float32 array of the tape's own."""
        strides, step = [], 4
        for n in reversed(shape):
            strides.append(step)
            step *= n
        return Ref(Buffer(0, step), "array", 0, shape, tuple(strides[::-1]), np.dtype(np.float32))

    def ref(self, value: Any) -> Any:
        """A number or a small array as float32 in memory; a ref as it is; else None."""
        if isinstance(value, Ref):
            return value if value.kind != "object" else None
        weak = type(value) in (int, float)
        a = np.asarray(value, np.float32 if weak else None)
        if a.dtype != np.float32:
            return None
        return self._constant(a)

    def _constant(self, a: np.ndarray) -> Ref:
        buffer, a = Buffer(0, a.nbytes), a.copy()
        self.constants[buffer] = a
        return Ref(buffer, "array", 0, a.shape, a.strides, a.dtype)

    def number(self, value: Any) -> Cell:
        """A float64 number in memory."""
        return self._cell(value, False)

    def whole(self, value: Any) -> Cell:
        """A whole number in memory."""
        return self._cell(value, True)

    def _cell(self, value: Any, whole: bool) -> Cell:
        moving = isinstance(value, Ref)
        known = moving and value.kind == "object" and value.buffer in self._ready
        if not known and (moving or not isinstance(value, (int, float, np.number))):
            raise Cannot
        return self.numbers.cell(value, whole)

    def host(self, fn: Any, n: int, *args: Any) -> list[Ref]:
        """n numbers that a function of objects gives, before the step begins."""
        if any(isinstance(a, Ref) and a.buffer not in self._ready for a in args):
            raise Cannot
        return self._once(fn, (args, {}), [Ref(Buffer(0, 0), "object") for _ in range(n)])


# ---- what is needed, and where it lies ------------------------------------------------------------


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


def touched(part: Any) -> list[Ref]:
    """Every ref of a part, and of those it repeats."""
    if isinstance(part, Row):
        return [word for word in part.words if isinstance(word, Ref)]
    if isinstance(part, Body):
        return touched(part.loop) + [ref for inner in part.parts for ref in touched(inner)]
    return [*part.reads(), *part.writes, *(out for out in part.outs if out is not None)]


def plan(
    parts: list[Any], info: dict[str, Any], given: Collection[str] = ()
) -> tuple[int, dict[Buffer, int]]:
    """Bytes for the step's own buffers, and where each begins.

    Two buffers that are never in use together may lie in one place.  Those ``given`` by name are
    in use from the start.
    """
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for i, part in enumerate(parts):
        for ref in touched(part):
            first.setdefault(ref.buffer, i)
            last[ref.buffer] = i
    for ref in leaves(info, Ref):
        first.setdefault(ref.buffer, 0)
        last[ref.buffer] = len(parts)
    ours = [b for b in first if b.nbytes and (not b.home or b.home in given)]
    ours.sort(key=lambda b: -b.nbytes)  # small ones fill what the large ones leave
    spans = np.array([(0 if b.home else first[b], last[b]) for b in ours]).reshape(-1, 2)
    at, ends = np.zeros(len(ours), np.int64), np.zeros(len(ours), np.int64)
    for i, b in enumerate(ours):
        begin, end = spans[i]
        beside = np.flatnonzero((spans[:i, 0] <= end) & (spans[:i, 1] >= begin))
        beside = beside[np.argsort(at[beside], kind="stable")]
        size = -(-b.nbytes // LINE) * LINE
        for lo, hi in zip(at[beside], ends[beside], strict=True):
            if at[i] + size <= lo:
                break
            at[i] = max(at[i], hi)
        ends[i] = at[i] + size
    return int(ends.max(initial=0)), dict(zip(ours, at.tolist(), strict=True))
