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
}


def engine_on(name, **settings):
    """An engine whose output layer has weights already; it starts at 0."""
    engine = Engine(
        NETS[name][0],
        rule("recurrent_ff", **settings),
        (4,),
        3,
        dtype="float64",
        backend="reference",
    )
    state, rng = engine.init(0), np.random.default_rng(1)
    state.params[-1]["W"] = rng.normal(size=state.params[-1]["W"].shape)
    for slots in state.params:
        slots["b"] = rng.normal(size=slots["b"].shape) / 3
    return engine, state


def samples(rows=6):
    rng = np.random.default_rng(2)
    return Batch(rng.normal(size=(rows, 4)), np.eye(3)[rng.integers(3, size=rows)])


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
        return x / ((x**2).mean(1, keepdim=True).sqrt() + EPS)

    def act(self, i, a):
        f = {
            "tanh": self.torch.tanh,
            "relu": self.torch.relu,
            "gelu": self.torch.nn.functional.gelu,
        }
        return f[self.engine.net.leaves[i].activation](a)

    def below(self, i, x, h):
        return sum(h[j] for j in self.graph[i][0]) if self.graph[i][0] else x

    def first(self, x):
        """States of the feedforward pass, and the classifier's logits."""
        h = []
        for i in range(len(self.graph)):
            h.append(self.act(i, self.n(self.below(i, x, h)) @ self.p[i]["W"] + self.p[i]["b"]))
        top = sum(h[i] for i, (_, above) in enumerate(self.graph) if LABEL in above)
        return h, self.n(top) @ self.p[-1]["W"] + self.p[-1]["b"]

    def tick(self, x, label, h):
        """All layers at once, from the states of one tick ago."""
        h = [a.detach() for a in h]
        new = []
        for i, (_, above) in enumerate(self.graph):
            a = self.n(self.below(i, x, h)) @ self.p[i]["W"] + self.p[i]["b"]
            for j, up in enumerate(above):
                a = a + self.n(label if up == LABEL else h[up]) @ self.down[i][f"D{j}"]
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
    batch = samples()._replace(weight=weight)
    model = Ticking(torch, name, engine, state, damping)
    x, y = torch.tensor(batch.x), torch.tensor(batch.y)
    share = torch.tensor(np.ones(6) if weight is None else weight)
    share = share / share.sum()
    h, logits = model.first(x)
    key = Key(0).at(0).fold("step").fold("negatives")
    wrong = negatives(draw)(engine.kernels, batch.y, logits.detach().numpy(), key)
    label, twice = torch.cat([y, torch.tensor(wrong)]), torch.cat([x, x])
    h, total = [torch.cat([a, a]) for a in h], 0
    for _ in range(3):
        h = model.tick(twice, label, h)
        for a in h:
            g = (a**2).sum(1)
            u = torch.cat([-torch.ones(6), torch.ones(6)]) * (g - a.shape[1]) / t
            total = (
                total + (torch.cat([share, share]) / 2 * torch.nn.functional.softplus(u)).sum() / 3
            )
    total.backward()
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


@pytest.mark.torch
@pytest.mark.parametrize("name", NETS)
def test_scores_are_goodness_added_up_over_layers_and_the_given_ticks(name):
    torch = pytest.importorskip("torch")
    engine, state = engine_on(name, score_from=2, score_to=3)
    model, x = Ticking(torch, name, engine, state, 0.3), torch.tensor(samples().x)
    expected = np.zeros((6, 3))
    for c in range(3):
        h = model.first(x)[0]
        for tick in (1, 2, 3):
            h = model.tick(x, torch.eye(3, dtype=x.dtype)[[c] * 6], h)
            if tick >= 2:
                expected[:, c] += sum((a**2).sum(1) for a in h).detach().numpy()
    np.testing.assert_allclose(engine.predict(state, samples().x), expected, rtol=1e-10)
    logits = model.first(x)[1].detach().numpy()
    np.testing.assert_allclose(engine.predict(state, samples().x, "softmax"), logits, rtol=1e-10)


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
        ({"negatives": "all_wrong"}, "negatives to be hard or wrong; got 'all_wrong'"),
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
        ("conv 4 relu | dense 3", (4, 4, 1), "between dense layers; 'conv 4 relu' is none"),
    ],
)
def test_networks_that_do_not_fit_are_told(net, in_shape, told):
    with pytest.raises(SpecError, match=told):
        Engine(net, rule("recurrent_ff"), in_shape, 3).init(0)
