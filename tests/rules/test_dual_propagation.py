"""Dual propagation: its order in beta, where it is backprop, settling, pooling, learned feedback."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fflearn.base import ALONE, Batch
from fflearn.checks import BRANCHES, bench, learned, same_bits
from fflearn.engine import Engine
from fflearn.errors import SettingsWarning, SpecError
from fflearn.kernels import load
from fflearn.optim import optimizer
from fflearn.registry import rule

TANH = "dense 30 tanh | residual(dense 30 tanh)"
RELU = "dense 30 relu | dense 30 relu"
LINEAR = "dense 30 | residual(dense 30)"
IMAGES = "conv 4 relu | max_pool | conv 5 relu | avg_pool | dense 9 relu | dense 3"


def error(hidden: str, **settings) -> float:
    """How far from backprop's the worst update is, as a part of it."""
    return distance(*(updates(name, hidden, **s) for name, s in (("dp", settings), ("bp", {}))))


def updates(name: str, hidden: str, **settings) -> dict[str, np.ndarray]:
    made = {"dp": "dual_propagation", "bp": "backprop"}[name]
    engine, state, batch = bench(lambda: rule(made, **settings), hidden, 5)
    return dict(learned(engine, engine.updates(state, batch)))


def distance(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    assert found.keys() == exact.keys()
    return max(np.linalg.norm(found[p] - g) / np.linalg.norm(g) for p, g in exact.items())


# ---- the order in beta ---------------------------------------------------------------------------


@pytest.mark.parametrize("lagrangian", [True, False])
@pytest.mark.parametrize("sweeps", [0, 1, 12])
@pytest.mark.parametrize(("alpha", "order"), [(0.0, 1), (0.25, 1), (0.5, 2), (1.0, 1)])
def test_second_order_in_beta_where_both_sides_are_nudged_alike(alpha, order, sweeps, lagrangian):
    settings = {"alpha": alpha, "sweeps": sweeps, "lagrangian": lagrangian}
    large, small = (error(TANH, beta=beta, **settings) for beta in (0.02, 0.01))
    assert np.log2(large / small) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("sweeps", [0, 1, 4])
def test_exact_where_no_unit_crosses_a_bend(alpha, sweeps):
    assert error(RELU, alpha=alpha, sweeps=sweeps, beta=0.01) < 1e-12
    assert error(RELU, alpha=alpha, sweeps=sweeps, beta=1.0) > 0.05  # where units cross it
    for beta in (0.01, 1.0, 100.0):
        assert error(LINEAR, alpha=alpha, sweeps=sweeps, beta=beta) < 1e-10


def test_the_first_papers_sides_are_biased_by_the_mean():
    """Its mean is off by (2 alpha - 1) u: first order even for linear units, but at 1/2."""
    for net in (RELU, LINEAR):
        found = [
            error(net, alpha=0.0, sweeps=1, lagrangian=False, beta=beta) for beta in (1e-3, 1e-4)
        ]
        assert found[0] / found[1] == pytest.approx(10, rel=0.01) and found[1] > 1e-6
        assert error(net, alpha=0.5, sweeps=1, lagrangian=False, beta=1e-3) < 1e-10


def test_the_sides_of_the_two_papers_are_each_others_mirror():
    """DP at alpha has the differences of DP^T at 1 - alpha, but other means."""
    mirror = {"alpha": 0.2, "lagrangian": False}, {"alpha": 0.8, "lagrangian": True}
    for sweeps, same in ((0, True), (1, False)):
        one, other = (updates("dp", TANH, beta=1.0, sweeps=sweeps, **m) for m in mirror)
        assert (distance(one, other) < 1e-12) == same
        assert distance(one, updates("dp", TANH, beta=1.0, sweeps=sweeps, alpha=0.2)) > 1e-3


def test_a_step_computed_by_hand():
    # x = 1, a1 = 2; logits (2, -2), label (1, 0), e = (1, -2); beta = 2, alpha = 1/4.
    # Message: dy = 1 - (-2) = 3.  hi = relu(2 - 3/4 * 6) = 0, lo = relu(2 + 1/4 * 6) = 3.5.
    # da = 3.5 / 2 = 1.75, where backprop has 3; mean = 3/4 * 3.5 = 2.625.
    for sweeps, activity in ((0, 2.0), (1, 2.625)):
        made = rule("dp", beta=2.0, alpha=0.25, sweeps=sweeps)
        engine = Engine("dense 1 relu | dense 2", made, (1,), 2, objective="mse", dtype="float64")
        state = engine.init(0)
        state.params[0]["W"], state.params[1]["W"] = 2, [[1, -1]]
        batch = Batch(np.array([[1.0]]), np.array([[1.0, 0.0]]))
        first, second = engine.updates(state, batch)
        np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), [[1.75]])
        np.testing.assert_allclose(
            engine.kernels.formed(second.grads["W"]), [[activity, -2 * activity]]
        )
        _, ledger = engine.step(state, batch)
        assert ledger.per_sample() == {"activity": 1 + sweeps, "transpose": 1}


