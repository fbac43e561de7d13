"""Equilibrium propagation: against the exact gradient at the fixed point, orders in beta, by hand."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.checks import bench, learned, samples
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.optim import optimizer
from fflearn.registry import rule, rule_class

CONVERGED = {"free_sweeps": 4000, "nudged_sweeps": 4000, "tol": 1e-15}
EXACT = {"free_sweeps": 150, "nudged_sweeps": 150, "tol": 1e-15, "beta": 1e-3}


def made(net: str, n_in=(11,), objective="softmax_cross_entropy", scale=1.0, rows=5, **settings):
    """Engine, state and batch in float64, the weights between layers times ``scale``."""
    engine = Engine(
        net, rule("ep", **settings), n_in, 3, None, objective, "reference", dtype="float64"
    )
    state = engine.init(1)
    for slots in state.params:
        if "W" in slots:
            slots["W"] *= scale
    batch = samples(rows, 3)
    x = np.resize(np.cos(np.arange(1.0, 800)), (rows, *n_in))
    return engine, state, Batch(batch.x if n_in == (11,) else x, batch.y)


def gradients(engine, state, batch) -> dict[str, np.ndarray]:
    return dict(learned(engine, engine.updates(state, batch)))


def worst(found, exact) -> float:
    """Largest relative error of a layer's weights."""
    return max(
        np.linalg.norm(found[p] - g) / np.linalg.norm(g) for p, g in exact.items() if "W" in p
    )


# ---- the exact gradient ---------------------------------------------------------------------------

TWO_HIDDEN = "dense 16 sigmoid | dense 14 sigmoid | dense 3"


def adjoint(engine, state, batch) -> dict[str, np.ndarray]:
    """Gradient of the loss at the fixed point of TWO_HIDDEN, by the implicit adjoint.

    Per sample, with u = (s1, s2) and u = f(drive + u M): the derivative by what drives u is
    D (I - M D)^{-1} dloss/du, since M is symmetric.
    """
    (W1, W2, W3), (b1, b2, b3) = ([p[n] for p in state.params] for n in "Wb")
    n = len(b1)
    M = np.block([[np.zeros((n, n)), W2], [W2.T, np.zeros((len(b2), len(b2)))]])
    total: dict[str, np.ndarray] = {}
    for x, y in zip(batch.x, batch.y, strict=True):
        drive, u = np.concatenate([x @ W1 + b1, b2]), np.zeros(n + len(b2))
        for _ in range(3000):  # all at once, from 0, half way: another route to the same point
            u = (u + 1 / (1 + np.exp(-drive - u @ M))) / 2
        p = np.exp(u[n:] @ W3 + b3)
        e = p / p.sum() - y
        D = np.diag(u * (1 - u))
        down = D @ np.linalg.solve(np.eye(len(u)) - M @ D, np.concatenate([np.zeros(n), W3 @ e]))
        one = {
            "0/grads/W": np.outer(x, down[:n]),
            "0/grads/b": down[:n],
            "1/grads/W": np.outer(u[:n], down[n:]) + np.outer(down[:n], u[n:]),
            "1/grads/b": down[n:],
            "2/grads/W": np.outer(u[n:], e),
            "2/grads/b": e,
        }
        for path, g in one.items():
            total[path] = total.get(path, 0) + g / len(batch.x)
    return total


@pytest.mark.parametrize("phases", [1, 2, 3, 4])
def test_the_error_is_of_order_beta_to_the_number_of_phases(phases):
    betas, errors = (0.2, 0.1, 0.05), []
    for beta in betas:
        tried = made(TWO_HIDDEN, scale=2, phases=phases, **CONVERGED, beta=beta)
        exact = adjoint(*tried)
        found = gradients(*tried)
        assert found.keys() == exact.keys()
        errors.append(worst(found, exact))
        assert np.linalg.norm(found["0/grads/b"] - exact["0/grads/b"]) < 2 * errors[-1]
    slope = np.polyfit(np.log(betas), np.log(errors), 1)[0]
    assert slope == pytest.approx(phases, abs=0.15)
    assert 1e-10 < errors[-1] < 0.1


