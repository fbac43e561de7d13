"""PEPITA: what it is where F is small, its halves, weight mirroring, by hand, wrong use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fflearn import train
from fflearn.base import Batch, Env
from fflearn.checks import bench, learned, samples
from fflearn.engine import Engine
from fflearn.errors import FFLearnError, SettingsWarning, SpecError
from fflearn.optim import SGD, Adam
from fflearn.registry import rule

NETS = {
    "dense": ("dense 9 tanh | dense 7 relu | dense 3", (11,)),
    "conv": (
        "conv 4 tanh | max_pool | conv 5 relu stride=2 | dense 6 sigmoid | dense 3",
        (6, 4, 2),
    ),
    "places": ("dense 7 tanh places=1 | dense 3 places=1", (4, 5)),
}


def engine_of(name: str, net: str, in_shape=(11,), n_classes=3, optimizer=None) -> Engine:
    return Engine(net, rule(name), in_shape, n_classes, optimizer, dtype="float64")


def batch_for(in_shape, places=(), rows=6) -> Batch:
    rng = np.random.default_rng(3)
    y = np.eye(3)[rng.integers(0, 3, (rows, *places))]
    return Batch(rng.normal(size=(rows, *in_shape)), y)


def gradients(engine, state, batch) -> dict[str, np.ndarray]:
    return dict(learned(engine, engine.updates(state, batch)))


def far(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosine(a, b) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


# ---- the theorem: adaptive feedback alignment ----------------------------------------------------


@pytest.mark.parametrize(
    "net", ["dense 17 tanh | dense 3", "dense 9 sigmoid | dense 5 tanh | dense 3"]
)
def test_as_f_shrinks_the_first_layer_learns_by_dfa_through_f_w1(net):
    """grad W_1 -> x^T [(e F W_1) act'(a_1)], and what is left shrinks with F, not faster."""
    gaps = []
    for size in (1.0, 0.1, 0.01):
        engine, afa = engine_of("pepita", net), engine_of("dfa", net)
        state, exact = engine.init(0), afa.init(0)
        state.aux[0]["F"] = size * state.aux[0]["F"]
        exact.aux[0]["B"] = state.aux[0]["F"] @ state.params[0]["W"]
        batch = samples(8, 3)
        ours, theirs = gradients(engine, state, batch), gradients(afa, exact, batch)
        gaps.append([far(ours[p], theirs[p]) for p in ("0/grads/W", "0/grads/b")])
    for one, ten, hundred in zip(*gaps, strict=True):
        assert 1e-4 < one < 0.5
        assert one / ten == pytest.approx(10, rel=0.3) and ten / hundred == pytest.approx(
            10, rel=0.05
        )


def test_w1_comes_to_bring_f_in_line_with_the_weights_above():
    """The sign of the modulation: with x + e F the two would come to oppose each other."""
    run = train("dense 64 relu | dense 10", "pepita", "digits", epochs=4)
    f, (w1, w2) = run.state.aux[0]["F"], (p["W"] for p in run.state.params)
    start = run.engine.init(0)
    before = cosine(start.aux[0]["F"] @ start.params[0]["W"], start.params[1]["W"].T)
    assert abs(before) < 0.1 and cosine(f @ w1, w2.T) > before + 0.1


# ---- the equations -------------------------------------------------------------------------------


def passes(torch, engine, state, batch, env):
    """Inputs and outputs of every layer in both passes, and e, by PyTorch."""
    from fflearn.torch.layers import apply

    x, e, found = torch.tensor(batch.x), None, []
    for name in ("first", "second"):
        rows = []
        if name == "second":
            f = torch.tensor(state.aux[0]["F"])
            x = x - (e.reshape(-1, e.shape[-1]) @ f).reshape(x.shape)
        h = x
        for layer, slots in zip(engine.net.leaves, state.params, strict=True):
            p = {n: torch.tensor(a) for n, a in slots.items()}
            rows.append((h, y := apply(layer, p, h, env)))
            h = y
        found.append(rows)
        if name == "first":
            logits = h.detach().requires_grad_()
            target = torch.tensor(batch.y)
            loss = -(target * torch.log_softmax(logits, -1)).sum(-1)
            (e,) = torch.autograd.grad(loss.reshape(len(x), -1).mean(1).sum(), logits)
    return found, e


@pytest.mark.torch
@pytest.mark.parametrize("form", ["difference", "hebbian"])
@pytest.mark.parametrize("name", NETS)
def test_updates_are_autograd_of_what_each_layer_lowers(name, form):
    """The mean over samples and places of a . (h - h'), or of a . h - a' . h', h and h' held."""
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import apply

    net, shape = NETS[name]
    engine, env = engine_of(f"pepita[form={form},scale=1.0]", net, shape), Env()
    batch, state = batch_for(shape, engine.out_shape[:-1]), engine.init(0)
    found = gradients(engine, state, batch)
    (first, second), e = passes(torch, engine, state, batch, env)
    target = torch.tensor(batch.y) / np.prod(engine.out_shape[:-1])
    seen = 0
    for i, (layer, slots) in enumerate(zip(engine.net.leaves, state.params, strict=True)):
        if not slots:
            continue
        (x1, h1), (x2, h2) = first[i], second[i]
        p = {n: torch.tensor(a.copy(), requires_grad=True) for n, a in slots.items()}
        a1, a2 = (apply(replace(layer, activation="identity"), p, x, env) for x in (x1, x2))
        top = i == len(state.params) - 1
        places = 1 if top else np.prod(h1.shape[1:-1], initial=1)
        if form == "difference":
            low = a2 * (e if top else h1 - h2)
        else:
            low = a1 * (e + target if top else h1) - a2 * (target if top else h2)
        (low.sum() / places / len(batch.x)).backward()
        for n, a in p.items():
            assert far(found[f"{i}/grads/{n}"], a.grad.numpy()) <= 1e-10, (i, n)
            seen += 1
    assert seen == len(found)


def test_the_hebbian_form_differs_by_what_the_input_of_a_layer_changes():
    """hebbian - difference = h_{l-1}^T h_l - h'_{l-1}^T h_l, exactly; above the first layer too."""
    net, found = "dense 9 tanh | dense 7 sigmoid | dense 3", []
    for form in ("difference", "hebbian"):
        engine = engine_of(f"pepita[form={form}]", net)
        found.append(gradients(engine, engine.init(0), samples(8, 3)))
    state, x, w = engine.init(0), samples(8, 3).x, [p["W"] for p in engine.init(0).params]
    e = softmax(forward(x, w)[-1]) - samples(8, 3).y
    one, two = forward(x, w), forward(x - e @ state.aux[0]["F"], w)
    for layer in (0, 1):
        gap = found[1][f"{layer}/grads/W"] - found[0][f"{layer}/grads/W"]
        expected = (one[layer] - two[layer]).T @ one[layer + 1] / 8
        np.testing.assert_allclose(gap, expected, rtol=0, atol=1e-13)
        assert np.abs(gap).max() > 1e-4


def forward(x, w):
    """x, h_1, h_2, logits of the network above, biases 0."""
    h1 = np.tanh(x @ w[0])
    h2 = 1 / (1 + np.exp(-h1 @ w[1]))
    return [x, h1, h2, h2 @ w[2]]


def softmax(z):
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def test_a_time_local_step_learns_the_halves_one_after_the_other():
    net = " | ".join(
        f"{layer} bias=false" for layer in ("dense 9 tanh", "dense 7 sigmoid", "dense 3")
    )
    engine = engine_of("pepita[form=time_local]", net, optimizer=SGD(0.02))
    state, batch = engine.init(0), samples(8, 3)
    w, f = [p["W"].copy() for p in state.params], state.aux[0]["F"]
    one = forward(batch.x, w)
    p = softmax(one[-1])
    for i, target in enumerate((one[1], one[2], p)):
        w[i] = w[i] - 0.02 * one[i].T @ target / 8
    two = forward(batch.x - (p - batch.y) @ f, w)
    for i, target in enumerate((two[1], two[2], batch.y)):
        w[i] = w[i] + 0.02 * two[i].T @ target / 8
    engine.step(state, batch)
    for mine, expected in zip(state.params, w, strict=True):
        np.testing.assert_allclose(mine["W"], expected, rtol=0, atol=1e-13)


def test_a_time_local_step_keeps_one_layers_activity_at_a_time():
    def peak(form: str, depth: int) -> int:
        engine = engine_of(f"pepita[form={form}]", "dense 50 tanh | " * depth + "dense 3")
        return engine.step(engine.init(0), samples(20, 3))[1].peak_bytes

    assert peak("time_local", 12) == peak("time_local", 4) < peak("difference", 4)
    assert peak("difference", 12) > 2.5 * peak("difference", 4)


@pytest.mark.parametrize("form", ["difference", "hebbian"])
def test_without_f_hidden_layers_stay_and_the_output_layer_learns_by_the_delta_rule(form):
    """Dropout included: its mask is the same in both passes, or hidden layers would learn."""
    net = "dense 17 relu | dropout 0.4 | dense 13 tanh | dense 3"
    ours, bp = engine_of(f"pepita[form={form},scale=0.0]", net), engine_of("backprop", net)
    batch, state = samples(8, 3), ours.init(0)
    found, exact = gradients(ours, state, batch), gradients(bp, bp.init(0), batch)
    for path, g in found.items():
        if path.startswith("3/"):
            np.testing.assert_allclose(g, exact[path], rtol=1e-12, atol=1e-15)
        else:
            assert not g.any(), path


def test_all_layers_that_read_the_input_see_it_changed_alike():
    engine, state, batch = bench(
        lambda: rule("pepita", scale=1.0), "residual(dense 9 tanh; dense 9)"
    )
    a, b = (state.aux[i]["F"] for i in (0, 1))
    assert (a == b).all() and a.shape == (3, 11) and not len(state.aux[2])
    assert np.abs(a).max() <= np.sqrt(6 / 11) and a.std() == pytest.approx(np.sqrt(2 / 11), rel=0.2)
    x = batch.x - engine_error(engine, state, batch) @ a
    both = [batch.x @ state.params[1]["W"], x @ state.params[1]["W"]]
    expected = x.T @ (both[0] - both[1]) / len(x)
    np.testing.assert_allclose(gradients(engine, state, batch)["1/grads/W"], expected, atol=1e-13)


def engine_error(engine, state, batch):
    return softmax(engine.predict(state, batch.x)) - batch.y


# ---- weight mirroring ----------------------------------------------------------------------------


def test_mirrored_its_f_is_the_product_of_the_matrices():
    net = "dense 9 tanh | dense 7 relu | dense 3"
    ours, fixed = (engine_of(f"pepita[mirror={m},scale=1.0]", net) for m in (0.1, 0.0))
    state, twin, batch = ours.init(0), fixed.init(0), samples(8, 3)
    assert [slots["W"].shape for slots in state.aux] == [(11, 9), (9, 7), (7, 3)]
    twin.aux[0]["F"] = product(state, 11, 1.0).T
    found, expected = gradients(ours, state, batch), gradients(fixed, twin, batch)
    for path, g in expected.items():
        np.testing.assert_allclose(found[path], g, rtol=0, atol=1e-13, err_msg=path)


def product(state, n_in, scale):
    """B_1 B_2 ..., the entries of B_l scaled to 1 / sqrt(n_l), all to scale sqrt(2 / n_in)."""
    b = [slots["W"] / (rms(slots["W"]) * np.sqrt(slots["W"].shape[1])) for slots in state.aux]
    return scale * np.sqrt(2 / n_in) * np.sqrt(b[-1].shape[1]) * np.linalg.multi_dot(b)


def rms(a):
    return np.sqrt((a * a).mean())


@pytest.mark.parametrize(
    "net", ["dense 80 | dense 10", "dense 300 | dense 40 | dense 90 | dense 10"]
)
def test_the_product_has_the_deviation_of_the_fixed_f(net):
    mirrored, fixed = (Engine(net, rule("pepita", mirror=m), (50,), 10) for m in (0.1, 0.0))
    found = [product(mirrored.init(seed), 50, 0.05) for seed in range(5)]
    assert np.std(found) == pytest.approx(fixed.init(0).aux[0]["F"].std(), rel=0.1)


@pytest.mark.parametrize(
    ("net", "in_shape"),
    [
        ("dense 40 relu | dense 30 tanh | dense 3", (25,)),
        ("conv 4 tanh | conv 6 relu stride=2 | dense 3", (12, 12, 2)),
    ],
)
def test_noise_turns_the_matrices_towards_the_weights(net, in_shape):
    """200 steps that change no weight; a small image would blur the taps at its border."""
    engine = engine_of("pepita[mirror=0.1]", net, in_shape, optimizer=SGD(0.0))
    state, batch = engine.init(0), batch_for(in_shape, rows=64)
    first = state.copy()
    for _ in range(200):
        engine.step(state, batch)
    mirrors = 0
    for params, aux, start in zip(state.params, state.aux, first.aux, strict=True):
        for name, b in aux.items():
            assert abs(cosine(start[name], params[name])) < 0.5
            assert np.degrees(np.arccos(cosine(b, params[name]))) < 30
            mirrors += 1
    assert mirrors == sum(bool(layer.weights) for layer in engine.net.leaves)


def test_what_mirroring_adds_is_on_average_the_weights():
    """Of a linear layer: E[noise^T (noise W)] = 0.01 W, beside (1 - mirror / 2) of what was there."""
    engine = engine_of("pepita[mirror=1.0]", "dense 6 | dense 3", (5,))
    state = engine.init(0)
    kept, w = state.aux[1]["W"].copy(), state.params[1]["W"]
    batch = batch_for((5,), rows=100_000)
    b = engine.updates(state, batch)[1].aux_assign["W"]
    heard = b - 0.5 * kept
    spread = 0.01 * np.linalg.norm(w, axis=0) * np.sqrt(2 / 100_000)  # of one entry, at most
    assert np.abs(heard - 0.01 * w).max() < 5 * spread.max() < 0.002 * np.abs(w).max()


# ---- by hand, and wrong use ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_computed_by_hand(rows):
    # x = 2, W1 = 3, W2 = (1, -1), label (1, 0), squared error: a1 = 6, y = (6, -6), e = (5, -6).
    # F = (0.1, 0.2): x' = 2 - (0.5 - 1.2) = 2.7, h' = 8.1; grad W1 = 2.7 (6 - 8.1), grad W2 = 8.1 e.
    engine = Engine("dense 1 | dense 2", rule("pepita"), (1,), 2, objective="mse", dtype="float64")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"], state.aux[0]["F"] = 3, [[1, -1]], [[0.1], [0.2]]
    batch = Batch(np.full((rows, 1), 2.0), np.array([[1.0, 0.0]] * rows))
    found = gradients(engine, state, batch)
    np.testing.assert_allclose(found["0/grads/W"], [[-5.67]])
    np.testing.assert_allclose(found["0/grads/b"], [-2.1])
    np.testing.assert_allclose(found["1/grads/W"], [[40.5, -48.6]])


def test_labels_may_be_ids_where_there_is_one_per_place():
    net, shape = NETS["places"]
    engine, batch = engine_of("pepita[form=hebbian]", net, shape), batch_for(shape, shape[:1])
    state = engine.init(0)
    ids = gradients(engine, state, batch._replace(y=batch.y.argmax(-1)))
    for path, g in gradients(engine, state, batch).items():
        np.testing.assert_allclose(ids[path], g, rtol=1e-12, atol=1e-15)


def test_what_it_cannot_train_is_told():
    with pytest.raises(SpecError, match="difference, hebbian, time_local; got 'tl'"):
        rule("pepita", form="tl")
    for mirror in (-0.1, 2.0, float("nan")):
        with pytest.raises(SpecError, match="at least 0 and below 2"):
            rule("pepita", mirror=mirror)
    with pytest.raises(SpecError, match="Take another form, or mirror=0"):
        rule("pepita", form="time_local", mirror=0.1)
    with pytest.raises(SpecError, match="pepita.*'embed 5 4' reads ids"):
        engine_of("pepita", "embed 5 4 | dense 3", (4,))
    with pytest.raises(FFLearnError, match=r"pepita.* the places \(2,\).* of shape \(4, 6, 2\)"):
        engine_of("pepita", "conv 5 | max_pool | dense 3 places=1", (4, 6, 2)).init(0)
    with pytest.raises(FFLearnError, match="pepita.* one weight matrix; not '0 lstm 5'"):
        engine_of("pepita[mirror=0.1]", "lstm 5 | dense 3", (4, 2)).init(0)
    with pytest.warns(SettingsWarning, match="learns twice in a step.*Use sgd"):
        engine_of("pepita[form=time_local]", "dense 3", optimizer=Adam())
