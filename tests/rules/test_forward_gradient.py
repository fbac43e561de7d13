"""Forward gradients: exact derivatives along noise, unbiased estimates, the laws of their variance."""

from __future__ import annotations

import numpy as np
import pytest
from unbiased import SEEDS, bias, by_tensor, check_unbiased, estimates, exact, flat, repeated

from fflearn import layers
from fflearn.base import Batch, Channel
from fflearn.engine import Engine
from fflearn.errors import SettingsWarning, SpecError
from fflearn.layers.dense import Dense
from fflearn.optim import optimizer
from fflearn.registry import rule

CHAIN = "dense 5 tanh | dense 4 relu | dense 3"  # 74 weights, 9 hidden units
SMOOTH = "dense 5 tanh | dense 4 tanh | dense 3"
IMAGES = (
    "conv 3 relu kernel=2 padding=0 | max_pool 2 | residual(conv 3 tanh) | layer_norm | dense 3"
)


def setting(net=CHAIN, shape=(6,), rows=4, classes=3, objective="softmax_cross_entropy", **params):
    """Engine, state and a batch of noise; biases are not 0, so that they can be told from none."""
    engine = Engine(
        net,
        rule("fg", **params),
        shape,
        classes,
        objective=objective,
        backend="reference",
        dtype="float64",
    )
    state, rng = engine.init(0), np.random.default_rng(7)
    for slots in state.params:
        for name in slots:
            if name.endswith("b"):
                slots[name] = 0.3 * rng.normal(size=slots[name].shape)
    x = rng.normal(size=(rows, *shape))
    return engine, state, Batch(x, np.eye(classes)[rng.integers(0, classes, rows)])


def large_terms(engine, state, batch, part=slice(None)):
    """The tensors of the gradient that are not small, as terms that an estimate could forget."""
    terms = [t[part] for t in by_tensor(engine, state, batch)]
    size = np.linalg.norm(exact(engine, state, batch)[part])
    return [t for t in terms if np.linalg.norm(t) > 0.4 * size]


def hidden_part(state):
    """Where the parameters below the output layer are."""
    return slice(0, sum(a.size for p in state.params[:-1] for a in p.values()))


# ---- exact derivatives ---------------------------------------------------------------------------


SLOPED = [k for k in layers.names() if all(e.slopes for e, _ in layers.load(k).examples())]


@pytest.mark.parametrize("kind", SLOPED)
def test_what_rides_up_is_the_directional_derivative_through_every_layer(kind):
    fg = rule("fg", perturb="weights", noise="rademacher", directions=1)
    for layer, shape in layers.load(kind).examples():
        rng = np.random.default_rng(3)
        x, side = layer.example_batch(rng, 5, shape)
        batch = Batch(x, np.eye(2)[rng.integers(0, 2, 5)], side, rng.uniform(size=5))
        engine = Engine([layer, Dense(2)], fg, shape, 2, backend="reference", dtype="float64")
        state = engine.init(0)
        moved, g = flat(engine, state, batch), exact(engine, state, batch)
        # Noise of signs: every entry is the slope or minus the slope, and g . signs is the slope.
        np.testing.assert_allclose(np.abs(moved), abs(moved[0]), rtol=1e-10)
        assert g @ moved == pytest.approx(moved[0] ** 2, rel=1e-10, abs=1e-18), layer.spec()


@pytest.mark.parametrize("objective", ["softmax_cross_entropy", "binary_cross_entropy", "mse"])
@pytest.mark.parametrize("perturb", ["activity", "weights"])
@pytest.mark.parametrize(
    ("net", "shape", "units", "weights"),
    [
        (CHAIN, (6,), 9, 74),
        ("residual(dense 3 tanh; dense 3 bias=false) | dense 2", (2,), 6, 23),
        ("conv 2 tanh kernel=2 padding=0 | max_pool 2 | dense 2", (3, 3, 1), 8, 16),
        ("lstm 2 last=false | rnn 2 | dense 2", (2, 1), 6, 48),
    ],
    ids=["dense", "residual", "conv", "recurrent"],
)
def test_a_full_orthonormal_set_of_directions_is_backprop(
    net, shape, units, weights, perturb, objective
):
    k = units if perturb == "activity" else weights
    engine, state, batch = setting(
        net,
        shape,
        classes=int(net[-1]),
        objective=objective,
        perturb=perturb,
        noise="orthonormal",
        directions=k,
    )
    state.step = 5
    g = exact(engine, state, batch)
    np.testing.assert_allclose(flat(engine, state, batch), g, rtol=1e-9, atol=1e-11)
    engine.rule = rule("fg", perturb=perturb, noise="orthonormal", directions=k + 1)
    with pytest.raises(SpecError, match=f"directions={k}$"):
        engine.updates(state, batch)