def test_many_phases_converge_within_the_radius_of_analyticity_and_not_beyond():
    def error(beta: float, phases: int) -> float:
        tried = made(TWO_HIDDEN, scale=2, phases=phases, **CONVERGED, beta=beta)
        return worst(gradients(*tried), adjoint(*tried))

    within = [error(0.25, n) for n in (2, 4, 6, 8)]
    assert all(b < 0.2 * a for a, b in pairwise(within)), within
    beyond = [error(2.0, n) for n in (2, 6, 14)]
    assert min(beyond) > 0.2, beyond


# ---- other networks: the derivative of the loss at the fixed point ------------------------------------

NETS = {
    "chain": ("dense 9 tanh | dense 8 sigmoid | dense 7 tanh | dense 3", (11,)),
    "bounded": ("dense 9 relu | dense 3", (11,)),
    "branches": (
        "dense 9 tanh | residual(dense 9 tanh) | residual(dense 6 tanh | dense 9; dense 9) | dense 3",
        (11,),
    ),
    "linear": (
        "dense 9 | dense 8 tanh | dense 7 | dense 6 | act sigmoid | dense 5 | dense 3",
        (11,),
    ),
    "images": (
        "conv 4 | max_pool 2 | act sigmoid | conv 5 | max_pool 2 | act sigmoid | dense 6 tanh | dense 3",
        (8, 8, 2),
    ),
    "pools": (
        "avg_pool 2 | conv 4 tanh | avg_pool 2 | flatten | dense 5 | act sigmoid | dense 3",
        (8, 8, 2),
    ),
}


def fixed_point_loss(engine, state, batch) -> float:
    return engine.objective(engine.kernels, engine.predict(state, batch.x), batch.y).loss.mean()


def slopes_agree(engine, state, batch, rtol=1e-4) -> None:
    """Every gradient against a central difference of the loss in a random direction."""
    rng, step = np.random.default_rng(0), 1e-5
    for path, g in gradients(engine, state, batch).items():
        layer, _, name = path.split("/")
        w = state.params[int(layer)][name]
        start, u = w.copy(), rng.normal(size=w.shape)
        ends = []
        for sign in (1, -1):
            w[...] = start + sign * step * u
            ends.append(fixed_point_loss(engine, state, batch))
        w[...] = start
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs((g * u).sum() - slope) < rtol * np.linalg.norm(g) * np.linalg.norm(u), path


@pytest.mark.parametrize("readout", [True, False])
@pytest.mark.parametrize("objective", ["softmax_cross_entropy", "mse"])
@pytest.mark.parametrize(("net", "n_in"), NETS.values(), ids=NETS)
def test_the_gradient_is_that_of_the_loss_at_the_fixed_point(net, n_in, objective, readout):
    slopes_agree(*made(net, n_in, objective, **EXACT, readout=readout, activation="tanh"))


@pytest.mark.parametrize("readout", [True, False])
def test_squared_error_of_outputs_with_an_activation(readout):
    net = "dense 9 sigmoid | dense 3 sigmoid"
    slopes_agree(*made(net, objective="mse", scale=2, readout=readout, **EXACT))


def test_complex_states_through_pooling():
    net, n_in = NETS["images"]
    settings = EXACT | {"phases": 6, "beta": 0.1, "activation": "tanh"}
    slopes_agree(*made(net, n_in, **settings), rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"phases": 3}, {"tied": False}])
@pytest.mark.parametrize("net", ["dense 3 sigmoid", "avg_pool 2 | dense 3", "conv 4 | dense 3"])
def test_without_hidden_states_it_is_backprop(net, settings):
    found = made(net, (6, 6, 2), "mse", **settings)
    plain = Engine(net, rule("backprop"), (6, 6, 2), 3, None, "mse", "reference", dtype="float64")
    exact = gradients(plain, *found[1:])
    if settings.get("tied") is False:  # what is below the read-out is another matter
        exact = {p: g for p, g in exact.items() if p.startswith(f"{len(plain.specs) - 1}/")}
    for path, g in exact.items():
        np.testing.assert_allclose(gradients(*found)[path], g, rtol=1e-9, atol=1e-15)


