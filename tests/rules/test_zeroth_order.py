"""Zeroth order: orders in mu, means and variances, masks, reuse, numbers from elsewhere."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from unbiased import check_unbiased, estimates, exact, flat

from fflearn.base import Batch
from fflearn.checks import BRANCHES, bench, same_bits
from fflearn.engine import Engine
from fflearn.errors import DataError, SpecError
from fflearn.optim import SGD
from fflearn.random import Key
from fflearn.registry import rule
from fflearn.rules.zeroth_order import ZerothOrder, pruning_ratios

SMALL = "dense 3 tanh | dense 2"  # 2 inputs: 17 numbers
CONV = "conv 2 tanh | batch_norm | max_pool | dense 3"


def engine_of(
    name: str, net=SMALL, in_shape=(2,), n_classes=2, optimizer=None, **options
) -> Engine:
    return Engine(net, rule(name), in_shape, n_classes, optimizer, dtype="float64", **options)


def points(rows=6, shape=(2,), n_classes=2, seed=1) -> Batch:
    key = Key(seed).fold("points")
    labels = key.fold("y").integers(n_classes, (rows,))
    return Batch(key.fold("x").normal((rows, *shape), np.float64), np.eye(n_classes)[labels])


def settings(name: str, n=1, **more) -> str:
    text = ",".join(f"{k}={v}" for k, v in {"noise": name, "directions": n, **more}.items())
    return f"zeroth_order[{text}]"


# ---- the order in mu -----------------------------------------------------------------------------

NETS = {
    "chain": ("dense 5 tanh | dense 4 sigmoid | dense 3", (4,)),
    "branches": ("dense 4 tanh | residual(dense 4 sigmoid) | dense 3", (4,)),
    "batch norm": ("conv 2 tanh | batch_norm | flatten | dense 3", (3, 3, 1)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
def test_coordinates_give_the_gradient_to_first_or_second_order(central, order, net):
    """The slope fitted to log error against log mu; batch norm's statistics are the batch's."""
    net, shape = NETS[net]
    mus, errors = np.array([1e-1, 3e-2, 1e-2, 3e-3]), []
    for mu in mus:
        name = settings("coordinate", central=str(central).lower(), mu=mu)
        engine = engine_of(name, net, shape, 3)
        state, batch = engine.init(0), points(7, shape, 3)
        g = exact(engine, state, batch)
        errors.append(np.linalg.norm(flat(engine, state, batch) - g) / np.linalg.norm(g))
    fitted = np.polyfit(np.log(mus), np.log(errors), 1)[0]
    assert fitted == pytest.approx(order, abs=0.1) and errors[-1] < 0.01


def test_the_forward_error_of_a_coordinate_is_half_its_curvature():
    """(mu / 2) H_ii, with H from backprop's gradients."""
    mu, h = 1e-3, 1e-5
    engine = engine_of(settings("coordinate", mu=mu))
    state, batch = engine.init(0), points()
    off = flat(engine, state, batch) - exact(engine, state, batch)
    curvature, i = [], 0
    for slots in state.params:
        for name in sorted(slots):
            for j in range(slots[name].size):
                there = state.copy()
                at = next(k for k, s in enumerate(state.params) if s is slots)
                two = []
                for side in (h, -h):
                    w = slots[name].copy()
                    w.flat[j] += side
                    there.params[at][name] = w
                    two.append(exact(engine, there, batch)[i])
                curvature.append((two[0] - two[1]) / (2 * h))
                i += 1
    np.testing.assert_allclose(off, mu / 2 * np.array(curvature), rtol=0.01, atol=2e-6)


# ---- means and variances -------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "central"), [("gaussian", "false"), ("rademacher", "true")])
def test_random_directions_are_unbiased(noise, central):
    """Of a quadratic loss, where smoothing changes nothing, at any mu."""
    name = settings(noise, 16, central=central, mu=0.05)
    engine = engine_of(name, "dense 2", (8,), objective="mse")
    state, batch = engine.init(0), points(shape=(8,))
    check_unbiased(estimates(engine, state, batch, 500), exact(engine, state, batch))


