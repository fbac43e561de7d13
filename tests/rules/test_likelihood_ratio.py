"""The likelihood ratio: means against closed forms, variances against their laws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import erf, exp, pi, sqrt
from typing import ClassVar

import numpy as np
import pytest
from unbiased import by_tensor, check_unbiased, estimates, exact, flat, repeated

from fflearn import locality, registry
from fflearn.base import Batch, LayerView, Readout
from fflearn.checks import BRANCHES, bench
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.objectives import Objective
from fflearn.objectives.zero_one import ZeroOne
from fflearn.random import Key

ulr = partial(registry.rule, "likelihood_ratio")
C = np.array([0.5, -1.0, 0.25, 2.0, -0.75, 1.5, 0.0, 1.0])  # the gradient of a linear loss


@dataclass(frozen=True)
class Linear(Objective):
    """loss = y . C + the sum of the target: the target moves the loss and not its gradient."""

    kind: ClassVar[str] = "linear"
    classes: ClassVar[bool] = False

    def __call__(self, k, y, target):
        c = C[: y.shape[1]]
        return Readout(y @ c + target.sum(1), np.zeros_like(y) + c)


def made(net, settings, in_shape, outputs, objective="mse"):
    task = "classification" if isinstance(objective, ZeroOne) else "regression"
    engine = Engine(
        net,
        ulr(**settings),
        in_shape,
        outputs,
        objective=objective,
        backend="reference",
        dtype="float64",
        task=task,
    )
    return engine, engine.init(3)


STEPS = 240


def check(draw, g, terms=(), wide=8):
    """`check_unbiased`, with a few estimates side by side.

    Of few coordinates the mean square in standard errors is seldom near 1.
    """

    def side_by_side(seed):
        rows = draw(seed)
        return rows.reshape(len(rows) // wide, -1)

    check_unbiased(side_by_side, np.tile(g, wide), [np.tile(t, wide) for t in terms])


def by_sample(engine, state, batch):
    """For each layer what each sample's estimates of the gradient by W are: (B, n_in, n_out)."""
    found: dict[int, list] = {}
    plain = LayerView.param_vjp

    def noted(v, t, da):
        rows = t.x[:, :, None] * da[:, None]
        found.setdefault(v.index, []).append(rows.reshape(-1, len(batch.x), *rows.shape[1:]))
        return plain(v, t, da)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerView, "param_vjp", noted)
        updates = engine.updates(state, batch)
    mean = {i: np.concatenate(rows).mean(axis=0) for i, rows in found.items()}
    for i, rows in mean.items():  # these are what the layer learns the mean of
        np.testing.assert_allclose(rows.mean(0), engine.kernels.formed(updates[i].grads["W"]))
    return mean


def one_layer(settings, objective, a, target, n=4800):
    """``draw(seed)``: n estimates of d loss / d a, of a layer whose pre-activation is ``a``."""
    engine, state = made(f"dense {len(a)} bias=false", settings, (1,), len(a), objective)
    state.params[0]["W"] = a[None]
    batch = Batch(np.ones((n, 1)), np.tile(target, (n, 1)))

    def draw(seed):
        at = state.copy()
        at.step = seed
        return by_sample(engine, at, batch)[0][:, 0]

    return draw


def variance(draw):
    return draw(0).var(axis=0).sum()


ESTIMATORS = {
    "plain": {"antithetic": False, "baseline": "none"},
    "clean": {"antithetic": False, "baseline": "clean"},
    "copies": {"antithetic": False, "baseline": "copies"},
    "antithetic": {"baseline": "none"},
    "antithetic, copies": {"baseline": "copies"},
    "sobol": {"noise": "sobol", "antithetic": False, "baseline": "clean"},
    "sobol, antithetic": {"noise": "sobol"},
}
named = pytest.mark.parametrize("settings", ESTIMATORS.values(), ids=ESTIMATORS)
modes = pytest.mark.parametrize("layerwise", [False, True], ids=["all layers", "layer by layer"])