def test_places_with_a_label_each():
    net = "dense 3 tanh places=1 | dense 2 places=1"
    engine, state, _ = setting(net, (4, 2), noise="orthonormal", directions=12, classes=2)
    rng = np.random.default_rng(1)
    batch = Batch(rng.normal(size=(3, 4, 2)), rng.integers(0, 2, (3, 4)))
    np.testing.assert_allclose(
        flat(engine, state, batch), exact(engine, state, batch), rtol=1e-9, atol=1e-12
    )


def test_units_that_pass_nothing_on_get_no_noise():
    engine, state, batch = setting("dense 40 relu | dense 3", rows=1)
    trace = []
    engine.observed(state, batch, lambda v, u: trace.append((v.trace, u)))
    silent = trace[0][0].a[0] < 0
    assert 0 < silent.sum() < 40
    assert not trace[0][1].grads["b"][silent].any() and trace[0][1].grads["b"][~silent].all()


# ---- local guesses -------------------------------------------------------------------------------


def bias_gradients(engine, state, batch):
    """Of one sample: d loss / d a of each hidden layer."""
    return [engine.kernels.formed(u.grads["b"]) for u in engine.updates(state, batch)[:-1]]


def with_rule(engine, *name, **params):
    net = engine.net.spec()
    return Engine(
        net, rule(*name, **params), engine.in_shape, 3, backend="reference", dtype="float64"
    )