def test_what_random_directions_estimate_is_the_gradient_of_the_smoothed_loss():
    """One weight, y = tanh(w x), and a mu as large as the weight: by quadrature, and not raw."""
    mu, w, x, t = 0.8, 0.5, 1.5, -0.7
    engine = Engine(
        "dense 1 tanh bias=false",
        rule("zeroth_order", noise="gaussian", directions=400, mu=mu),
        (1,),
        1,
        objective="mse",
        task="regression",
        dtype="float64",
    )
    state, batch = engine.init(0), Batch(np.array([[x]]), np.array([[t]]))
    state.params[0]["W"] = [[w]]
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    y = np.tanh((w + mu * nodes) * x)
    smoothed = (weights / weights.sum() * (y - t) * (1 - y * y) * x).sum()
    raw = (np.tanh(w * x) - t) * (1 - np.tanh(w * x) ** 2) * x
    found = np.concatenate([estimates(engine, state, batch, 20)(seed) for seed in range(3)]).ravel()
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - smoothed) < 4 * error < abs(smoothed - raw) / 5


@pytest.mark.parametrize(
    ("noise", "k", "law"),
    [
        ("gaussian", 4, lambda d: (d + 1) / 4),
        ("rademacher", 1, lambda d: d - 1),
        ("rademacher", 4, lambda d: (d - 1) / 4),
    ],
    ids=["gaussian 4", "rademacher 1", "rademacher 4"],
)
def test_the_variance_is_that_of_the_law(noise, k, law):
    """tr Cov / |g|^2 within 5 %."""
    engine = engine_of(settings(noise, k, mu=1e-5))
    state, batch = engine.init(0), points()
    g = exact(engine, state, batch)
    found = estimates(engine, state, batch, {1: 4000, 4: 2000}[k])(0)
    spread = ((found - g) ** 2).sum(1).mean() / (g @ g)
    assert spread == pytest.approx(law(len(g)), rel=0.05)


def test_all_coordinates_and_as_many_masks_as_parts_cover_the_gradient():
    """density=0.5: half of each layer's numbers, and on them the values of all coordinates."""
    full, half = (engine_of(settings("coordinate", mu=1e-4, density=d)) for d in (1.0, 0.5))
    state, batch = full.init(0), points()
    whole, seen = full.updates(state, batch), [0, 0]
    for layer, (u, v) in enumerate(zip(half.updates(state, batch), whole, strict=True)):
        for name, g in u.grads.items():
            there = g != 0
            seen[layer] += there.sum()
            np.testing.assert_array_equal(g[there], v.grads[name][there])
    assert seen == [round(9 / 2), 4]


# ---- signs ---------------------------------------------------------------------------------------


def test_the_two_signs():
    found = {}
    for sign in ("none", "estimate", "slope"):
        engine = engine_of(settings("gaussian", 1, sign=sign))
        state, batch = engine.init(0), points()
        found[sign] = flat(engine, state, batch)
    (slope,) = engine.measure(state, batch)
    np.testing.assert_array_equal(found["estimate"], np.sign(found["none"]))
    np.testing.assert_allclose(found["slope"], found["none"] / abs(slope), rtol=1e-12)


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["gaussian", "coordinate"])
def test_masks_have_their_sizes_and_change_on_schedule(noise):
    net, sizes = "dense 20 tanh | dense 10", (220, 210)
    engine = engine_of(settings(noise, 3, density=0.1, shuffle=4), net, (10,), 10)
    state, batch, masks = engine.init(0), points(3, (10,), 10), []
    for step in range(12):
        state.step = step
        masks.append([layer_mask(u, engine, i) for i, u in enumerate(engine.updates(state, batch))])
    for first, second in masks:
        assert (first.sum(), second.sum()) == (22, 21)
        assert (len(first), len(second)) == sizes
    same = [all((a == b).all() for a, b in zip(*two, strict=True)) for two in pairwise(masks)]
    assert same == [(step + 1) % 4 != 0 for step in range(11)]


