"""Every CUDA kernel in Numba's simulator, and every method that launches one, against NumPy's."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba import config
from scipy.sparse import coo_array, csr_array

from benchmarks.gpu_cases import CASES, Draw, off
from fflearn import kernels as backends
from fflearn import random, registry, rules
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import RecordError, ShapeError, SpecError
from fflearn.gpu import columns
from fflearn.gpu.device import SimulatedDevice
from fflearn.gpu.table import CudaKernels, kernels
from fflearn.gpu.updates import PROGRESS, Setting
from fflearn.kernels.reference import ACTIVATIONS, Kernels
from fflearn.optim import optimizer

pytestmark = pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="there is a CUDA device")

REALS = (np.float32, np.float64)


class Noted:
    """A simulated device that notes which kernels it launches."""

    def __init__(self, **options: Any):
        self.device, self.launched = SimulatedDevice(**options), []
        simulate = self.device.launch

        def launch(name: str, *args: Any) -> None:
            self.launched.append(name)
            simulate(name, *args)

        self.device.launch = launch
        self.k = CudaKernels(self.device)


SETTINGS = {"settle", "advance"}  # tested below: no method of the reference has them


@pytest.mark.parametrize("real", REALS, ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:overflow")  # words of 32 bits, in NumPy's numbers
def test_a_kernel_computes_what_the_reference_does(name, real, monkeypatch):
    call, launches, options = CASES[name]
    noted = Noted(**{n: v for n, v in options.items() if n != "parts"})
    if parts := options.get("parts"):
        monkeypatch.setattr(columns, "CHUNK", parts)
        noted.device.grid = 40, 3
    found = call(noted.k, Draw(real, noted.k))
    want = call(Kernels(), Draw(real, Kernels()))
    assert set(noted.launched) == launches
    for a, b in zip(found, want, strict=True):
        assert off(a, b) <= 64


def test_no_kernel_is_untested():
    tested = set().union(*(launches for _, launches, _ in CASES.values())) | SETTINGS
    assert tested == set(kernels(np.float32)) == set(kernels(np.float64))


def test_settings_lie_in_memory():
    """A captured step reads them when it runs: other numbers, the same launch."""
    k, w = CudaKernels(SimulatedDevice()), np.ones(3)
    k.settle(4, 0.25, 0.5, 0.0)
    k.sgd(w, np.ones(3), None, Setting(0.1), 0.0, Setting())
    assert np.array_equal(w, np.full(3, 1 - 0.5 * 0.1))
    k.advance()
    assert k.counter[0] == 5 and k.live[PROGRESS] == 0.25
    k.settle(5, 0.5, 0.25, 0.1)
    k.sgd(w, np.zeros(3), None, Setting(), 0.0, Setting())
    assert np.allclose(w, 0.95 * (1 - 0.25 * 0.1), rtol=1e-15)
    drawn = k.random_words(7, k.counter, 5)
    assert np.array_equal(drawn, random.words(7, 5, 5))
    with pytest.raises(RecordError, match="learning rate"):
        float(Setting())


EDGES = np.array([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 1e-30, -800.0, 800.0])


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_activations_at_their_edges(act, real):
    k, r, a = CudaKernels(SimulatedDevice()), Kernels(), EDGES.astype(real)
    y, ones = r.act(a, act), np.ones(len(a), real)
    assert np.allclose(k.act(a, act), y, 1e-6, equal_nan=True)
    assert np.allclose(k.act_vjp(ones, a, y, act), r.act_vjp(ones, a, y, act), 1e-6, equal_nan=True)


def test_sums_of_float32_are_taken_in_float64(monkeypatch):
    """The mean of numbers far from 0 is the rounded mean: not one rounding is made on the way."""
    k, r = Noted().k, Kernels()
    monkeypatch.setattr(columns, "CHUNK", 64)
    k.device.grid = 40, 3
    x = (Draw(np.float32, r)(256, 16) + 1000).astype(np.float32)
    for axis in (0, 1):
        assert np.array_equal(k.standardize(x, axis, 1e-5)[1], r.standardize(x, axis, 1e-5)[1])


@pytest.mark.parametrize("real", REALS)
def test_empty_arrays_cost_no_launch(real):
    noted = Noted(small=1 << 20)
    for k in (noted.k, Kernels()):
        none = np.zeros((0, 7), real)
        assert k.act(none, "relu").shape == (0, 7)
        assert k.act_vjp(none, none, none, "tanh").shape == (0, 7)
        assert k.matmul(none, np.zeros((7, 3), real)).shape == (0, 3)
        assert np.array_equal(k.matmul_tn(none, np.zeros((0, 3), real)), np.zeros((7, 3)))
        assert k.normal(1, 2, (0, 3), real).shape == (0, 3)
    assert not noted.launched


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("small", [0, 1 << 20])
def test_products_of_every_form(small, real):
    d = Draw(real, Kernels())
    k, r = CudaKernels(SimulatedDevice(small=small)), Kernels()
    tolerance = 1e-5 if real is np.float32 else 1e-13
    for a, b in (((5, 7), (7, 3)), ((2, 3, 5, 7), (2, 3, 7, 4)), ((1, 1), (1, 1))):
        x, y = d.hollow(*a), d.hollow(*b)
        for name, given in {
            "matmul": (x, y),
            "matmul_tn": (x.swapaxes(-1, -2), y),
            "matmul_nt": (x, y.swapaxes(-1, -2)),
        }.items():
            found, want = getattr(k, name)(*given), getattr(r, name)(*given)
            assert found.dtype == want.dtype and found.shape == want.shape
            assert np.allclose(found, want, tolerance, tolerance)
    states = d(5, 7) + 1j * d(5, 7)
    states = states.astype(np.result_type(real, np.complex64))
    assert np.allclose(k.matmul(states, d.hollow(7, 3) * 0 + 1), states.sum(1, keepdims=True), 1e-5)
    with pytest.raises(ValueError, match="middle"):
        k.matmul(d(5, 7), d(5, 3))


def test_constants_and_side_data_are_brought_once():
    k = CudaKernels(SimulatedDevice())
    assert k.fits(1 << 60)  # the data are where they were
    assert k.constant(np.arange(3)) is k.constant(np.arange(3))
    for a, b in (((2, 3), (3, 2)), ((6,), (2, 3))):
        assert k.constant(np.zeros(a)).shape == a and k.constant(np.zeros(b)).shape == b
    for dtype in (np.int64, np.float64, np.uint64):
        assert k.constant(np.zeros(4, dtype)).dtype == dtype
    side = np.eye(3)
    assert k.side(side) is k.side(side)
    side = coo_array(np.eye(3))
    placed, name = k.side(side), weakref.ref(side)
    assert placed is k.side(side)
    del side
    assert name() is not None  # or another array could come to have its id
    matrix = k.side(csr_array(np.eye(3, dtype=np.float32)))
    assert matrix.T is matrix.T and matrix.astype(np.float32) is matrix
    assert matrix.astype(np.float64) is matrix.astype(np.float64)


@pytest.mark.parametrize("many", [1, 8, 9, 70])
def test_any_number_of_arrays_side_by_side(many):
    k, arrays = CudaKernels(SimulatedDevice()), list(np.arange(many * 6.0).reshape(many, 2, 3))
    calls, k.xp = (
        [],
        SimpleNamespace(
            stack=lambda some, axis: calls.append(len(some)) or np.stack(some, axis),
            concatenate=lambda some, axis: calls.append(len(some)) or np.concatenate(some, axis),
        ),
    )
    for axis in (0, 1, 2):
        assert np.array_equal(k.stack(arrays, axis), np.stack(arrays, axis))
    assert max(calls) <= 8


def test_threads_of_a_block_share_one_array(monkeypatch):
    """Numba's own simulator lets two threads make it: a product is then wrong, now and then."""
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    SimulatedDevice()
    shared, found = FakeCUDAShared(0), []
    together, empty = threading.Barrier(3), np.empty

    def slow(*args):
        together.wait(10)
        return empty(*args)

    monkeypatch.setattr(np, "empty", slow)
    block = [
        threading.Thread(target=lambda: found.append(shared.array((4, 5), np.float32)))
        for _ in range(3)
    ]
    for t in block:
        t.start()
    for t in block:
        t.join()
    assert len(found) == 3 and len({id(a) for a in found}) == 1