def test_a_local_guess_takes_the_gradients_part_along_the_layers_own_gradient():
    net = "dense 5 | dense 4 | dense 6 | dense 3"
    engine, state, batch = setting(net, rows=3, guess="local")
    own = with_rule(engine, "local_loss", read="channels")
    true = with_rule(engine, "backprop")
    total = [0.0] * 3
    for i in range(3):
        one = Batch(batch.x[i : i + 1], batch.y[i : i + 1])
        t = bias_gradients(true, true.init(0), one)
        twin = own.init(0)
        for mine, theirs in ((twin.params, state.params), (twin.aux, state.aux)):
            for a, b in zip(mine, theirs, strict=True):
                for name in a:
                    a[name] = b[name]
        exact_state = true.init(0)
        for a, b in zip(exact_state.params, state.params, strict=True):
            for name in a:
                a[name] = b[name]
        t = bias_gradients(true, exact_state, one)
        g = bias_gradients(own, twin, one)
        w = [(b @ a) / (a @ a) * a for a, b in zip(g, t, strict=True)]
        for projected, whole in zip(w, t, strict=True):
            assert np.linalg.norm(projected) <= np.linalg.norm(whole) and projected @ whole >= 0
        for a, b in zip(bias_gradients(engine, state, one), w, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
        total = [a + b / 3 for a, b in zip(total, w, strict=True)]
    for a, b in zip(bias_gradients(engine, state, batch), total, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_a_guess_that_is_the_gradient_gives_the_gradient():
    engine, state, batch = setting("dense 5 tanh | dense 3 bias=false", guess="local")
    state.aux[0]["M"] = state.params[1]["W"]
    np.testing.assert_allclose(
        flat(engine, state, batch), exact(engine, state, batch), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    ("net", "shape"), [(CHAIN, (6,)), ("conv 4 relu | conv 2 tanh | dense 3", (4, 4, 1))]
)
def test_local_guesses_of_local_targets_are_the_rule_of_local_losses(net, shape):
    engine, _, batch = setting(net, shape, guess="local", target="local")
    own = with_rule(engine, "local_loss", read="channels")
    found = [e.updates(e.init(0), batch) for e in (engine, own)]
    for one, two in zip(*found, strict=True):
        for part in ("grads", "aux_grads"):
            a, b = getattr(one, part), getattr(two, part)
            assert set(a) == set(b)
            for name in a:
                np.testing.assert_allclose(
                    engine.kernels.formed(a[name]),
                    own.kernels.formed(b[name]),
                    rtol=1e-12,
                    atol=1e-15,
                )


# ---- what crosses, what is kept ------------------------------------------------------------------


def test_every_direction_costs_a_tangent_and_a_number():
    for k in (1, 3):
        engine, state, batch = setting(directions=k)
        _, ledger = engine.step(state, batch)
        per = ledger.per_sample()
        assert per == {"activity": 9, "tangent": k * (5 + 4 + 3), "loss": 2 * k}
        assert ledger.forward_passes == 1
        engine, state, batch = setting(directions=k, perturb="weights")
        assert engine.step(state, batch)[1].per_sample()["scalar"] == 3 * k / 4
    engine, state, batch = setting(guess="local")
    per = engine.step(state, batch)[1].per_sample()
    assert per == {"activity": 9, "tangent": 5 + 4 + 3 + 4 + 3, "loss": 2, "target": 6}
    engine, state, batch = setting(target="local")
    assert engine.step(state, batch)[1].per_sample() == {"activity": 9, "target": 6}


def test_noise_is_not_kept():
    held = []
    for k in (1, 9):
        engine, state, batch = setting("dense 50 tanh | dense 3", directions=k, perturb="weights")
        held.append(engine.step(state, batch)[1].peak_bytes)
    assert held[1] - held[0] <= 8 * 8 * 2  # the numbers alone


def test_channels_follow_from_the_parameters():
    def names(**params):
        return {c.name for c in rule("fg", **params).channels}

    assert names() == {"TANGENT", "LOSS"}
    assert names(perturb="weights") == names(per_batch=True) == {"TANGENT", "SCALAR"}
    assert names(guess="local") == {"TANGENT", "LOSS", "TARGET"}
    assert names(target="local") == names(target="local", guess="local") == {Channel.TARGET.name}


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"perturb": "both"}, "perturb to be one of activity, weights"),
        ({"noise": "uniform"}, "noise to be one of gaussian"),
        ({"directions": 0}, "directions to be 1 or more"),
        ({"target": "above"}, "target to be one of"),
        ({"guess": "ntk"}, "guess to be one of"),
        ({"guess": "local", "perturb": "weights"}, "Leave perturb and per_batch out"),
        ({"target": "local", "noise": "orthonormal"}, "Leave noise=orthonormal"),
        ({"groups": 2}, "add target=local"),
        ({"per_batch": True, "perturb": "weights"}, "one number per batch"),
    ],
)
def test_settings_that_mean_nothing_are_refused(params, told):
    with pytest.raises(SpecError, match=told):
        rule("fg", **params)


def test_groups_divide_the_channels():
    with pytest.raises(SpecError, match="'0 dense 5 tanh' has 5. Type groups=1"):
        setting(target="local", groups=2)


def test_steps_linear_in_the_estimate_come_with_advice():
    for params, settings, warned in [
        ({"perturb": "weights"}, {"name": "sgd", "lr": 0.05}, True),
        ({"perturb": "weights"}, {"name": "sgd", "lr": 2e-4}, False),
        ({"perturb": "weights"}, {"name": "adam", "lr": 0.05}, False),
        ({}, {"name": "sgd", "lr": 0.05}, False),
    ]:
        made, o = rule("fg", **params), optimizer(settings.pop("name"), **settings)
        assert bool(made.advise(o)) == warned
        if warned:
            with pytest.warns(SettingsWarning, match="diverge"):
                Engine(CHAIN, made, (6,), 3, o)


def test_a_network_without_hidden_layers_has_nothing_to_estimate():
    engine, state, batch = setting("dense 3")
    np.testing.assert_allclose(flat(engine, state, batch), exact(engine, state, batch), rtol=1e-12)


