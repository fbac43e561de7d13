"""Single-forward: its local gradient by autograd, its groups, its predictions, wrong use."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fflearn.base import Batch, Env
from fflearn.checks import bench, learned
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.locality import poison
from fflearn.registry import rule

HIDDEN = "dense 17 relu | dense 13 tanh | dense 12 gelu"  # groups of 6, 6, 5 and 5, 4, 4 units
GRAPH = "graph_conv 7 relu | sage 8 tanh"


def local_loss(torch, y, target, weight, goodness, temperature):
    """The layer's own loss, written with one slice per group."""
    n, c = y.shape[-1], target.shape[-1]
    scores = []
    for label in range(c):
        mine = y[..., [j for j in range(n) if j * c // n == label]].flatten(1)
        places = y[0, ..., 0].numel()
        scores.append(
            {
                "msq": (mine**2).mean(1),
                "ssq": (mine**2).sum(1) / places,
                "lin": mine.mean(1),
            }[goodness]
        )
    logits = torch.stack(scores, 1) / temperature
    loss = -(target * torch.log_softmax(logits, 1)).sum(1)
    return (weight * loss).sum() / weight.sum()


def assert_autograd(engine, state, batch, goodness, temperature):
    """Every layer's update is the gradient of its own loss, its input held constant."""
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import LAYERS

    target = torch.tensor(batch.y)
    weight = torch.tensor(np.ones(len(batch.x)) if batch.weight is None else batch.weight)
    updates, x = engine.updates(state, batch), torch.tensor(batch.x)
    for spec, layer, slots, update in zip(
        engine.specs, engine.net.leaves, state.params, updates, strict=True
    ):
        p = {n: torch.tensor(a, requires_grad=n not in layer.buffers) for n, a in slots.items()}
        y = LAYERS[layer.kind](layer, p, x.detach(), Env(batch.side))
        p = {n: a for n, a in p.items() if a.requires_grad}
        if not p:
            assert not update.grads
            x = y
            continue
        kind = "lin" if spec.is_output else goodness
        local_loss(torch, y, target, weight, kind, temperature).backward()
        assert set(update.grads) == set(p)
        for n, g in update.grads.items():
            theirs, ours = p[n].grad.numpy(), engine.kernels.formed(g)
            assert np.linalg.norm(ours - theirs) <= 1e-10 * np.linalg.norm(theirs), (spec.name, n)
        x = y


@pytest.mark.torch
@pytest.mark.parametrize("weight", [None, np.array([0, 1, 2, 0, 1, 0.5, 3])])
@pytest.mark.parametrize("norm", ["rms", "unit", "given"])
@pytest.mark.parametrize(("goodness", "t"), [("msq", 1.0), ("ssq", 3.0), ("lin", 0.5)])
def test_updates_are_autograd_of_each_layers_own_loss(goodness, t, norm, weight):
    made = bench(
        lambda: rule("single_forward", goodness=goodness, norm=norm, temperature=t), HIDDEN
    )
    for slots in made.state.params:
        slots["b"] = np.linspace(-0.5, 0.5, slots["b"].size)
    assert_autograd(made.engine, made.state, made.batch._replace(weight=weight), goodness, t)


@pytest.mark.torch
@pytest.mark.parametrize("goodness", ["msq", "ssq", "lin"])
def test_places_of_a_sample_share_their_group(goodness):
    engine = Engine(
        "dense 7 tanh places=1 | dense 3",
        rule("single_forward", goodness=goodness, norm="given"),
        (4, 5),
        3,
        dtype="float64",
    )
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(6, 4, 5)), np.eye(3)[[0, 1, 2, 0, 1, 2]])
    assert_autograd(engine, engine.init(0), batch, goodness, 1.0)


NORMED = {
    "batch": "block(dense 9 relu | batch_norm) | block(dense 12 bias=false | batch_norm) | dense 3",
    "group": "dense 9 relu | block(group_norm groups=3 | dense 12) | "
    "block(group_norm groups=3 | dense 3)",
}
IMAGES = {
    "batch": "block(conv 6 relu | batch_norm) | max_pool | block(conv 9 tanh | batch_norm) | dense 3",
    "group": "conv 6 relu | max_pool | block(group_norm groups=3 | conv 9 tanh) | "
    "block(group_norm groups=3 | dense 3)",
}


