"""The training loop with arrays that lie elsewhere: same curves, few reads, data brought once."""

from __future__ import annotations

import numpy as np
import pytest
from foreign import Foreign, ForeignKernels

import fflearn
from fflearn import kernels, training
from fflearn.data.batches import Batches
from fflearn.data.dataset import DataSet
from fflearn.data.graphs import GraphData
from fflearn.errors import DivergenceError
from fflearn.kernels.reference import Kernels
from fflearn.optim import optimizer


class Counted(ForeignKernels):
    """Counts what comes from the host and goes there."""

    def __init__(self):
        self.brought = self.read = 0

    def asarray(self, a, dtype=None):
        self.brought += not isinstance(a, Foreign)
        return super().asarray(a, dtype)

    def host(self, a):
        self.read += 1
        return super().host(a)


def trained(monkeypatch, k, data, **settings):
    monkeypatch.setattr(kernels, "load", lambda _: k)
    made = {"epochs": 2, "batch_size": 20, "seed": 3, "dtype": "float64"} | settings
    return fflearn.train("dense 6 tanh | dense 3", "dfa", data, **made)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(250, 4)), rng.integers(0, 3, 250)
    return DataSet("blobs", x, y, x[:30], y[:30], 3)


def test_the_same_run(monkeypatch, data):
    want = trained(monkeypatch, Kernels(), data)
    k = Counted()
    found = trained(monkeypatch, k, data)
    assert np.allclose(found.curves["loss"], want.curves["loss"], 1e-12)
    assert found.curves["accuracy"] == want.curves["accuracy"]
    for path, a in found.state.arrays().items():
        assert np.allclose(a.get(), want.state.arrays()[path], 1e-10, 1e-12), path


def test_losses_are_read_together(monkeypatch, data):
    counted = Counted()
    trained(monkeypatch, counted, data, epochs=1)
    more = Counted()
    trained(monkeypatch, more, data, epochs=1, batch_size=2)
    # 125 steps for 13: one reading more (of the first 100), and no sample brought again.
    assert more.read == counted.read + 1
    assert more.brought == counted.brought


def test_the_step_that_diverged_is_named(monkeypatch, data):
    steps, much = [], optimizer("sgd", lr=1e15)
    for k in (Kernels(), ForeignKernels()):
        with pytest.raises(DivergenceError) as e:
            trained(monkeypatch, k, data, batch_size=2, optimizer=much, objective="mse")
        steps.append(e.value.step)
    assert steps[0] == steps[1] > 0


@pytest.mark.parametrize("step", [0, 3, 12, 13, 40])
def test_batches_are_those_of_the_host(data, step):
    ours, theirs = Batches(data, 20, 1), Batches(data, 20, 1).on(ForeignKernels())
    want, found = ours.batch(step), theirs.batch(step)
    assert np.array_equal(found.x.get(), want.x) and np.array_equal(found.y.get(), want.y)
    assert found.x.dtype == want.x.dtype and found.y.dtype == want.y.dtype


def test_what_does_not_fit_stays(data, monkeypatch):
    monkeypatch.setattr(ForeignKernels, "fits", lambda self, nbytes: nbytes < 100)
    assert isinstance(Batches(data, 20, 1).on(ForeignKernels()).batch(0).x, np.ndarray)


def test_losses_name_the_first_that_is_not_finite():
    losses = training.Losses(type("Engine", (), {"kernels": ForeignKernels()}))
    losses.EVERY = 4
    values = [1.0, np.inf, 2.0, np.nan]
    assert [losses.note(Foreign(np.float64(v))) for v in values] == [None, None, None, 2]
    assert losses.found[:2] == [1.0, np.inf]
    assert losses.read() is None


def test_a_graph_lies_on_the_device_once():
    edges, y = np.array([[0, 1], [1, 2], [2, 3]]), np.array([0, 1, 0, 1])
    parts = {"train": np.array([0, 1]), "validation": np.array([2]), "test": np.array([3])}
    graph = GraphData(name="path", x=np.eye(4), y=y, edges=edges, n_classes=2, **parts)
    batches = graph.batches(1, 0).on(ForeignKernels())
    assert isinstance(batches.batch(0).x, Foreign) and batches.batch(3).x is batches.batch(0).x