def test_it_is_not_the_gradient_of_the_feedforward_network():
    tried = made(TWO_HIDDEN, scale=2, **EXACT)
    other = Engine(tried[0].net, rule("backprop"), (11,), 3, backend="reference", dtype="float64")
    backprop = gradients(other, *tried[1:])
    assert worst(gradients(*tried), backprop) > 0.1


def test_an_activation_as_a_layer_of_its_own_changes_nothing():
    whole = made("dense 9 tanh | dense 8 tanh | dense 3")
    split = made("dense 9 | act tanh | dense 8 | act tanh | dense 3")
    for own, slots in zip(whole[1].params, split[1].params[::2], strict=True):
        for name in slots:
            slots[name] = own[name]
    a, b = gradients(*whole).values(), gradients(*split).values()
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-16)


# ---- settling ---------------------------------------------------------------------------------------


def test_the_energy_falls_in_every_sweep():
    """sum_l of the integral of f^-1 to s_l, minus s_l (s_{l-1} W_l + b_l), for strong couplings."""
    free: list[np.ndarray] = []

    class Watched(rule_class("ep")):
        def branch(self, v, s, phases, states):
            if self.has_state(v.spec):
                free.append(v.state["s"])
            super().branch(v, s, phases, states)

    net = "dense 16 sigmoid | dense 14 sigmoid | dense 12 sigmoid | dense 3"

    def energy(sweeps: int) -> float:
        free.clear()
        engine, state, batch = made(net, scale=12)
        engine.rule, engine.tapes = Watched(free_sweeps=sweeps, tol=0.0), None  # it looks at values
        engine.step(state.copy(), batch)
        below, total = batch.x, 0.0
        for s, p in zip(free, state.params, strict=False):
            rest = np.clip(1 - s, 1e-300, 1)
            total += (s * np.log(s) + rest * np.log(rest) - s * (below @ p["W"] + p["b"])).sum()
            below = s
        return total

    found = [energy(n) for n in (1, 2, 3, 4, 6, 10, 20, 40)]
    falls = -np.diff(found)
    assert (falls > -1e-9).all() and (falls[:3] > 1e-6).all(), found


def test_settling_reports_its_end_and_stopping_early_changes_no_more_than_the_tolerance():
    settings = {"free_sweeps": 200, "nudged_sweeps": 200, "beta": 0.5}
    engine, state, batch = made(TWO_HIDDEN, scale=2, tol=0.0, **settings)
    full = gradients(engine, state, batch)
    info, _ = engine.step(state.copy(), batch)
    assert (info["free_sweeps"], info["nudged_sweeps"]) == (200, 200)
    assert info["residual"] < 1e-14
    used = []
    for tol in (1e-2, 1e-4, 1e-8):
        engine, state, batch = made(TWO_HIDDEN, scale=2, tol=tol, **settings)
        info, _ = engine.step(state.copy(), batch)
        used.append((int(info["free_sweeps"]), int(info["nudged_sweeps"])))
        assert 0 < info["residual"] < tol
        for path, g in gradients(engine, state, batch).items():
            assert np.abs(g - full[path]).max() < tol / 0.5, path
    assert used == sorted(used) and max(used[-1]) < 40 and used[0] < used[-1], used


@pytest.mark.parametrize(("free", "nudged"), [(1, 400), (400, 1)])
def test_the_residual_is_that_of_the_settling_that_got_less_far(free, nudged):
    settings = {"free_sweeps": free, "nudged_sweeps": nudged, "tol": 0.0}
    engine, state, batch = made(TWO_HIDDEN, scale=2, **settings)
    assert engine.step(state, batch)[0]["residual"] > 1e-3