# ---- one layer: the mean, and the variance -------------------------------------------------------


@named
@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_of_a_linear_loss_it_is_unbiased_for_every_sigma(settings, sigma):
    draw = one_layer(
        {**settings, "sigma": sigma, "copies": 4}, Linear(), 0 * C, 0.3 * (C == 0), 1600
    )
    check(draw, C, wide=16)


@named
def test_of_a_squared_error_it_is_unbiased_for_every_sigma(settings):
    a = np.array([0.4, -1.0, 0.2])
    target = np.array([1.0, 0.0, -0.5])
    check(one_layer({**settings, "copies": 4, "sigma": 1.5}, "mse", a, target), a - target, wide=16)


K, LOSS, SIGMA = 4, 0.7, 0.2
ALONE = (len(C) + 1) * (C @ C)  # the part of the variance that no baseline removes
LAWS = {
    "plain": (len(C) * LOSS**2 / SIGMA**2 + ALONE) / K,
    "clean": ALONE / K,
    "copies": ALONE / (K - 1),  # the covariance matrix of K noises, times C
    "antithetic": ALONE / K,
    "antithetic, copies": ALONE / K,
}


@pytest.mark.parametrize("name", LAWS)
def test_the_variance_of_one_layer(name):
    settings = {**ESTIMATORS[name], "copies": K, "sigma": SIGMA}
    draw = one_layer(settings, Linear(), 0 * C, LOSS * (C == 0), 12_000)
    assert variance(draw) == pytest.approx(LAWS[name], rel=0.05)


def test_sobol_points_have_less_variance_than_independent_ones():
    settings = {"copies": 64, "antithetic": False, "sigma": SIGMA}
    for objective, target, least in ((Linear(), 0 * C, 4), ("mse", C, 2)):
        ratio = [
            variance(one_layer({**settings, "noise": noise}, objective, 0 * C, target, 400))
            for noise in ("normal", "sobol")
        ]
        assert ratio[0] > least * ratio[1]


def test_antithetic_pairs_win_where_the_loss_is_large_and_lose_where_a_baseline_fits():
    loss = 2.0

    def at(name, copies):
        settings = {**ESTIMATORS[name], "copies": copies, "sigma": SIGMA}
        return variance(one_layer(settings, Linear(), 0 * C, loss * (C == 0), 6000))

    pairs = at("antithetic", 2)  # as many passes as 4 copies
    gain = (len(C) * loss**2 / SIGMA**2 + ALONE) / (2 * ALONE)
    assert at("plain", 4) / pairs == pytest.approx(gain, rel=0.1) and gain > 5
    assert at("clean", 4) / pairs == pytest.approx(1 / 2, rel=0.1)


@pytest.mark.parametrize("layerwise", [False, True])
def test_the_estimate_by_hand(layerwise):
    engine, state = made("dense 2", {"copies": 1, "layerwise": layerwise}, (3,), 2, Linear())
    x = np.array([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
    eps = Key(3).at(0).fold("step").fold("layer", 0).fold("noise").normal((2, 2), np.float64)
    da = (eps @ C[:2])[:, None] * eps
    (u,) = engine.updates(state, Batch(x, np.ones((2, 2))))
    np.testing.assert_allclose(u.grads["W"], x.T @ da / 2, rtol=1e-9)
    np.testing.assert_allclose(u.grads["b"], da.mean(0), rtol=1e-9)


# ---- networks: the mean --------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("name", ["clean", "antithetic, copies"])
def test_of_a_linear_network_it_is_the_gradient_of_the_noisy_loss(name, layerwise):
    # E loss is the loss plus sigma^2 (|W_2|^2 + 2) / 2 with noise in both layers: W_2 shrinks.
    # With noise in one layer at a time there is no such term.
    sigma = 0.7
    settings = {**ESTIMATORS[name], "copies": 4, "sigma": sigma, "layerwise": layerwise}
    engine, state = made("dense 3 | dense 2", settings, (4,), 2)
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(2, 4)), rng.normal(size=(2, 2)))
    g, terms = exact(engine, state, batch), by_tensor(engine, state, batch)
    shrink, w, at = np.zeros_like(g), state.params[1]["W"], 4 * 3 + 3
    shrink[at : at + w.size] = sigma**2 * w.ravel()
    draw = estimates(engine, state, repeated(batch, 100), STEPS)
    if layerwise:
        check(draw, g, terms)
    else:
        check(draw, g + shrink, [*terms, shrink])