def layer_mask(u, engine, layer) -> np.ndarray:
    """Which of a layer's numbers got a gradient, in the order of the parameters."""
    shapes = {n: a.shape for n, a in engine.init(0).params[layer].items()}
    return np.concatenate([np.ravel(u.grads.get(n, np.zeros(s)) != 0) for n, s in shapes.items()])


@pytest.mark.parametrize("noise", ["coordinate", "gaussian", "rademacher"])
def test_a_tensor_of_which_no_number_is_moved_keeps_its_bits(noise):
    """One number of each layer is moved: neither decay nor momentum reaches the other tensor."""
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.1)
    engine = engine_of(settings(noise, density=0.05), optimizer=optimizer)
    state, seen = engine.init(0), set()
    for seed in range(12):
        before = state.copy()
        engine.step(state, points(seed=seed))
        for layer, (old, new) in enumerate(zip(before.params, state.params, strict=True)):
            (name,) = (n for n in old if (old[n] != new[n]).any())
            seen.add((layer, name))
    assert seen == {(0, "W"), (0, "b"), (1, "W"), (1, "b")}


def test_each_layer_may_have_a_ratio_of_its_own():
    engine = Engine(
        "dense 20 | act tanh | dense 10",
        rule("zeroth_order", noise="coordinate", ratios=(0.0, 0.0, 0.2)),
        (10,),
        10,
        dtype="float64",
    )
    first, _, last = engine.updates(engine.init(0), points(3, (10,), 10))
    assert not first.grads and layer_mask(last, engine, 2).sum() == 42


def test_ratios_are_those_of_scores_by_the_exact_hessian():
    """A linear network with squared error: coordinates are exact, so H g is."""
    net, shape = "dense 5 | dense 3", (4,)
    zo = engine_of(settings("coordinate", central="true"), net, shape, 3, objective="mse")
    bp = engine_of("backprop", net, shape, 3, objective="mse")
    state, batch = zo.init(3), points(8, shape, 3)
    for slots in state.params:
        slots["b"] = np.linspace(-0.5, 0.7, slots["b"].size)  # where w = 0, so is the score
    found = pruning_ratios(zo, state, batch, 0.2, mu=1e-4)
    assert found == pruning_ratios(bp, state, batch, 0.2, mu=1e-6)
    scores = []
    g = bp.updates(state, batch)
    for side in (1e-6, -1e-6):
        there = state.copy()
        for slots, u in zip(there.params, g, strict=True):
            for n, a in u.grads.items():
                slots[n] += side * bp.kernels.formed(a)
        scores.append(exact(zo, there, batch))
    order = [n for slots in state.params for n in sorted(slots)]
    w = np.concatenate([np.ravel(s[n]) for s in state.params for n in sorted(s)])
    score = np.abs(w * (scores[0] - scores[1]) / 2e-6)
    assert order == ["W", "b", "W", "b"]

    def shares(chosen):
        first = (chosen < 25).sum()  # of 4 x 5 + 5; the second layer has 5 x 3 + 3
        return first / 25, (len(chosen) - first) / 18

    ranked = np.argsort(-score)
    assert found == pytest.approx(shares(ranked[:9])) and state.step == 0
    for n in range(1, 44):
        few = pruning_ratios(bp, state, batch, n / 43, mu=1e-6)
        assert few == pytest.approx(shares(ranked[:n])), n


# ---- reuse, and weights that stay ----------------------------------------------------------------


class Recomputing(ZerothOrder):
    """Runs every layer again in every pass."""

    def forward(self, v, m, s):
        if m.name != "x" and m.name[0] in "+-" and int(m.name[1:]) >= v.state["own"][1]:
            return m._replace(x=v.forward(m.x).y)
        return super().forward(v, m, s)


