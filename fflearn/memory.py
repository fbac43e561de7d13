"""How much memory training takes, told before it is taken.

A step is run on a few samples, with arrays of the state that share one block of memory; between
any two kernels and hooks the most that was held is read off twice, for two numbers of samples.
Each of these moments is a number of bytes that stays and one that grows with the samples.
"""

from __future__ import annotations

import copy
import gc
import math
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.bus import Bus
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.kernels.micro import BLOCK
from fflearn.sizes import shown
from fflearn.state import State

Shapes = list[tuple[dict[str, Any], ...]]  # (shape, dtype) by layer, part of the state, name
FEW = 16, 32  # samples of the two trials; more than the parts that kernels sum apart


@dataclass(frozen=True)
class Need:
    """Bytes that training takes.

    Attributes
    ----------
    state : int
        Parameters, the rule's own arrays, the optimizer's.
    start : int
        The most while the state is made.
    step : int
        The most that a step holds beside the state, with its batch.
    undo : int
        Copies of the state that are kept, so that a step can be undone.
    """

    state: int
    start: int
    step: int
    undo: int = 0

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.start, self.state + self.step + self.undo)


def predict(engine: Engine, batch: Batch, rows: int = 0, copies: int = 0) -> Need:
    """What making a state and taking steps op by op needs, without taking it.

    Parameters
    ----------
    engine : Engine
    batch : Batch
        Some samples, as the steps will get them.
    rows : int
        Samples per step; default as many as there are.
    copies : int
        Copies of the state that the caller keeps.

    Raises
    ------
    SpecError
        Arrays of the backend are not on the host, or somebody else traces allocations.
    """
    return _Trials(engine, batch).need(rows or len(batch.x), copies)


class _Trials:
    """Steps on a few samples of a batch, and what follows from them."""

    def __init__(self, engine: Engine, batch: Batch, like: _Trials | None = None):
        if not engine.kernels.on_host:
            raise SpecError(f"the memory of backend={engine.backend} is not measured here.")
        self._engine, self._batch = engine, batch
        self._found: dict[int, tuple[np.ndarray, list[int]]] = {}
        self._made: tuple[int, Shapes]
        if like is not None:  # another rule with the same state
            self._made = like._made
        else:
            with _tracing():
                self._made = _made(engine)

    def need(self, rows: int, copies: int, at_once: int = 0) -> Need:
        """For steps on so many samples; ``at_once`` of them at a time, gradients added up."""
        at_once, (start, shapes) = at_once or rows, self._made
        few = (at_once,) if at_once <= FEW[1] or self._batch.side else FEW
        (first, _), (last, folds) = self._moments(few[0]), self._moments(few[-1])
        if len(first) != len(last):  # the step takes another way with more samples
            first = last = np.array([last.max()])
            folds = []
        slope = (last - first) / max(1, few[-1] - few[0])
        found = last + slope * (at_once - few[-1])
        for i in folds:  # what a product over the samples takes for itself grows up to a block
            more = (slope[i] - slope[i - 1]) * (min(at_once, max(few[-1], BLOCK)) - few[-1])
            found[i] = found[i - 1] + last[i] - last[i - 1] + more
        step = int(found.max())
        step += rows * _bytes_of_sample(self._batch)
        if at_once < rows:
            params, aux, _ = zip(*shapes, strict=True)
            step += sum(map(_bytes, (*params, *aux)))
        state = sum(_bytes(part) for layer in shapes for part in layer)
        return Need(state, start, step, copies * state)

    def _moments(self, rows: int) -> tuple[np.ndarray, list[int]]:
        if rows not in self._found:
            batch = _part(self._batch, rows)
            with _tracing():
                # The first compiles, and counts for the ledger.
                trials = [_moments(self._engine, self._made[1], batch) for _ in range(2)]
            self._found[rows] = trials[1]
        return self._found[rows]


def fitted(engine: Engine, batch: Batch, rows: int, budget: int, copies: int = 0) -> Engine:
    """The engine so that training stays within a budget of bytes, by what costs the least time.

    Steps run op by op: a tape holds more.  Then, in this order: as it is; fewer samples at once,
    where a step is a mean over them; the rule's ``recompute``, where it has one; both.

    Raises
    ------
    SpecError
        Nothing fits; it says how much would.
    """
    needs, why, trials = [], engine.needs_whole(), None
    for rule in _rules(engine.rule):
        one = copy.copy(engine)
        one.rule, one.tapes, one._counted = rule, None, {}
        trials = _Trials(one, batch, trials)
        for at_once in _parts(rows, not why and not batch.side):
            needs.append(trials.need(rows, copies, at_once))
            if needs[-1].peak <= budget:
                one.at_once, one.sweep = at_once, min(at_once, engine.sweep)
                return one
    least = min(needs, key=lambda need: need.peak)
    whole = f" Samples cannot go in parts: {why}." if why else ""
    raise SpecError(
        f"training {type(engine.rule).__name__} in batches of {rows} needs {shown(least.peak)} at the "
        f"least, of which {shown(least.state)} are the state and {shown(least.undo)} copies of it; "
        f"the memory budget is {shown(budget)}.{whole} Type --memory-budget "
        f"{shown(math.ceil(least.peak * 1.01))}, or take a smaller network or batch."
    )