NETWORKS = {
    "dense": ("dense 4 tanh | dense 3 sigmoid | dense 2", (3,)),
    "branches": ("dense 3 tanh | residual(dense 3 tanh; dense 3) | dense 2", (3,)),
    "conv, stride 2": ("conv 2 tanh stride=2 | avg_pool | dense 2", (4, 4, 2)),
    "a module": ("block(dense 4 tanh | dense 3 tanh) | dense 2", (3,)),
    "lstm": ("lstm 3 | dense 2", (3, 2)),
    "norm": ("dense 4 | layer_norm tanh | dense 2 norm=rms", (3,)),
}


@pytest.mark.parametrize(
    ("name", "layerwise"),
    [*((name, True) for name in NETWORKS), ("dense", False), ("branches", False)],
)
def test_with_little_noise_it_is_the_gradient(name, layerwise):
    net, shape = NETWORKS[name]
    engine, state = made(net, {"copies": 2, "sigma": 1e-3, "layerwise": layerwise}, shape, 2)
    rng = np.random.default_rng(1)
    batch = Batch(rng.normal(size=(2, *shape)), 2 + rng.normal(size=(2, 2)))
    draw = estimates(engine, state, repeated(batch, 100), STEPS)
    check(draw, exact(engine, state, batch), by_tensor(engine, state, batch))


def test_its_distance_to_the_tangents_estimate_is_of_second_order():
    def at(sigma):
        engine, state = made("dense 4 tanh | dense 2", {"sigma": sigma}, (3,), 2)
        rng = np.random.default_rng(1)
        return flat(engine, state, Batch(rng.normal(size=(5, 3)), rng.normal(size=(5, 2))))

    limit = at(1e-4)
    far = [np.linalg.norm(at(sigma) - limit) for sigma in (0.04, 0.02, 0.01)]
    assert far[0] / far[1] == pytest.approx(4, rel=0.05)
    assert far[1] / far[2] == pytest.approx(4, rel=0.05)


# ---- networks: the variance ----------------------------------------------------------------------


@modes
def test_the_variance_of_a_layer_among_others(layerwise):
    # Linear layers and loss: with a baseline and pairs the estimate is exactly (s h)^T eps, where s
    # is the slope along all the noise of the pass.
    n = 20_000
    settings = {"copies": 1, "layerwise": layerwise, "sigma": 0.5}
    engine, state = made("dense 5 bias=false | dense 3 bias=false", settings, (2,), 3, Linear())
    x = np.array([1.0, -0.5])
    found = by_sample(engine, state, Batch(np.tile(x, (n, 1)), np.full((n, 3), 0.4)))
    w1, w2 = (p["W"] for p in state.params)
    deltas = (w2 @ C[:3], C[:3])
    sizes = [d @ d for d in deltas]
    for i, h in enumerate((x, x @ w1)):
        heard = sizes[i] if layerwise else sum(sizes)
        law = (h @ h) * (len(deltas[i]) * heard + sizes[i])
        assert found[i].var(axis=0).sum() == pytest.approx(law, rel=0.05)


CANCEL = [
    {},
    {"noise": "sobol"},
    {"on": "weights"},
    {"antithetic": False},
    {"antithetic": False, "baseline": "copies"},
]