@pytest.mark.parametrize(
    "hidden", ["dense 9 tanh | dense 7 relu", BRANCHES, "dense 9 | dropout 0.3"]
)
def test_reuse_gives_the_bits_of_running_everything_again(hidden):
    how = {"noise": "coordinate", "density": 0.2, "mu": 1e-2}
    (ours, state, batch), (plain, *_) = (
        bench(lambda kind=kind: kind(**how), hidden) for kind in (ZerothOrder, Recomputing)
    )
    assert (ours.measure(state, batch) == plain.measure(state, batch)).all()
    assert (flat(ours, state, batch) == flat(plain, state, batch)).all()
    passes = [engine.step(state.copy(), batch)[1].forward_passes for engine in (ours, plain)]
    outputs = np.array([np.prod(spec.out_shape) for spec in ours.specs])
    run = [outputs[i:].sum() for i in range(len(outputs))]  # from the moved layer up
    moved = [round(0.2 * sum(a.size for a in slots.values())) for slots in state.params]
    assert passes[0] == pytest.approx(1 + np.dot(moved, run) / outputs.sum())
    assert passes[1] == 1 + sum(moved)


@pytest.mark.parametrize("noise", ["gaussian", "coordinate"])
def test_measuring_changes_no_bit_of_the_state(noise):
    engine = engine_of(settings(noise, 5, density=0.5), CONV, (4, 4, 1), 3)
    state, batch = engine.init(0), points(6, (4, 4, 1), 3)
    before = state.copy()
    for _ in range(3):
        engine.measure(state, batch)
    assert same_bits(before, state) is None and state.step == before.step


def test_running_statistics_follow_the_unmoved_weights():
    found = []
    for name in (settings("gaussian", 3, mu=0.5), "backprop"):
        engine = engine_of(name, CONV, (4, 4, 1), 3)
        state = engine.init(0)
        engine.step(state, points(6, (4, 4, 1), 3))
        found.append([state.params[1][n] for n in ("mean", "var")])
    np.testing.assert_array_equal(*found)


def test_random_directions_keep_one_layers_activity_at_a_time():
    def peak(depth: int) -> int:
        engine = engine_of(settings("rademacher", 2), "dense 50 tanh | " * depth + "dense 2")
        return engine.step(engine.init(0), points(200))[1].peak_bytes

    assert peak(3) == peak(9)


# ---- numbers from elsewhere ----------------------------------------------------------------------

KINDS = [
    "zeroth_order",
    settings("coordinate", density=0.3, central="true"),
    settings("gaussian", 4, sign="estimate"),
]


@pytest.mark.parametrize("name", KINDS)
def test_a_client_that_sends_numbers_is_the_central_run_to_the_bit(name):
    """The server never sees data, the client never sends arrays as large as the network."""
    central, client, server = (
        Engine(f"{NETS['chain'][0]}", rule(name), (4,), 3, horizon=(3, 2)) for _ in range(3)
    )
    one, at_client, at_server = (e.init(7) for e in (central, client, server))
    for step in range(5):
        batch = points(7, (4,), 3, seed=step)
        central.step(one, batch)
        numbers = client.measure(at_client, batch)
        assert numbers.dtype == np.float64 and numbers.ndim == 1
        for engine, state in ((server, at_server), (client, at_client)):
            engine.learn(state, numbers)
    assert same_bits(one, at_server) is None and same_bits(one, at_client) is None
    assert one.step == at_server.step == 5


def test_numbers_of_clients_average_to_those_of_all_their_data():
    engine = engine_of("zeroth_order", optimizer=SGD(0.1))
    state, batch, parts = engine.init(0), points(12), (2, 7, 3)
    cuts = np.split(np.arange(12), np.cumsum(parts)[:-1])
    sent = [engine.measure(state, Batch(batch.x[i], batch.y[i])) for i in cuts]
    averaged = np.average(sent, axis=0, weights=parts)
    np.testing.assert_allclose(averaged, engine.measure(state, batch), rtol=1e-9)
    late = state.copy()  # a client that missed the round
    for mine in (state, late):
        engine.learn(mine, averaged)
    assert same_bits(state, late) is None


def test_what_is_sent_does_not_grow_with_the_network():
    sizes = {
        len(
            Engine(f"dense {n} | dense 2", rule("zeroth_order"), (2,), 2).measure(
                Engine(f"dense {n} | dense 2", rule("zeroth_order"), (2,), 2).init(0), points()
            )
        )
        for n in (4, 400)
    }
    assert sizes == {rule("zeroth_order").directions}