# ---- the mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape", "noise", "r"),
    [
        (CHAIN, (6,), "gaussian", 300),
        (CHAIN, (6,), "rademacher", 300),
        (CHAIN, (6,), "orthonormal", 300),
        (IMAGES, (5, 5, 1), "rademacher", 200),
        ("rnn 3 last=false | lstm 3 | dense 3", (3, 2), "rademacher", 260),
    ],
    ids=["gaussian", "rademacher", "orthonormal", "images", "sequences"],
)
def test_noise_on_activity_has_the_gradient_for_its_mean(net, shape, noise, r):
    engine, state, batch = setting(net, shape, noise=noise, directions=2)
    draw, g = estimates(engine, state, repeated(batch, r), 60), exact(engine, state, batch)
    hidden = hidden_part(state)
    read_out = slice(hidden.stop, None)
    np.testing.assert_allclose(draw(0)[:, read_out], np.tile(g[read_out], (60, 1)), rtol=1e-9)
    terms = large_terms(engine, state, batch, hidden)
    check_unbiased(lambda seed: draw(seed)[:, hidden], g[hidden], terms)


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        ("gaussian", lambda d, k: (d + 1) / k),
        ("rademacher", lambda d, k: (d - 1) / k),
        ("orthonormal", lambda d, k: d / k - 1),
    ],
)
def test_noise_on_weights_has_the_gradient_for_its_mean_and_the_laws_variance(noise, law):
    params = {"perturb": "weights", "noise": noise, "directions": 16}
    engine, state, batch = setting("dense 4 tanh | dense 3", (3,), **params)
    g, draw = exact(engine, state, batch), estimates(engine, state, batch, 140)
    found = [draw(seed) for seed in SEEDS]
    check_unbiased(lambda seed: found[seed], g, large_terms(engine, state, batch))
    variance = np.concatenate(found).var(axis=0, ddof=1).sum()
    assert len(g) == 31 and variance == pytest.approx(law(31, 16) * (g @ g), rel=0.05)


def test_sample_weights_weigh_once():
    weight = np.array([1.0, 0.0, 4.0, 2.0])
    for perturb, k in (("activity", 3), ("weights", 28)):
        params = {"perturb": perturb, "noise": "orthonormal", "directions": k}
        engine, state, batch = setting("dense 3 tanh | dense 4", (3,), classes=4, **params)
        batch = batch._replace(weight=weight)
        g = exact(engine, state, batch)
        assert len(g) == 28
        np.testing.assert_allclose(flat(engine, state, batch), g, rtol=1e-9, atol=1e-12)
    engine, state, batch = setting("dense 3 tanh | dense 4", (3,), classes=4, per_batch=True)
    batch, hidden = batch._replace(weight=weight), hidden_part(state)
    g, draw = exact(engine, state, batch)[hidden], estimates(engine, state, batch, 400)
    check_unbiased(lambda seed: draw(seed)[:, hidden], g)


# ---- layers that mix samples ---------------------------------------------------------------------

MIXING = "dense 3 tanh | batch_norm tanh | dense 3"


def test_a_number_per_sample_is_refused_where_samples_mix_and_would_be_biased():
    for params in ({}, {"guess": "local"}):
        with pytest.raises(SpecError, match="ForwardGradient .* '1 batch_norm"):
            setting(MIXING, **params)
    engine, state, batch = setting(MIXING, per_batch=True)
    g, first = exact(engine, state, batch), slice(0, 21)
    engine.rule = rule("fg", directions=2)
    told = bias(estimates(engine, state, batch, 600)(0)[:, first], g[first])
    assert "coordinate" in told


def test_one_number_per_batch_is_unbiased_there():
    engine, state, batch = setting(MIXING, rows=3, per_batch=True, directions=8)
    g, draw = exact(engine, state, batch), estimates(engine, state, batch, 150)
    hidden = slice(0, 21 + 6)  # running statistics are not learned
    terms = large_terms(engine, state, batch, hidden)
    check_unbiased(lambda seed: draw(seed)[:, hidden], g[hidden], terms)
    setting(MIXING, perturb="weights")
    setting("block(dense 4 | batch_norm tanh) | dense 3", target="local")


# ---- the variance --------------------------------------------------------------------------------


def total_variance(engine, state, batch, n, hidden):
    return estimates(engine, state, batch, n)(0)[:, hidden].var(axis=0, ddof=1).sum()


def deltas(net, batch, state):
    """|x_i|^2 + 1 (the bias reads 1) and |da_i|^2 of each hidden layer and sample."""
    engine = Engine(net, rule("backprop"), (6,), 3, backend="reference", dtype="float64")
    found = {}

    def look(v, u):
        if not v.is_output:
            found[v.index] = (v.trace.x**2).sum(1) + 1, (v.state["da"] ** 2).sum(1)

    engine.observed(state, batch, look)
    x, da = zip(*(found[layer] for layer in sorted(found)), strict=True)
    return np.array(x), np.array(da)