@modes
@pytest.mark.parametrize("settings", CANCEL, ids=str)
def test_what_a_sample_loses_in_all_passes_leaves_no_trace(layerwise, settings):
    # Losses as large as these, other ones for each sample: a pair is of one sample, with the same
    # dropout, in front of the same activity; a baseline is of the sample it is subtracted from.
    settings = {**settings, "layerwise": layerwise, "copies": 4}
    engine, state = made("dense 6 tanh | dropout 0.5 | dense 2", settings, (3,), 2, Linear())
    x = np.random.default_rng(0).normal(size=(5, 3))
    offsets = 1e3 * np.arange(10.0).reshape(5, 2)
    small, large = (flat(engine, state, Batch(x, s * offsets)) for s in (0, 1))
    np.testing.assert_allclose(large, small, rtol=1e-6, atol=1e-8)


# ---- losses and units without a derivative ------------------------------------------------------


@named
def test_errors_are_counted_without_a_derivative(settings):
    # P(wrong) = Phi(-m / (sigma sqrt 2)), m the margin of the true output.
    sigma, m = 0.5, 0.3
    s = sigma * sqrt(2)
    slope = exp(-((m / s) ** 2) / 2) / sqrt(2 * pi) / s
    settings = {**settings, "copies": 4, "sigma": sigma}
    draw = one_layer(settings, ZeroOne(), np.array([0.1 + m, 0.1]), np.array([1.0, 0.0]))
    check(draw, slope * np.array([-1.0, 1.0]), wide=48)


@modes
def test_step_units_learn_as_their_smoothed_selves(layerwise):
    sigma, x, n = 0.8, np.array([1.0, -0.5]), 900
    net = "dense 1 | step | dense 1"
    engine, state = made(net, {"sigma": sigma, "layerwise": layerwise}, (2,), 1, Linear())
    state.params[0]["W"][:] = [[0.6], [0.3]]
    state.params[2]["W"][:] = 1.5
    a = 0.6 - 0.15
    bell = exp(-((a / sigma) ** 2) / 2) / sqrt(2 * pi) / sigma
    on = 1.0 if layerwise else (1 + erf(a / sigma / sqrt(2))) / 2
    slope = C[0] * 1.5 * bell
    g = np.array([slope * 1.0, slope * -0.5, slope, C[0] * on, C[0]])
    batch = Batch(np.tile(x, (n, 1)), np.zeros((n, 1)))
    check(estimates(engine, state, batch, STEPS), g, wide=8)


# ---- noise within a recurrent layer ------------------------------------------------------------


@modes
@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_noise_at_each_step_finds_what_the_past_has_done(kind, layerwise):
    # No derivative goes back in time (credit=step), and still the mean is that of bptt.
    little = {"sigma": 1e-3, "layerwise": layerwise, "copies": 4}
    engine, state = made(f"{kind} 2 last=false credit=step | dense 2", little, (3, 2), 2)
    through, twin = made(f"{kind} 2 last=false | dense 2", {}, (3, 2), 2)
    rng = np.random.default_rng(0)
    for name, w in state.params[0].items():
        w[:] = twin.params[0][name] = w + rng.normal(size=w.shape) * (name == "Wh")
    batch = Batch(rng.normal(size=(1, 3, 2)), np.array([[3.0, -3.0]]))
    g, step = exact(through, twin, batch), exact(engine, state, batch)
    assert np.linalg.norm(g - step) > 0.1 * np.linalg.norm(g)
    check(estimates(engine, state, repeated(batch, 100), STEPS), g, [g - step])


# ---- noise on weights ----------------------------------------------------------------------------


def test_noise_on_weights_finds_the_gradient_and_batch_norm_may_mix_samples():
    settings = {"on": "weights", "sigma": 1e-3}
    engine, state = made("dense 2 | batch_norm tanh | dense 1", settings, (2,), 1)
    rng = np.random.default_rng(1)
    batch = Batch(rng.normal(size=(6, 2)), 1 + rng.normal(size=(6, 1)))
    assert "mean" in state.params[1]  # statistics are no parameters: they get no noise
    check(estimates(engine, state, batch, 120), exact(engine, state, batch), wide=4)