# ---- the nudge ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, 2])
def test_the_nudge_does_not_shrink_with_the_batch(sweeps):
    engine, state, batch = bench(lambda: rule("dp", beta=1.0, sweeps=sweeps), TANH)
    twice = Batch(*(np.concatenate([a, a]) for a in (batch.x, batch.y)))
    once = dict(learned(engine, engine.updates(state, batch)))
    assert distance(dict(learned(engine, engine.updates(state, twice))), once) < 1e-12
    assert error(TANH, beta=1.0, sweeps=sweeps) > 1e-3  # so large that a smaller one would show


def test_settled_dyads_solve_their_equations():
    """After many sweeps every layer's dyad is what its neighbours' dyads ask for."""
    seen: dict[int, dict] = {}

    def look(v, u):
        seen[v.spec.index] = {**v.state, "x": v.trace.x, "a": v.trace.a, "W": v.params["W"].copy()}
        return 0.0

    made = rule("dp", beta=1.0, alpha=0.3, sweeps=40, damping=0.5)
    engine, state, batch = bench(lambda: made, "dense 9 tanh | dense 8 sigmoid")
    engine.probes = {"look": look}
    out = engine.predict(state, batch.x)
    e = engine.objective(load("reference"), out, batch.y).error
    act = {0: np.tanh, 1: lambda a: 1 / (1 + np.exp(-a)), 2: lambda a: a}
    engine.step(state, batch)
    below = batch.x
    for layer in range(3):
        own = seen[layer]
        np.testing.assert_allclose(own["x"], below, rtol=1e-9, atol=1e-12)
        dy = e if layer == 2 else seen[layer + 1]["da"] @ seen[layer + 1]["W"].T
        hi, lo = act[layer](own["a"] - 0.7 * dy), act[layer](own["a"] + 0.3 * dy)
        np.testing.assert_allclose(own["da"], lo - hi, rtol=1e-8, atol=1e-11)
        below = 0.3 * hi + 0.7 * lo


@pytest.mark.parametrize(("damping", "settles"), [(0.0, False), (3.0, True)])
def test_damping_ends_an_oscillation(damping, settles):
    # Units 0 and 1 are relu with a0 = 1, W1 = 2; the output pushes unit 1 by u = -3.  With alpha =
    # 1 and the first paper's sides a1 goes to 2 - 4 a1 while 0 < a1 < 3: outward, as 4 > 1, until
    # it jumps between 0 and 2, and da0 between 0 and a0.  It could rest at a1 = 2 - 4 a1, which
    # is 2/5; there da0 = 2 a1 / beta.
    made = {"beta": 1.0, "alpha": 1.0, "lagrangian": False, "damping": damping}

    def da0(sweeps: int) -> float:
        net = "dense 1 relu bias=false | dense 1 relu bias=false | dense 2 bias=false"
        engine = Engine(
            net, rule("dp", sweeps=sweeps, **made), (1,), 2, objective="mse", dtype="float64"
        )
        state = engine.init(0)
        state.params[0]["W"], state.params[1]["W"], state.params[2]["W"] = 1, 2, [[1, 0]]
        batch = Batch(np.array([[1.0]]), np.array([[-1.0, 0.0]]))  # e = (2 + 1, 0)
        return float(engine.kernels.formed(engine.updates(state, batch)[0].grads["W"])[0, 0])

    late = [da0(sweeps) for sweeps in (200, 201)]
    np.testing.assert_allclose(sorted(late), [0.8, 0.8] if settles else [0, 1], rtol=1e-9)


