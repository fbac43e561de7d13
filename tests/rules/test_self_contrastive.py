"""Self-contrastive Forward-Forward: autograd of the pairs' loss, who is paired, what is passed on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fflearn.base import Batch, Env
from fflearn.checks import learned
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.random import Key
from fflearn.registry import rule

NETS = {
    "dense": ("dense 7 tanh | dense 6 relu | dense 5 gelu | dense 3", (4,)),
    "images": (
        "conv 4 tanh | max_pool 2 | conv 5 relu stride=2 | dense 6 tanh | dense 3",
        (6, 6, 2),
    ),
    "tokens": ("dense 7 tanh places=1 | dense 5 relu | dense 3", (4, 5)),
}
WEIGHT = np.array([0, 1, 2, 0, 1, 0.5, 3])


def engine_on(name, **settings):
    net, shape = NETS[name]
    engine = Engine(
        net, rule("self_contrastive", **settings), shape, 3, dtype="float64", backend="reference"
    )
    state = engine.init(0)
    for slots in state.params:
        if slots:
            slots["b"] = np.linspace(-0.5, 0.5, slots["b"].size)
    return engine, state


def samples(name, rows=7):
    rng = np.random.default_rng(3)
    return Batch(rng.normal(size=(rows, *NETS[name][1])), np.eye(3)[rng.integers(3, size=rows)])


def shift(layer, j, n, step=0):
    key = Key(0).at(step).fold("step").fold("layer", layer).fold("other", j)
    return 1 + int(key.integers(n - 1, ()))


def pairs_loss(torch, layer, p, x, weight, index, settings):
    """The layer's own loss with both halves of a pair spelled out; and what it passes on."""
    from fflearn.torch.layers import LAYERS

    linear = LAYERS[layer.kind](replace(layer, activation="identity"), p, x, Env())
    w = weight.reshape(-1, *[1] * (linear.ndim - 1))
    a = w * linear + (1 - w) * linear.detach()  # what reaches a sample weighs as the sample does
    act = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[
        layer.activation
    ]

    def goodness(both):
        return (act(both) ** 2).mean(-1).reshape(len(x), -1)

    up, down = settings["theta_pos"], settings["theta_neg"]
    good = goodness(a + a)
    loss = torch.nn.functional.softplus(up - good).mean(1)
    loss = loss + settings["sparsity"] * (good**2).sum(1).sqrt()
    for j in range(settings["others"]):
        other = torch.roll(a, -shift(index, j, len(x)), 0)
        bad = torch.nn.functional.softplus(goodness(a + other) - down).mean(1)
        loss = loss + bad / settings["others"]
    return loss.mean(), act(linear - linear.mean(-1, keepdim=True))


@pytest.mark.torch
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize(("up", "down", "sparsity"), [(2.0, 2.0, 0.0), (3.0, 0.5, 0.2)])
@pytest.mark.parametrize("norm", ["rms", "unit", "given"])
@pytest.mark.parametrize("name", NETS)
def test_updates_are_autograd_of_the_pairs_loss(name, norm, up, down, sparsity, others, weight):
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import LAYERS

    settings = {"theta_pos": up, "theta_neg": down, "sparsity": sparsity, "others": others}
    engine, state = engine_on(name, norm=norm, **settings)
    batch = samples(name)._replace(weight=weight)
    weights = torch.tensor(np.ones(7) if weight is None else weight / weight.mean())
    x, seen = torch.tensor(batch.x), 0
    for spec, layer, slots, update in zip(
        engine.specs, engine.net.leaves, state.params, engine.updates(state, batch), strict=True
    ):
        p = {n: torch.tensor(a, requires_grad=True) for n, a in slots.items()}
        if spec.is_output:
            logits = LAYERS[layer.kind](layer, p, x.detach(), Env())
            y = torch.tensor(batch.y)
            (weights * -(y * torch.log_softmax(logits, 1)).sum(1)).mean().backward()
        elif not p:
            x = LAYERS[layer.kind](layer, p, x, Env())
            continue
        else:
            loss, x = pairs_loss(torch, layer, p, x.detach(), weights, spec.index, settings)
            loss.backward()
        assert set(update.grads) == set(p)
        for n, g in update.grads.items():
            g, t = engine.kernels.formed(g), p[n].grad.numpy()
            assert np.linalg.norm(g - t) <= 1e-10 * np.linalg.norm(t), (spec.name, n)
            seen += 1
    assert seen >= 6


def test_a_step_computed_by_hand():
    # x = 1, 3, W = 1, b = 1/2: a = 3/2, 7/2.  Positive pairs: y = 3, 7, g = 9, 49; the negative
    # one: y = 5, g = 25, twice.  da = -2 (2 y s(theta - g)) + 2 (10 s(25 - theta)).
    engine = Engine(
        "dense 1 relu | dense 2",
        rule("self_contrastive", norm="given", theta_pos=10.0, theta_neg=26.0, others=1),
        (1,),
        2,
        dtype="float64",
    )
    state = engine.init(0)
    state.params[0]["W"], state.params[0]["b"] = [[1]], [0.5]
    batch = Batch(np.array([[1.0], [3.0]]), np.eye(2))
    found = dict(learned(engine, engine.updates(state, batch)))

    def s(u):
        return 1 / (1 + np.exp(-u))

    first, second = -12 * s(1) + 20 * s(-1), -28 * s(-39) + 20 * s(-1)
    np.testing.assert_allclose(found["0/grads/W"], [[(first + 3 * second) / 2]], rtol=1e-12)
    np.testing.assert_allclose(found["0/grads/b"], [(first + second) / 2], rtol=1e-12)
    info, ledger = engine.step(state, batch)
    loss = (np.log1p(np.exp(1)) + np.log1p(np.exp(-39))) / 2 + np.log1p(np.exp(-1))
    assert info["loss/0"] == pytest.approx(loss)
    assert ledger.per_sample() == {"activity": 1} and ledger.forward_passes == 1