def test_the_variance_of_noise_on_weights():
    # As a gaussian direction of all weights: (d + 1) |g|^2 over the copies.
    engine, state = made("dense 3", {"on": "weights", "copies": 2}, (2,), 3, Linear())
    batch = Batch(np.array([[1.0, -0.5], [0.5, 2.0]]), np.full((2, 3), 9.0))
    found, g = estimates(engine, state, batch, 3000)(0), exact(engine, state, batch)
    law = (len(g) + 1) * (g @ g) / 2
    assert found.var(axis=0).sum() == pytest.approx(law, rel=0.05)


# ---- the scale of the noise ------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_slope_by_the_scale_of_the_noise(layerwise, antithetic):
    # E loss is the loss plus sigma_1^2 |W_2|^2 / 2 + sigma_2^2 2 / 2.
    settings = {"layerwise": layerwise, "antithetic": antithetic, "learn_sigma": True}
    engine, state = made("dense 3 | dense 2", {**settings, "sigma": 0.5, "copies": 4}, (4,), 2)
    state.aux[0]["log_factor"] = np.log(1.6)  # sigma_1 = 0.8
    x, w = np.ones((1, 4)), state.params[1]["W"]
    batch = repeated(Batch(x, engine.predict(state, x) + 0.3), 300)
    slopes = np.array([0.8**2 * (w * w).sum(), 0.5**2 * 2])

    def draw(seed):
        at, rows = state.copy(), []
        for at.step in range(STEPS * seed, STEPS * (seed + 1)):
            rows.append([u.aux_grads["log_factor"][0] for u in engine.updates(at, batch)])
        return np.array(rows)

    check(draw, slopes, [slopes * [1, 0], slopes * [0, 1]], wide=8)


def test_the_slope_by_the_scale_of_noise_on_weights():
    # With W + sigma E the loss gains sigma^2 |x|^2 / 2.
    settings = {"on": "weights", "learn_sigma": True, "sigma": 0.5, "copies": 40}
    engine, state = made("dense 1 bias=false", settings, (1,), 1)
    x = np.array([[1.0], [-0.5]])
    batch = Batch(x, engine.predict(state, x))
    g = np.array([0.25 * (1 + 0.25) / 2])

    def draw(seed):
        at, rows = state.copy(), []
        for at.step in range(STEPS * seed, STEPS * (seed + 1)):
            rows.append(engine.updates(at, batch)[0].aux_grads["log_factor"])
        return np.array(rows)

    check(draw, g)


def test_a_learned_scale_becomes_smaller_where_noise_hurts():
    engine, state, batch = bench(partial(ulr, learn_sigma=True), rows=29)
    for _ in range(30):
        engine.step(state, batch)
    assert all(state.aux[i]["log_factor"][0] < 0 for i in range(4))


# ---- the layers below --------------------------------------------------------------------------------


class Recomputing(type(ulr())):
    """Runs the layers below the noisy one again, for the samples and for each copy of them."""

    def forward(self, v, m, s):
        if m.name != "x" and v.index < int(m.name[1:]):
            rows = len(m.x) // self.copies
            return m._replace(x=np.concatenate([v.forward(m.x[:rows]).y] * self.copies))
        return super().forward(v, m, s)


@pytest.mark.parametrize("on", ["activity", "weights"])
@pytest.mark.parametrize("hidden", [BRANCHES, "dense 7 relu | dropout 0.3 | dense 9 tanh"])
def test_what_is_kept_of_the_layers_below_has_the_bits_of_running_them_again(hidden, on):
    found = []
    for rule in (ulr, Recomputing):
        engine, state, batch = bench(partial(rule, copies=3, on=on), hidden, dtype="float32")
        found.append((flat(engine, state, batch), engine.step(state, batch)[1].computed))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1] < found[1][1]


