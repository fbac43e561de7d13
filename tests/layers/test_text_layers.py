"""Embedding, positions and attention: by hand, by loops, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fflearn import kernels
from fflearn.base import Env, Key
from fflearn.errors import DataError, ShapeError, SpecError
from fflearn.layers.attention import Attention
from fflearn.layers.block import Block
from fflearn.layers.embed import Embed
from fflearn.layers.position import Position
from fflearn.networks import network

K = kernels.load("reference")


def run(layer, p, x):
    return layer.forward(K, p, np.asarray(x), Env())


def formed(layer, t, da):
    return {n: K.formed(g) for n, g in layer.param_vjp(K, t, np.asarray(da)).items()}


# ---- embed ----------------------------------------------------------------------------------------


def test_an_embedding_by_hand():
    layer, table = Embed(3, 2), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    t = run(layer, {"E": table}, [[2.0, 0.0], [2.0, 2.0]])
    np.testing.assert_array_equal(t.y, [[[5, 6], [1, 2]], [[5, 6], [5, 6]]])
    da = [[[1.0, 10.0], [2.0, 20.0]], [[4.0, 40.0], [8.0, 80.0]]]
    # Of two samples: id 2 stood three times, id 0 once, id 1 never.
    expected = np.array([[2, 20], [0, 0], [13, 130]]) / 2
    np.testing.assert_array_equal(formed(layer, t, da)["E"], expected)
    np.testing.assert_array_equal(layer.jvp(K, t, np.ones((2, 2)), {}), np.zeros((2, 2, 2)))


def test_an_id_a_rounding_away_is_still_itself():
    table = np.arange(6.0).reshape(3, 2)
    ids = np.nextafter(np.float32([[0, 1, 2]]), np.float32([-1, 0, 9]))
    np.testing.assert_array_equal(run(Embed(3, 2), {"E": table}, ids).y[0], table)


def test_many_small_terms_of_an_embedding_add_up_in_float32():
    layer, n = Embed(2, 1), 1 << 15
    t = run(layer, {"E": np.zeros((2, 1), np.float32)}, np.zeros((1, n), np.float32))
    g = formed(layer, t, np.full((1, n, 1), 0.1, np.float32))["E"]
    assert g.dtype == np.float32
    assert g[0, 0] == pytest.approx(0.1 * n, rel=1e-7, abs=0)


def test_an_embedding_starts_at_the_told_size():
    drawn = Embed(300, 200, std=0.5).init(Key(0), (4,), np.float64)["E"]
    assert drawn.std() == pytest.approx(0.5, rel=0.01)
    assert Embed(300, 200).init(Key(0), (4,), np.float32)["E"].std() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("wrong", [-1.0, 3.0, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_id_outside_the_vocabulary_is_told(wrong):
    with pytest.raises(DataError, match=r"embed 3 2.*needs ids in 0 \.\. 2"):
        run(Embed(3, 2), {"E": np.zeros((3, 2))}, [[0.0, wrong]])


# ---- position -------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [4, 5])
def test_sinusoids_by_hand(units):
    t = run(Position("sinusoidal"), {}, np.ones((2, 3, units)))
    for place in range(3):
        for i in range(units):
            angle = place / 10000 ** (2 * (i // 2) / units)
            wave = math.cos(angle) if i % 2 else math.sin(angle)
            np.testing.assert_allclose(t.y[:, place, i], 1 + wave, rtol=1e-14)


def test_learned_positions_by_hand():
    layer = Position()
    table = np.array([[1.0], [2.0]])
    t = run(layer, {"P": table}, np.array([[[10.0], [20.0]], [[30.0], [40.0]]]))
    np.testing.assert_array_equal(t.y[..., 0], [[11, 22], [31, 42]])
    g = formed(layer, t, [[[1.0], [2.0]], [[3.0], [6.0]]])["P"]
    np.testing.assert_array_equal(g, [[2], [4]])  # the mean over samples, not over places
    for std, made in ((1.0, layer), (0.02, Position(std=0.02))):
        drawn = made.init(Key(0), (300, 200), np.float32)["P"]
        assert drawn.std() == pytest.approx(std, rel=0.01)


# ---- attention ------------------------------------------------------------------------------------


def drawn(layer, places, units, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    p = layer.init(Key(1), (places, units), np.dtype("float64"))
    p = {n: a + rng.normal(size=a.shape, scale=0.3) for n, a in p.items()}
    return p, rng.normal(size=(rows, places, units))


def test_attention_by_hand():
    # One unit and weights of 1: the second place looks at 1 and 2 with weights e^2 : e^4.
    one = {w: np.ones((1, 1)) for w in Attention.weights}
    t = run(Attention(1, bias=False), one, [[[1.0], [2.0]]])
    np.testing.assert_allclose(t.y[0, :, 0], [1, 1 + 1 / (1 + math.exp(-2))], rtol=1e-14)
    t = run(Attention(1, causal=False, bias=False), one, [[[1.0], [2.0]]])
    np.testing.assert_allclose(t.y[0, 0, 0], 1 + 1 / (1 + math.exp(-1)), rtol=1e-14)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_by_loops(heads, causal):
    layer = Attention(heads, causal)
    p, x = drawn(layer, 4, 6)
    d = 6 // heads
    q, k, v = x @ p["Wq"] + p["bq"], x @ p["Wk"], x @ p["Wv"] + p["bv"]
    c = np.zeros_like(x)
    for b in range(len(x)):
        for h in range(heads):
            own = slice(h * d, (h + 1) * d)
            for t in range(4):
                seen = range(t + 1 if causal else 4)
                e = [math.exp(q[b, t, own] @ k[b, s, own] / math.sqrt(d)) for s in seen]
                c[b, t, own] = sum(w * v[b, s, own] for w, s in zip(e, seen, strict=True)) / sum(e)
    np.testing.assert_allclose(run(layer, p, x).y, c @ p["Wo"] + p["bo"], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_no_place_sees_a_later_one(backend, dtype):
    layer, k = Attention(2), kernels.load(backend)
    p, x = drawn(layer, 7, 6)
    p, x = {n: a.astype(dtype) for n, a in p.items()}, x.astype(dtype)
    before = layer.forward(k, p, x, Env()).y
    for t in range(7):
        moved = x.copy()
        moved[:, t] += 1
        after = layer.forward(k, p, moved, Env()).y
        assert after[:, :t].tobytes() == before[:, :t].tobytes()
        assert (after[:, t:] != before[:, t:]).any(axis=(0, 2)).all()
    free = Attention(2, causal=False)
    assert (free.forward(k, p, moved, Env()).y != free.forward(k, p, x, Env()).y).all()


def test_errors_of_a_place_go_to_the_places_it_saw():
    layer = Attention(2)
    p, x = drawn(layer, 5, 4)
    t = run(layer, p, x)
    da = np.zeros_like(x)
    da[:, 2] = 1
    down = layer.input_vjp(K, t, da)
    assert down[:, :3].all() and not down[:, 3:].any()


def test_a_bias_of_the_key_would_change_nothing():
    layer = Attention(2)
    p, x = drawn(layer, 5, 4)
    q, k = (x @ p["Wq"] + p["bq"])[..., :2], (x @ p["Wk"])[..., :2]
    z = np.stack([q @ (k + shift).swapaxes(1, 2) for shift in (0, [3.0, -2.0])])
    np.testing.assert_allclose(*K.softmax(z), rtol=1e-11)


def test_large_scores_neither_overflow_nor_warn():
    layer = Attention(1, bias=False)
    p, x = drawn(layer, 3, 2)
    t = run(layer, p, (1e4 * x).astype(np.float32))
    assert np.isfinite(t.y).all() and np.isfinite(layer.input_vjp(K, t, t.y)).all()


def test_attention_starts_at_the_told_size():
    layer = Attention(4)
    p = layer.init(Key(0), (7, 256), np.float64)
    assert set(p) == {"Wq", "Wk", "Wv", "Wo", "bq", "bv", "bo"}
    std = layer.weight_std((7, 256))
    assert std == dict.fromkeys(layer.weights, 1 / 16)
    for name in layer.weights:
        assert p[name].std() == pytest.approx(1 / 16, rel=0.01)
    assert not any(p[b].any() for b in ("bq", "bv", "bo"))
    assert not np.isclose(p["Wq"], p["Wk"]).all()
    assert set(Attention(4, bias=False).init(Key(0), (7, 8), np.float64)) == set(layer.weights)


# ---- inside a block -------------------------------------------------------------------------------


def test_a_block_takes_layers_without_parameters():
    (block,) = network("block(position sinusoidal | attention 2 | position sinusoidal)").leaves
    assert isinstance(block, Block) and block.weights == ("1.Wq", "1.Wk", "1.Wv", "1.Wo")
    inner, waves = block.leaves[1], block.leaves[0]
    p, x = drawn(inner, 5, 4)
    t = run(block, {f"1.{n}": a for n, a in p.items()}, x)
    first = run(waves, {}, x)
    second = run(inner, p, first.y)
    np.testing.assert_array_equal(t.y, run(waves, {}, second.y).y)
    da = np.random.default_rng(3).normal(size=x.shape)
    assert (block.input_vjp(K, t, da) == inner.input_vjp(K, second, da)).all()
    alone = formed(inner, second, da)
    assert all((g == alone[n[2:]]).all() for n, g in formed(block, t, da).items())
    (bare,) = network("block(position sinusoidal)").leaves
    t = run(bare, {}, x)
    assert bare.param_vjp(K, t, da) == {} and bare.input_vjp(K, t, da) is da


def test_a_block_drops_out_by_keys_of_its_own():
    (block,) = network("block(residual(dropout 0.5) | residual(attention 2 | dropout 0.5))").leaves
    p = {f"1.{n}": a for n, a in drawn(block.leaves[1], 5, 4)[0].items()}
    rng = np.random.default_rng(0)
    x, dx, dy = rng.normal(size=(3, 2, 5, 4))
    t, again, other = (block.forward(K, p, x, Env(key=Key(s))) for s in (3, 3, 4))
    assert t.y.tobytes() == again.y.tobytes() != other.y.tobytes()
    first, second = t.inner[0].y == 0, t.inner[3].y == 0
    assert first.any() and second.any() and (first != second).any()
    # The derivatives use the masks of this forward.
    up, down = (block.jvp(K, t, dx, {}) * dy).sum(), (block.input_vjp(K, t, dy) * dx).sum()
    assert up == pytest.approx(down, rel=1e-12)
    use = block.forward(K, p, x, Env(key=Key(3), train=False)).y
    attention = run(block.leaves[1], drawn(block.leaves[1], 5, 4)[0], 2 * x).y
    np.testing.assert_allclose(use, 2 * x + attention, rtol=1e-12)


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shape", "told"),
    [
        ("embed 0 8", (4,), "embed needs a positive vocab; got 0"),
        ("embed 65 -2", (4,), "embed needs a positive units; got -2"),
        ("embed 65", (4,), "embed needs units"),
        ("embed 65 8 std=0", (4,), "std above 0"),
        ("position sideways", (4, 8), "one of learned, sinusoidal; got 'sideways'"),
        ("position std=-1", (4, 8), "std above 0; got -1.0"),
        ("position", (8,), r"a sequence \(T, D\).*Put it after embed"),
        ("position", (8, 8, 3), "a sequence"),
        ("attention 0", (4, 8), "positive number of heads; got 0"),
        ("attention 3", (4, 8), r"a multiple of 3; its input has the shape \(4, 8\)"),
        ("attention 2", (8,), "a sequence"),
        ("attention 2", (8, 8, 8), "a sequence"),
        ("attention", (4, 8), "attention needs heads"),
        ("attention 2 causal=maybe", (4, 8), "causal of type bool"),
    ],
)
def test_what_does_not_fit_is_told(spec, shape, told):
    with pytest.raises((SpecError, ShapeError), match=told):
        network(spec).shapes(shape)


@pytest.mark.parametrize("wrong", [True, 2.0, "2"])
def test_sizes_are_whole_numbers(wrong):
    for make in (lambda: Embed(wrong, 8), lambda: Embed(8, wrong), lambda: Attention(wrong)):
        with pytest.raises(SpecError, match="positive"):
            make()


def test_what_is_linear_in_its_input():
    assert Position().linear and not Embed(3, 2).linear and not Attention(2).linear