@pytest.mark.parametrize(("noise", "sign"), [("gaussian", 1), ("rademacher", -1)])
@pytest.mark.parametrize(
    "net", ["dense 40 tanh | dense 3", "dense 30 tanh | dense 20 tanh | dense 3"]
)
def test_the_variance_of_noise_on_activity(net, noise, sign):
    """tr Cov grad_l = 1/N^2 sum_i |x_i|^2 (q_l sum over layers of |da_i|^2 +- |da_i,l|^2)."""
    k, r = 2, 4
    engine, state, batch = setting(net, noise=noise, directions=k)
    x, da = deltas(net, batch, state)
    q = np.array([s.out_shape[0] for s in engine.specs[:-1]])[:, None]
    law = (x * (q * da.sum(0) + sign * da)).sum(1) / len(batch.x) ** 2 / (k * r)
    draws, start = estimates(engine, state, repeated(batch, r), 300)(0), 0
    for layer, expected in enumerate(law):
        size = sum(a.size for a in state.params[layer].values())
        found = draws[:, start : start + size].var(axis=0, ddof=1).sum()
        assert found == pytest.approx(expected, rel=0.05), layer
        start += size


@pytest.mark.parametrize(("samples", "copies", "k"), [(8, 1, 10), (1, 100, 1)])
def test_the_variance_of_orthonormal_noise_on_activity(samples, copies, k):
    """It falls with the number of samples, which share columns but not the order of the rows.

    With the rows in one order, half of |g|^2 would stay however many copies of one sample there are.
    """
    net = "dense 40 tanh | dense 3"
    engine, state, batch = setting(net, rows=samples, noise="orthonormal", directions=k)
    (x,), (da,) = deltas(net, batch, state)
    found = total_variance(engine, state, repeated(batch, copies), 500, hidden_part(state))
    law = (x * da).sum() / (samples**2 * copies) * (40 / k - 1)
    assert found == pytest.approx(law, rel=0.05)


def test_what_noise_on_activity_buys_one_layer():
    """Ren et al., table 1: (p q + 1) |G|^2 on weights, 1/N^2 sum_i |x_i|^2 (q + 1) |da_i|^2 on activity.

    G is the gradient of the layer's own loss, with p inputs and q units; noise is gaussian.
    """
    net, k, p, q = "dense 7 tanh bias=false | dense 3", 8, 6, 7
    found, part = {}, slice(0, p * q)
    for perturb, n in (("weights", 1000), ("activity", 300)):
        params = {"target": "local", "noise": "gaussian", "directions": k, "perturb": perturb}
        engine, state, batch = setting(net, **params)
        found[perturb] = total_variance(engine, state, batch, n, part)
    engine, state, batch = setting(net, target="local", guess="local")
    das = []
    engine.observed(
        state,
        batch,
        lambda v, u: v.is_output or das.append(v.act_vjp(v.trace, v.state["guess"])),
    )
    g, x = flat(engine, state, batch)[part], batch.x
    on_weights = (p * q + 1) * (g @ g)
    on_activity = ((x**2).sum(1) * (q + 1) * (das[0] ** 2).sum(1)).sum() / len(x) ** 2
    assert found["weights"] / found["activity"] == pytest.approx(on_weights / on_activity, rel=0.05)
    assert on_weights > 2 * on_activity


def test_the_probe_finds_the_ratio_that_the_law_gives():
    engine, state, batch = setting(SMOOTH, perturb="weights", noise="gaussian", directions=32)
    found = []
    for state.step in range(30):
        engine.observed(
            state, batch, lambda v, u: found.append((v.index, engine.rule.signal_to_noise(v, u)))
        )
    g, start = exact(engine, state, batch), 0
    for layer, slots in enumerate(state.params):
        size = sum(a.size for a in slots.values())
        part = g[start : start + size] @ g[start : start + size]
        law = part / ((size * (g @ g) + part) / 32)
        assert np.mean([r for i, r in found if i == layer]) == pytest.approx(law, rel=0.3), layer
        start += size
    one, state, batch = setting(directions=1)
    one.observed(state, batch, lambda v, u: found.append(one.rule.signal_to_noise(v, u)))
    assert found[-1] is None


# ---- local targets -------------------------------------------------------------------------------

PATCHES = "conv 4 tanh kernel=2 padding=0 | conv 6 tanh kernel=1 | dense 3"