def test_layers_below_are_not_run_again():
    engine, state, batch = bench(partial(ulr, copies=3), "dense 5 | act tanh | dense 4")
    _, ledger = engine.step(state, batch)
    above = (5 + 5 + 4 + 3) + (4 + 3) + 3  # from each layer that learns on up
    assert ledger.computed == 7 * ((5 + 5 + 4 + 3) + 2 * 3 * above)
    assert ledger.per_sample()["loss"] == 3 * 2 * 3  # layers, signs, copies


# ---- what it refuses, and the shared checks for other settings ------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sigma": 0}, "sigma above 0; got 0"),
        ({"sigma": float("nan")}, "sigma above 0; got nan"),
        ({"copies": 0}, "copies to be 1 or more; got 0"),
        ({"baseline": "batch"}, "baseline to be one of none, clean, copies; got 'batch'"),
        ({"on": "x"}, "on to be one of activity, weights"),
        ({"noise": "halton"}, "noise to be one of normal, sobol"),
        ({"baseline": "copies", "copies": 1}, "copies=2 or more"),
        ({"baseline": "copies", "noise": "sobol"}, "independent"),
        ({"noise": "sobol", "copies": 6}, "power of 2; got copies=6"),
        ({"noise": "sobol", "on": "weights"}, "got copies=8, on=weights"),
    ],
)
def test_wrong_settings_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        ulr(**settings)


def test_where_samples_mix_noise_on_activity_is_refused_by_name():
    with pytest.raises(SpecError, match=r"(?s)LikelihoodRatio.*batch_norm"):
        made("dense 3 | batch_norm | dense 2", {}, (2,), 2)


OTHERS = {
    "weights": {"on": "weights", "copies": 2},
    "weights, all layers": {"on": "weights", "layerwise": False, "learn_sigma": True},
    "one pass": {"copies": 1, "antithetic": False, "baseline": "none", "layerwise": False},
    "copies": {"baseline": "copies", "antithetic": False, "layerwise": False},
}


@pytest.mark.parametrize("check", locality.ALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_other_settings_pass_the_checks_of_every_rule(settings, check):
    check(partial(ulr, **settings))


# ---- without slopes --------------------------------------------------------------------------------

FLAT = {
    "step units": ("dense 5 | step | dense 2", "softmax_cross_entropy", "that of '1 step' is 0"),
    "inside": (
        "block(dense 5 | step) | dense 2",
        "mse",
        r"that of '0 block\(dense 5 \| step\)' is 0",
    ),
    "errors": ("dense 5 tanh | dense 2", "zero_one", "that of the objective zero_one is 0"),
}


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize(("net", "objective", "told"), FLAT.values(), ids=FLAT)
def test_rules_that_learn_by_derivatives_refuse_what_has_none(net, objective, told, name):
    kind = registry.rule_class(name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    batch = Batch(x, np.eye(2)[(x[:, 0] > 0) * 1])
    try:
        engine = Engine(net, registry.rule(name), (3,), 2, objective=objective)
    except SpecError as e:
        assert kind.needs_slopes  # some rules refuse such a network before, by words of their own
        assert "step" in str(e) or "zero_one" in str(e)
        return
    assert not kind.needs_slopes
    state = engine.init(0)
    losses = [float(engine.step(state, batch)[0]["loss"]) for _ in range(60)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("net", "objective", "told"), FLAT.values(), ids=FLAT)
def test_the_refusal_says_what_is_flat_and_what_to_take(net, objective, told):
    with pytest.raises(SpecError, match=f"Backprop learns by derivatives, and {told}. Take likeli"):
        Engine(net, registry.rule("backprop"), (3,), 2, objective=objective)


def test_a_step_inside_of_a_block_is_refused():
    net = "block(dense 4 | step | dense 3) | dense 2"
    with pytest.raises(SpecError, match=r"inside of 'block\(dense 4 \| step \| dense 3\)'"):
        Engine(net, ulr(), (3,), 2)
    Engine(net, ulr(on="weights"), (3,), 2)
