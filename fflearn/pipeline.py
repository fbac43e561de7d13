"""Layers that learn at the same time: several steps in flight, and every layer takes them in order.

A step may enter a layer once the step before has learned there.  Layers that need nothing from
above (Forward-Forward, local losses), or an error alone (DFA), are then free for the next batch
long before the step is over, and the results are those of one step after the other, bit for bit.
With a staleness of s a step enters when the step s + 1 before it has learned: every layer learns
from activity that is s updates old, the same in every run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from fflearn.base import Batch
from fflearn.bus import Bus
from fflearn.engine import Engine
from fflearn.errors import BackendUnavailable, SpecError
from fflearn.state import State


class Turns:
    """Which step each layer has learned from, and which it has let through.

    Parameters
    ----------
    layers : int
    first : int
        The first step.
    staleness : int
    """

    def __init__(self, layers: int, first: int, staleness: int):
        self._staleness = staleness
        self._learned, self._seen = [first] * layers, [first] * layers
        self._end: int | None = None  # the step that will not come
        self._failed = False
        self._changed = threading.Condition()

    def enter(self, layer: int, step: int) -> None:
        """Wait until a step may enter a layer."""
        self._wait(lambda: self._learned[layer] >= step - self._staleness)

    def entered(self, layer: int, step: int) -> None:
        """A step has fired a layer."""
        self._set(self._seen, layer, step)

    def learn(self, layer: int, step: int) -> None:
        """Wait until a step may change a layer: all before it have, and all that see it as it was."""
        last = step + self._staleness

        def ready() -> bool:
            seen = self._end is not None and last >= self._end
            return self._learned[layer] >= step and (seen or self._seen[layer] > last)

        self._wait(ready)

    def learned(self, layer: int, step: int) -> None:
        """A step is done with a layer."""
        self._set(self._learned, layer, step)

    def end(self, step: int) -> None:
        """There are no steps from this one on."""
        with self._changed:
            self._end = step
            self._changed.notify_all()

    def fail(self) -> None:
        """A step came to grief: nobody waits for it."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def _set(self, counts: list[int], layer: int, step: int) -> None:
        with self._changed:
            counts[layer] = max(counts[layer], step + 1)
            self._changed.notify_all()

    def _wait(self, ready: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failed or ready())
            if self._failed:
                raise RuntimeError("another step failed")


class TurnBus(Bus):
    """A Bus that enters layers, and lets them learn, when it is their turn."""

    def __init__(self, turns: Turns, step: int, *args: Any):
        super().__init__(*args)
        self._turns, self._step = turns, step
        self._in: set[int] = set()
        self._done: set[int] = set()

    def _call(self, hook: str, v: Any, *args: Any) -> Any:
        layer = v.spec.index
        if layer in self._in:
            return super()._call(hook, v, *args)
        self._turns.enter(layer, self._step)
        self._in.add(layer)
        out = super()._call(hook, v, *args)
        self._turns.entered(layer, self._step)
        return out

    def _apply(self, v: Any, s: Any, *in_flight: Any) -> None:
        layer = v.spec.index
        self._turns.learn(layer, self._step)
        super()._apply(v, s, *in_flight)
        self._done.add(layer)
        self._turns.learned(layer, self._step)

    def finish(self) -> None:
        """Be done with the layers that have not learned in this step."""
        left = [i for i in range(len(self._views)) if i not in self._done]
        for layer in left:  # first of all: others may wait for it with layers further on
            self._turns.entered(layer, self._step)
        for layer in left:
            self._turns.learn(layer, self._step)
            self._turns.learned(layer, self._step)


class OrderBus(Bus):
    """A Bus that notes which hooks a step runs in each layer, in order."""

    def __init__(self, hooks: list[list[str]], *args: Any):
        super().__init__(*args)
        self._hooks = hooks

    def _call(self, hook: str, v: Any, *args: Any) -> Any:
        self._hooks[v.spec.index].append(hook)
        return super()._call(hook, v, *args)


def run(
    engine: Engine,
    state: State,
    batches: Iterable[Batch],
    workers: int = 2,
    staleness: int = 0,
) -> list[dict[str, Any]]:
    """A step for each batch, ``workers`` of them at a time; ``state`` is changed in place.

    Parameters
    ----------
    engine : Engine
        Without probes.  Its kernels run on one thread each.
    state : State
    batches : iterable of Batch
        Of one shape; read as they are needed.
    workers : int
        Threads; more than ``staleness``.
    staleness : int
        0: the bits of one step after the other.

    Returns
    -------
    list of dict
        What each step reported.

    Raises
    ------
    BackendUnavailable
        The backend runs one step at a time.
    SpecError
        The rule comes back to a layer after it has learned there, or, with staleness, between
        firing and learning: the steps could not be told apart.
    """
    if workers < 1 or not 0 <= staleness < workers:
        raise SpecError(
            f"a pipeline needs 1 or more workers, and a staleness from 0 to less than the workers; "
            f"got workers={workers}, staleness={staleness}. Type workers={staleness + 1}"
        )
    if not engine.kernels.side_by_side:
        raise BackendUnavailable(
            "a pipeline needs Numba's OpenMP or TBB threads; here it has its work queue alone, which "
            "two threads must not enter. Type: pip install tbb, or take Engine.step."
        )
    if engine.probes:
        raise SpecError("a pipeline runs steps side by side, which probes cannot follow: use none.")
    first, turns = state.step, Turns(len(engine.specs), state.step, staleness)
    found: list[Future[dict[str, Any]]] = []
    room = threading.Semaphore(workers)

    def step(t: int, batch: Batch) -> dict[str, Any]:
        buses: list[TurnBus] = []

        def wire(*args: Any) -> TurnBus:
            buses.append(TurnBus(turns, t, *args))
            return buses[0]

        now = replace(state, step=t)
        try:
            info, _ = engine.run(now, batch, engine.variant(now), True, None, wire)
            buses[0].finish()
        except BaseException:
            turns.fail()
            raise
        finally:
            room.release()
        return info

    with engine.kernels.running(1), ThreadPoolExecutor(workers) as pool:
        try:
            for t, given in enumerate(batches, first):
                batch = engine.checked_batch(given)
                if t == first:
                    _check(engine, state, batch, staleness)
                room.acquire()
                found.append(pool.submit(step, t, batch))
        except BaseException:
            turns.fail()
            raise
        turns.end(first + len(found))
    failed = [e for f in found if (e := f.exception()) is not None]
    if failed:  # those that only waited for it say so
        raise min(failed, key=lambda e: isinstance(e, RuntimeError))
    state.step = first + len(found)
    return [f.result() for f in found]


def _check(engine: Engine, state: State, batch: Batch, staleness: int) -> None:
    """Refuse a rule whose steps cannot overlap; tried on a copy of the state."""
    hooks: list[list[str]] = [[] for _ in engine.specs]
    trial = state.copy()
    engine.run(trial, batch, engine.variant(trial), True, None, partial(OrderBus, hooks))
    who = type(engine.rule).__name__
    for spec, ran in zip(engine.specs, hooks, strict=True):
        if "update" in ran and ran.index("update") < len(ran) - 1:
            raise SpecError(
                f"{who} comes back to layer {spec.name!r} after it has learned there: its steps "
                f"cannot overlap. Use Engine.step."
            )
        if staleness and len([hook for hook in ran if hook != "update"]) > 1:
            raise SpecError(
                f"{who} reads layer {spec.name!r} more than once before it learns: what it reads "
                f"would not be of one age. Use staleness=0."
            )