def on_images(norm, net="conv 6 relu | max_pool 2 | conv 9 tanh | dense 3", **settings):
    engine = Engine(
        net,
        rule("single_forward", norm=norm, **settings),
        (6, 6, 2),
        3,
        dtype="float64",
        backend="reference",
    )
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(5, 6, 6, 2)), np.eye(3)[[0, 1, 2, 0, 1]])
    return engine, engine.init(0), batch


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_of_the_channel_wise_papers_are_part_of_the_layers(norm):
    dense = Engine("dense 9 relu | dense 12 | dense 3", rule("single_forward", norm=norm), (4,), 3)
    assert dense.net.spec() == NORMED[norm]
    assert on_images(norm)[0].net.spec() == IMAGES[norm]
    both = Engine(
        "residual(dense 6 relu; dense 6) | flatten | dense 3",
        rule("single_forward", norm=norm),
        (4,),
        3,
    )
    assert (
        both.net.spec()
        == {
            "batch": "residual(block(dense 6 relu | batch_norm); block(dense 6 bias=false | batch_norm))"
            " | flatten | dense 3",
            "group": "residual(dense 6 relu; dense 6) | flatten | block(group_norm groups=3 | dense 3)",
        }[norm]
    )


@pytest.mark.torch
@pytest.mark.parametrize("goodness", ["msq", "ssq", "lin"])
@pytest.mark.parametrize("norm", ["rms", "batch", "group"])
def test_channels_of_images_compete_by_autograd_of_each_layers_own_loss(norm, goodness):
    engine, state, batch = on_images(norm, goodness=goodness)
    assert_autograd(engine, state, batch, goodness, 1.0)


@pytest.mark.torch
def test_goodness_is_taken_after_pooling_and_batch_norm_inside_one_block():
    # CwC's layer, convolution, relu, pooling, batch norm, is a block: goodness is on signed numbers.
    net = "block(conv 6 relu | max_pool | batch_norm) | block(conv 9 relu | batch_norm) | dense 3"
    engine, state, batch = on_images("given", net)
    assert engine.net.spec() == net
    assert_autograd(engine, state, batch, "msq", 1.0)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_with_these_norms_layers_are_as_local(norm):
    made = bench(lambda: rule("single_forward", norm=norm), "dense 18 tanh | dense 12 relu")
    report = poison(made)
    assert report.ok and not report.depend, report.verdict


def test_no_class_is_ahead_in_what_the_layer_above_reads():
    # Mean goodness is taken out group by group: adding to a group of units changes nothing above.
    engine, state, batch = on_images("group", goodness="lin")
    k, (first, *_) = engine.kernels, engine.net.leaves
    y = first.forward(k, state.params[0], batch.x, Env()).y
    ahead = y + np.repeat([5.0, 0.0, -3.0], 2)
    reader = engine.net.leaves[2]
    found = [reader.forward(k, state.params[2], x, Env()).y for x in (y, ahead)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-12)


def graph(n=9, seed=0):
    """A graph with features, and labels that only some nodes show."""
    rng = np.random.default_rng(seed)
    mix = csr_array(rng.uniform(size=(n, n)) * (rng.uniform(size=(n, n)) < 0.4))
    side = {"adjacency": mix, "neighbours": mix}
    y, weight = np.eye(3)[rng.integers(3, size=n)], (np.arange(n) < 5).astype(float)
    return Batch(rng.normal(size=(n, 6)), y, side, weight)


def on_graph(**settings):
    engine = Engine(
        f"{GRAPH} | graph_conv 3", rule("single_forward", **settings), (6,), 3, dtype="float64"
    )
    return engine, engine.init(0)


@pytest.mark.torch
def test_on_a_graph_updates_are_autograd_of_the_masked_loss():
    engine, state = on_graph()
    assert_autograd(engine, state, graph(), "msq", 1.0)


def test_labels_outside_the_training_part_change_no_bit():
    engine, state = on_graph()
    batch = graph()
    hidden = batch.y.copy()
    hidden[5:] = 0
    for a, b in zip(
        learned(engine, engine.updates(state, batch)),
        learned(engine, engine.updates(state, batch._replace(y=hidden))),
        strict=True,
    ):
        assert a[1].tobytes() == b[1].tobytes(), a[0]


