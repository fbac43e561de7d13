"""Local losses: autograd of each layer's own loss, where it is backprop, what it keeps, wrong use."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from fflearn.base import Batch, Env
from fflearn.checks import bench, learned
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.registry import rule

NETS = {
    "dense": ("dense 7 tanh | dense 6 relu norm=rms | dense 5 gelu | dense 3", (4,)),
    "images": (
        "conv 4 tanh | max_pool 2 | conv 5 relu stride=2 | dense 6 tanh | dense 3",
        (6, 6, 2),
    ),
    "tokens": ("dense 7 tanh places=1 | dense 5 relu places=1 | dense 3 places=1", (4, 5)),
    "graph": ("graph_conv 7 tanh | sage 6 relu | graph_conv 3", (4,)),
    "blocks": (
        "block(conv 4 | batch_norm relu | avg_pool 2) | block(dense 5 tanh) | dense 3",
        (4, 4, 2),
    ),
}
WEIGHT = np.array([0, 1, 2, 0, 1, 0.5, 3])
CASES = [(name, None) for name in NETS] + [(name, WEIGHT) for name in ("dense", "images", "tokens")]
FORMS = [{}, {"read": "channels"}, {"score": "square"}, {"score": "square", "read": "channels"}]


def samples(name, rows=7):
    rng, shape = np.random.default_rng(3), NETS[name][1]
    places = shape[:1] if name == "tokens" else ()
    y = np.eye(3)[rng.integers(3, size=(rows, *places))]
    side = {}
    if name == "graph":
        mix = csr_array(rng.uniform(size=(rows, rows)) * (rng.uniform(size=(rows, rows)) < 0.6))
        side = {"adjacency": mix, "neighbours": mix}
    return Batch(rng.normal(size=(rows, *shape)), y, side)


def engine_on(name, rule_name="local_loss", **settings):
    net, shape = NETS[name]
    engine = Engine(
        net, rule(rule_name, **settings), shape, 3, dtype="float64", backend="reference"
    )
    return engine, engine.init(0)


def local_loss(torch, y, m, target, weight, score, read):
    """The layer's own loss, spelled out: (B, *label places, *places, n) and M."""
    labels = target.ndim - 2
    h = y.flatten(1 + labels) if read == "all" else y
    z = h @ m
    g = z if score == "linear" else z**2
    while g.ndim > target.ndim:
        g = g.mean(-2)
    loss = -(target * torch.log_softmax(g, -1)).sum(-1)
    return (weight * loss.flatten(1).mean(1) if labels else weight * loss).sum() / weight.sum()


@pytest.mark.torch
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("name", "weight"), CASES)
def test_updates_are_autograd_of_each_layers_own_loss(name, form, weight):
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import LAYERS

    engine, state = engine_on(name, **form)
    batch = samples(name)._replace(weight=weight)
    target = torch.tensor(batch.y)
    weights = torch.tensor(np.ones(len(batch.x)) if weight is None else weight)
    updates, x = engine.updates(state, batch), torch.tensor(batch.x)
    seen = 0
    for spec, layer, slots, own, update in zip(
        engine.specs, engine.net.leaves, state.params, state.aux, updates, strict=True
    ):
        p = {n: torch.tensor(a, requires_grad=n not in layer.buffers) for n, a in slots.items()}
        m = {n: torch.tensor(a, requires_grad=True) for n, a in own.items()}
        y = LAYERS[layer.kind](layer, p, x.detach(), Env(batch.side))
        x = y
        if not p:
            assert not update.grads and not update.aux_grads
            continue
        if spec.is_output:
            loss = local_loss(
                torch, y, torch.eye(3, dtype=y.dtype), target, weights, "linear", "all"
            )
        else:
            score, read = form.get("score", "linear"), form.get("read", "all")
            loss = local_loss(torch, y, m["M"], target, weights, score, read)
        loss.backward()
        theirs = {n: a.grad for n, a in [*p.items(), *m.items()] if a.requires_grad}
        ours = {**update.grads, **update.aux_grads}
        assert set(ours) == set(theirs)
        for n, g in ours.items():
            g, t = engine.kernels.formed(g), theirs[n].numpy()
            assert np.linalg.norm(g - t) <= 1e-10 * np.linalg.norm(t) + 1e-15, (spec.name, n)
            seen += 1
    assert seen >= 5


def test_one_hidden_layer_whose_projection_is_the_output_layer_is_backprop():
    found = []
    for name in ("local_loss", "backprop"):
        engine = Engine("dense 6 tanh | dense 3", rule(name), (4,), 3, dtype="float64")
        state = engine.init(0)
        if name == "local_loss":
            state.aux[0]["M"] = state.params[1]["W"]
        batch = Batch(np.cos(np.arange(20.0)).reshape(5, 4), np.eye(3)[[0, 1, 2, 0, 1]])
        found.append(dict(learned(engine, engine.updates(state, batch))))
    ours, theirs = found
    assert set(ours) == {*theirs, "0/aux_grads/M"}
    for path, g in theirs.items():
        np.testing.assert_allclose(ours[path], g, rtol=1e-12, err_msg=path)
    np.testing.assert_allclose(ours["0/aux_grads/M"], theirs["1/grads/W"], rtol=1e-12)


