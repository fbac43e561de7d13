"""Layers on graphs: numbers by hand, stacked versions, nodes without labels, wrong use."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fflearn import kernels
from fflearn.base import Batch, Env, Key
from fflearn.checks import learned
from fflearn.data.graphs import operators
from fflearn.engine import Engine
from fflearn.errors import DataError, ShapeError, SpecError
from fflearn.layers.dense import Dense
from fflearn.layers.graph_conv import GraphConv
from fflearn.layers.sage import Sage
from fflearn.registry import rule

K = kernels.load("reference")
PATH = operators(np.array([[0, 1], [1, 2]]), 4)  # 0 - 1 - 2, and node 3 alone


def random_graph(n=7, seed=0):
    """Not symmetric, so that a matrix and its transpose differ."""
    rng = np.random.default_rng(seed)
    mix = csr_array(rng.normal(size=(n, n)) * (rng.uniform(size=(n, n)) < 0.5))
    return {"adjacency": mix, "neighbours": mix}


def test_a_graph_convolution_by_hand():
    # Degrees with self-loops: 2, 3, 2, 1.  Row 0: x_0 / 2 + x_1 / sqrt 6; row 3: x_3.
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    p = {"W": np.array([[10.0]]), "b": np.array([1.0])}
    t = GraphConv(1, "relu").forward(K, p, x, Env(PATH))
    r = 1 / np.sqrt(6)
    mixed = [1 / 2 + 2 * r, r + 2 / 3 + 3 * r, 2 * r + 3 / 2, 4]
    np.testing.assert_allclose(t.y[:, 0], 10 * np.array(mixed) + 1, rtol=1e-12)
    # Only node 0 has an error: nodes 0 and 1 get a message, the weight their features.
    da = np.array([[1.0], [0], [0], [0]])
    layer = GraphConv(1, "relu")
    np.testing.assert_allclose(layer.input_vjp(K, t, da)[:, 0], [5, 10 * r, 0, 0], rtol=1e-12)
    g = layer.param_vjp(K, t, da)
    np.testing.assert_allclose(K.formed(g["W"]), [[mixed[0] / 4]], rtol=1e-12)
    np.testing.assert_allclose(g["b"], [1 / 4])


def test_sage_by_hand():
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    p = {"W_self": np.array([[1.0]]), "W_neigh": np.array([[10.0]]), "b": np.array([0.5])}
    t = Sage(1).forward(K, p, x, Env(PATH))
    # Neighbours' means: 2, (1 + 3) / 2, 2, none.
    np.testing.assert_allclose(t.y[:, 0], [21.5, 22.5, 23.5, 4.5])
    da = np.array([[0.0], [1], [0], [0]])
    np.testing.assert_allclose(Sage(1).input_vjp(K, t, da)[:, 0], [5, 1, 5, 0])
    g = Sage(1).param_vjp(K, t, da)
    np.testing.assert_allclose(K.formed(g["W_self"]), [[2 / 4]])
    np.testing.assert_allclose(K.formed(g["W_neigh"]), [[2 / 4]])


@pytest.mark.parametrize("norm", ["none", "rms"])
def test_on_a_graph_of_self_loops_it_is_the_dense_layer(norm):
    x, side = np.cos(np.arange(15.0)).reshape(5, 3), {"adjacency": csr_array(np.eye(5))}
    conv, dense = GraphConv(4, "tanh", norm), Dense(4, "tanh", norm, draw="xavier")
    p = conv.init(Key(0), (3,), np.float64)
    assert all((a == p[n]).all() for n, a in dense.init(Key(0), (3,), np.float64).items())
    t, plain = conv.forward(K, p, x, Env(side)), dense.forward(K, p, x, Env())
    np.testing.assert_allclose(t.y, plain.y, rtol=1e-14)
    da = np.sin(np.arange(20.0)).reshape(5, 4)
    np.testing.assert_allclose(conv.input_vjp(K, t, da), dense.input_vjp(K, plain, da), rtol=1e-14)
    ours, theirs = (layer.param_vjp(K, s, da) for layer, s in ((conv, t), (dense, plain)))
    for n in theirs:
        np.testing.assert_allclose(K.formed(ours[n]), K.formed(theirs[n]), rtol=1e-14)


@pytest.mark.parametrize("layer", [GraphConv(4, "tanh"), Sage(4, "tanh")], ids=lambda x: x.kind)
def test_stacked_versions_of_a_graph_do_not_mix(layer):
    rng, side = np.random.default_rng(1), random_graph()
    p = layer.init(Key(0), (3,), np.float64)
    x, dx, da = (rng.normal(size=(14, n)) for n in (3, 3, 4))
    both = layer.forward(K, p, x, Env(side))
    down, up = layer.input_vjp(K, both, da), layer.jvp(K, both, dx, p)
    for rows in (slice(0, 7), slice(7, 14)):
        one = layer.forward(K, p, x[rows], Env(side))
        assert (one.y == both.y[rows]).all()
        np.testing.assert_allclose(layer.input_vjp(K, one, da[rows]), down[rows], rtol=1e-13)
        np.testing.assert_allclose(layer.jvp(K, one, dx[rows], p), up[rows], rtol=1e-13)


def test_weights_of_sage_are_drawn_as_one_matrix():
    layer = Sage(400, "relu", draw="kaiming")
    p, std = layer.init(Key(0), (300,), np.float64), layer.weight_std((300,))
    whole = Dense(400, "relu").init(Key(0), (600,), np.float64)["W"]
    assert (np.concatenate([p["W_self"], p["W_neigh"]]) == whole).all()
    assert std == {"W_self": np.sqrt(2 / 600), "W_neigh": np.sqrt(2 / 600)}
    assert "b" not in Sage(4, bias=False).init(Key(0), (3,), np.float64)


@pytest.mark.parametrize("kind", ["graph_conv", "sage"])
@pytest.mark.parametrize("name", ["backprop", "dfa", "single_forward"])
def test_rules_train_it_and_predict_the_whole_graph_at_once(kind, name):
    n, rng = 1201, np.random.default_rng(0)
    edges = rng.integers(n, size=(3 * n, 2))
    y = np.eye(3)[rng.integers(3, size=n)]
    x, side = y + rng.normal(size=(n, 3)), operators(edges, n)
    engine = Engine(f"{kind} 9 relu | {kind} 3", rule(name), (3,), 3)
    state, batch = engine.init(0), Batch(x, y, side, (np.arange(n) % 2).astype(float))
    losses = [engine.step(state, batch)[0]["loss"] for _ in range(10)]
    assert losses[-1] < losses[0]
    scores = engine.predict(state, x, side=side)
    order = rng.permutation(n)
    place = np.argsort(order)
    shuffled = engine.predict(state, x[order], side=operators(place[edges], n))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(shuffled, scores[order], rtol=1e-3, atol=1e-4)


def masked(n=9):
    rng = np.random.default_rng(2)
    weight = np.array([1.0, 2, 0, 0, 3, 0, 0, 0, 0])
    return Batch(rng.normal(size=(n, 4)), np.eye(3)[np.arange(n) % 3], random_graph(n), weight)


def of(name, net, batch):
    engine = Engine(net, rule(name), (4,), 3, dtype="float64")
    return dict(learned(engine, engine.updates(engine.init(0), batch)))


@pytest.mark.torch
@pytest.mark.parametrize(
    "net",
    [
        "graph_conv 3",
        "dense 5 tanh | dense 3",
        # Rows are weighed layer by layer; messages down are mixed before the weights act.
        "graph_conv 5 tanh | graph_conv 3",
        "dense 5 tanh | sage 3",
    ],
)
def test_backprop_with_a_mask_is_autograd_of_the_masked_loss(net):
    pytest.importorskip("torch")
    from fflearn.reference import TorchEngine

    torch = TorchEngine(net, (4,), 3, dtype="float64")
    updates = torch.updates(torch.init(0), masked())
    for path, g in of("backprop", net, masked()).items():
        layer, _, name = path.split("/")
        theirs = updates[int(layer)].grads[name]
        assert np.linalg.norm(g - theirs) <= 1e-10 * np.linalg.norm(theirs), path


@pytest.mark.parametrize("name", ["dfa", "frozen", "single_forward"])
def test_labels_of_masked_nodes_change_no_bit(name):
    batch = masked()
    other = batch._replace(y=np.where(batch.weight[:, None] > 0, batch.y, 0))
    found = [of(name, "graph_conv 5 tanh | graph_conv 3", b) for b in (batch, other)]
    for path, g in found[0].items():
        assert g.tobytes() == found[1][path].tobytes(), path


# ---- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "name"), [(GraphConv(3), "adjacency"), (Sage(3), "neighbours")])
def test_a_missing_or_foreign_graph_is_told(layer, name):
    p, x = layer.init(Key(0), (2,), np.float64), np.ones((5, 2))
    with pytest.raises(DataError, match=rf"needs the graph as side\['{name}'\]; got none"):
        layer.forward(K, p, x, Env())
    with pytest.raises(DataError, match=r"got \['other'\]"):
        layer.forward(K, p, x, Env({"other": 1}))
    for wrong in ((4, 4), (5, 4), (10, 10)):
        with pytest.raises(ShapeError, match=r"one row and one column per node; got \("):
            layer.forward(K, p, x, Env({name: csr_array(np.ones(wrong))}))


@pytest.mark.parametrize("kind", [GraphConv, Sage])
def test_wrong_settings_are_told_in_the_layers_own_name(kind):
    with pytest.raises(SpecError, match=f"{kind.kind} needs a positive number of units; got 0"):
        kind(0)
    with pytest.raises(SpecError, match=f"{kind.kind} needs activation to be one of"):
        kind(3, "swish")