# ---- images --------------------------------------------------------------------------------------


def images() -> Batch:
    rng = np.random.default_rng(1)
    return Batch(rng.normal(size=(7, 8, 6, 2)), np.eye(3)[np.arange(7) % 3])


def engine_of(name: str, net: str = IMAGES, **options) -> Engine:
    return Engine(net, rule(name), (8, 6, 2), 3, dtype="float64", **options)


@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_convolutions_and_pooling_give_backprop_where_nothing_is_crossed(sweeps):
    found = []
    for name in (f"dp[beta=1e-5,sweeps={sweeps}]", "backprop"):
        engine = engine_of(name)
        found.append(dict(learned(engine, engine.updates(engine.init(0), images()))))
    assert distance(*found) < 1e-8  # 1e-16 / beta, and a few


def test_the_choice_of_pooling_follows_the_mean():
    seen: dict[int, tuple] = {}

    def look(v, u):
        seen[v.spec.index] = v.trace, v.state["mean"]
        return 0.0

    engine = engine_of("dp[beta=20,sweeps=2,alpha=0,lagrangian=false]", probes={"look": look})
    state, batch = engine.init(0), images()
    first = engine.net.leaves[0].forward(engine.kernels, state.params[0].readable, batch.x, ALONE)
    engine.step(state, batch)
    (_, mean), (pool, _) = seen[0], seen[1]
    np.testing.assert_array_equal(pool.x, mean)
    layer = engine.net.leaves[1]
    fresh = layer.forward(engine.kernels, {}, mean, ALONE).inner
    np.testing.assert_array_equal(pool.inner, fresh)
    assert (layer.forward(engine.kernels, {}, first.y, ALONE).inner != fresh).any()


# ---- feedback weights of its own (Kolen-Pollack) --------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("hidden", [RELU, BRANCHES])
def test_with_the_forward_weights_on_the_way_down_it_is_the_tied_rule(hidden, sweeps):
    made = {"beta": 0.01, "sweeps": sweeps}
    engine, state, batch = bench(lambda: rule("dp", tied=False, **made), hidden, 5)
    random = dict(learned(engine, engine.updates(state, batch)))
    for aux, params in zip(state.aux, state.params, strict=True):
        for n in aux:
            aux[n] = params[n]
    found = dict(learned(engine, engine.updates(state, batch)))
    for path in [p for p in found if "aux_grads" in p]:
        np.testing.assert_array_equal(found.pop(path), found[path.replace("aux_grads", "grads")])
        random.pop(path)
    assert distance(found, updates("dp", hidden, **made)) < 1e-12
    assert distance(found, updates("bp", hidden)) < 1e-12 or hidden == BRANCHES  # it has a tanh
    assert distance(random, found) > 0.5


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.3), (0.9, 0.3), (0.9, 0.0)])
def test_feedback_comes_to_the_forward_weights_as_fast_as_decay_says(momentum, decay):
    """D = B - W gets no gradient: m = momentum m + decay D, D = D - lr m; exactly, at any data."""
    engine, state, batch = bench(lambda: rule("dp", tied=False), RELU, 5)
    lr = 0.05
    engine.optimizer = optimizer("sgd", lr=lr, momentum=momentum, weight_decay=decay)
    state = engine.init(0)
    before, part, m = state.copy(), 1.0, 0.0
    for _ in range(200):
        engine.step(state, batch)
        m = momentum * m + decay * part
        part -= lr * m
    assert part < 0.1 or not decay
    for layer in (1, 2):
        gap = state.aux[layer]["W"] - state.params[layer]["W"]
        first = before.aux[layer]["W"] - before.params[layer]["W"]
        np.testing.assert_allclose(gap, part * first, rtol=1e-9, atol=1e-12)
        assert np.linalg.norm(state.params[layer]["W"] - before.params[layer]["W"]) > 0.1


