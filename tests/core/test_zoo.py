"""Networks by name: sizes as published, and the rules on a small network of their kind."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import layers
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.layers.batch_norm import BatchNorm
from fflearn.layers.conv import Conv
from fflearn.networks import network
from fflearn.registry import rule
from fflearn.topology import Residual
from fflearn.zoo import NETWORKS, lenet, resnet20, summary

MICRO = "residual(layer_norm | attention 2)"
MICRO += " | residual(layer_norm | dense 16 gelu places=1 | dense 4 places=1)"
SMALL = (
    "conv 4 bias=false | batch_norm relu"
    " | residual(conv 4 bias=false | batch_norm relu | conv 4 bias=false | batch_norm) | act relu"
    " | residual(conv 6 stride=2 bias=false | batch_norm relu | conv 6 | batch_norm;"
    " conv 6 kernel=1 stride=2 bias=false | batch_norm) | act relu | max_pool 2 | avg_pool | dense 3"
)
IN = (9, 8, 2)
# Feedback that is not the transpose needs some width to align with.
WIDE = SMALL.replace("conv 4", "conv 16").replace("conv 6", "conv 32")
RULES = ("backprop", "fa", "dfa", "sign_symmetry", "frozen")


def batch(rows=7, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(rng.normal(size=(rows, *IN)), np.eye(3)[rng.integers(0, 3, rows)])


@pytest.mark.parametrize(
    ("name", "in_shape", "published"),
    [
        ("lenet", (28, 28, 1), 61_706),
        ("resnet20", (32, 32, 3), 272_474),  # with projections; 269,722 and 0.27 M without
        ("vgg8", (32, 32, 3), 8.9e6),
        ("vgg8", (28, 28, 1), 7.3e6),
        ("vgg16", (32, 32, 3), 14.72e6),
    ],
)
def test_sizes_are_the_published_ones(name, in_shape, published):
    net = network(name)
    exact = isinstance(published, int)
    assert net.n_params(in_shape) == (published if exact else pytest.approx(published, rel=0.006))
    assert net.shapes(in_shape)[-1] == (10,)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_name_stands_for_a_spec_that_reads_back(name):
    net = network(name)
    assert network(net.spec()) == net and net.spec() == NETWORKS[name](10)
    assert network(name, n_classes=7) == network(NETWORKS[name](7))
    if name not in layers.names():  # or the number is the layer's
        assert network(f"{name} 7") == network(f"{name} n_classes=7") == network(NETWORKS[name](7))
        assert network(f"{name} 7", n_classes=9).leaves[-1].units == 7
    assert len(summary(name)) > 20 and "\n" not in summary(name)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("mlp", "dense 256 relu | dense 256 relu | dense 7"),
        ("mlp 4 width=9 depth=1", "dense 9 relu | dense 4"),
        ("gcn", "graph_conv 16 relu | graph_conv 7"),
        ("gcn width=5 depth=3", "graph_conv 5 relu | graph_conv 5 relu | graph_conv 7"),
        ("sage depth=1", "sage 7"),
        ("lstm", "lstm 64 | dense 7"),
        ("gru depth=2 width=8", "gru 8 last=false | gru 8 | dense 7"),
        ("rnn last=false", "rnn 64 last=false | dense 7 places=1"),
        (
            "gpt-nano width=4 depth=1 heads=2 places=micro",
            f"embed 7 4 | position | {MICRO} | layer_norm | dense 7 places=1",
        ),
    ],
)
def test_a_name_takes_options_and_the_datas_number_of_classes(spec, layers):
    assert network(spec, n_classes=7).spec() == layers


def test_a_name_that_a_layer_has_is_the_layer_wherever_it_may_be_one():
    assert network("lstm 5").spec() == "lstm 5"
    assert network("gru units=5 last=false").spec() == "gru 5 last=false"
    assert network("sage 5 relu | sage 3").spec() == "sage 5 relu | sage 3"
    for spec in ("lstm | dense 3", "dense 3 | sage", "block(gru)", "residual(rnn)"):
        with pytest.raises(SpecError, match="needs units"):
            network(spec)


def test_a_name_may_stand_among_layers():
    net = network("conv 3 | lenet 5 | dense 2")
    assert net.spec() == f"conv 3 | {lenet(5)} | dense 2" and network(net.spec()) == net
    (block,) = network("block(lenet)").leaves
    assert block.spec() == f"block({lenet()})"


def test_resnet20_has_twenty_layers_of_weights():
    net = network(resnet20())
    residuals = [i for i in net.body.items if isinstance(i, Residual)]
    convs = [leaf for leaf in net.leaves if isinstance(leaf, Conv)]
    assert len(residuals) == 9 and sum(r.skip is not None for r in residuals) == 2
    assert len([c for c in convs if c.kernel == 3]) == 19 and not any(c.bias for c in convs)
    assert [c.stride for c in convs].count(2) == 4
    assert sum(isinstance(leaf, BatchNorm) for leaf in net.leaves) == len(convs) == 21
    sizes = {s[0] for s in net.shapes((32, 32, 3)) if len(s) == 3}
    assert sizes == {32, 16, 8}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("resnet20 ten", r"layer 0 \('resnet20 ten'\): resnet20 needs n_classes of type int"),
        ("dense 3 | vgg8 5 6", r"layer 1 \('vgg8 5 6'\): .*'6' is one too many"),
        ("lenet 0", "positive number of units; got 0"),
        ("vgg8 relu=true", r"vgg8 has no option 'relu'; it has \['n_classes'\]"),
        ("gcn width=0", "width of 1 or more; got 0"),
        ("lstm depth=0", "depth of 1 or more; got 0"),
        ("mlp depth=-1", "depth of 1 or more; got -1"),
        ("rnn last=maybe", "last of type bool; got 'maybe'"),
        ("gpt-nano heads=0", "heads of 1 or more"),
        ("gpt-nano places=meso", "one of macro, micro; got 'meso'"),
    ],
)
def test_wrong_options_of_a_name_are_told(spec, told):
    with pytest.raises(SpecError, match=told):
        network(spec)


def test_a_name_that_is_nearly_one_is_told():
    with pytest.raises(SpecError, match="Did you mean 'resnet20'"):
        network("resnet2")


@pytest.mark.torch
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_backprop_is_autograd_through_a_residual_network(backend):
    pytest.importorskip("torch")
    from fflearn.reference import TorchEngine

    ours = Engine(SMALL, rule("backprop"), IN, 3, backend=backend, dtype="float64")
    theirs, b = TorchEngine(SMALL, IN, 3, dtype="float64"), batch()
    state = ours.init(0)
    for mine, other in zip(ours.updates(state, b), theirs.updates(state, b), strict=True):
        assert set(mine.grads) == set(other.grads)
        for name, g in mine.grads.items():
            g, there = ours.kernels.formed(g), other.grads[name]
            # A bias before batch norm has the gradient 0: only rounding is left of it.
            assert np.linalg.norm(g - there) <= 1e-10 * max(np.linalg.norm(there), 1e-3), name


def test_fa_with_the_forward_weights_is_backprop():
    fa = Engine(SMALL, rule("fa"), IN, 3, dtype="float64")
    bp, b = Engine(SMALL, rule("backprop"), IN, 3, dtype="float64"), batch()
    state = fa.init(0)
    for params, aux in zip(state.params, state.aux, strict=True):
        for name in aux:
            aux[name] = params[name]
    for one, other in zip(fa.updates(state, b), bp.updates(bp.init(0), b), strict=True):
        for name, g in one.grads.items():
            there = bp.kernels.formed(other.grads[name])
            np.testing.assert_allclose(fa.kernels.formed(g), there, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", [*RULES, "torch"])
def test_the_loss_falls_on_a_small_batch(name):
    if name == "torch":
        pytest.importorskip("torch")
        from fflearn.reference import TorchEngine

        engine = TorchEngine(WIDE, IN, 3)
    else:
        engine = Engine(WIDE, rule(name), IN, 3)
    state, b = engine.init(0), batch(12)
    losses = [float(engine.step(state, b)[0]["loss"]) for _ in range(60)]
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
    assert state.first_bad() is None
    assert np.isfinite(engine.predict(state, b.x)).all()


def test_a_step_is_the_same_for_both_backends_and_seeds_decide():
    found = []
    for backend, seed in (("reference", 0), ("numba", 0), ("numba", 0), ("numba", 1)):
        engine = Engine(SMALL, rule("fa"), IN, 3, backend=backend, dtype="float64")
        state = engine.init(seed)
        engine.step(state, batch())
        found.append(state.arrays())
    for path, a in found[0].items():
        np.testing.assert_allclose(found[1][path], a, rtol=1e-7, atol=1e-9)
        assert found[1][path].tobytes() == found[2][path].tobytes()
    assert any((found[2][p] != found[3][p]).any() for p in found[2])


def test_forward_forward_trains_convolutions():
    net = "conv 6 relu stride=2 | conv 8 relu stride=2 | dense 3"
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 12, 12, 1)), np.eye(3)[rng.integers(0, 3, 16)]
    engine = Engine(net, rule("forward_forward"), (12, 12, 1), 3)
    assert engine.net.leaves[0].norm == engine.net.leaves[1].norm == "rms"
    state = engine.init(0)
    losses = [float(engine.step(state, Batch(x, y))[0]["loss/0"]) for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    assert engine.predict(state, x).shape == engine.predict(state, x, by="softmax").shape == (16, 3)
