"""Several layers as one."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import kernels
from fflearn.base import Env, Key
from fflearn.errors import SpecError
from fflearn.layers.block import Block
from fflearn.layers.dense import Dense
from fflearn.networks import network
from fflearn.topology import Residual, Sequential


def test_equal_layers_of_a_block_start_unlike():
    p = Block(Sequential((Dense(7, "tanh"), Dense(7, "tanh")))).init(Key(0), (7,), np.float64)
    assert not np.isclose(p["0.W"], p["1.W"]).any()


def test_messages_of_nested_sums_are_added_by_hand():
    # y = (2 x + x) + x = 4 x, so a message of 1 becomes 4.
    inner = Residual(Sequential((Dense(1, bias=False),)))
    block, k = Block(Sequential((Residual(Sequential((inner,))),))), kernels.load("reference")
    t = block.forward(k, {"0.W": np.array([[2.0]])}, np.array([[3.0]]), Env())
    assert t.y == [[12]]
    assert block.input_vjp(k, t, np.array([[1.0]])) == [[4]]


# ---- heads ----------------------------------------------------------------------------------------

PLAIN = "dense 5 tanh | residual(dense 5 sigmoid)"
HEADS = {
    "dense": (f"block({PLAIN}; dense 4 tanh norm=rms | dense 3)", (7,)),
    "to a sum": ("block(residual(dense 4 tanh; dense 4); residual(dense 4 tanh))", (3,)),
    "of blocks": ("block(dense 5 tanh; block(dense 4 tanh | dense 5) | dense 3 sigmoid)", (7,)),
    "images": (
        "block(conv 4 tanh | batch_norm; conv 3 stride=2 | batch_norm tanh | avg_pool | dense 3)",
        (4, 5, 3),
    ),
}


class Headed:
    """A block, its trace and its headed trace, with directions to try."""

    def __init__(self, spec, shape, rows=4):
        (self.block,) = network(spec).leaves
        self.k, rng = kernels.load("reference"), np.random.default_rng(3)
        self.p = {n: a + 0.1 for n, a in self.block.init(Key(0), shape, np.float64).items()}
        self.x, self.dx = rng.normal(size=(2, rows, *shape))
        self.dp = {
            n: rng.normal(size=a.shape) for n, a in self.p.items() if n not in self.block.buffers
        }
        self.env = Env(key=Key(1))
        self.t = self.block.forward(self.k, self.p, self.x, self.env)
        self.h, self.floats = self.block.headed(self.k, self.t, self.env)
        self.dy = rng.normal(size=self.h.y.shape)
        self.da = self.block.act_vjp(self.k, self.h, self.dy)

    def output(self, x, p):
        t = self.block.forward(self.k, p, x, self.env)
        return self.block.headed(self.k, t, self.env)[0].y

    def grads(self, t, da):
        return {n: self.k.formed(g) for n, g in self.block.param_vjp(self.k, t, da).items()}


def test_a_head_by_hand():
    # x = 1, W = 2: y = 2; the head's V = (3, -1): (6, -2).  A message (1, 1) reaches y as 2.
    (block,) = network("block(dense 1 bias=false; dense 2 bias=false)").leaves
    k, p = kernels.load("reference"), {"0.W": np.array([[2.0]]), "head.0.W": np.array([[3.0, -1]])}
    t = block.forward(k, p, np.array([[1.0]]), Env())
    h, floats = block.headed(k, t, Env())
    assert t.y == [[2]] and h.x == [[1]] and (h.y == [[6, -2]]).all() and floats == 2
    da = block.act_vjp(k, h, np.ones((1, 2)))
    grads = {n: k.formed(g).tolist() for n, g in block.param_vjp(k, h, da).items()}
    assert grads == {"0.W": [[2]], "head.0.W": [[2, 2]]}
    assert block.input_vjp(k, h, da) == [[4]]
    doubled = h._replace(params={"0.W": 2 * p["0.W"], "head.0.W": 5 * p["head.0.W"]})
    assert block.input_vjp(k, doubled, da) == [[40]]


@pytest.mark.parametrize(("spec", "shape"), HEADS.values(), ids=HEADS)
def test_derivatives_through_a_head(spec, shape):
    c, h = Headed(spec, shape), 1e-6
    tangent = c.block.jvp(c.k, c.h, c.dx, c.dp)
    ends = [
        c.output(c.x + s * h * c.dx, {**c.p, **{n: c.p[n] + s * h * d for n, d in c.dp.items()}})
        for s in (1, -1)
    ]
    np.testing.assert_allclose(tangent, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)
    down = (c.block.input_vjp(c.k, c.h, c.da) * c.dx).sum()
    own = {n: len(c.x) * (g * c.dp[n]).sum() for n, g in c.grads(c.h, c.da).items()}
    assert set(own) == set(c.dp)
    assert (tangent * c.dy).sum() == pytest.approx(down + sum(own.values()), rel=1e-10)


@pytest.mark.parametrize(("spec", "shape"), HEADS.values(), ids=HEADS)
def test_a_block_with_a_head_is_the_block_without_it(spec, shape):
    (block,) = network(spec).leaves
    alone, c = Block(block.body), Headed(spec, shape)
    p = alone.init(Key(0), shape, np.float64)
    q = block.init(Key(0), shape, np.float64)
    assert {n for n in q if not n.startswith("head.")} == set(p) < set(q)
    assert all(p[n].tobytes() == q[n].tobytes() for n in p)
    assert block.weights == alone.weights and block.out_shape(shape) == alone.out_shape(shape)
    assert block.weight_std(shape) == alone.weight_std(shape)
    assert network([block]).n_params(shape) == network([alone]).n_params(shape)
    t = alone.forward(c.k, {n: c.p[n] for n in p}, c.x, c.env)
    assert t.y.tobytes() == c.t.y.tobytes()
    assert set(c.grads(c.t, c.t.a)) == set(p) - set(alone.buffers)
    same, floats = alone.headed(c.k, t, c.env)
    assert same is t and floats == 0


def test_running_statistics_of_a_head_follow_its_own_rows_when_it_ran():
    c = Headed(*HEADS["images"])
    assert c.block.buffers == ("1.mean", "1.var", "head.1.mean", "head.1.var")
    assert set(c.block.running(c.k, c.t)) == {"1.mean", "1.var"}
    moved = c.block.running(c.k, c.h)
    assert set(moved) == set(c.block.buffers)
    rows = c.h.inner.head.inner[0].y.reshape(-1, 3)
    np.testing.assert_allclose(moved["head.1.mean"], 0.9 * 0.1 + 0.1 * rows.mean(0), rtol=1e-12)


def test_a_head_draws_noise_of_its_own():
    c = Headed("block(dropout; dropout)", (50,))
    kept = c.t.y != 0
    assert 0.3 < kept.mean() < 0.7 and 0.3 < (c.h.y[kept] != 0).mean() < 0.7


def test_equal_layers_of_a_block_and_its_head_start_unlike():
    (block,) = network("block(dense 7 tanh; dense 7 tanh)").leaves
    p = block.init(Key(0), (7,), np.float64)
    assert not np.isclose(p["0.W"], p["head.0.W"]).any()


def test_a_head_inside_of_a_block_is_told():
    with pytest.raises(SpecError, match=r"nothing would run the head of 'block\(dense 5; dense 3"):
        network("block(dense 4 | residual(block(dense 5; dense 3)))")
    with pytest.raises(SpecError, match="nothing would run the head"):
        network("block(dense 4; block(dense 5; dense 3))")


def test_the_message_below_a_block_is_made_on_request_alone():
    class Deaf(Dense):
        def input_vjp(self, k, t, da):
            raise AssertionError("no layer below asked")

    block = Block(Sequential((Residual(Sequential((Deaf(3, "tanh"), Dense(3))), None),)))
    k = kernels.load("reference")
    p = block.init(Key(0), (3,), np.float64)
    t = block.forward(k, p, np.ones((2, 3)), Env())
    assert set(block.param_vjp(k, t, t.a)) == {"0.W", "0.b", "1.W", "1.b"}
    with pytest.raises(AssertionError):
        block.input_vjp(k, t, t.a)


# ---- points ---------------------------------------------------------------------------------------

UNITS = "block(mix tanh) | block(conv 4 kernel=1 | layer_norm tanh affine=false)"
POINTED = {  # points: name, whether places stay apart, into how many parts channels may be cut
    f"block({UNITS} | block(conv 4 kernel=1 groups=2))": "0.a True 1, 1.a True 2, 2.a True 4",
    f"block(residual({UNITS} | conv 4 kernel=1 groups=2) | act relu)": (
        "0.a True 1, 1.a True 2, 2.a True 4"
    ),
    "block(block(conv 4 tanh) | layer_norm tanh affine=false | conv 4 tanh)": (
        "0.a False 1, 2.a True 4"
    ),
    "block(block(block(conv 4 tanh) | conv 6) | avg_pool)": "0.a False 1",
    "block(block(conv 4) | batch_norm | conv 4)": "a True 4",
    "block(conv 4 | conv 4)": "a True 4",
}
NESTED = [spec for spec, told in POINTED.items() if not told.startswith("a")]


class Pointed(Headed):
    """A block on images, with noise at its points."""

    def __init__(self, spec):
        (self.block,) = network(spec).leaves
        self.shape, rng = (2, 3, 4), np.random.default_rng(5)
        self.k, self.env = kernels.load("reference"), Env()
        self.p = {n: a + 0.1 for n, a in self.block.init(Key(0), self.shape, np.float64).items()}
        self.x, self.dx = rng.normal(size=(2, 4, *self.shape))
        self.t = self.block.forward(self.k, self.p, self.x, self.env)
        self.points = self.block.points(self.shape)
        self.u = {q.name: rng.normal(size=(4, *q.shape)) for q in self.points}

    def node(self, point):
        leaf = int(point.name.partition(".")[0])
        return next(i for i, n in enumerate(self.block.nodes) if n.leaf == leaf)

    def by_hand(self, x, noise):
        """The block's output with noise at the ends of its leaves."""
        value, leaves = {-1: x}, self.block.leaves
        for i, (leaf, sources) in enumerate(self.block.nodes):
            below = [value[s] for s in sources]
            own = {n[len(f"{leaf}.") :]: a for n, a in self.p.items() if n.startswith(f"{leaf}.")}
            value[i] = (
                sum(below)
                if leaf is None
                else leaves[leaf].forward(self.k, own, below[0], self.env, noise.get(f"{leaf}.a")).y
            )
        return value[i]


