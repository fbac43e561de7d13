"""When a step is captured, and what happens where it cannot be: with a CuPy of straw.

Its stream records what the device should launch and runs none of it; its graph runs all of that.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from numba import config

from fflearn import bus, kernels, random, registry
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import RecordError, SettingsWarning
from fflearn.gpu.device import SimulatedDevice
from fflearn.gpu.graphs import Graph
from fflearn.gpu.table import CudaKernels
from fflearn.gpu.updates import Setting
from fflearn.kernels.reference import Kernels, Product
from fflearn.optim import optimizer

pytestmark = pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="there is a CUDA device")
BATCH = Batch(np.arange(12.0).reshape(4, 3) / 12, np.eye(2)[[0, 1, 1, 0]])


class Stream:
    fails = ""

    def __init__(self, device):
        self.launches, self._device, self._runs = 0, device, (device.launch, device.gemm)

    def begin_capture(self):
        self._recorded = recorded = []
        launch, gemm = self._runs
        self._device.launch = lambda *args: recorded.append((launch, args))
        self._device.gemm = lambda *args: recorded.append((gemm, args))

    def end_capture(self):
        self._device.launch, self._device.gemm = self._runs
        if self.fails:
            raise RuntimeError(self.fails)
        return SimpleNamespace(launch=partial(self._replay, self._recorded))

    def _replay(self, recorded, stream):
        assert stream is self
        self.launches += 1
        for run, args in recorded:
            run(*args)


class Memory:
    """NumPy, but new arrays hold zeros: a captured step computes with what is not there yet."""

    empty = staticmethod(np.zeros)

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def engine(monkeypatch):
    pool = SimpleNamespace(malloc=None)
    cuda = SimpleNamespace(
        MemoryPool=lambda: pool,
        using_allocator=lambda malloc: nullcontext(),
        set_pinned_memory_allocator=lambda allocator: setattr(cuda, "pinned", allocator),
    )
    straw = SimpleNamespace(cuda=cuda, get_default_pinned_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "cupy", straw)
    device = SimulatedDevice()
    device.no_graphs, device.stream, device.xp = "", Stream(device), Memory()
    monkeypatch.setattr(kernels, "load", lambda _: CudaKernels(device))
    return made()


def made(**options):
    rule = registry.rule("dfa")
    return Engine("dense 4 tanh | dense 2", rule, (3,), 2, dtype="float64", mode="tape", **options)


def batches(steps):
    return [BATCH._replace(x=BATCH.x * (i + 1)) for i in range(steps)]


def of_the_reference(monkeypatch, steps, **options):
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "load", lambda _: Kernels())
        engine = made(**options)
        state = engine.init(0)
        for batch in batches(steps):
            engine.step(state, batch)
        return state.arrays()


def same(state, want):
    return all(np.allclose(a, want[path], 1e-12, 1e-14) for path, a in state.arrays().items())


def test_the_second_step_is_captured_and_counted_once(engine, monkeypatch):
    state, stream = engine.init(0), engine.kernels.device.stream
    first, second, third = batches(3)
    engine.step(state, first)
    assert not engine.tapes._graphs
    engine.step(state, second)
    assert len(engine.tapes._graphs) == 1 and stream.launches == 1
    assert engine.kernels._known[0] == engine.kernels.counter[0] == state.step == 2
    assert same(state, of_the_reference(monkeypatch, 2))
    engine.step(state, third)
    assert len(engine.tapes._graphs) == 1 and stream.launches == 2
    assert same(state, of_the_reference(monkeypatch, 3))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_replayed_step_reads_the_settings_of_its_own(engine, monkeypatch, name):
    """A schedule moves the learning rate, Adam the corrections of its means, at every step."""
    options = {"optimizer": optimizer(name, lr=0.1, schedule="cosine", weight_decay=0.1)}
    options["horizon"] = 3, 2
    engine = made(**options)
    state = engine.init(0)
    for batch in batches(5):
        engine.step(state, batch)
    assert engine.kernels.device.stream.launches == 4
    assert same(state, of_the_reference(monkeypatch, 5, **options))


def test_a_graph_draws_and_updates_as_its_step_says(engine):
    """Nothing that a replay should read is written down while it is captured."""
    k, state = engine.kernels, engine.init(0)
    w, kept = np.ones((3, 2)), np.ones((3, 2))

    def run(batch):
        drawn = k.normal(5, k.counter, (4, 2), np.float64)
        k.sgd(w, Product(batch.x, drawn, 4.0), None, Setting(0.5), 0.0, Setting())
        k.advance()
        return {"drawn": drawn}, None

    k.settle(0, 0.0, 0.0, 0.0)
    graph = Graph(k, state, BATCH, run)
    assert np.array_equal(w, kept)  # capturing computes nothing
    for step, (lr, decay) in {3: (0.1, 0.0), 9: (0.3, 0.2)}.items():
        k.settle(step, 0.0, lr, decay)
        graph(BATCH)
        drawn = random.normal(5, step, (4, 2), np.float64)
        assert np.allclose(graph.info["drawn"], drawn, 1e-14)
        kept = kept * (1 - 0.5 * lr * decay) - 0.5 * lr * BATCH.x.T @ drawn / 4
        assert np.allclose(w, kept, 1e-13) and k.counter[0] == step + 1


def test_no_array_comes_from_the_host_while_a_step_is_captured(engine):
    cuda, found = sys.modules["cupy"].cuda, []

    def run(batch):
        with pytest.raises(RecordError, match=r"array of the host.*k\.constant"):
            cuda.pinned(8)
        found.append(batch)
        return {}, None

    Graph(engine.kernels, engine.init(0), BATCH, run)
    assert cuda.pinned is sys.modules["cupy"].get_default_pinned_memory_pool().malloc
    assert len(found) == 1 and found[0].x is not BATCH.x


def test_other_variants_and_other_side_data_have_graphs_of_their_own(engine):
    state, side = engine.init(0), [{"edges": np.eye(4)}, {"edges": np.eye(4)}]
    for batch, variant in ((BATCH, 0), (BATCH, 1), (BATCH._replace(side=side[0]), 0)):
        engine.tapes.step(state, batch, variant)
        engine.tapes.step(state, batch, variant)
    assert len(engine.tapes._graphs) == 3
    engine.tapes.step(state, BATCH._replace(side=side[1]), 0)
    engine.tapes.step(state, BATCH._replace(side=side[1]), 0)
    assert len(engine.tapes._graphs) == 4


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
    first, second, third = batches(3)
    engine.step(state, first)
    why = "op by op: DFA could not be captured.*read a value"
    with pytest.warns(SettingsWarning, match=why) as told:
        engine.step(state, second)
    assert told[0].filename == __file__  # the user's line, not one of ours
    engine.step(state, third)
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
    info, _ = probed.step(probed.init(0), BATCH)
    assert info["size/0"] == info["size/1"] == 1.0
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