def test_with_decoupled_decay_the_rate_is_that_of_the_decay_too():
    engine, state, batch = bench(lambda: rule("dp", tied=False), RELU, 5)
    engine.optimizer = optimizer("adamw", lr=0.01, weight_decay=2.0)
    state = engine.init(0)
    first = state.aux[1]["W"] - state.params[1]["W"]
    for _ in range(50):
        engine.step(state, batch)
    gap = state.aux[1]["W"] - state.params[1]["W"]
    np.testing.assert_allclose(gap, (1 - 0.01 * 2.0) ** 50 * first, rtol=1e-9, atol=1e-12)


def test_the_channel_goes_by_the_parameter():
    for tied, channel in ((True, "transpose"), (False, "feedback")):
        engine, state, batch = bench(lambda tied=tied: rule("dp", tied=tied), RELU)
        _, ledger = engine.step(state, batch)
        assert set(ledger.per_sample()) == {"activity", channel}
        assert bool(ledger.transposes) == tied
        assert [len(slots) for slots in state.aux] == ([0, 0, 0] if tied else [0, 1, 1])


@pytest.mark.parametrize(
    ("name", "decay", "warned"),
    [("adamw", 0.1, False), ("sgd", 0.1, False), ("adam", 0.1, True), ("adamw", 0.0, True)],
)
def test_decay_that_does_not_align_is_told(name, decay, warned, recwarn):
    chosen = optimizer(name, lr=0.01, weight_decay=decay)
    Engine("dense 3", rule("dp"), (4,), 3, chosen)
    assert not recwarn
    Engine("dense 3", rule("dp", tied=False), (4,), 3, chosen)
    assert [w.category for w in recwarn] == warned * [SettingsWarning]
    bench(lambda: rule("dp", tied=False))  # its own default
    assert len(recwarn) == warned


# ---- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", ["batch_norm relu", "layer_norm", "dense 9 norm=rms", "block(dense 9 relu)"]
)
def test_layers_that_a_mean_cannot_go_through_are_refused_before_training(layer):
    net = f"conv 4 | {layer} | dense 3"
    with pytest.raises(SpecError, match=rf"not '{re.escape(layer)}'. Use sweeps=0"):
        engine_of("dp[sweeps=1]", net)
    engine = engine_of("dp", net)  # the fast form takes their exact derivatives
    engine.step(engine.init(0), images())


def test_layers_that_mix_samples_are_refused_too():
    with pytest.raises(SpecError, match="sample by sample.*not 'graph_conv 9 tanh'"):
        Engine("graph_conv 9 tanh | graph_conv 3", rule("dp[sweeps=1]"), (5,), 3)


@pytest.mark.parametrize(
    "net", ["conv 4 bias=false | batch_norm relu | dense 3", "block(dense 9 tanh) | dense 3"]
)
def test_the_fast_form_takes_any_layer(net):
    found = []
    for name in ("dp[beta=1e-4]", "backprop"):
        engine = engine_of(name, net)
        found.append(dict(learned(engine, engine.updates(engine.init(0), images()))))
    assert distance(*found) < 1e-6


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 0.0}, "needs a beta above 0; got 0.0"),
        ({"beta": float("nan")}, "needs a beta above 0"),
        ({"alpha": 1.5}, r"needs an alpha in \[0, 1\]; got 1.5"),
        ({"sweeps": -1}, "needs sweeps to be 0 or more; got -1"),
        ({"damping": -0.5}, "needs damping to be 0 or more; got -0.5"),
    ],
)
def test_wrong_settings_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("dp", **settings)


def test_no_copy_of_the_step_stays_behind():
    """Dyads last for one step: the same batch again from the same state gives the same update."""
    engine, state, batch = bench(lambda: rule("dp", sweeps=3, damping=1.0, beta=1.0), TANH)
    other = state.copy()
    engine.step(state, batch)
    engine.step(other, batch)
    assert same_bits(state, other) is None
