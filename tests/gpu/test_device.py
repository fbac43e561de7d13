"""On a GPU: the numbers of the CPU, graphs with the bits of op by op, arrays shared with PyTorch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from benchmarks import gpu as benchmark
from benchmarks.gpu_cases import CASES, Draw, off
from fflearn import kernels, registry, rules
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import SettingsWarning
from fflearn.kernels.reference import Kernels
from fflearn.optim import optimizer
from fflearn.state import load

pytestmark = pytest.mark.gpu

NET = "dense 24 tanh | dense 12 tanh | dense 5"


@pytest.fixture(scope="module")
def k():
    return kernels.load("cuda")


def made(rule="dfa", backend="cuda", **options):
    settings = {"optimizer": optimizer("sgd", lr=0.05), "horizon": (6, 1)} | options
    return Engine(NET, registry.rule(rule), (20,), 5, backend=backend, **settings)


@pytest.mark.parametrize("real", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_computes_what_the_reference_does(k, name, real, monkeypatch):
    call, _, options = CASES[name]
    monkeypatch.setattr(k.device, "small", options.get("small", 0))
    monkeypatch.setattr(k.device, "direct", options.get("direct", False))
    with k.running(1):
        found = [k.host(a) for a in call(k, Draw(real, k))]
    for a, b in zip(found, call(Kernels(), Draw(real, Kernels())), strict=True):
        assert off(a, b) <= benchmark.ROUNDINGS


@pytest.mark.parametrize("rule", rules.names())
@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
def test_a_rule_learns_what_it_does_on_the_reference(rule):
    batch = benchmark.batch_of((20,), 5, 16)
    for dtype, limit in benchmark.ONE_STEP.items():
        row = benchmark.compared(rule, "cuda", rule, NET, batch, dtype, limit)
        assert row["ok"], row


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("rule", ["dfa", "backprop", "forward_forward", "fa", "local_loss"])
def test_a_graph_has_the_bits_of_op_by_op(rule, name):
    batch, states = benchmark.batch_of((20,), 5, 16), []
    for captured in (True, True, False):
        # A schedule: the learning rate of each step is read when the graph runs.
        engine = made(rule, optimizer=optimizer(name, lr=0.05, schedule="cosine"))
        engine.tapes.strict = captured
        engine.tapes.why = "" if captured else "to compare"
        state = engine.init(0)
        for _ in range(6):
            engine.step(state, batch)
        assert bool(engine.tapes._graphs) == captured
        states.append({n: engine.kernels.host(a) for n, a in state.arrays().items()})
    for path, a in states[0].items():
        assert a.tobytes() == states[1][path].tobytes() == states[2][path].tobytes(), path


def test_sequences_convolutions_and_graphs_are_captured():
    from fflearn import layers
    from fflearn.layers.dense import Dense

    for kind in ("lstm", "conv", "attention", "batch_norm", "max_pool", "graph_conv", "embed"):
        layer, shape = layers.load(kind).examples()[0]
        x, side = layer.example_batch(np.random.default_rng(0), 6, shape)
        batch = Batch(x, np.eye(2)[[0, 1, 1, 0, 1, 0]], side)
        engine = Engine([layer, Dense(2)], registry.rule("backprop"), shape, 2, backend="cuda")
        engine.tapes.strict = True
        state = engine.init(0)
        for _ in range(3):
            engine.step(state, batch)
        assert engine.tapes._graphs, kind


def test_what_stops_on_a_value_runs_op_by_op_and_says_so():
    engine, batch = made("equilibrium_propagation"), benchmark.batch_of((20,), 5, 16)
    state = engine.init(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.step(state, batch)
    with pytest.warns(SettingsWarning, match="op by op"):
        engine.step(state, batch)
    engine.step(state, batch)
    assert "captured" in engine.tapes.why and not engine.tapes._graphs


def test_another_batch_another_state_another_rate():
    engine, rng = made(), np.random.default_rng(0)
    slow = made()
    slow.tapes.why = "to compare"
    for seed in (0, 1):
        pairs = [(e, e.init(seed)) for e in (engine, slow)]
        for i in range(6):
            rows = 16 if i % 3 else 7
            batch = benchmark.batch_of((20,), 5, rows, int(rng.integers(100)))
            losses = [float(e.step(s, batch)[0]["loss"]) for e, s in pairs]
            assert losses[0] == losses[1]


def test_a_checkpoint_of_one_is_loaded_by_the_other(tmp_path):
    batch = benchmark.batch_of((20,), 5, 16)
    there, here = made(dtype="float64"), made(backend="numba", dtype="float64")
    state = there.init(0)
    there.step(state, batch)
    state.save(tmp_path / "state.safetensors")
    for engine in (there, here):
        again = engine.placed(load(tmp_path / "state.safetensors"))
        scores = engine.predict(again, batch.x)
        assert np.allclose(scores, there.predict(state, batch.x), 1e-12)


@pytest.mark.torch
def test_tensors_of_pytorch_are_read_where_they_lie(k):
    import torch

    batch = benchmark.batch_of((20,), 5, 16)
    engine = made()
    state, same = engine.init(0), engine.init(0)
    x, y = torch.from_numpy(batch.x).cuda(), torch.from_numpy(batch.y).cuda()
    with k.running(1):
        assert k.asarray(x).data.ptr == x.data_ptr()
    assert np.array_equal(engine.predict(state, x), engine.predict(same, batch.x))
    engine.step(state, Batch(x, y))
    engine.step(same, batch)
    for path, a in state.arrays().items():
        assert k.host(a).tobytes() == k.host(same.arrays()[path]).tobytes()
    assert torch.from_dlpack(state.arrays()["params/0/W"]).is_cuda


@pytest.mark.torch
def test_cudnn_convolutions_are_the_reference_s(k):
    other = kernels.load("cuda:cudnn")
    for name, (call, _, _) in CASES.items():
        if name.startswith("conv"):
            with other.running(1):
                found = [other.host(a) for a in call(other, Draw(np.float64, other))]
            want = call(Kernels(), Draw(np.float64, Kernels()))
            assert max(map(off, found, want)) <= benchmark.ROUNDINGS, name


@pytest.mark.parametrize("option, limit", [("tf32", 5e-3), ("bf16", 5e-2)])
def test_less_precise_products_are_near(option, limit):
    other, rng = kernels.load(f"cuda:{option}"), np.random.default_rng(0)
    a, b = (rng.normal(size=(512, 512)).astype(np.float32) for _ in "ab")
    with other.running(1):
        found = other.host(other.matmul(other.asarray(a), other.asarray(b)))
    far = np.abs(found - a @ b).max() / np.abs(a @ b).max()
    assert 1e-6 < far < limit