def test_what_cannot_be_learned_from_numbers_is_told():
    for name in ("backprop", "forward_forward", "frozen", "forward_gradient[perturb=weights]"):
        engine = engine_of(name, "dense 6 relu | dense 4 relu | dense 2")
        for use in (
            lambda e=engine: e.measure(e.init(0), points()),
            lambda e=engine: e.learn(e.init(0), [1.0]),
        ):
            with pytest.raises(SpecError, match="learns from the data .*zeroth_order"):
                use()
    engine = engine_of("zeroth_order")
    state, numbers = engine.init(0), np.ones(engine.rule.directions)
    for wrong in (np.ones((2, 2)), 3.0, numbers * np.nan, numbers + np.inf):
        with pytest.raises(DataError, match="finite numbers"):
            engine.learn(state, wrong)
    with pytest.raises(SpecError, match="12 directions here; got 3 numbers"):
        engine.learn(state, [1, 2, 3])
    assert state.step == 0


# ---- by hand, and wrong use ----------------------------------------------------------------------


def test_a_step_computed_by_hand():
    # x = 2, W = (1, 3), b = 0, label (1, 0), squared error: y = (2, 6), L = (1 + 36) / 2 = 18.5.
    # mu = 0.5: W1 + mu gives y1 = 3, L = 20, slope 3;  W2 + mu gives y2 = 7, L = 25, slope 13;
    # b1 + mu: y1 = 2.5, L = 19.125, slope 1.25;  b2 + mu: y2 = 6.5, L = 21.625, slope 6.25.
    engine = Engine(
        "dense 2",
        rule("zeroth_order", noise="coordinate", mu=0.5),
        (1,),
        2,
        objective="mse",
        dtype="float64",
    )
    state = engine.init(0)
    state.params[0]["W"] = [[1, 3]]
    batch = Batch(np.array([[2.0]] * 3), np.array([[1.0, 0.0]] * 3))
    np.testing.assert_allclose(engine.measure(state, batch), [3, 13, 1.25, 6.25], rtol=1e-13)
    (u,) = engine.updates(state, batch)
    np.testing.assert_allclose(u.grads["W"], [[3, 13]], rtol=1e-13)
    np.testing.assert_allclose(u.grads["b"], [1.25, 6.25], rtol=1e-13)


def test_differences_are_taken_per_sample():
    """A loss of 1e4 beside one of 1, in float32: the difference of means would lose the small one."""
    losses = {"x": np.array([1e4, 1.0], np.float32), "+0": np.array([1e4, 1.0001], np.float32)}
    one = rule("zeroth_order", directions=1, mu=1e-4)
    bus = SimpleNamespace(
        forward=lambda x, name="x": name,
        readout=lambda name: SimpleNamespace(loss=losses[name]),
        mean=lambda a: a.mean(dtype=np.float64).astype(a.dtype),
    )
    _, (slope,) = one.measure(bus, Batch(None, None))
    assert slope == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"noise": "normal"}, "gaussian, rademacher, coordinate; got 'normal'"),
        ({"sign": "both"}, "none, estimate, slope; got 'both'"),
        ({"directions": 0}, "directions to be 1 or more; got 0"),
        ({"shuffle": 0}, "shuffle to be 1 or more; got 0"),
        ({"mu": 0.0}, "mu above 0"),
        ({"mu": float("nan")}, "mu above 0"),
        ({"density": 0.0}, "density above 0, at most 1"),
        ({"density": 1.5}, "density above 0, at most 1"),
        ({"ratios": (0.5, 2.0)}, "density above 0, at most 1; got 2.0"),
    ],
)
def test_wrong_settings_are_told(wrong, told):
    with pytest.raises(SpecError, match=told):
        rule("zeroth_order", **wrong)


def test_ratios_need_one_for_each_layer():
    with pytest.raises(SpecError, match="each of the 2 layers; got 1"):
        Engine(SMALL, rule("zeroth_order", ratios=(0.5,)), (2,), 2).init(0)
    engine = engine_of("backprop")
    for density in (0.0, 1.5):
        with pytest.raises(SpecError, match="pruning_ratios needs a density"):
            pruning_ratios(engine, engine.init(0), points(), density)