def test_labels_reach_no_hidden_layer():
    engine, state = engine_on("images")
    batch = samples("images")
    other = batch._replace(y=np.roll(batch.y, 1, axis=1))
    found = [dict(learned(engine, engine.updates(state, b))) for b in (batch, other)]
    for path, g in found[0].items():
        same = g.tobytes() == found[1][path].tobytes()
        assert same == (not path.startswith("4/")), path


def test_no_sample_is_its_own_other_and_every_other_comes():
    engine, state = engine_on("dense")
    (v,) = [v for v in views(engine, state) if v.index == 1]
    counts = np.zeros((5, 5))
    for j in range(2000):
        counts[np.arange(5), engine.rule.other(v, 5, j)] += 1
    assert not counts.diagonal().any()
    away = counts[~np.eye(5, dtype=bool)]
    assert abs(away - 500).max() < 120  # six deviations of a binomial
    assert list(engine.rule.other(v, 1, 0)) == [0]


def views(engine, state):
    """Each layer's view in the first step."""
    found = []
    engine.probes = {"v": lambda v, u: found.append(v) or 0.0}
    engine.step(state.copy(), samples("dense"))
    return found


def test_layers_and_steps_pair_differently():
    found = {(i, t): [shift(i, j, 100, t) for j in range(20)] for i in range(3) for t in range(3)}
    assert len({tuple(v) for v in found.values()}) == 9
    engine, state = engine_on("dense")
    first, second = (v for v in views(engine, state) if v.index < 2)
    rows = [engine.rule.other(v, 100, 0)[0] for v in (first, second)]
    assert rows == [shift(0, 0, 100), shift(1, 0, 100)]


def test_in_a_batch_of_one_the_negative_pair_is_the_positive_one():
    engine, state = engine_on("dense", theta_pos=2.0, theta_neg=2.0, others=1)
    one = samples("dense", 1)
    found = engine.updates(state, one)[0].grads["b"]
    p = {n: np.array(a) for n, a in state.params[0].items()}
    a = one.x / np.sqrt((one.x**2).mean()) @ p["W"] + p["b"]
    y = np.tanh(2 * a)
    g = (y**2).mean()
    slope = 1 / (1 + np.exp(2 - g)) - 1 / (1 + np.exp(g - 2))
    np.testing.assert_allclose(found, (2 * slope * 2 * y / 7 * (1 - y**2))[0], rtol=1e-6)


def test_one_hidden_layer_is_alive_at_a_time():
    sizes = []
    for depth in (2, 6):
        net = " | ".join([*["dense 16 relu"] * depth, "dense 3"])
        engine = Engine(net, rule("self_contrastive"), (16,), 3)
        batch = Batch(np.ones((4, 16)), np.eye(3)[[0, 1, 2, 0]])
        sizes.append(engine.step(engine.init(0), batch)[1].peak_bytes)
    assert sizes[0] == sizes[1]


def test_what_is_passed_on_has_no_mean_over_the_units():
    engine, state = engine_on("images", norm="given")
    batch = samples("images")
    k, x = engine.kernels, batch.x
    for layer, slots in zip(engine.net.leaves[:-1], state.params, strict=False):
        t = layer.forward(k, slots, x, Env())
        x = t.y if not slots else layer.act(k, t.a - t.a.mean(-1, keepdims=True))
    logits = x.reshape(7, -1) @ state.params[-1]["W"] + state.params[-1]["b"]
    np.testing.assert_allclose(engine.predict(state, batch.x), logits, rtol=1e-12)


def test_training_parts_pairs_of_one_sample_from_pairs_of_two():
    rng = np.random.default_rng(0)
    y = np.arange(64) % 8
    x = rng.normal(size=(8, 12))[y] + 0.3 * rng.normal(size=(64, 12))
    engine = Engine("dense 64 relu | dense 8", rule("self_contrastive"), (12,), 8, dtype="float64")
    state, k = engine.init(0), engine.kernels

    def apart(state):
        """Share of pairs across clouds whose goodness is below that of every positive pair."""
        a = k.normalize(x, "rms") @ state.params[0]["W"] + state.params[0]["b"]
        good = (np.maximum(2 * a, 0) ** 2).mean(1)
        bad = (np.maximum(a[:, None] + a[None], 0) ** 2).mean(2)
        return (bad[y[:, None] != y[None]] < good.min()).mean()

    before = apart(state)
    for _ in range(200):
        engine.step(state, Batch(x, np.eye(8)[y]))
    assert before < 0.85 and apart(state) >= 0.95


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"norm": "none"}, "norm to be one of rms, unit, given; got 'none'"),
        ({"others": 0}, "others to be 1 or more; got 0"),
        ({"sparsity": -1.0}, "sparsity of 0 or more; got -1.0"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("self_contrastive", **settings)


def test_layers_whose_pre_activation_is_no_sum_are_told():
    with pytest.raises(SpecError, match="those of 'lstm 4' are not a sum"):
        Engine("lstm 4 | dense 3", rule("self_contrastive"), (5, 2), 3)