def test_a_step_computed_by_hand():
    # x = 2, W = 3, b = 0: y = 6.  M = (1/2, 1/3): z = (3, 2), g = z^2 = (9, 4), softmax (q, 1 - q)
    # with q = 1 / (1 + e^-5).  Label 1: e = (q, -q), dz = 2 z e = (6 q, -4 q),
    # dy = 6 q / 2 - 4 q / 3 = 5 q / 3; grad W = 2 dy, grad b = dy, grad M = 6 dz.
    engine = Engine(
        "dense 1 relu | dense 2", rule("local_loss", score="square"), (1,), 2, dtype="float64"
    )
    state = engine.init(0)
    state.params[0]["W"], state.aux[0]["M"] = [[3]], [[1 / 2, 1 / 3]]
    batch = Batch(np.array([[2.0]]), np.array([[0.0, 1.0]]))
    found = dict(learned(engine, engine.updates(state, batch)))
    q = 1 / (1 + np.exp(-5))
    np.testing.assert_allclose(found["0/grads/W"], [[10 * q / 3]], rtol=1e-12)
    np.testing.assert_allclose(found["0/grads/b"], [5 * q / 3], rtol=1e-12)
    np.testing.assert_allclose(found["0/aux_grads/M"], [[36 * q, -24 * q]], rtol=1e-12)
    info, ledger = engine.step(state, batch)
    assert info["loss/0"] == pytest.approx(5 + np.log1p(np.exp(-5)))
    assert ledger.per_sample() == {"activity": 1, "target": 2}
    assert ledger.forward_passes == 1 and ledger.transposes == 0


def test_a_fixed_projection_is_the_same_gradient_and_stays():
    free, fixed = (engine_on("dense", learned=learned_) for learned_ in (True, False))
    batch = samples("dense")
    ours, theirs = (dict(learned(e, e.updates(s, batch))) for e, s in (free, fixed))
    assert {path for path in ours if path not in theirs} == {f"{i}/aux_grads/M" for i in range(3)}
    for path, g in theirs.items():
        assert g.tobytes() == ours[path].tobytes()
    engine, state = fixed
    before = state.copy()
    engine.step(state, batch)
    assert all((a["M"] == b["M"]).all() for a, b in zip(state.aux[:3], before.aux[:3], strict=True))


def test_no_gradient_flows_into_the_layer_below():
    engine, state, batch = bench(lambda: rule("local_loss"))
    before = dict(learned(engine, engine.updates(state, batch)))
    for above, own in zip(state.params[1:], state.aux[1:], strict=True):
        above["W"] = 3 * above["W"] + 1
        for name in own:
            own[name] = 2 * own[name] + 1
    after = dict(learned(engine, engine.updates(state, batch)))
    for path, g in before.items():
        assert (g == after[path]).all() == path.startswith("0/"), path


def test_one_hidden_layer_is_alive_at_a_time():
    sizes = []
    for depth in (2, 6):
        hidden = " | ".join(["dense 16 relu"] * depth)
        engine, state, batch = bench(lambda: rule("local_loss"), hidden)
        sizes.append(engine.step(state, batch)[1].peak_bytes)
    assert sizes[0] == sizes[1]


def test_projections_start_at_unit_variance_and_apart():
    engine = Engine("dense 400 relu | dense 400 relu | dense 50", rule("local_loss"), (5,), 50)
    first, second = (own["M"] for own in engine.init(0).aux[:2])
    assert first.shape == (400, 50)
    assert first.std() * 20 == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_scores_of_the_layers_add_up(form):
    engine, state = engine_on("images", **form)
    x, total = samples("images").x, 0
    for layer, slots, own in zip(engine.net.leaves, state.params, state.aux, strict=True):
        x = layer.forward(engine.kernels, slots, x, Env()).y
        if own:
            h = x.reshape(len(x), -1, own["M"].shape[0])
            z = h @ own["M"]
            total = total + (z**2 if form.get("score") else z).mean(1)
    np.testing.assert_allclose(engine.predict(state, samples("images").x), x, rtol=1e-9)
    np.testing.assert_allclose(
        engine.predict(state, samples("images").x, "layers"), total + x, rtol=1e-9
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"score": "cube"}, "score to be one of linear, square; got 'cube'"),
        ({"read": "rows"}, "read to be one of all, channels; got 'rows'"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("local_loss", **settings)