def test_prediction_settles_in_full_whatever_samples_come_together():
    engine, state, batch = made(TWO_HIDDEN, scale=2, free_sweeps=100, tol=0.1)
    scores = engine.predict(state, batch.x)
    np.testing.assert_allclose(engine.predict(state, batch.x, rows=1), scores, rtol=1e-12)
    again, _, _ = made(TWO_HIDDEN, free_sweeps=200)
    np.testing.assert_allclose(again.predict(state, batch.x), scores, rtol=1e-12)


def test_nudged_states_start_at_the_free_ones():
    engine, state, batch = made(
        TWO_HIDDEN, scale=4, free_sweeps=400, nudged_sweeps=1, tol=0, beta=1e-9
    )
    assert engine.step(state, batch)[0]["residual"] < 1e-8


def test_few_nudged_sweeps_do_since_the_nudge_goes_down_first():
    settings = {"scale": 2, "free_sweeps": 400, "tol": 0.0, "beta": 1e-3}
    exact = adjoint(*made(TWO_HIDDEN, **settings))
    errors = [
        worst(gradients(*made(TWO_HIDDEN, **settings, nudged_sweeps=n)), exact) for n in range(1, 7)
    ]
    assert errors[0] < 0.2
    assert all(b < 0.25 * a for a, b in pairwise(errors)), errors


def test_a_sweep_makes_one_product_per_layer_and_direction_and_none_of_the_data():
    engine, state, batch = made("dense 9 tanh | dense 8 tanh | dense 3", free_sweeps=5, tol=0.0)
    engine.rule = rule("ep", free_sweeps=5, nudged_sweeps=4, tol=0.0)
    _, ledger = engine.step(state, batch)
    # Activity read above the data: start 1, free 5, nudged 4 x 2 phases, end 2; a read-out is made once
    # more after each settling.
    hidden, read = 1 + 5 + 8 + 2, 1 + 5 + 1 + 8 + 2 + 2
    assert ledger.per_sample()["activity"] == 9 * hidden + 8 * read
    # Down go one message of 9 per sweep and phase, and from the read-out, when nudged, one of 8.
    assert ledger.per_sample()["transpose"] == 9 * (5 + 8) + 8 * 8
    assert ledger.transposes == 5 + 4 + 4


# ---- weights of its own -------------------------------------------------------------------------------


def symmetric(state) -> None:
    for params, aux in zip(state.params, state.aux, strict=True):
        for name in aux:
            aux[name] = params[name]


