"""LocalMixer with forward gradients of local losses, against the paper's equations under autograd.

The twin below has the paper's arrays, x (N, P, G, C): patches, groups, channels of a group.  It has a
loss for each patch and group, (N, P, G), all of one value: in each, only its own patch and group are
differentiated.  Noise is an input of 0 that autograd differentiates by.
"""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch, Point
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.networks import network
from fflearn.optim import optimizer
from fflearn.registry import rule

torch = pytest.importorskip("torch")

N, P, G, C = 3, 4, 2, 3
NET = f"local_mixer 3 width={G * C} groups={G} depth=2 patch=2"
CHANNELS = (2, 2, G * C)


def setting(**params):
    """Engine, state and batch; nothing of the state is 0, so that everything can be told."""
    made = rule("fg", **{"target": "local", "groups": G, **params})
    engine = Engine(NET, made, (4, 4, 2), 3, backend="reference", dtype="float64")
    state, rng = engine.init(0), np.random.default_rng(7)
    for slots in state.params:
        for name in slots:
            slots[name] = slots[name] + 0.3 * rng.normal(size=slots[name].shape)
    return engine, state, Batch(rng.normal(size=(N, 4, 4, 2)), np.eye(3)[[0, 2, 1]])


def at_blocks(engine, state, batch, look):
    """``look(view, update)`` as each of the two blocks learns."""
    seen = []

    def visit(v, u):
        if v.points[0].name != "a":
            look(v, u)
            seen.append(v.index)

    engine.observed(state, batch, visit)
    assert seen == [0, 1]


# ---- the paper ---------------------------------------------------------------------------------------


def norm(x):
    """Layer norm over the last axis, without scale and shift."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()


def all_channels(x):
    return norm(x.flatten(2)).reshape(x.shape)


def grouped(x, w, b):
    """x (N, P, G, C) through w (C, G C), whose columns belong to groups."""
    return torch.einsum("npgc,cgd->npgd", x, w.reshape(C, G, C)) + b.reshape(G, C)


def first_block(p, x, noise):
    patches = x.reshape(N, 2, 2, 2, 2, 2).permute(0, 1, 3, 2, 4, 5).reshape(N, P, -1)
    h = patches @ p["0.0.W"].reshape(8, -1) + p["0.0.b"]
    h = torch.relu(norm(h) + noise["0.a"].reshape(h.shape)).reshape(N, P, G, C)
    h = norm(grouped(norm(h), p["1.1.W"], p["1.1.b"]))
    return torch.relu(h + noise["1.a"].reshape(h.shape))


def next_block(p, x, noise):
    x = x.reshape(N, P, G, C)
    h = torch.einsum("npgc,pq->nqgc", all_channels(x), p["0.1.W"])
    h = torch.relu(all_channels(h) + noise["0.a"].reshape(h.shape))
    h = all_channels(h).flatten(2) @ p["1.1.W"].reshape(G * C, -1) + p["1.1.b"]
    h = torch.relu(norm(h) + noise["1.a"].reshape(h.shape)).reshape(x.shape)
    h = norm(grouped(norm(h), p["2.1.W"], p["2.1.b"]))
    return torch.relu(x + h + noise["2.a"].reshape(h.shape))


def losses(y, m, label):
    """(N, P, G) cross-entropies; in loss (p, g) all but patch p's group g are constants."""
    found, fixed = torch.zeros(N, P, G, dtype=y.dtype), y.detach()
    for p in range(P):
        for g in range(G):
            live = fixed.clone()
            live[:, p, g] = y[:, p, g]
            logits = live.mean(1).flatten(1) @ m
            found[:, p, g] = -(label * logits.log_softmax(-1)).sum(-1)
    return found


def twin(v, label):
    """Losses (N, P, G) of a block as tensors of its parameters, of M and of noise at its points."""
    p = {n: torch.tensor(a, requires_grad=True) for n, a in v.params.items()}
    m = torch.tensor(v.aux["M"], requires_grad=True)
    noise = {q.name: torch.zeros(N, *q.shape, dtype=m.dtype, requires_grad=True) for q in v.points}
    block = first_block if v.is_input else next_block
    y = block(p, torch.tensor(v.trace.x), noise)
    np.testing.assert_allclose(v.trace.y, y.detach().reshape(N, *CHANNELS), rtol=1e-12, atol=1e-14)
    return losses(y, m, torch.tensor(label)), p, m, noise


# ---- the rule ----------------------------------------------------------------------------------------


