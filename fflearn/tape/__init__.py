"""A step recorded, compiled and repeated: the bits of eager mode without its Python code.

`Tapes` holds what an engine has recorded.  A step of a new kind (shapes of the batch, variant,
probes) is tried first, without learning; the first two then run op by op and are written down, and
must agree.  Every further one is run by a `Program`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.errors import FFLearnError, RecordError
from fflearn.heap import release
from fflearn.state import State
from fflearn.tape.program import Program
from fflearn.tape.record import Recording, checked, record

__all__ = ["Tapes"]

MOST = 32  # kinds of steps that are kept: batches of ever new shapes are recorded again and again


class Tapes:
    """The recorded steps of an engine.

    Attributes
    ----------
    strict : bool
        A step that cannot be repeated raises `RecordError`.  Otherwise the engine goes on op by
        op.
    why : str
        Why it does; "" if it does not.
    """

    def __init__(self, engine: Any):
        self._engine = engine
        self.strict, self.why = False, ""
        self._first: dict[Hashable, Recording] = {}
        self._recorded: dict[Hashable, tuple[Recording, Any]] = {}
        self._programs: dict[Hashable, tuple[Program, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Tapes, (self._engine,)  # addresses mean nothing elsewhere: steps are recorded anew

    def step(self, state: State, batch: Batch, variant: Hashable) -> tuple[dict[str, Any], Any]:
        """One step on a batch as the engine was given it; what it reports, and the ledger."""
        engine = self._engine
        if self.why:
            return engine._op_by_op(state, batch, variant)
        probes = tuple(engine.probes.items())
        # Arrays like those of an earlier step need no other check.
        found = self._programs.get((shapes(batch), variant, probes)) if plain(batch) else None
        if found is None or not found[0].of(state):
            batch = engine.checked_batch(batch)
            key = shapes(batch), variant, probes
            found = self._made(key, state, batch)
            if found is None:
                if key not in self._first and not self._tried(state, batch, variant):
                    return engine._op_by_op(state, batch, variant)
                return self._record(state, batch, variant, key)
        program, ledger = found
        settings = engine.settings_at(state.step)
        with engine.running():
            return program(state.step, settings, batch), ledger

    def _made(self, key: Hashable, state: State, batch: Batch) -> tuple[Program, Any] | None:
        """The program of a recorded step on this state, made where there is none yet."""
        found = self._programs.get(key)
        if found is not None and found[0].of(state):
            return found
        if key not in self._recorded:
            return None
        release()  # what recording took
        recording, ledger = self._recorded[key]
        found = Program(recording, state, batch, self._engine.kernels), ledger
        self._programs[key] = found
        return found

    def _tried(self, state: State, batch: Batch, variant: Hashable) -> bool:
        """Whether a step can be recorded: tried without changing the state, which needs no copy."""
        counted = dict(self._engine._counted)
        try:
            record(self._engine, state, batch, variant, train=False)
        except Exception as e:
            told = isinstance(e, FFLearnError) and not isinstance(e, RecordError)
            if self.strict or told:
                raise
            self.why = str(e)  # if the rule's code is at fault, it says so itself
        finally:
            self._engine._counted = counted  # a step that is not to be is not to be counted
            release()
        return not self.why

    def _record(
        self, state: State, batch: Batch, variant: Hashable, key: Hashable
    ) -> tuple[dict[str, Any], Any]:
        now, info, ledger = record(self._engine, state, batch, variant)
        if key not in self._first:
            self._first[key] = now
        else:
            self._compare(key, now, ledger)
        for held in (self._first, self._recorded, self._programs):
            while len(held) > MOST:
                held.pop(next(iter(held)))
        return info, ledger

    def _compare(self, key: Hashable, now: Recording, ledger: Any) -> None:
        try:
            found = checked(self._first.pop(key), now, type(self._engine.rule).__name__)
        except RecordError as e:
            if self.strict:
                raise
            self.why = str(e)
        else:
            self._recorded[key] = found, ledger


def plain(batch: Batch) -> bool:
    """Whether it is two arrays and no more."""
    alone = batch.weight is None and not batch.side
    return alone and type(batch.x) is np.ndarray and type(batch.y) is np.ndarray


def shapes(batch: Batch) -> Hashable:
    """What a batch must have in common with that of a recorded step."""
    x, y = batch.x, batch.y
    kind = x.shape, x.dtype, y.shape, y.dtype
    if batch.weight is None and not batch.side:
        return kind
    more = [batch.weight, *batch.side.values()]
    kinds = [(type(a), getattr(a, "shape", None), getattr(a, "dtype", None)) for a in more]
    return (*kind, tuple(batch.side), *kinds)