def test_a_graph_of_blocks_is_learned_from_a_tenth_of_its_labels():
    rng, n = np.random.default_rng(0), 240
    y = np.arange(n) % 4
    near = rng.uniform(size=(n, n)) < np.where(y[:, None] == y, 0.2, 0.01)
    from fflearn.data.graphs import operators

    side = operators(np.argwhere(near), n)
    batch = Batch(np.eye(n), np.eye(4)[y], side, (np.arange(n) < n // 10).astype(float))
    engine = Engine(
        "graph_conv 16 relu | graph_conv 4", rule("single_forward"), (n,), 4, dtype="float64"
    )
    state = engine.init(0)
    for _ in range(60):
        engine.step(state, batch)
    right = engine.predict(state, batch.x, side=side).argmax(1) == y
    assert right[n // 10 :].mean() >= 0.95


def test_a_layer_alone_is_backprop():
    batch = Batch(np.cos(np.arange(20.0)).reshape(5, 4), np.eye(3)[[0, 1, 2, 0, 1]])
    found = []
    for name in ("single_forward[norm=given]", "backprop"):
        engine = Engine("dense 3", rule(name), (4,), 3, dtype="float64")
        found.append(dict(learned(engine, engine.updates(engine.init(0), batch))))
    for path, g in found[0].items():
        np.testing.assert_allclose(g, found[1][path], rtol=1e-12)


def test_a_step_computed_by_hand():
    # x = 2, W = (1, 3), b = 0: y = (2, 6), one unit per class: g = (4, 36), T = 8: logits
    # (1/2, 9/2), softmax (q, 1 - q) with q = 1 / (1 + e^4).  Label 0: error (q - 1, 1 - q) / 8.
    # dg/dy = 2 y = (4, 12); times x = 2.
    engine = Engine(
        "dense 2 relu | dense 2",
        rule("single_forward", norm="given", temperature=8.0),
        (1,),
        2,
        dtype="float64",
    )
    state = engine.init(0)
    state.params[0]["W"] = [[1, 3]]
    first, _ = engine.updates(state, Batch(np.array([[2.0]]), np.array([[1.0, 0.0]])))
    q = 1 / (1 + np.exp(4))
    expected = np.array([[(q - 1) / 8 * 4 * 2, (1 - q) / 8 * 12 * 2]])
    np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), expected, rtol=1e-12)
    np.testing.assert_allclose(first.grads["b"], expected[0] / 2, rtol=1e-12)
    info, ledger = engine.step(state, Batch(np.array([[2.0]]), np.array([[1.0, 0.0]])))
    assert info["loss/0"] == pytest.approx(np.log1p(np.exp(4)))
    assert ledger.per_sample() == {"activity": 2, "target": 4}
    assert ledger.forward_passes == 1 and ledger.transposes == 0


def test_no_gradient_flows_into_the_layer_below():
    engine, state, batch = bench(lambda: rule("single_forward"), HIDDEN)
    before = dict(learned(engine, engine.updates(state, batch)))
    for above in state.params[1:]:
        above["W"] = 3 * above["W"] + 1
    after = dict(learned(engine, engine.updates(state, batch)))
    for path, g in before.items():
        assert (g == after[path]).all() == path.startswith("0/"), path


def test_one_layer_is_alive_at_a_time():
    sizes = []
    for depth in (2, 6):
        engine, state, batch = bench(
            lambda: rule("single_forward"), " | ".join(["dense 16 relu"] * depth)
        )
        sizes.append(engine.step(state, batch)[1].peak_bytes)
    assert sizes[0] == sizes[1]


def test_scores_are_the_layers_beliefs_added_up():
    engine, state, batch = bench(lambda: rule("single_forward", temperature=0.7), HIDDEN)
    x, total = batch.x, 0
    for i, layer in enumerate(engine.net.leaves):
        n = x / np.sqrt((x**2).mean(1, keepdims=True))
        x = engine.kernels.act(n @ state.params[i]["W"] + state.params[i]["b"], layer.activation)
        own = np.arange(x.shape[1]) * 3 // x.shape[1]
        g = x if i == 3 else x**2
        logits = np.stack([g[:, own == label].mean(1) for label in range(3)], 1) / 0.7
        total = total + np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(engine.predict(state, batch.x), total, rtol=1e-6)
    np.testing.assert_allclose(engine.predict(state, batch.x, "logits"), x, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"goodness": "l2"}, "goodness to be one of msq, ssq, lin; got 'l2'"),
        ({"norm": "none"}, "norm to be one of rms, unit, batch, group, given; got 'none'"),
        ({"temperature": 0.0}, "temperature above 0; got 0.0"),
        ({"temperature": float("nan")}, "temperature above 0"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("single_forward", **settings)


@pytest.mark.parametrize(
    ("net", "in_shape", "told"),
    [
        ("dense 2 relu | dense 3", (4,), "a unit per class in every layer: 3; layer '0 dense 2"),
        ("dense 3 places=1", (4, 5), "one label per sample"),
        ("block(dense 5 relu | dense 5) | dense 3", (4,), "cannot normalise the input of 'block"),
        ("dense 5 norm=unit | dense 3", (4,), None),
    ],
)
def test_networks_that_do_not_fit_are_told(net, in_shape, told):
    def made():
        engine = Engine(net, rule("single_forward"), in_shape, 3)
        engine.init(0)
        return engine

    if told is None:
        assert made().net.spec() == "dense 5 norm=rms | dense 3 norm=rms"
        return
    with pytest.raises(SpecError, match=told):
        made()


def test_data_are_not_group_normed_behind_a_flattening_either():
    engine = Engine("flatten | dense 6 | dense 3", rule("single_forward", norm="group"), (2, 2), 3)
    assert engine.net.spec() == "flatten | dense 6 | block(group_norm groups=3 | dense 3)"


def test_groups_of_unlike_size_have_no_group_norm():
    with pytest.raises(SpecError, match="as many units for every class: 'dense 5' for 3 classes"):
        Engine("dense 6 | dense 5 | dense 3", rule("single_forward", norm="group"), (4,), 3)