@pytest.mark.parametrize(("spec", "told"), POINTED.items())
def test_a_block_of_blocks_is_moved_at_the_ends_of_its_leaves(spec, told):
    c = Pointed(spec)
    assert ", ".join(f"{q.name} {q.places} {q.groups}" for q in c.points) == told
    for q in c.points if spec in NESTED else ():
        assert q.shape == c.t.inner[c.node(q)].a.shape[1:]


@pytest.mark.parametrize("spec", NESTED)
def test_noise_at_points_moves_the_output_by_its_tangent(spec):
    c, h = Pointed(spec), 1e-6
    moved = [c.by_hand(c.x + s * h * c.dx, {n: s * h * u for n, u in c.u.items()}) for s in (1, -1)]
    tangent = c.block.push(c.k, c.t, c.dx, c.u)
    np.testing.assert_allclose(tangent, (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    for q in c.points:
        alone = c.block.push(c.k, c.t, None, {q.name: c.u[q.name]})
        rest = {n: u for n, u in c.u.items() if n != q.name}
        np.testing.assert_allclose(alone, tangent - c.block.push(c.k, c.t, c.dx, rest), atol=1e-12)


@pytest.mark.parametrize("spec", NESTED)
def test_what_a_point_says_it_reaches_is_all_it_reaches(spec):
    c = Pointed(spec)
    for q in c.points:
        n, channels = int(np.prod(q.shape[:-1])), q.shape[-1]
        for at in np.ndindex(n, q.groups):
            u = np.zeros((4, n, channels))
            mine = np.arange(channels) * q.groups // channels == at[1]
            u[:, at[0], mine] = 1
            moved = c.block.push(c.k, c.t, None, {q.name: u.reshape(4, *q.shape)})
            moved = moved.reshape(4, -1, moved.shape[-1])
            theirs = np.arange(moved.shape[2]) * q.groups // moved.shape[2] == at[1]
            assert not moved[:, :, ~theirs].any()
            if q.places:
                assert moved.shape[1] == n and not np.delete(moved, at[0], axis=1).any()


@pytest.mark.parametrize("spec", NESTED)
def test_a_points_gradient_stops_at_the_point_below(spec):
    c = Pointed(spec)
    found = c.block.points_vjp(c.k, c.t, c.u)
    for q in c.points:
        live = np.ones((4, *q.shape), bool)
        if q.places and q.groups == q.shape[-1]:  # pointwise: what the output does not feel
            live = c.block.push(c.k, c.t, None, {q.name: np.ones((4, *q.shape))}) != 0
            assert live.all() == ("relu" not in spec)
        layer = c.block.leaves[int(q.name.partition(".")[0])]
        own = layer.param_vjp(c.k, c.t.inner[c.node(q)], c.u[q.name] * live)
        for name, g in own.items():
            mine = found.pop(f"{q.name.partition('.')[0]}.{name}")
            np.testing.assert_array_equal(c.k.formed(mine), c.k.formed(g))
    assert not found