def test_noise_is_behind_each_linear_maps_norm_and_reaches_what_it_reaches():
    engine, *_ = setting()
    first, second = (s.points for s in engine.specs[:2])
    own = G * C  # channel by channel
    assert first == (Point("0.a", CHANNELS, True, G), Point("1.a", CHANNELS, True, own))
    assert second == (
        Point("0.a", CHANNELS, True, 1),
        Point("1.a", CHANNELS, True, G),
        Point("2.a", CHANNELS, True, own),
    )


def test_every_number_is_the_derivative_of_the_losses_that_its_noise_reaches():
    engine, state, batch = setting(directions=1)

    def look(v, _):
        u = engine.rule.noise_of(v, "x")
        found = engine.rule.slopes(v, "x", u)
        own, _, _, noise = twin(v, batch.y)
        along = np.zeros((N, P, G))
        for p in range(P):
            for g in range(G):
                d = torch.autograd.grad(own[:, p, g].sum(), list(noise.values()), retain_graph=True)
                for q, grad in zip(noise, d, strict=True):
                    along[:, p, g] += (grad.numpy() * u[q]).reshape(N, -1).sum(1)
        assert np.abs(along).min() > 1e-6
        for point in v.points:
            mixed = not v.is_input and point.name == "0.a"  # all groups read it
            expected = along.sum(2, keepdims=True) if mixed else along
            expected = np.repeat(expected, G * C // expected.shape[2], axis=2)
            told = np.broadcast_to(found[point.name], (N, *CHANNELS)).reshape(N, P, -1)
            np.testing.assert_allclose(told, expected, rtol=1e-10, atol=1e-14)

    at_blocks(engine, state, batch, look)


def test_all_directions_together_are_autograds_gradient_of_the_local_losses():
    engine, state, batch = setting()

    def look(v, update):
        da = {point.name: np.zeros((N, *CHANNELS)) for point in v.points}
        for point in v.points:
            for unit in np.ndindex(*CHANNELS):
                u = {q.name: np.zeros((N, *CHANNELS)) for q in v.points}
                u[point.name][:, *unit] = 1
                slope = engine.rule.slopes(v, "x", u)[point.name]
                da[point.name] += np.broadcast_to(slope, (N, *CHANNELS)) * u[point.name]
        own, p, m, _ = twin(v, batch.y)
        names = list(p)
        *exact, dm = torch.autograd.grad(own.sum() / N, [*p.values(), m])
        found = v.points_vjp(v.trace, da)
        assert set(found) == set(names)
        for name, grad in zip(names, exact, strict=True):
            mine, theirs = v.k.formed(found[name]), grad.numpy()
            assert np.linalg.norm(mine - theirs) <= 1e-10 * np.linalg.norm(theirs), name
        # M has one head for all losses, which have one value: the derivative of that.
        np.testing.assert_allclose(
            v.k.formed(update.aux_grads["M"]), dm.numpy() / (P * G), rtol=1e-10, atol=1e-14
        )

    at_blocks(engine, state, batch, look)


def loss_in_the_end(name, **params):
    """The mean loss of the last 40 of 160 steps: a single one of a noisy rule says little."""
    engine = Engine(NET, rule(name, **params), (4, 4, 2), 3, optimizer("adam", lr=5e-3))
    state, rng = engine.init(0), np.random.default_rng(3)
    y = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 64)]
    x = (y @ rng.normal(size=(3, 32))).reshape(-1, 4, 4, 2) + rng.normal(size=(64, 4, 4, 2))
    batch = Batch(x.astype(np.float32), y)
    return np.mean([engine.step(state, batch)[0]["loss"] for _ in range(160)][-40:])


def test_it_learns_more_than_a_read_out_of_random_blocks():
    control = loss_in_the_end("frozen")
    for params in ({"target": "local", "groups": G}, {"directions": 16}):
        assert loss_in_the_end("fg", **params) < 0.85 * control


def test_sizes_are_the_papers():
    for spec, shape, published in (
        ("local_mixer", (32, 32, 3), 919e3),
        ("local_mixer width=256 groups=1 depth=1 patch=28", (28, 28, 1), 272e3),
        ("local_mixer depth=1 patch=28", (28, 28, 1), 429e3),
    ):
        net = network(spec)
        width, depth = net.shapes(shape)[0][-1], len(net.leaves) - 2
        heads = depth * (width + 1) * 10  # theirs have a bias
        assert net.n_params(shape) + heads == pytest.approx(published, abs=500)


def test_groups_divide_the_width():
    with pytest.raises(SpecError, match="got width 10 and 4 groups. Type for instance: width=8"):
        network("local_mixer width=10 groups=4")
