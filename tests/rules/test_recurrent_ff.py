"""Recurrent Forward-Forward: autograd of every tick's own loss, a tick by hand, scores, wrong use."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.checks import learned
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.kernels.reference import EPS
from fflearn.labels import negatives
from fflearn.random import Key
from fflearn.registry import rule

LABEL = "label"
# Layers, and for each hidden one: those it reads (none is the input), and those that read it.
NETS = {
    "chain": (
        "dense 5 tanh | dense 6 relu | dense 4 gelu | dense 3",
        [([], [1]), ([0], [2]), ([1], [LABEL])],
    ),
    "branches": (
        "dense 5 tanh | residual(dense 6 relu | dense 5 tanh; dense 5 gelu) | dense 3",
        [([], [3, 1]), ([0], [2]), ([1], [LABEL]), ([0], [LABEL])],
    ),
    # Maps of 3 x 3, 2 x 2 and 1 x 2 places, and 5 units; pooling comes before tanh.
    "images": (
        "conv 4 tanh | max_pool | conv 3 relu kernel=2 padding=0 | conv 2 gelu stride=2"
        + " | flatten | dense 5 tanh | dense 3",
        [([], [1]), ([0], [2]), ([1], [3]), ([2], [LABEL])],
    ),
}
SHAPES = {"images": (7, 6, 2)}


def engine_on(name, **settings):
    """An engine whose output layer has weights already; it starts at 0."""
    engine = Engine(
        NETS[name][0],
        rule("recurrent_ff", **settings),
        SHAPES.get(name, (4,)),
        3,
        dtype="float64",
        backend="reference",
    )
    state, rng = engine.init(0), np.random.default_rng(1)
    state.params[-1]["W"] = rng.normal(size=state.params[-1]["W"].shape)
    for slots in state.params:
        for b in (n for n in slots if n.endswith("b")):
            slots[b] = rng.normal(size=slots[b].shape) / 3
    return engine, state


def samples(rows=6, name="chain"):
    rng = np.random.default_rng(2)
    return Batch(
        rng.normal(size=(rows, *SHAPES.get(name, (4,)))), np.eye(3)[rng.integers(3, size=rows)]
    )


class Ticking:
    """The equations once more, in torch; every tick's inputs are constants."""

    def __init__(self, torch, name, engine, state, damping):
        self.torch, self.engine, self.damping, self.graph = torch, engine, damping, NETS[name][1]
        self.p = [
            {n: torch.tensor(a, requires_grad=True) for n, a in slots.items()}
            for slots in state.params
        ]
        self.down = [
            {n: torch.tensor(a, requires_grad=True) for n, a in own.items()} for own in state.aux
        ]

    def n(self, x):
        size = (x**2).flatten(1).mean(1).sqrt() + EPS
        return x / size.reshape(-1, *[1] * (x.ndim - 1))

    def act(self, i, a):
        f = {
            "tanh": self.torch.tanh,
            "relu": self.torch.relu,
            "gelu": self.torch.nn.functional.gelu,
        }
        return f[self.engine.net.leaves[i].activation](a)

    def up(self, i, x):
        """The pre-activation from below, pooled where the layer pools."""
        layer, p, x = self.engine.net.leaves[i], self.p[i], self.n(x)
        if layer.kind == "dense":
            return x.flatten(1) @ p["W"] + p["b"]
        pools = layer.kind == "block"
        conv, start = (layer.leaves[0], "0.") if pools else (layer, "")
        a = self.torch.nn.functional.conv2d(
            x.movedim(-1, 1),
            p[f"{start}W"].permute(3, 2, 0, 1),
            p[f"{start}b"],
            conv.stride,
            1 if conv.padding == "same" else 0,
        )
        return (self.torch.nn.functional.max_pool2d(a, 2) if pools else a).movedim(1, -1)

    def sent(self, i, j, state):
        """What the j-th layer above says to layer i."""
        d, n = self.down[i][f"D{j}"], self.n(state)
        shape = self.engine.specs[i].out_shape
        if n.ndim == 4 and len(shape) == 3:
            n = self.torch.stack(
                [
                    n[:, r // -(-shape[0] // n.shape[1]), c // -(-shape[1] // n.shape[2])]
                    for r in range(shape[0])
                    for c in range(shape[1])
                ],
                1,
            ).reshape(len(n), *shape[:2], -1)
        return (n @ d).reshape(len(n), *shape)

    def below(self, i, x, h):
        return sum(h[j] for j in self.graph[i][0]) if self.graph[i][0] else x

    def first(self, x):
        """States of the feedforward pass, and the classifier's logits."""
        h = []
        for i in range(len(self.graph)):
            h.append(self.act(i, self.up(i, self.below(i, x, h))))
        top = sum(h[i] for i, (_, above) in enumerate(self.graph) if LABEL in above)
        return h, self.n(top) @ self.p[-1]["W"] + self.p[-1]["b"]

    def tick(self, x, label, h):
        """All layers at once, from the states of one tick ago."""
        h = [a.detach() for a in h]
        new = []
        for i, (_, above) in enumerate(self.graph):
            a = self.up(i, self.below(i, x, h))
            for j, up in enumerate(above):
                a = a + self.sent(i, j, label if up == LABEL else h[up])
            new.append((1 - self.damping) * self.act(i, a) + self.damping * h[i])
        return new


@pytest.mark.torch
@pytest.mark.parametrize("weight", [None, np.array([0, 1, 2, 1, 0.5, 3])])
@pytest.mark.parametrize("draw", ["hard", "wrong"])
@pytest.mark.parametrize(("damping", "t"), [(0.3, 1.0), (0.0, 4.0)])
@pytest.mark.parametrize("name", NETS)
def test_updates_are_autograd_of_every_ticks_own_loss(name, damping, t, draw, weight):
    torch = pytest.importorskip("torch")
    engine, state = engine_on(name, ticks=3, damping=damping, temperature=t, negatives=draw)
    batch = samples(name=name)._replace(weight=weight)
    model = Ticking(torch, name, engine, state, damping)
    x, y = torch.tensor(batch.x), torch.tensor(batch.y)
    share = torch.tensor(np.ones(6) if weight is None else weight)
    share = share / share.sum()
    h, logits = model.first(x)
    key = Key(0).at(0).fold("step").fold("negatives")
    wrong = negatives(draw)(engine.kernels, batch.y, logits.detach().numpy(), key)
    label, twice = torch.cat([y, torch.tensor(wrong)]), torch.cat([x, x])
    h, total = [torch.cat([a, a]) for a in h], [0] * len(h)
    for _ in range(3):
        h = model.tick(twice, label, h)
        for i, a in enumerate(h):
            g = (a**2).flatten(1).sum(1)
            u = torch.cat([-torch.ones(6), torch.ones(6)]) * (g - a[0].numel()) / t
            loss = torch.cat([share, share]) / 2 * torch.logaddexp(u, 0 * u)
            total[i] = total[i] + loss.sum() / 3
    sum(total).backward()
    top = model.p[-1]
    for a in (top["W"], top["b"]):
        a.grad = None
    _, logits = model.first(x)
    (share * -(y * torch.log_softmax(logits, 1)).sum(1)).sum().backward(inputs=list(top.values()))
    for i, update in enumerate(engine.updates(state, batch)):
        ours = {**update.grads, **update.aux_grads}
        theirs = {**model.p[i], **model.down[i]}
        assert set(ours) == set(theirs)
        for n, g in ours.items():
            g, a = engine.kernels.formed(g), theirs[n].grad.numpy()
            assert np.linalg.norm(g - a) <= 1e-10 * np.linalg.norm(a), (i, n)
    info, _ = engine.step(state, batch)
    for i, loss in enumerate(total):
        assert info[f"loss/{i}"] == pytest.approx(float(loss.detach()), rel=1e-10)


@pytest.mark.torch
@pytest.mark.parametrize("name", NETS)
def test_scores_are_goodness_added_up_over_layers_and_the_given_ticks(name):
    torch = pytest.importorskip("torch")
    engine, state = engine_on(name, score_from=2, score_to=3)
    model, x = Ticking(torch, name, engine, state, 0.3), torch.tensor(samples(name=name).x)
    expected = np.zeros((6, 3))
    for c in range(3):
        h = model.first(x)[0]
        for tick in (1, 2, 3):
            h = model.tick(x, torch.eye(3, dtype=x.dtype)[[c] * 6], h)
            if tick >= 2:
                expected[:, c] += sum((a**2).flatten(1).sum(1) for a in h).detach().numpy()
    np.testing.assert_allclose(engine.predict(state, samples(name=name).x), expected, rtol=1e-10)
    logits = model.first(x)[1].detach().numpy()
    np.testing.assert_allclose(
        engine.predict(state, samples(name=name).x, "softmax"), logits, rtol=1e-10
    )


def by_hand():
    return Engine(
        "dense 1 relu | dense 2",
        rule("recurrent_ff", ticks=1, damping=0.5),
        (1,),
        2,
        dtype="float64",
    )


def test_a_tick_computed_by_hand():
    # n(2) = 1, but for the eps of 1e-8, W = 3: the first state is 3.  The label is sqrt(2) (1, 0), D = (1, -1) / sqrt(2):
    # a = 4 with the right label, 2 with the wrong one; h = (4 + 3) / 2 and (2 + 3) / 2,
    # g = 12.25 and 6.25, theta = 1.  da = -+sigmoid(-+(g - 1)) 2 h / 2.
    engine = by_hand()
    state = engine.init(0)
    state.params[0]["W"], state.aux[0]["D0"] = [[3]], np.array([[1], [-1]]) / np.sqrt(2)
    batch = Batch(np.array([[2.0]]), np.array([[1.0, 0.0]]))
    found = dict(learned(engine, engine.updates(state, batch)))
    right, wrong = -3.5 / (1 + np.exp(11.25)), 2.5 / (1 + np.exp(-5.25))
    np.testing.assert_allclose(found["0/grads/W"], [[(right + wrong) / 2]], rtol=1e-6)
    np.testing.assert_allclose(found["0/grads/b"], [(right + wrong) / 2], rtol=1e-6)
    expected = np.sqrt(2) * np.array([[right], [wrong]]) / 2
    np.testing.assert_allclose(found["0/aux_grads/D0"], expected, rtol=1e-6)
    info, _ = engine.step(state, batch)
    loss = (np.log1p(np.exp(-11.25)) + np.log1p(np.exp(5.25))) / 2
    assert info["loss/0"] == pytest.approx(loss) and info["loss"] == info["loss/0"]


def test_the_classifier_reaches_the_hidden_layers_by_the_choice_of_negatives_alone():
    engine, state = engine_on("chain", negatives="wrong")
    before = dict(learned(engine, engine.updates(state, samples())))
    state.params[-1]["W"] = -2 * state.params[-1]["W"]
    after = dict(learned(engine, engine.updates(state, samples())))
    for path, g in before.items():
        assert (g.tobytes() == after[path].tobytes()) == (not path.startswith("3/")), path


def test_states_sent_down_are_counted_and_every_tick_is_forgotten():
    sizes = []
    for ticks in (2, 7):
        engine, state = engine_on("chain", ticks=ticks)
        _, ledger = engine.step(state, samples())
        # Two rows a sample; layers of 6 and 4 units and the label go down, once per tick.
        assert ledger.per_sample()["feedback"] == 2 * ticks * (6 + 4 + 3)
        assert ledger.per_sample()["phase"] == 2 * 3
        assert ledger.transposes == 0
        sizes.append(ledger.peak_bytes)
    assert sizes[0] == sizes[1]


def test_the_label_reaches_one_layer_further_down_with_every_tick():
    batch = samples()
    for ticks, heard in ((1, 1), (2, 2), (3, 3)):
        engine, state = engine_on("chain", ticks=ticks, negatives="wrong", damping=0.0)
        before = engine.updates(state, batch)
        state.aux[2]["D0"] = 0 * state.aux[2]["D0"]  # the top hidden layer does not hear the label
        after = engine.updates(state, batch)
        changed = [
            bool((a.grads["b"] != b.grads["b"]).any()) for a, b in zip(before, after, strict=True)
        ]
        assert changed == [i >= 3 - heard for i in range(3)] + [False]


def test_images_as_they_are_trained():
    engine, state = engine_on("images")
    told = [leaf.spec() for leaf in engine.net.leaves]
    assert told[0] == "block(conv 4 norm=rms draw=lecun | max_pool | act tanh)"
    assert [leaf.split()[0] for leaf in told] == ["block(conv", "conv", "conv", "dense", "dense"]
    shapes = [own["D0"].shape for own in state.aux[:-1]]
    assert shapes == [(3, 4), (2, 3), (5, 1 * 1 * 2), (3, 5)]


def test_images_without_pooling_and_with_means():
    for net in (
        "conv 8 relu stride=2 | conv 8 relu | dense 3",
        "conv 8 relu | avg_pool 2 | dense 3",
    ):
        engine = Engine(net, rule("recurrent_ff"), (6, 5, 2), 3)
        state, rng = engine.init(0), np.random.default_rng(0)
        y = np.arange(30) % 3
        x = rng.normal(size=(3, 6, 5, 2))[y] + 0.2 * rng.normal(size=(30, 6, 5, 2))
        for _ in range(50):
            engine.step(state, Batch(x, np.eye(3)[y]))
        assert (engine.predict(state, x).argmax(1) == y).mean() >= 0.9


def test_weights_down_start_at_unit_variance_and_apart():
    engine = Engine("dense 300 relu | dense 400 relu | dense 2", rule("recurrent_ff"), (5,), 2)
    state = engine.init(0)
    first, second = (own["D0"] for own in state.aux[:2])
    assert first.shape == (400, 300) and second.shape == (2, 400)
    assert first.std() * 20 == pytest.approx(1, abs=0.02)
    assert second.std() * np.sqrt(2) == pytest.approx(1, abs=0.1)
    assert not state.params[2]["W"].any() and engine.net.leaves[2].norm == "rms"


def test_a_small_network_learns_three_clouds():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    batch = Batch(rng.normal(size=(3, 8))[y] + 0.3 * rng.normal(size=(60, 8)), np.eye(3)[y])
    engine = Engine("dense 32 relu | dense 32 relu | dense 3", rule("recurrent_ff"), (8,), 3)
    state = engine.init(0)
    for _ in range(60):
        engine.step(state, batch)
    for by in engine.rule.predictors:
        assert (engine.predict(state, batch.x, by).argmax(1) == y).mean() >= 0.95


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"negatives": "all_wrong"}, "negatives to be one of hard, wrong; got 'all_wrong'"),
        ({"damping": 1.0}, "damping from 0 to below 1; got 1.0"),
        ({"damping": float("nan")}, "damping from 0 to below 1"),
        ({"ticks": 0}, "1 tick or more; got ticks=0"),
        ({"score_from": 4, "score_to": 3}, "from tick score_from to score_to.*got 4 to 3"),
        ({"score_from": 0}, "1 or later; got 0 to 5"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("recurrent_ff", **settings)


@pytest.mark.parametrize(
    ("net", "in_shape", "told"),
    [
        ("dense 3", (4,), "needs hidden layers below '0 dense 3"),
        ("dense 3 | residual(dense 3)", (4,), "none that reads the network's output"),
        ("dense 4 places=1 | dense 3 places=1", (4, 5), "one label per sample"),
        ("lstm 4 | dense 3", (4, 2), "dense layers and convolutions; 'lstm 4' is neither"),
        (
            "dense 4 places=2 | max_pool | dense 3",
            (4, 4, 1),
            "right before 'max_pool'. Use stride=2",
        ),
        ("max_pool | conv 4 | dense 3", (4, 4, 1), "right before 'max_pool'. Use stride=2"),
    ],
)
def test_networks_that_do_not_fit_are_told(net, in_shape, told):
    with pytest.raises(SpecError, match=told):
        Engine(net, rule("recurrent_ff"), in_shape, 3).init(0)