# ---- whole steps -----------------------------------------------------------------------------------


def simulated(rule: str, monkeypatch: Any, steps: int, k: Any, body: Any = None) -> Any:
    """State and scores after steps with some kernels; None where the rule refuses the network."""
    rng = np.random.default_rng(3)
    batch = Batch(rng.normal(size=(3, 5)), np.eye(2)[[0, 1, 1]])
    with monkeypatch.context() as patch:
        patch.setattr(backends, "load", lambda _: k)
        try:
            net = body or "dense 4 tanh | dense 3 relu | dense 2"
            engine = Engine(net, registry.rule(rule), (5,), 2, dtype="float64", horizon=(4, 2))
            state = engine.init(0)
        except (SpecError, ShapeError):
            return None
        infos = [engine.step(state, batch)[0] for _ in range(steps)]
        found = {**state.arrays(), "scores": engine.predict(state, batch.x)}
        return found, [{n: float(v) for n, v in info.items()} for info in infos], engine


@pytest.mark.parametrize("rule", rules.names())
@pytest.mark.filterwarnings("ignore:overflow", "ignore::fflearn.errors.SettingsWarning")
def test_a_rule_learns_what_it_does_on_the_reference(rule, monkeypatch):
    want = simulated(rule, monkeypatch, 2, Kernels())
    if want is None:
        pytest.skip("the rule needs another network")
    found = simulated(rule, monkeypatch, 2, CudaKernels(SimulatedDevice()))
    for path, a in want[0].items():
        assert np.allclose(found[0][path], a, 1e-10, 1e-12), path
    for one, other in zip(found[1], want[1], strict=True):
        assert one.keys() == other.keys()
        assert np.allclose(list(one.values()), list(other.values()), 1e-10, 1e-12)


def test_how_many_launches_a_small_step_takes(monkeypatch):
    """Where nothing fills a GPU, launches are what a step costs."""
    device, launched = SimulatedDevice(small=1 << 20), []
    device.launch = lambda name, *args: launched.append(name)  # nothing is computed
    monkeypatch.setattr(backends, "load", lambda _: CudaKernels(device))
    net, rule = "dense 128 relu | dense 64 relu | dense 10", registry.rule("dfa")
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(32, 64)), np.eye(10)[rng.integers(0, 10, 32)])
    for name, want in {"sgd": 19, "adam": 22}.items():
        engine = Engine(net, rule, (64,), 10, optimizer(name, lr=0.1))
        state = engine.init(0)
        engine.step(state, batch)
        launched.clear()
        engine.step(state, batch)
        assert len(launched) == want, launched