@pytest.mark.parametrize("params", [{}, {"groups": 2}, {"perturb": "weights", "directions": 8}])
def test_local_estimates_have_the_local_gradient_for_their_mean(params):
    engine, state, batch = setting(PATCHES, (3, 3, 1), target="local", **params)
    own = Engine(
        PATCHES,
        rule("fg", guess="local", target="local"),
        (3, 3, 1),
        3,
        backend="reference",
        dtype="float64",
    )
    g = flat(own, state, batch)
    hidden = hidden_part(state)
    many = repeated(batch, 1 if "perturb" in params else 50)
    draw = estimates(engine, state, many, 150 if "perturb" in params else 60)
    check_unbiased(lambda seed: draw(seed)[:, hidden], g[hidden])


def test_all_places_and_groups_are_differentiated_as_if_each_had_a_head_of_its_own():
    engine, state, batch = setting(PATCHES, (3, 3, 1), target="local", groups=2, directions=1)
    places, groups, looked = 4, 2, []

    def look(v, u):
        if v.is_output:
            return
        y, m, r = v.trace.y, v.aux["M"], None
        flat_y = y.reshape(len(y), places, -1)
        p = np.exp(flat_y.mean(1) @ m)
        r = p / p.sum(1, keepdims=True) - batch.y
        dy = v.act_vjp(v.trace, engine.rule.noise_of(v, "x")["a"]).reshape(flat_y.shape)
        slope, c = np.zeros_like(dy), dy.shape[2] // groups
        for place in range(places):
            for group in range(groups):
                live = np.zeros_like(dy)
                own = slice(group * c, (group + 1) * c)
                live[:, place, own] = dy[:, place, own]
                slope[:, place, own] = ((live.mean(1) @ m) * r).sum(1)[:, None]
        found = engine.rule.slopes(v, "x", engine.rule.noise_of(v, "x"))["a"]
        found = np.broadcast_to(found, v.trace.y.shape).reshape(slope.shape)
        np.testing.assert_allclose(found, slope, rtol=1e-12, atol=1e-16)
        looked.append(v.index)

    engine.observed(state, batch, look)
    assert looked == [0, 1]


@pytest.mark.parametrize(
    ("net", "groups"),
    [
        ("block(block(conv 4 tanh) | conv 6 tanh) | dense 3", 2),
        (
            "block(block(conv 4 tanh kernel=1 groups=2) | mix | conv 4 kernel=1 groups=2) | dense 3",
            2,
        ),
        ("block(residual(block(conv 4 kernel=1) | conv 4 relu) | act relu) | dense 3", 4),
    ],
)
def test_all_noise_inside_a_block_is_the_gradient_of_its_own_loss(net, groups):
    """Numbers leave out what noise does not reach, and nothing that it does."""
    engine, state, batch = setting(net, (3, 2, 4), target="local", groups=groups)
    looked = []

    def look(v, u):
        if v.is_output:
            return
        rows, found = len(batch.x), {}
        for point in v.points:
            found[point.name] = np.zeros((rows, *point.shape))
            for unit in np.ndindex(*point.shape):
                noise = {q.name: np.zeros((rows, *q.shape)) for q in v.points}
                noise[point.name][:, *unit] = 1
                slope = engine.rule.slopes(v, "x", noise)[point.name]
                found[point.name] += slope * noise[point.name]
        dy = engine.rule.local_gradient(v, v.state["local"])
        exact = v.param_vjp(v.trace, v.act_vjp(v.trace, dy))
        mine = v.points_vjp(v.trace, found)
        assert set(mine) == set(exact)
        for name, g in exact.items():
            np.testing.assert_allclose(
                v.k.formed(mine[name]), v.k.formed(g), rtol=1e-10, atol=1e-14, err_msg=name
            )
        drawn = engine.rule.noise_of(v, "x").values()
        assert len({a.tobytes() for a in drawn}) == len(v.points) >= 2
        looked.append(v.index)

    engine.observed(state, batch, look)
    assert looked == [0]


def test_groups_and_places_lower_the_variance():
    found = []
    for groups in (1, 2):
        engine, state, batch = setting(PATCHES, (3, 3, 1), target="local", groups=groups)
        found.append(total_variance(engine, state, batch, 100, slice(0, 50)))
    assert found[1] < 0.7 * found[0]
