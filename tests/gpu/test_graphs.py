"""When a step is captured, and what happens where it cannot be: with a CuPy of straw.

Its stream runs what it should record, once, and its graph does nothing at its first launch.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from numba import config

from fflearn import bus, kernels, registry
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import RecordError, SettingsWarning
from fflearn.gpu.device import SimulatedDevice
from fflearn.gpu.table import CudaKernels
from fflearn.kernels.reference import Kernels

pytestmark = pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="there is a CUDA device")
BATCH = Batch(np.arange(12.0).reshape(4, 3) / 12, np.eye(2)[[0, 1, 1, 0]])


class Stream:
    fails = ""

    def __init__(self):
        self.launches = 0

    def begin_capture(self):
        if self.fails:
            raise RuntimeError(self.fails)

    def end_capture(self):
        return SimpleNamespace(launch=lambda stream: setattr(stream, "launches", self.launches + 1))


@pytest.fixture
def engine(monkeypatch):
    pool = SimpleNamespace(malloc=None)
    cuda = SimpleNamespace(
        MemoryPool=lambda: pool,
        using_allocator=lambda malloc: nullcontext(),
        set_pinned_memory_allocator=lambda allocator: None,
    )
    straw = SimpleNamespace(cuda=cuda, get_default_pinned_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "cupy", straw)
    device = SimulatedDevice()
    device.no_graphs, device.stream = "", Stream()
    monkeypatch.setattr(kernels, "load", lambda _: CudaKernels(device))
    return made()


def made(**options):
    rule = registry.rule("dfa")
    return Engine("dense 4 tanh | dense 2", rule, (3,), 2, dtype="float64", mode="tape", **options)


def of_the_reference(monkeypatch, steps):
    monkeypatch.setattr(kernels, "load", lambda _: Kernels())
    engine = made()
    state = engine.init(0)
    for _ in range(steps):
        engine.step(state, BATCH)
    return state.arrays()


def same(state, want):
    return all(np.allclose(a, want[path], 1e-12, 1e-14) for path, a in state.arrays().items())


def test_the_second_step_is_captured_and_counted_once(engine, monkeypatch):
    state, stream = engine.init(0), engine.kernels.device.stream
    engine.step(state, BATCH)
    assert not engine.tapes._graphs
    info, _ = engine.step(state, BATCH)
    assert len(engine.tapes._graphs) == 1 and stream.launches == 1
    assert engine.kernels._known[0] == state.step == 2 and info["loss"] > 0
    assert same(state, of_the_reference(monkeypatch, 2))
    engine.step(state, BATCH._replace(x=BATCH.x * 2))
    (graph,) = engine.tapes._graphs.values()
    assert stream.launches == 2 and np.array_equal(graph._into["x"], BATCH.x * 2)


def test_other_shapes_and_other_states_have_graphs_of_their_own(engine):
    state = engine.init(0)
    short = BATCH._replace(x=BATCH.x[:2], y=BATCH.y[:2])
    for batch in (BATCH, short, BATCH, short):
        engine.step(state, batch)
    assert len(engine.tapes._graphs) == 2
    before, other = dict(engine.tapes._graphs), engine.init(1)
    engine.step(other, BATCH)  # op by op: it is new
    engine.step(other, BATCH)
    changed = [key for key, graph in engine.tapes._graphs.items() if graph is not before[key]]
    assert len(changed) == 1 and engine.tapes._graphs[changed[0]].of(other)


def test_what_cannot_be_captured_runs_op_by_op(engine, monkeypatch):
    engine.kernels.device.stream.fails = "it read a value"
    state = engine.init(0)
    engine.step(state, BATCH)
    with pytest.warns(SettingsWarning, match="op by op: DFA could not be captured.*read a value"):
        engine.step(state, BATCH)
    engine.step(state, BATCH)
    assert not engine.tapes._graphs and "read a value" in engine.tapes.why
    assert int(engine.kernels.counter[0]) == state.step == 3
    assert same(state, of_the_reference(monkeypatch, 3))


def test_strict_makes_it_an_error(engine):
    engine.kernels.device.stream.fails = "it read a value"
    engine.tapes.strict, state = True, engine.init(0)
    engine.step(state, BATCH)
    with pytest.raises(RecordError, match="read a value"):
        engine.step(state, BATCH)


def test_probes_and_devices_without_graphs_are_told(engine):
    probed = made(probes={"size": lambda v, u: 1.0})
    assert "probes" in probed.tapes.why
    engine.kernels.device.no_graphs = "the simulator has none"
    assert made().tapes.why == "the simulator has none"


def test_settling_reads_nothing_where_it_need_not(engine, monkeypatch):
    read = []
    monkeypatch.setattr(kernels, "load", lambda _: CudaKernels(engine.kernels.device))
    engine.kernels.device.no_graphs = "the simulator has none"
    for tol in (0.0, 1e-9):
        rule = registry.rule("equilibrium_propagation", tol=tol, free_sweeps=2, nudged_sweeps=2)
        settling = Engine("dense 4 | dense 2", rule, (3,), 2, dtype="float64", mode="tape")
        state = settling.init(0)
        with monkeypatch.context() as patch:
            patch.setattr(bus, "float", lambda a: read.append(a) or float(a), raising=False)
            settling.step(state, BATCH)
        assert bool(read) == (tol > 0)