def _rules(rule: Any) -> list[Any]:
    """The rule, and the rule that recomputes, where it can."""
    can = rule.settings().get("recompute") is False
    return [rule, replace(rule, recompute=True)] if can else [rule]


def _parts(rows: int, can: bool) -> Iterator[int]:
    """How many samples may go at once: all, half of them, and so on."""
    yield rows
    while can and rows > 1:
        rows = -(-rows // 2)
        yield rows


# ---- a state that takes the memory of its largest array -------------------------------------------


class _Borrowed(Mapping[str, np.ndarray]):
    """As `state.Slots`: arrays of the right shapes, which share memory."""

    def __init__(self, shapes: Mapping[str, tuple[Any, Any]], pool: np.ndarray):
        self._arrays = {}
        for name, (shape, dtype) in shapes.items():
            n = math.prod(shape) * dtype.itemsize
            self._arrays[name] = pool[:n].view(dtype).reshape(shape)
        self.readable = {n: a.view() for n, a in self._arrays.items()}
        for a in self.readable.values():
            a.flags.writeable = False

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._arrays[name][...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _borrowed(layers: list[dict[str, Any]]) -> Any:
    """A part of a state: the layers share a block as large as the largest array."""
    largest = max((_bytes({n: a}) for layer in layers for n, a in layer.items()), default=0)
    pool = np.zeros(largest, np.uint8)
    return [_Borrowed(layer, pool) for layer in layers]


def _made(engine: Engine) -> tuple[int, Shapes]:
    """The most held while a state is made, and its arrays' shapes and dtypes by layer and part.

    Layer by layer: of each, what was measured is dropped before the next.
    """
    held, most = 0, 0
    shapes: Shapes = []
    for layer in range(len(engine.specs)):
        before = _restart()
        parts = engine.fresh(0, layer)
        most = max(most, held + _peak() - before)
        shapes.append(tuple({n: (a.shape, a.dtype) for n, a in p.items()} for p in parts))
        held += sum(map(_bytes, shapes[-1]))
        del parts
    return most, shapes


def _bytes(part: Mapping[str, tuple[tuple[int, ...], Any]]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in part.values())


def _part(batch: Batch, rows: int) -> Batch:
    """So many samples of a batch, over again where there are not so many."""
    if batch.side:
        return batch
    at = np.arange(rows) % len(batch.x)
    return Batch(batch.x[at], batch.y[at], {}, None if batch.weight is None else batch.weight[at])


def _bytes_of_sample(batch: Batch) -> int:
    arrays = [a for a in (batch.x, batch.y, batch.weight) if a is not None]
    return sum(a.nbytes // len(a) for a in arrays)


# ---- moments --------------------------------------------------------------------------------------


class _Moments:
    """Kernels that note the most held since the last note, before and after each call."""

    def __init__(self, kernels: Any):
        self._kernels, self.base = kernels, _restart()
        self.found: list[int] = []
        self.folds: list[int] = []  # which of them are of an optimizer that folds a product in

    def mark(self) -> None:
        self.found.append(_peak() - self.base)
        tracemalloc.reset_peak()

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)
        if not callable(kernel):
            return kernel

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.mark()
            result = kernel(*args, **kwargs)
            if result is None:
                self.folds.append(len(self.found))
            self.mark()
            return result

        return noted


class _Watched(Bus):
    """A Bus that notes the same around every hook."""

    def __init__(self, *args: Any, moments: _Moments):
        self._moments = moments
        super().__init__(*args)

    def _call(self, hook: str, v: Any, *args: Any) -> Any:
        self._moments.mark()
        out = super()._call(hook, v, *args)
        self._moments.mark()
        return out


def _moments(engine: Engine, shapes: Shapes, batch: Batch) -> tuple[np.ndarray, list[int]]:
    """The most held beside state and batch, moment by moment, in a step; and which fold."""
    params, aux, opt = ([layer[i] for layer in shapes] for i in range(3))
    state: Any = State(_borrowed(params), _borrowed(aux), _borrowed(opt), 0, 0)
    gc.collect()  # in the middle of one trial and not of the other, it would count as a slope
    moments = _Moments(engine.kernels)
    with np.errstate(all="ignore"):
        checked = engine.checked_batch(batch)
        variant = engine.variant(state)
        engine.run(state, checked, variant, True, None, partial(_Watched, moments=moments), moments)
    moments.mark()
    return np.array(moments.found), moments.folds


@contextmanager
def _tracing() -> Iterator[None]:
    if tracemalloc.is_tracing():
        raise SpecError(
            "memory is predicted by tracing allocations, and something else traces them now. Stop "
            "tracemalloc first."
        )
    collects = gc.isenabled()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        if collects:
            gc.enable()


def _restart() -> int:
    """Bytes held now; the peak begins here."""
    tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[0]


def _peak() -> int:
    return tracemalloc.get_traced_memory()[1]