def test_with_its_own_weights_at_the_transposes_both_directions_add_up_to_the_tied_gradient():
    settings = {**CONVERGED, "beta": 0.1}
    tied = gradients(*made(TWO_HIDDEN, scale=2, **settings))
    engine, state, batch = made(TWO_HIDDEN, scale=2, tied=False, **settings)
    symmetric(state)
    own = gradients(engine, state, batch)
    both = own["1/grads/W"] + own["1/aux_grads/W"]
    np.testing.assert_allclose(both, tied["1/grads/W"], rtol=1e-9, atol=1e-15)
    for path in ("0/grads/W", "0/grads/b", "1/grads/b", "2/grads/b"):
        np.testing.assert_allclose(own[path], tied[path], rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(own["2/aux_grads/W"], own["2/grads/W"])
    np.testing.assert_allclose(own["2/grads/W"], tied["2/grads/W"], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("phases", [1, 2, 3, 4])
def test_each_direction_has_an_error_of_order_beta_to_the_number_of_phases(phases):
    """The response of what a weight leads to, times the activity it starts from."""
    betas, errors = (0.2, 0.1, 0.05), []
    for beta in betas:
        engine, state, batch = made(
            TWO_HIDDEN, scale=2, tied=False, phases=phases, **CONVERGED, beta=beta
        )
        symmetric(state)
        found = gradients(engine, state, batch)
        both = {**found, "1/grads/W": found["1/grads/W"] + found["1/aux_grads/W"]}
        errors.append(
            worst({p: both[p] for p in both if "aux" not in p}, adjoint(engine, state, batch))
        )
    assert np.polyfit(np.log(betas), np.log(errors), 1)[0] == pytest.approx(phases, abs=0.15)


def test_without_symmetry_the_gradient_is_biased_except_at_the_read_out():
    engine, state, batch = made(TWO_HIDDEN, scale=2, tied=False, **EXACT)
    found = gradients(engine, state, batch)
    symmetric(state)
    exact = gradients(engine, state, batch)

    def cosine(path: str) -> float:
        a, b = found[path].ravel(), exact[path].ravel()
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine("2/grads/W") > 0.95 and cosine("0/grads/W") < 0.7


def test_homeostasis_descends_the_asymmetry_of_the_jacobian():
    """2 |A|^2 / n, A = (J - J^T) / 2, J the Jacobian of the n states without activations."""

    def made_with(strength: float):
        return made(TWO_HIDDEN, tied=False, free_sweeps=2, nudged_sweeps=2, homeostasis=strength)

    plain, engine, state, batch = gradients(*made_with(0.0)), *made_with(3.0)
    pulled = gradients(engine, state, batch)
    W, B, n1, n = np.array(state.params[1]["W"]), np.array(state.aux[1]["W"]), 16, 30

    def penalty(W, B) -> float:
        J = np.zeros((n, n))
        J[:n1, n1:], J[n1:, :n1] = W, B.T
        A = (J - J.T) / 2
        return 2 * (A**2).sum() / n

    rng = np.random.default_rng(0)
    u, step = rng.normal(size=W.shape), 1e-6
    for path, slope in (
        ("1/grads/W", penalty(W + step * u, B) - penalty(W - step * u, B)),
        ("1/aux_grads/W", penalty(W, B + step * u) - penalty(W, B - step * u)),
    ):
        change = ((pulled[path] - plain[path]) * u).sum()
        assert change == pytest.approx(3 * slope / (2 * step), rel=1e-6)
    # A weight of a convolution is in the Jacobian once for every place.
    net = "conv 4 tanh | conv 5 tanh | dense 3"
    found = [
        gradients(*made(net, (6, 6, 2), tied=False, free_sweeps=1, nudged_sweeps=1, homeostasis=h))
        for h in (0.0, 1.0)
    ]
    _, state, _ = made(net, (6, 6, 2), tied=False)
    gap = np.array(state.params[1]["W"]) - state.aux[1]["W"]
    np.testing.assert_allclose(
        found[1]["1/grads/W"] - found[0]["1/grads/W"], 2 * 36 / (36 * 9) * gap, rtol=1e-9
    )


def test_homeostasis_turns_the_weights_down_towards_those_up():
    engine, state, batch = bench(lambda: rule("ep", tied=False, homeostasis=30.0))
    engine.optimizer = optimizer("sgd", lr=0.1)

    def cosines() -> list[float]:
        pairs = [
            (p["W"].ravel(), a["W"].ravel())
            for p, a in zip(state.params, state.aux, strict=True)
            if "W" in a
        ]
        return [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]

    assert max(np.abs(cosines())) < 0.5
    for _ in range(300):
        engine.step(state, batch)
    assert min(cosines()) > 0.95


# ---- by hand, and wrong use ---------------------------------------------------------------------------


def test_a_step_computed_by_hand():
    # x = 1/4, s = x - beta (2 s - 1) = (1/4 + beta) / (1 + 2 beta): 7/24 and 3/16 at beta = +-1/10.
    engine = Engine(
        "dense 1 relu | dense 2",
        rule("ep", beta=0.1, free_sweeps=1, nudged_sweeps=100, tol=0.0),
        (1,),
        2,
        objective="mse",
        dtype="float64",
    )
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"] = 1, [[1, -1]]
    batch = Batch(np.array([[0.25]]), np.array([[1.0, 0.0]]))
    first, second = engine.updates(state, batch)
    k = engine.kernels
    np.testing.assert_allclose(k.formed(first.grads["W"]), [[-(7 / 24 - 3 / 16) / 0.2 / 4]])
    np.testing.assert_allclose(first.grads["b"], [-(7 / 24 - 3 / 16) / 0.2])
    # The read-out's error is (s - 1, -s), the gradient the mean over +-beta of s times it.
    by_hand = [
        (7 / 24 * (7 / 24 - 1) + 3 / 16 * (3 / 16 - 1)) / 2,
        -((7 / 24) ** 2 + (3 / 16) ** 2) / 2,
    ]
    np.testing.assert_allclose(k.formed(second.grads["W"]), [by_hand])
    info, _ = engine.step(state, batch)
    assert info["loss"] == pytest.approx((0.75**2 + 0.25**2) / 2)


def test_the_network_as_trained():
    def trained(net: str, **settings) -> str:
        return Engine(net, rule("ep", **settings), (6, 6, 2), 3).net.spec()

    assert trained("dense 9 relu | dense 8 gelu | dense 7 tanh | dense 3") == (
        "dense 9 hardsigmoid | dense 8 hardsigmoid draw=uniform | dense 7 tanh draw=uniform | dense 3"
    )
    branches = "residual(conv 4 relu draw=xavier | conv 4; conv 4) | dense 3"
    assert trained(f"conv 4 | max_pool | act relu | {branches}", activation="sigmoid") == (
        "conv 4 | max_pool | act sigmoid | "
        "residual(conv 4 sigmoid draw=xavier | conv 4 draw=uniform; conv 4 draw=uniform) | dense 3"
    )


@pytest.mark.parametrize(
    ("net", "settings", "told"),
    [
        ("dense 9 relu norm=rms | dense 3", {}, "not 'dense 9 relu norm=rms'"),
        ("dense 9 relu | layer_norm | dense 3", {}, "not 'layer_norm'"),
        ("dense 9 relu | batch_norm | dense 3", {}, "not 'batch_norm'"),
        ("dense 9 relu | dropout | dense 3", {}, "not 'dropout'"),
        ("lstm 9 | dense 3", {}, "not 'lstm 9'"),
        ("block(dense 9 relu) | dense 3", {}, "not 'block"),
        ("conv 4 relu | max_pool | dense 3", {}, "to follow 'max_pool'. Pool first"),
        ("conv 4 | max_pool | residual(act relu; conv 4) | dense 3", {}, "Pool first"),
        ("conv 4 | max_pool | act relu | dense 3", {"activation": "tanh"}, "which becomes tanh"),
        ("dense 9 hardsigmoid | dense 3", {"phases": 3, "activation": "tanh"}, "needs holomorphic"),
        ("dense 9 relu | dense 3", {"phases": 3}, "Type activation=sigmoid, or phases=2"),
    ],
)
def test_what_cannot_settle_is_refused_before_training(net, settings, told):
    with pytest.raises(SpecError, match=told.replace("|", r"\|")):
        Engine(net, rule("ep", **settings), (6, 6, 2), 3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 0.0}, "a beta above 0; got 0.0"),
        ({"phases": 0}, "phases to be 1 or more; got 0"),
        ({"free_sweeps": 0}, "free_sweeps to be 1 or more"),
        ({"nudged_sweeps": 0}, "nudged_sweeps to be 1 or more"),
        ({"activation": "relu"}, "one of hardsigmoid, sigmoid, tanh; got 'relu'"),
        ({"homeostasis": 1.0}, "Add tied=false"),
    ],
)
def test_wrong_settings_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("ep", **settings)


def test_phases_agree_across_precisions_and_backends():
    found = [
        dict(learned(engine, engine.updates(state, batch)))
        for engine, state, batch in (
            bench(partial(rule, "ep", phases=5, activation="tanh"), dtype=dtype, backend=backend)
            for dtype, backend in (("float64", "reference"), ("float32", "numba"))
        )
    ]
    for path, g in found[0].items():
        assert found[1][path].dtype == np.float32
        np.testing.assert_allclose(found[1][path], g, atol=1e-3 * np.abs(g).max())
