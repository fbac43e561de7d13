"""Every kind of layer in the folder: its derivatives, shapes, first weights and spec."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import kernels, layers
from fflearn.base import Env, Key
from fflearn.errors import ShapeError, SpecError
from fflearn.layers.block import Block
from fflearn.layers.dense import Dense
from fflearn.networks import network
from fflearn.topology import Residual, Sequential

EXAMPLES = [
    (layer, shape) for kind in layers.names() for layer, shape in layers.load(kind).examples()
]
NAMED = {"ids": [f"{layer.spec()} on {shape}" for layer, shape in EXAMPLES]}
BACKENDS = ("reference", "numba")


class Case:
    """A layer with parameters, an input, tangents and a message from above."""

    def __init__(self, layer, shape, rows=5, dtype="float64", backend="reference"):
        self.k, self.layer = kernels.load(backend), layer
        rng = np.random.default_rng(7)
        out = (rows, *layer.out_shape(shape))
        drawn = layer.init(Key(1), shape, np.dtype(dtype))
        self.p = {
            n: a + abs(rng.normal(size=a.shape, scale=0.1)).astype(dtype) for n, a in drawn.items()
        }
        x, side = layer.example_batch(rng, rows, shape)
        self.env = Env({n: a.astype(dtype) for n, a in side.items()}, Key(3), True)
        self.x, self.dx = x.astype(dtype), rng.normal(size=x.shape).astype(dtype)
        self.dy = rng.normal(size=out).astype(dtype)
        self.dp = {
            n: rng.normal(size=a.shape).astype(dtype)
            for n, a in self.p.items()
            if n not in layer.buffers
        }
        self.t = self.forward(self.x, self.p)
        self.da = layer.act_vjp(self.k, self.t, self.dy)

    def forward(self, x, p, noise=None):
        return self.layer.forward(self.k, p, x, self.env, noise)

    def grads(self):
        found = self.layer.param_vjp(self.k, self.t, self.da)
        return {n: self.k.formed(g) for n, g in found.items()}


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tangent_is_the_slope(layer, shape, backend):
    c, h = Case(layer, shape, backend=backend), 1e-6
    moved = [
        c.forward(c.x + s * h * c.dx, {**c.p, **{n: c.p[n] + s * h * c.dp[n] for n in c.dp}}).y
        for s in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * h)
    tangent = layer.jvp(c.k, c.t, c.dx, c.dp)
    np.testing.assert_allclose(tangent, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tangents_and_messages_are_adjoint(layer, shape, backend):
    # <jvp (dx, dp), dy> = <dx, input_vjp dy> + <dp, B param_vjp dy>, exactly.
    c = Case(layer, shape, backend=backend)
    up = (layer.jvp(c.k, c.t, c.dx, c.dp) * c.dy).sum()
    down = (layer.input_vjp(c.k, c.t, c.da) * c.dx).sum()
    own = {n: len(c.x) * (g * c.dp[n]).sum() for n, g in c.grads().items()}
    assert set(own) == set(c.dp)
    assert up == pytest.approx(down + sum(own.values()), rel=1e-10)
    # and for each parameter alone, without an input tangent
    for name in c.dp:
        alone = (layer.jvp(c.k, c.t, None, {name: c.dp[name]}) * c.dy).sum()
        assert alone == pytest.approx(own[name], rel=1e-10, abs=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_messages_are_autograds(layer, shape):
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import LAYERS

    c = Case(layer, shape)
    x = torch.tensor(c.x, requires_grad=True)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in c.p.items()}
    y = LAYERS[layer.kind](layer, p, x, c.env)
    np.testing.assert_allclose(c.t.y, y.detach().numpy(), rtol=1e-12, atol=1e-14)
    (y * torch.tensor(c.dy)).sum().backward()
    far = np.linalg.norm(layer.input_vjp(c.k, c.t, c.da) - x.grad.numpy())
    assert far <= 1e-10 * np.linalg.norm(x.grad.numpy())
    for name, g in c.grads().items():
        theirs = p[name].grad.numpy() / len(c.x)
        assert np.linalg.norm(g - theirs) <= 1e-10 * np.linalg.norm(theirs), name


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_precisions_are_kept(layer, shape, rows, dtype, backend):
    c = Case(layer, shape, rows, dtype, backend)
    out = (rows, *layer.out_shape(shape))
    arrays = [c.t.a, c.t.y, c.da, layer.jvp(c.k, c.t, c.dx, c.dp)]
    assert {a.shape for a in arrays} == {out}
    down = layer.input_vjp(c.k, c.t, c.da)
    assert down.shape == c.x.shape
    grads = c.grads()
    assert {n: g.shape for n, g in grads.items()} == {n: a.shape for n, a in c.dp.items()}
    assert {a.dtype for a in [*arrays, down, *grads.values()]} == {np.dtype(dtype)}
    exact = Case(layer, shape, rows, "float64")
    near = {"float32": 1e-4, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(c.t.y, exact.t.y, rtol=near, atol=near)


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_activity_is_the_activation_of_the_noisy_pre_activation(layer, shape):
    c = Case(layer, shape)
    np.testing.assert_array_equal(layer.act(c.k, c.t.a), c.t.y)
    noisy = c.forward(c.x, c.p, noise=c.dy)
    np.testing.assert_allclose(layer.act(c.k, noisy.a), noisy.y, rtol=1e-14)
    np.testing.assert_allclose(noisy.a, c.t.a + c.dy, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trace_that_keeps_less_gives_the_same_bits(layer, shape, dtype, backend):
    c, x = Case(layer, shape, dtype=dtype, backend=backend), None
    for noise in (None, c.dy):
        c.t = c.forward(x := c.x.copy(), c.p, noise)
        whole = c.t, layer.act_vjp(c.k, c.t, c.dy), c.grads()
        for keeps in (frozenset(), frozenset({"x"})):
            c.t = layer.forward(c.k, c.p, x, c.env._replace(keeps=keeps), noise)
            assert x.tobytes() == c.x.tobytes() and c.t.y.tobytes() == whole[0].y.tobytes()
            own = c.dy.copy()
            for da in (layer.act_vjp(c.k, c.t, c.dy), layer.act_vjp(c.k, c.t, own, own)):
                assert da.tobytes() == whole[1].tobytes()
            for name, g in c.grads().items():
                assert g.tobytes() == whole[2][name].tobytes()
        down = layer.input_vjp(c.k, c.t, c.da)  # the last keeps x
        assert down.tobytes() == layer.input_vjp(c.k, whole[0], c.da).tobytes()
        up = layer.jvp(c.k, c.t, c.dx, c.dp)
        assert up.tobytes() == layer.jvp(c.k, whole[0], c.dx, c.dp).tobytes()


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_a_message_through_other_weights_uses_them(layer, shape):
    c = Case(layer, shape)
    other = c.t._replace(params={n: 2 * a for n, a in c.p.items()})
    exact = layer.input_vjp(c.k, c.t, c.da)
    doubled = layer.input_vjp(c.k, other, c.da)
    if layer.weights == ("W",):  # in a block, the messages of two layers multiply
        np.testing.assert_allclose(doubled, 2 * exact, rtol=1e-12)
    if layer.weights and exact.any():  # nothing goes down to ids
        assert not np.allclose(doubled, exact)


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_the_spec_reads_back(layer, shape):
    (again,) = network(layer.spec()).leaves
    assert again == layer and again.spec() == layer.spec()
    assert hash(again) == hash(layer)


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_weights_are_named_and_drawn_from_the_key_alone(layer, shape):
    first, same, other = (layer.init(Key(s), shape, np.float64) for s in (1, 1, 2))
    assert set(layer.weights) <= set(first)
    assert set(layer.weight_std(shape)) == set(layer.weights)
    assert bool(first) == layer.learns
    for n, a in first.items():
        assert a.tobytes() == same[n].tobytes()
        assert n not in layer.weights or not a.any() or (a != other[n]).any()


@pytest.mark.parametrize("draw", ["kaiming", "xavier", "lecun", "uniform", "zeros"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_weights_have_the_deviation_that_is_told(draw, activation):
    layer = Dense(400, activation, draw=draw)
    w, std = layer.init(Key(0), (300,), np.float64)["W"], layer.weight_std((300,))["W"]
    assert w.std() == pytest.approx(std, rel=0.01, abs=0) and abs(w.mean()) <= 0.01 * std
    gain = 2 if activation in ("relu", "gelu") else 1
    by_hand = {"kaiming": gain / 300, "lecun": 1 / 300, "xavier": 2 / 700, "zeros": 0}
    by_hand["uniform"] = 1 / 900
    assert std**2 == pytest.approx(by_hand[draw])
    if draw in ("xavier", "uniform"):
        assert np.abs(w).max() <= np.sqrt(3 * by_hand[draw]) < 1.01 * np.abs(w).max()


def test_a_block_has_the_deviations_of_its_layers():
    block = Block(Sequential((Dense(400, "relu"), Dense(300, "tanh"))))
    drawn, std = block.init(Key(0), (500,), np.float64), block.weight_std((500,))
    assert set(std) == {"0.W", "1.W"}
    for name, value in std.items():
        assert drawn[name].std() == pytest.approx(value, rel=0.01)


def test_a_dense_layer_by_hand():
    # n = (3, 4) / 5;  a = 3/5 * 1 + 4/5 * 2 + 0.3 = 2.5
    layer = Dense(1, "relu", norm="unit")
    p = {"W": np.array([[1.0], [2.0]]), "b": np.array([0.3])}
    k = kernels.load("reference")
    t = layer.forward(k, p, np.array([[3.0, 4.0]]), Env())
    np.testing.assert_allclose(t.y, [[2.5]], rtol=1e-8)
    # Down: W da = (1, 2); less its part along n, (3, 4)/5 * 11/5; over the length 5.
    down = layer.input_vjp(k, t, np.array([[1.0]]))
    np.testing.assert_allclose(down, [[(1 - 33 / 25) / 5, (2 - 44 / 25) / 5]], rtol=1e-7)


def test_a_block_is_the_network_it_holds():
    body = Sequential((Dense(5, "tanh"), Residual(Sequential((Dense(5, "relu", "rms"),)))))
    c = Case(Block(body), (4,))
    hidden = np.tanh(c.x @ c.p["0.W"] + c.p["0.b"])
    n = hidden / np.sqrt((hidden**2).mean(1, keepdims=True))
    expected = hidden + np.maximum(n @ c.p["1.W"] + c.p["1.b"], 0)
    np.testing.assert_allclose(c.t.y, expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Dense(0), "positive number of units; got 0"),
        (lambda: Dense(True), "positive number of units; got True"),
        (lambda: Dense(2.0), "positive number of units"),
        (lambda: Dense(3, "swish"), "activation to be one of relu"),
        (lambda: Dense(3, norm="batch"), "norm to be one of none, rms, unit; got 'batch'"),
        (lambda: Dense(3, draw="ones"), "draw to be one of"),
    ],
)
def test_wrong_layers_are_told(make, told):
    with pytest.raises(SpecError, match=told):
        make()


def test_a_block_whose_branches_do_not_fit_is_told():
    block = Block(Sequential((Residual(Sequential((Dense(5),))),)))
    with pytest.raises(ShapeError, match="residual"):
        block.out_shape((4,))


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_places_and_channels_that_a_layer_keeps_apart_do_not_meet(layer, shape):
    c = Case(layer, shape)
    places, groups = layer.keeps_apart(shape)
    out = layer.out_shape(shape)

    def felt(moved):
        """Which numbers of the output, (P, C), a tangent at those of the input moves."""
        dx = np.where(moved.reshape(shape), c.dx, 0)
        tangent = layer.jvp(c.k, c.t, dx, {})
        return (tangent != 0).any(axis=0).reshape(-1, out[-1])

    n, channels = np.prod(shape[:-1], dtype=int), shape[-1]
    at = np.zeros((n, channels), bool)
    if places:
        assert out[:-1] == shape[:-1]
        for p in range(n):
            moved = felt(np.where(np.arange(n)[:, None] == p, True, at))
            assert not np.delete(moved, p, axis=0).any()
    if groups > 1:
        assert channels % groups == 0 == out[-1] % groups
        for g in range(groups):
            mine = np.arange(channels) * groups // channels == g
            moved = felt(at | mine)
            assert not moved[:, np.arange(out[-1]) * groups // out[-1] != g].any()


@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, **NAMED)
def test_a_layer_is_moved_at_its_pre_activation(layer, shape):
    c = Case(layer, shape)
    (point,) = layer.points(shape)
    assert point.name == "a" and point.shape == c.t.a.shape[1:] and point.places
    assert point.groups == point.shape[-1]
    assert layer.push(c.k, c.t, None, {}) is None
    through = layer.jvp(c.k, c.t, c.dx, c.dp)
    np.testing.assert_array_equal(layer.push(c.k, c.t, c.dx, c.dp), through)
    moved = layer.push(c.k, c.t, c.dx, {**c.dp, "a": c.dy})
    np.testing.assert_allclose(moved, through + layer.act_vjp(c.k, c.t, c.dy), rtol=1e-12)
    live = layer.act_vjp(c.k, c.t, np.ones_like(c.dy)) != 0
    own = layer.points_vjp(c.k, c.t, {"a": c.dy})
    for name, g in layer.param_vjp(c.k, c.t, c.dy * live).items():
        np.testing.assert_array_equal(c.k.formed(own[name]), c.k.formed(g))
