"""Steps as CUDA graphs: captured once, replayed by one launch, with the bits of a step op by op.

The first step of a kind (shapes of the batch, variant) runs op by op: it compiles, and counts.
The second is captured while the rule's code runs, so a graph holds the launches of eager mode,
no others.  What changes from step to step lies in the device's memory: batch, settings, counter.
A step that reads a value on the host cannot be captured; it goes on op by op, and says why.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from fflearn.base import Batch, Settled
from fflearn.bus import Bus
from fflearn.errors import RecordError, SettingsWarning
from fflearn.gpu.updates import Setting
from fflearn.state import State


class DeviceBus(Bus):
    """A Bus whose settings and step lie in the device's memory."""

    def __init__(self, engine: Any, state: State, batch: Any, key: Any, *args: Any):
        super().__init__(engine, state, batch, key.at(key.k.counter), *args)

    def _settings(self) -> tuple[Any, Any, Any]:
        return Setting(), Setting(), Setting()

    def settle(
        self,
        bottom: Any,
        top: Callable[[], Any] | None = None,
        steps: int = 50,
        tol: float = 0.0,
    ) -> Settled:
        """As `Bus.settle`; with ``tol`` 0 no change is read on the host, so it can be captured."""
        if tol > 0:
            return super().settle(bottom, top, steps, tol)
        change: Any = np.inf
        for _ in range(steps):
            change = self.relax(bottom, top)
        self._rise(bottom)
        return Settled(steps, change)


class Graphs:
    """The captured steps of an engine.

    Attributes
    ----------
    strict : bool
        A step that cannot be captured raises `RecordError`; otherwise it runs op by op.
    why : str
        Why steps run op by op; "" if they do not.
    """

    def __init__(self, engine: Any):
        self._engine, self._k = engine, engine.kernels
        self.strict = False
        self.why = self._k.no_graphs or self._k.device.no_graphs
        if engine.probes:
            self.why = "probes read their values on the host"
        self._seen: dict[Hashable, weakref.ref[State]] = {}
        self._graphs: dict[Hashable, Graph] = {}

    def step(self, state: State, batch: Batch, variant: Hashable) -> tuple[dict[str, Any], Any]:
        """One step; what it reports (arrays that the next step overwrites), and the ledger."""
        batch = self._engine.checked_batch(batch)
        k, key = self._k, (_kind(batch), variant)
        with k.running(1):
            k.settle(state.step, *self._engine.settings_at(state.step))
            graph = self._graphs.get(key)
            if graph is None or not graph.of(state):
                seen = self._seen.get(key)
                if self.why or seen is None or seen() is not state:
                    self._seen[key] = weakref.ref(state)
                    return self._op_by_op(state, batch, variant)
                graph = self._captured(state, batch, variant)
                if graph is None:
                    return self._op_by_op(state, batch, variant)
                self._graphs[key] = graph
                k.forget()  # capturing counted the step, and did not make it
                k.settle(state.step, *self._engine.settings_at(state.step))
            graph(batch)
            k.advanced()
        return dict(graph.info), graph.ledger

    def _op_by_op(self, state: State, batch: Batch, variant: Hashable) -> tuple[dict, Any]:
        found: dict[str, Any] = {}
        done = self._run(state, batch, variant, found)
        return done[0] | found, done[1]

    def _run(
        self, state: State, batch: Batch, variant: Hashable, found: dict[str, Any]
    ) -> tuple[dict[str, Any], Any]:
        engine = self._engine

        def observe(v: Any, u: Any) -> None:
            for name, probe in engine.probes.items():
                found[f"{name}/{v.spec.index}"] = probe(v, u)

        done = engine.run(state, batch, variant, True, observe, DeviceBus)
        self._k.advance()
        return done

    def _captured(self, state: State, batch: Batch, variant: Hashable) -> Graph | None:
        """The step as a graph; None where it cannot be one, and then nothing has changed."""
        try:
            return Graph(self._k, state, batch, lambda b: self._run(state, b, variant, {}))
        except Exception as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            who = type(self._engine.rule).__name__
            self.why = f"{who} could not be captured as a CUDA graph: {reason}"
            if self.strict:
                raise RecordError(self.why) from e
            warnings.warn(f"steps run op by op: {self.why}", SettingsWarning, stacklevel=4)
            self._k.forget()  # it may have counted a step that did not happen
            self._k.settle(state.step, *self._engine.settings_at(state.step))
            return None


class Graph:
    """One step, captured.

    Parameters
    ----------
    k : CudaKernels
    state : State
        Whose arrays it changes.
    batch : Batch
        Of the shapes that it will always have.
    run : callable
        ``run(batch) -> info, ledger``: the step, op by op.
    """

    def __init__(self, k: Any, state: State, batch: Batch, run: Any):
        import cupy

        self._state = weakref.ref(state)
        self._into = {n: a.copy() for n, a in _arrays(batch).items()}
        self._pool = cupy.cuda.MemoryPool()  # the graph's own: nobody else may use its memory
        stream = k.device.stream
        with cupy.cuda.using_allocator(self._pool.malloc), _no_copies_from_the_host(cupy):
            stream.begin_capture()
            try:
                self.info, self.ledger = run(batch._replace(**self._into))
            except BaseException:
                with contextlib.suppress(Exception):
                    stream.end_capture()  # which must not hide why
                raise
            self._graph = stream.end_capture()
        self._stream = stream

    def of(self, state: State) -> bool:
        """Whether it changes this state."""
        return self._state() is state

    def __call__(self, batch: Batch) -> None:
        """Copy the batch in and run the step."""
        for n, a in _arrays(batch).items():
            self._into[n][...] = a
        self._graph.launch(self._stream)


@contextlib.contextmanager
def _no_copies_from_the_host(cupy: Any) -> Iterator[None]:
    """CuPy copies through page-locked memory that it then gives away: a graph would read there."""

    def refuse(size: int) -> None:
        raise RecordError(
            "it brings an array of the host to the device. Make it with np.zeros_like and its kin, "
            "or pass it through k.constant."
        )

    cupy.cuda.set_pinned_memory_allocator(refuse)
    try:
        yield
    finally:
        cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)


def _arrays(batch: Batch) -> dict[str, Any]:
    named = {"x": batch.x, "y": batch.y, "weight": batch.weight}
    return {n: a for n, a in named.items() if a is not None}


def _kind(batch: Batch) -> Hashable:
    """What a batch must have in common with a captured one; side data must be the same arrays."""
    own = tuple((n, a.shape, a.dtype.str) for n, a in _arrays(batch).items())
    return own, tuple((n, id(a)) for n, a in sorted(batch.side.items()))
