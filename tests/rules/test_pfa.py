"""Product feedback alignment: what becomes of the gap between R and W's image under B."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fflearn import kernels, layers, locality
from fflearn.base import Batch, Env, LayerView
from fflearn.checks import BRANCHES, CHAIN, bench, learned, same_bits, samples
from fflearn.engine import Engine
from fflearn.errors import SettingsWarning, SpecError
from fflearn.optim import SGD, Adam, AdamW
from fflearn.random import Key
from fflearn.registry import rule

DENSE = "dense 20 relu | dense 16 tanh | residual(dense 16 relu norm=rms) | dense 12 relu | dense 3"
CONV = (
    "conv 4 relu | conv 6 tanh groups=2 stride=2 | residual(conv 6 relu norm=rms) | "
    "conv 8 relu kernel=2 padding=0 groups=2 | flatten | dense 3"
)
SETTINGS = [
    {},
    {"expansion": 1},
    {"expansion": 3, "orthogonal": True},
    {"expansion": 1, "orthogonal": True},
]


def images(rows: int, seed: int = 0) -> Batch:
    key = Key(seed).fold("images")
    x = key.fold("x").normal((rows, 6, 7, 2), np.float64)
    return Batch(x, np.eye(3)[key.fold("y").integers(3, (rows,))])


NETS = {"dense": (DENSE, (11,), lambda seed: samples(8, 3, seed)), "conv": (CONV, (6, 7, 2), None)}
NETS["conv"] = (CONV, (6, 7, 2), lambda seed: images(4, seed))


def engine_of(kind: str, name: str = "pfa", optimizer=None, horizon=(1, 1), **settings):
    net, in_shape, _ = NETS[kind]
    return Engine(
        net,
        rule(name, **settings),
        in_shape,
        3,
        optimizer,
        backend="reference",
        dtype="float64",
        horizon=horizon,
    )


def pairs(state):
    """(layer, W, R, B) of every layer with a feedback path, columns of W last."""
    for i, (params, aux) in enumerate(zip(state.params, state.aux, strict=True)):
        if "R.W" in aux:
            yield i, params["W"], aux["R.W"], aux["B.W"]


def gaps(state):
    """R - W B of every layer with a feedback path."""
    return [r - w @ b for _, w, r, b in pairs(state)]


def shrinkage(engine, steps: int) -> list[float]:
    """c after each step: what coupled decay with momentum makes of an array without gradient."""
    c, v, found = 1.0, 0.0, []
    for step in range(steps):
        _, lr, decay = engine.settings_at(step)
        v = engine.optimizer.momentum * v + decay * c
        c -= lr * v
        found.append(c)
    return found


def angles(engine, state, batch) -> list[float]:
    """Degrees between path and weights in every layer that has a path."""
    engine.probes = {"angle": engine.rule.path_angle}
    info, _ = engine.step(state.copy(), batch)
    found = [info[f"angle/{i}"] for i, *_ in pairs(state)]
    assert all(
        np.isnan(a) == (name not in {f"angle/{i}" for i, *_ in pairs(state)})
        for name, a in info.items()
        if name.startswith("angle")
    )
    return found


# ---- the theorem ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", NETS)
def test_the_gap_shrinks_by_the_predicted_number_and_never_turns(kind, settings):
    """300 steps on changing batches; the learning rate and the decay change on the way."""
    optimizer = SGD(0.05, (0.02, 0.0, 0.01), "step:1:0.5", momentum=0.9)
    engine = engine_of(kind, optimizer=optimizer, horizon=(100, 3), **settings)
    state = engine.init(0)
    first, fixed = gaps(state), [b.copy() for *_, b in pairs(state)]
    weights = [w.copy() for _, w, *_ in pairs(state)]
    predicted = shrinkage(engine, 300)
    for c in predicted:
        engine.step(state, NETS[kind][2](state.step))
        for d, d0 in zip(gaps(state), first, strict=True):
            assert np.abs(d - c * d0).max() < 1e-12
    assert 0.1 < predicted[-1] < predicted[99] < 0.5  # far from both ends
    assert all((b == b0).all() for (*_, b), b0 in zip(pairs(state), fixed, strict=True))
    for (_, w, *_), w0 in zip(pairs(state), weights, strict=True):
        assert np.linalg.norm(w - predicted[-1] * w0) > 0.05 * np.linalg.norm(w0)  # W did learn


def test_where_an_entry_of_r_exists_its_gap_shrinks_so_and_elsewhere_it_stays_zero():
    optimizer = SGD(0.05, 0.05, momentum=0.9)
    engine = engine_of("dense", optimizer=optimizer, density=0.3)
    state = engine.init(0)
    first, there = gaps(state), [r != 0 for *_, r, _ in pairs(state)]
    for _ in range(100):
        engine.step(state, samples(8, 3, state.step))
    c = shrinkage(engine, 100)[-1]
    for (_, _, r, b), d, d0, m in zip(pairs(state), gaps(state), first, there, strict=True):
        assert np.abs(d - c * d0)[m].max() < 1e-12 and not r[~m].any() and r[m].all()
        assert abs(m.mean() - 0.3) < 0.1 and abs((b != 0).mean() - 0.3) < 0.1


@pytest.mark.parametrize("order", [Adam, AdamW])
def test_with_adam_the_gap_does_not_shrink_so(order):
    """The control: what the warning is about."""
    with pytest.warns(SettingsWarning):
        engine = engine_of("dense", optimizer=order(0.01, 0.5))
    state = engine.init(0)
    first = gaps(state)
    for _ in range(50):
        engine.step(state, samples(8, 3, state.step))
    for d, d0 in zip(gaps(state), first, strict=True):
        c = (d * d0).sum() / (d0 * d0).sum()
        assert np.abs(d - c * d0).max() > 1e-3


# ---- alignment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "decay", "low", "high"),
    [
        ({}, 0.02, 15.0, 20.0),  # arctan(1 / sqrt(10)) = 17.5 degrees
        ({"expansion": 1, "orthogonal": True}, 0.02, 0.0, 2.5),
        ({"expansion": 2, "matrix": "signs"}, 0.02, 0.0, 2.5),
        ({"expansion": 2, "matrix": "hadamard"}, 0.02, 0.0, 21.0),  # 96 of 128 columns: 19.4
        ({}, 0.0, 30.0, 180.0),
    ],
    ids=["random", "orthogonal", "signs", "hadamard", "without decay"],
)
@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")  # the one without decay
def test_the_angle_that_the_path_comes_to(settings, decay, low, high):
    net = "dense 64 relu | dense 64 relu | dense 96 relu | dense 10"
    optimizer = SGD(0.05, decay, momentum=0.9)
    engine = Engine(net, rule("pfa", **settings), (11,), 10, optimizer, horizon=(600, 1))
    state = engine.init(0)
    batch = samples(64, 10)
    for _ in range(600):
        engine.step(state, batch)
    assert (shrinkage(engine, 600)[-1] < 0.01) == (decay > 0)
    wide = angles(engine, state, batch)[:2]  # the output layer is narrow
    assert all(low < a < high for a in wide), wide


@pytest.mark.parametrize(
    ("expansion", "orthogonal"), [(1, False), (4, False), (10, False), (100, False), (3, True)]
)
def test_angle_and_norm_ratio_where_the_gap_is_gone(expansion, orthogonal):
    """arctan(1 / sqrt(r)) and sqrt(1 + 1 / r): the spread of the eigenvalues of B B^T."""
    settings = {"expansion": expansion, "orthogonal": orthogonal}
    engine = Engine("dense 256 | dense 100 | dense 3", rule("pfa", **settings), (5,), 3)
    state = engine.init(0)
    state.aux[1]["R.W"] = state.params[1]["W"] @ state.aux[1]["B.W"]
    engine.probes = {"angle": engine.rule.path_angle, "ratio": engine.rule.path_norm_ratio}
    y = np.eye(3, dtype=np.float32)[[0, 1]]
    info, _ = engine.step(state, Batch(np.ones((2, 5), np.float32), y))
    spread = 0.0 if orthogonal else 1 / expansion
    assert info["angle/1"] == pytest.approx(np.degrees(np.arctan(np.sqrt(spread))), abs=1)
    assert info["ratio/1"] == pytest.approx(np.sqrt(1 + spread), rel=0.03)


def test_the_probes_change_no_bit():
    engine, state, batch = bench(lambda: rule("pfa"))
    plain = state.copy()
    for seen in (plain, state):
        for _ in range(3):
            engine.step(seen, batch)
        engine.probes = {"angle": engine.rule.path_angle, "ratio": engine.rule.path_norm_ratio}
    assert same_bits(plain, state) is None


# ---- where it is backprop -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETS)
def test_with_b_the_identity_and_r_like_w_it_stays_backprop(kind):
    optimizer = SGD(0.05, 0.01, momentum=0.9)
    pfa = engine_of(kind, optimizer=optimizer, expansion=1)
    bp = engine_of(kind, "backprop", optimizer=optimizer)
    state, exact = pfa.init(0), bp.init(0)
    for i, w, *_ in pairs(state):
        state.aux[i]["B.W"], state.aux[i]["R.W"] = np.eye(w.shape[-1]), w
    for _ in range(100):
        batch = NETS[kind][2](state.step)
        pfa.step(state, batch)
        bp.step(exact, batch)
    for mine, theirs in zip(state.params, exact.params, strict=True):
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=1e-11)
    assert all(np.abs(r - w).max() < 1e-12 for _, w, r, _ in pairs(state))


@pytest.mark.parametrize("rows", [1, 9, 60])
@pytest.mark.parametrize("settings", SETTINGS[2:], ids=str)
@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES, "dense 17 | block(dense 9 tanh | dense 5)"])
def test_with_the_image_of_the_weights_it_is_backprop(hidden, settings, rows):
    pfa, state, batch = bench(lambda: rule("pfa", **settings), hidden, rows=rows)
    bp, _, _ = bench(lambda: rule("backprop"), hidden, rows=rows)
    random = dict(learned(pfa, pfa.updates(state, batch)))
    align(state)
    exact = dict(learned(bp, bp.updates(state, batch)))
    for path, g in learned(pfa, pfa.updates(state, batch)):
        if "/grads/" in path:
            np.testing.assert_allclose(g, exact[path], rtol=1e-11, atol=1e-14, err_msg=path)
    first = [path for path in exact if path.startswith("0/")]
    assert not any(np.allclose(random[path], exact[path], rtol=1e-2) for path in first)


def align(state) -> None:
    """R := W B in every layer."""
    for params, aux in zip(state.params, state.aux, strict=True):
        for name in aux:
            if name.startswith("R."):
                aux[name] = params[name[2:]] @ aux[f"B.{name[2:]}"]


# ---- every kind of layer --------------------------------------------------------------------------

EXAMPLES = [
    pytest.param(layer, shape, id=f"{layer.spec()} on {'x'.join(map(str, shape))}")
    for name in layers.names()
    for layer, shape in layers.load(name).examples()
]


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("layer, in_shape", EXAMPLES)
def test_in_every_layer_the_aligned_path_is_exact_and_r_learns_as_w(layer, in_shape, rows):
    """Whichever order the products are taken in: few rows and many."""
    k, key = kernels.load("reference"), Key(0)
    pfa = rule("pfa", expansion=2, orthogonal=True)
    x, side = layer.example_batch(np.random.default_rng(0), rows, in_shape)
    out_shape = layer.out_shape(in_shape)
    middle = bench(lambda: pfa).engine.specs[1]
    spec = replace(middle, name=layer.spec(), in_shape=in_shape, out_shape=out_shape)
    p = layer.init(key.fold("p"), in_shape, np.float64)
    env = Env(side, key)
    empty = LayerView(spec, layer, p, {}, k, key, pfa.channels)
    aux = pfa.init(empty, key.fold("own"), key)
    assert {n[2:] for n in pfa.plastic(empty, aux)} == set(layer.weights)
    for name in layer.weights:
        aux[f"R.{name}"] = p[name] @ aux[f"B.{name}"]
    v = LayerView(spec, layer, p, aux, k, key, pfa.channels, env=env)
    v.traces["x"] = t = v.forward(x)
    dy = key.fold("dy").normal(t.y.shape, np.float64)
    da = layer.act_vjp(k, t, dy)
    np.testing.assert_allclose(
        pfa.feedback(v, dy), layer.input_vjp(k, t, da), rtol=1e-10, atol=1e-12
    )
    u = pfa.update(v, None)
    assert set(u.aux_grads) == {f"R.{n}" for n in layer.weights}
    for name, g in layer.param_vjp(k, t, da).items():
        np.testing.assert_allclose(k.formed(u.grads[name]), k.formed(g), rtol=1e-12, atol=1e-14)
        if name in layer.weights:
            r = k.formed(u.aux_grads[f"R.{name}"])
            np.testing.assert_allclose(r, k.formed(g) @ aux[f"B.{name}"], rtol=1e-9, atol=1e-12)


def test_groups_of_a_convolution_have_columns_of_their_own():
    state = engine_of("conv", expansion=2).init(0)
    b = state.aux[1]["B.W"]  # 6 units in 2 groups
    assert b.shape == (6, 12) and b[:3, :6].all() and b[3:, 6:].all()
    assert (
        not b[:3, 6:].any() and not b[3:, :6].any() and not np.isclose(b[:3, :6], b[3:, 6:]).any()
    )
    assert state.aux[1]["R.W"].shape == (3, 3, 2, 12)
    assert state.aux[-1]["B.W"].all()


def test_the_optimizer_keeps_moments_of_r_alone():
    for slots, aux in zip(
        engine_of("conv").init(0).opt, engine_of("conv").init(0).aux, strict=True
    ):
        assert [n for n in slots if "aux" in n] == [f"m.aux.{n}" for n in aux if n[0] == "R"]


# ---- collapsed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", NETS)
def test_collapsed_it_learns_the_same_weights(kind, settings):
    optimizer = SGD(0.05, (0.05, 0.01), "step:1:0.5", momentum=0.9)
    found = []
    for collapsed in (False, True):
        how = settings | {"collapsed": collapsed}
        engine = engine_of(kind, optimizer=optimizer, horizon=(100, 2), **how)
        state = engine.init(0)
        for _ in range(200):
            engine.step(state, NETS[kind][2](state.step))
        found.append(state)
    plastic, collapsed = found
    for mine, theirs in zip(collapsed.params, plastic.params, strict=True):
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=1e-10)
    for (_, _, p, _), (_, _, r, b) in zip(pairs(collapsed), pairs(plastic), strict=True):
        np.testing.assert_allclose(p, r @ b.T, rtol=0, atol=1e-10)


def test_with_adam_the_collapsed_form_is_another_rule():
    weights = []
    for collapsed in (False, True):
        with pytest.warns(SettingsWarning, match="not even pfa" if collapsed else "badly aligned"):
            engine = engine_of("dense", optimizer=Adam(0.01), collapsed=collapsed)
        state = engine.init(0)
        for _ in range(5):
            engine.step(state, samples(8, 3, state.step))
        weights.append(state.params[0]["W"])
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


@pytest.mark.parametrize("check", locality.ALL, ids=lambda c: c.__name__)
def test_with_orthonormal_rows_and_collapsed_it_passes_every_check(check):
    check(partial(rule, "pfa", expansion=1, orthogonal=True, collapsed=True))


# ---- by hand, and wrong use ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_computed_by_hand(rows):
    # As for backprop (x = 2, a1 = 6, e = (5, -6)); B = (1, 2; 3, 4), R = (1, -1):
    # mid = e B = (5 - 18, 10 - 24) = (-13, -14), dy1 = mid R^T = 1, grad R = a1 mid.
    net = "dense 1 | dense 2"
    engine = Engine(net, rule("pfa", expansion=1), (1,), 2, objective="mse", dtype="float64")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"] = 3, [[1, -1]]
    state.aux[1]["B.W"], state.aux[1]["R.W"] = [[1, 2], [3, 4]], [[1, -1]]
    batch = Batch(np.full((rows, 1), 2.0), np.array([[1.0, 0.0]] * rows))
    first, second = engine.updates(state, batch)
    formed = engine.kernels.formed
    np.testing.assert_allclose(formed(first.grads["W"]), [[2]])
    np.testing.assert_allclose(formed(second.grads["W"]), [[30, -36]])
    np.testing.assert_allclose(formed(second.aux_grads["R.W"]), [[-78, -84]])
    assert not first.aux_grads and list(state.aux[0]) == []


def test_initial_sizes():
    """R is Xavier of its own shape, B has variance 1 / (m density): E[B B^T] = 1."""
    for density in (1.0, 0.2):
        engine = Engine("dense 80 | dense 60 | dense 3", rule("pfa", density=density), (5,), 3)
        b, r = (engine.init(0).aux[1][name] for name in ("B.W", "R.W"))
        assert (b.shape, r.shape) == ((60, 600), (80, 600))
        assert b.var() == pytest.approx(1 / 600, rel=0.02)
        assert r[r != 0].var() == pytest.approx(2 / 680, rel=0.02)
        assert (b @ b.T).trace() / 60 == pytest.approx(1, rel=0.02)
    conv = Engine("conv 8 | conv 16 | flatten | dense 3", rule("pfa"), (6, 6, 4), 3).init(0)
    assert conv.aux[1]["R.W"].var() == pytest.approx(2 / (9 * (8 + 160)), rel=0.03)


def test_b_and_r_of_every_layer_are_drawn_apart():
    state = engine_of("dense").init(0)
    b = [b for *_, b in pairs(state)]
    assert not np.isclose(b[0].flat[:50], b[1].flat[:50] * b[0].std() / b[1].std()).any()
    assert not np.isclose(b[0].flat[:50] / b[0].std(), b[2].flat[:50] / b[2].std()).any()


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (Adam(0.01, 0.1), "pfa with adam: .* Use sgd"),
        (AdamW(0.01, 0.1), "pfa with adamw"),
        (SGD(0.1), "without weight decay.*--weight-decay 0.03,1e-4"),
        (SGD(0.1, (0.0, 0.0)), "without weight decay"),
    ],
)
def test_an_optimizer_that_keeps_r_from_following_w_is_told(optimizer, told):
    with pytest.warns(SettingsWarning, match=told):
        engine_of("dense", optimizer=optimizer)


def test_wrong_settings_are_told():
    with pytest.raises(SpecError, match="expansion of 1 or more; got 0"):
        rule("pfa", expansion=0)
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(SpecError, match="density above 0, at most 1"):
            rule("pfa", density=density)
    for name in ("orthogonal", "collapsed"):
        with pytest.raises(SpecError, match="density=1"):
            rule("pfa", density=0.5, **{name: True})
    engine_of("dense", optimizer=SGD(0.1, (0.0, 0.1)), density=0.5)  # neither warns nor raises
