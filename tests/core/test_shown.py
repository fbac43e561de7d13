"""Rows that share samples: the same numbers as rows laid out, for fewer products."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fflearn import kernels, layers
from fflearn.base import ALONE, Batch, Shown
from fflearn.checks import bench, learned, samples
from fflearn.engine import Engine
from fflearn.kernels.reference import Kernels
from fflearn.labels import EMBEDDINGS
from fflearn.layers.dense import UNITS, Dense
from fflearn.random import Key
from fflearn.registry import rule

NORMS = ("none", "rms", "unit")


def shown(embedding: str, blocks: int, rows: int = 5, classes: int = 3) -> Shown:
    key = Key(7)
    labels = key.fold("labels").normal((blocks * rows, classes), np.float64)
    x = key.fold("x").normal((rows, 4, 3, 2), np.float64)
    return EMBEDDINGS[embedding](0.7).shown(x, labels)


# ---- the identity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("embedding", ["overlay", "append"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_dense_layer_computes_and_learns_as_on_the_rows_laid_out(
    norm, embedding, blocks, backend
):
    k, x = kernels.load(backend), shown(embedding, blocks)
    for layer in (Dense(7, "tanh", norm), Dense(7, "relu", norm, bias=False)):
        assert layer.shares
        p = layer.init(Key(1), x.x.shape[1:], np.float64)
        p |= {"b": np.linspace(-1, 1, 7)} if layer.bias else {}
        noise = Key(2).normal((len(x.values), 7), np.float64)
        mine = layer.forward(k, p, x, ALONE, noise)
        plain = layer.forward(k, p, x.whole, ALONE, noise)
        np.testing.assert_allclose(mine.a, plain.a, rtol=0, atol=1e-12)
        np.testing.assert_allclose(mine.y, plain.y, rtol=0, atol=1e-12)
        da = Key(3).normal(mine.y.shape, np.float64)
        found, exact = layer.param_vjp(k, mine, da), layer.param_vjp(k, plain, da)
        assert found.keys() == exact.keys()
        for name in exact:
            np.testing.assert_allclose(
                k.formed(found[name]), k.formed(exact[name]), rtol=0, atol=1e-12
            )


def test_rows_are_laid_out_block_after_block():
    x = Shown(np.array([[1.0, 0, 2], [3, 0, 4]]), np.array([[5.0], [6], [7], [8]]), 1)
    np.testing.assert_array_equal(x.whole, [[1, 5, 2], [3, 6, 4], [1, 7, 2], [3, 8, 4]])
    assert shown("overlay", 3).whole.shape == (15, 4, 3, 2)
    assert shown("append", 3).whole.shape == (15, 27)


STEPS = [
    {"negatives": "wrong"},
    {"negatives": "all_wrong", "goodness": "l2", "norm": "unit"},
    {"negatives": "hard", "peer": 0.3},
    {"negatives": "all_wrong", "loss": "softmax", "collaboration": "all"},
]


@pytest.mark.parametrize("settings", STEPS, ids=str)
@pytest.mark.parametrize("weight", [None, np.arange(1.0, 8.0)], ids=["", "weighted"])
def test_a_step_of_forward_forward_is_that_on_rows_laid_out(settings, weight):
    engine, state, batch = bench(lambda: rule("ff", **settings), "dense 17 relu | dense 9 tanh")
    batch, found = batch._replace(weight=weight), []
    for shares in (True, False):
        engine.shares = shares
        updates = dict(learned(engine, engine.updates(state, batch)))
        found.append((updates, engine.predict(state, batch.x, "goodness")))
    (mine, scores), (plain, others) = found
    for path, g in plain.items():
        np.testing.assert_allclose(mine[path], g, rtol=0, atol=1e-12, err_msg=path)
    np.testing.assert_allclose(scores, others, rtol=1e-12)


# ---- where it applies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shares"),
    [
        ("dense 6 relu | dense 3", True),
        ("dense 6 relu | residual(dense 6 relu) | dense 3", True),
        ("dense 6 relu places=1 | dense 3", False),
        ("conv 6 relu | dense 3", False),
        ("residual(dense 6 relu; dense 6 relu) | dense 3", False),  # two read the input
        ("residual(conv 1 relu) | dense 3", False),
    ],
)
def test_rows_stay_together_where_one_layer_that_can_reads_the_input(net, shares):
    engine = Engine(net, rule("ff"), (4, 4, 1), 3)
    assert engine.shares == shares
    x = Key(0).normal((6, 4, 4, 1), np.float64)
    engine.step(engine.init(0), Batch(x, np.eye(3)[[0, 1, 2, 0, 1, 2]]))


def test_only_layers_that_say_so_are_given_shared_rows():
    kinds = {
        kind for kind in layers.names() if any(e[0].shares for e in layers.load(kind).examples())
    }
    assert kinds == {"dense"}


# ---- what it saves --------------------------------------------------------------------------------


class Counting(Kernels):
    """Multiplications in products, by the columns of the right factor."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def _count(self, rows: int, inner: int, columns: int) -> None:
        self.counts[columns] = self.counts.get(columns, 0) + rows * inner * columns

    def matmul(self, a, b):
        self._count(*a.shape, b.shape[1])
        return super().matmul(a, b)

    def matmul_tn(self, a, b):
        self._count(a.shape[1], a.shape[0], b.shape[1])
        return super().matmul_tn(a, b)


def products(shares: bool, negatives: str, classes: int = 10, rows: int = 20) -> tuple[int, int]:
    """Multiplications of the first layer, of 31 units, on 100 features: in a step, in prediction."""
    ff = rule("ff", negatives=negatives, head=False)
    engine = Engine("dense 31 relu | dense 8 relu | dense 3", ff, (100,), classes, mode="eager")
    engine.kernels, engine.shares = (k := Counting()), shares
    state, batch = engine.init(0), samples(rows, classes)
    x = Key(0).normal((rows, 100), np.float32)
    engine.step(state, Batch(x, batch.y))
    step, k.counts = k.counts[31], {}
    engine.predict(state, x)
    return step, k.counts[31]


@pytest.mark.parametrize(("negatives", "blocks"), [("wrong", 2), ("all_wrong", 10)])
def test_products_of_the_first_layer(negatives, blocks):
    """n features and C columns, u units, B samples shown r times: counted, and as worked out."""
    n, c, u, b = 110, 10, 31, 20
    plain, predicting = products(False, negatives)
    assert plain == 2 * blocks * b * n * u and predicting == c * b * n * u
    mine, cheap = products(True, negatives)
    forward = b * n * u + blocks * b * c * u
    assert mine == forward + blocks * b * c * u + b * n * u
    assert cheap == b * n * u + c * b * c * u


@pytest.mark.parametrize("norm", ["none", "rms"])
@pytest.mark.parametrize("kind", ["append", "overlay"])
def test_the_gradient_is_that_of_the_rows_laid_out_however_many_units(kind, norm):
    k, x = Kernels(), shown(kind, 4)
    layer = Dense(2 * UNITS + 3, "tanh", norm=norm)
    inputs = math.prod(x.whole.shape[1:])
    p = layer.init(Key(0), (inputs,), np.float64)
    one, two = layer.forward(k, p, x, ALONE), layer.forward(k, p, x.whole, ALONE)
    da = layer.act_vjp(k, one, Key(1).normal(one.y.shape, np.float64))
    for name, g in layer.param_vjp(k, one, da).items():
        np.testing.assert_allclose(g, k.formed(layer.param_vjp(k, two, da)[name]), 1e-10, 1e-14)
