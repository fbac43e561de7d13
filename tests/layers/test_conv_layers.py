"""Convolutions, poolings, norms, dropout: numbers by hand, torch's modules, buffers, masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fflearn import kernels
from fflearn.base import Batch, Env, Key
from fflearn.engine import Engine
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels import patches
from fflearn.kernels.patches import col2im, im2col
from fflearn.layers.act import Act
from fflearn.layers.avg_pool import AvgPool
from fflearn.layers.batch_norm import BatchNorm
from fflearn.layers.block import Block
from fflearn.layers.conv import Conv
from fflearn.layers.dropout import Dropout
from fflearn.layers.flatten import Flatten
from fflearn.layers.group_norm import GroupNorm
from fflearn.layers.layer_norm import LayerNorm
from fflearn.layers.max_pool import MaxPool
from fflearn.layers.rms_norm import RmsNorm
from fflearn.networks import network
from fflearn.registry import rule
from fflearn.topology import Sequential

K = kernels.load("reference")
TRAIN, USE = Env(key=Key(0), train=True), Env(train=False)
# stride, padding, kernel, groups, channels, units, size
GEOMETRIES = [
    (1, "same", 3, 1, 3, 5, (6, 7)),
    (2, "same", 3, 1, 3, 4, (7, 6)),
    (2, "0", 3, 1, 2, 4, (7, 6)),
    (2, "0", 2, 1, 2, 4, (5, 6)),
    (1, "same", 1, 1, 8, 4, (3, 2)),
    (2, "0", 1, 1, 8, 4, (5, 4)),
    (1, "same", 5, 1, 1, 3, (4, 9)),
    (3, "2", 3, 1, 3, 2, (8, 5)),
    (1, "same", 3, 2, 4, 6, (5, 5)),
    (2, "1", 3, 4, 4, 4, (5, 6)),
    (1, "0", 3, 1, 9, 8, (3, 3)),
]


def run(layer, x, p=None, env=TRAIN, k=K):
    p = layer.init(Key(1), x.shape[1:], x.dtype) if p is None else p
    return layer.forward(k, p, x, env)


# ---- convolution ------------------------------------------------------------------------------
def test_a_convolution_by_hand():
    # One channel, 2 x 3 pixels 1 .. 6; the kernel takes the right neighbour minus the one below.
    x = np.arange(1.0, 7).reshape(1, 2, 3, 1)
    w = np.zeros((3, 3, 1, 1))
    w[1, 2], w[2, 1] = 1, -1
    p = {"W": w, "b": np.array([0.5])}
    t = run(Conv(1, "relu"), x, p)
    by_hand = [[2 - 4 + 0.5, 3 - 5 + 0.5, 0 - 6 + 0.5], [5.5, 6.5, 0.5]]
    np.testing.assert_allclose(t.a[0, :, :, 0], by_hand)
    np.testing.assert_allclose(t.y, np.maximum(t.a, 0))
    # Down from the one live place (1, 0): +1 to its right neighbour; below is padding.
    da = np.zeros_like(t.a)
    da[0, 1, 0, 0] = 1
    down = Conv(1, "relu").input_vjp(K, t, da)
    np.testing.assert_array_equal(down[0, :, :, 0], [[0, 0, 0], [0, 1, 0]])
    g = Conv(1, "relu").param_vjp(K, t, da)
    np.testing.assert_array_equal(g["W"][..., 0, 0], [[0, 1, 2], [0, 4, 5], [0, 0, 0]])
    np.testing.assert_array_equal(g["b"], [1])


def test_a_stride_and_channels_by_hand():
    # 1 x 1 with stride 2 reads the pixels (0, 0), (0, 2), (2, 0), (2, 2).
    x = np.arange(18.0).reshape(1, 3, 3, 2)
    p = {"W": np.array([[1.0, 10], [100, 1000]]).reshape(1, 1, 2, 2)}
    t = run(Conv(2, kernel=1, stride=2, bias=False), x, p)
    assert t.y.shape == (1, 2, 2, 2)
    np.testing.assert_array_equal(t.y[0, 0, 1], [4 + 500, 40 + 5000])
    np.testing.assert_array_equal(t.y[0, 1, 0], [12 + 1300, 120 + 13000])


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_the_gradient_is_the_mean_over_samples_and_the_sum_over_places(backend):
    k, layer = kernels.load(backend), Conv(2)
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 9))
    t = run(layer, x, k=k)
    g = layer.param_vjp(k, t, np.ones_like(t.a))
    np.testing.assert_allclose(g["b"], [20, 20])
    np.testing.assert_allclose(g["W"][1, 1], np.repeat(x.sum((1, 2)).mean(0)[:, None], 2, 1))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("case", GEOMETRIES)
def test_convolutions_are_torchs(case, backend, dtype):
    torch = pytest.importorskip("torch")
    stride, padding, size, groups, channels, units, (high, wide) = case
    layer = Conv(units, "identity", size, stride, padding, groups)
    k, rng = kernels.load(backend), np.random.default_rng(1)
    x = rng.normal(size=(5, high, wide, channels)).astype(dtype)
    t = run(layer, x, k=k)
    ours = torch.nn.Conv2d(
        channels, units, size, stride, size // 2 if padding == "same" else int(padding), 1, groups
    ).to(getattr(torch, dtype))
    with torch.no_grad():
        ours.weight.copy_(torch.tensor(t.params["W"]).permute(3, 2, 0, 1))
        ours.bias.copy_(torch.tensor(t.params["b"]))
    xt = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    y = ours(xt)
    assert layer.out_shape(x.shape[1:]) == t.y.shape[1:]
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(t.y, y.detach().permute(0, 2, 3, 1), **near)
    da = rng.normal(size=t.y.shape).astype(dtype)
    y.backward(torch.tensor(da).permute(0, 3, 1, 2))
    np.testing.assert_allclose(layer.input_vjp(k, t, da), xt.grad.permute(0, 2, 3, 1), **near)
    g = layer.param_vjp(k, t, da)
    np.testing.assert_allclose(5 * g["W"], ours.weight.grad.permute(2, 3, 1, 0), **near)
    np.testing.assert_allclose(5 * g["b"], ours.bias.grad, **near)


def test_col2im_is_the_adjoint_of_im2col():
    rng = np.random.default_rng(2)
    for size, stride, padding in [(3, 1, 1), (3, 2, 1), (2, 3, 0), (5, 2, 2), (1, 2, 0)]:
        x = rng.normal(size=(2, 7, 6, 3))
        cols = im2col(x, size, stride, padding)
        other = rng.normal(size=cols.shape)
        back = col2im(other, x.shape[1:], size, stride, padding)
        assert (cols * other).sum() == pytest.approx((x * back).sum(), rel=1e-12)
    # A patch holds its pixels row by row, the channels of a pixel together.
    cols = im2col(np.arange(24.0).reshape(1, 3, 4, 2), 2, 1, 0)
    np.testing.assert_array_equal(cols[0, 1, 2], [[12, 13], [14, 15], [20, 21], [22, 23]])


def test_an_image_read_with_a_norm_is_normalised_as_a_whole():
    x = np.random.default_rng(3).normal(size=(4, 3, 5, 2))
    n = x / np.sqrt((x**2).mean((1, 2, 3), keepdims=True))
    p = Conv(3).init(Key(0), (3, 5, 2), x.dtype)
    np.testing.assert_allclose(run(Conv(3, norm="rms"), x, p).y, run(Conv(3), n, p).y, rtol=1e-6)


@pytest.mark.parametrize("draw", ["kaiming", "xavier", "lecun", "uniform", "zeros"])
def test_weights_have_the_deviation_that_is_told(draw):
    layer = Conv(60, "relu", 5, groups=2, draw=draw)
    w, std = layer.init(Key(0), (9, 9, 40), np.float64)["W"], layer.weight_std((9, 9, 40))["W"]
    assert w.shape == (5, 5, 20, 60) and w.std() == pytest.approx(std, rel=0.02, abs=0)
    n_in = 25 * 20
    by_hand = {"kaiming": 2 / n_in, "lecun": 1 / n_in, "xavier": 2 / (n_in + 25 * 30), "zeros": 0}
    by_hand["uniform"] = 1 / (3 * n_in)
    assert std**2 == pytest.approx(by_hand[draw])


def test_a_number_for_padding_may_be_a_number():
    assert Conv(3, padding=1) == Conv(3, padding="1")
    assert network("conv 3 padding=2").leaves == (Conv(3, padding=2),)


# ---- pooling ------------------------------------------------------------------------------------
def test_pooling_by_hand():
    x = np.array([[1, 5, 2, 2], [5, 0, 2, 9]], float).reshape(1, 2, 4, 1)
    t = run(MaxPool(), x)
    np.testing.assert_array_equal(t.y.ravel(), [5, 9])
    # Of the two fives the first, row by row, is the one; the tap of 9 is the last of its patch.
    np.testing.assert_array_equal(t.inner.ravel(), [1, 3])
    down = MaxPool().input_vjp(K, t, np.array([3.0, 4]).reshape(t.y.shape))
    np.testing.assert_array_equal(down[0, :, :, 0], [[0, 3, 0, 0], [0, 0, 0, 4]])
    mean = run(AvgPool(2), x)
    np.testing.assert_array_equal(mean.y.ravel(), [11 / 4, 15 / 4])
    np.testing.assert_array_equal(run(AvgPool(), x).y, [[26 / 8]])
    down = AvgPool().input_vjp(K, run(AvgPool(), x), np.array([[8.0]]))
    np.testing.assert_array_equal(down, np.ones_like(x))


def test_where_all_pixels_are_as_large_the_first_is_taken():
    t = run(MaxPool(3, 2), np.zeros((1, 5, 5, 2)))
    assert not t.inner.any()
    assert np.isnan(run(MaxPool(), np.array([1, np.nan, 2, 3]).reshape(1, 2, 2, 1)).y).all()


def test_a_pooling_keeps_the_choice_of_its_own_forward():
    layer, rng = MaxPool(), np.random.default_rng(4)
    x, other = rng.normal(size=(2, 2, 4, 6, 3))
    t, da = run(layer, x), rng.normal(size=(2, 2, 3, 3))
    before = layer.input_vjp(K, t, da)
    run(layer, other)
    np.testing.assert_array_equal(layer.input_vjp(K, t, da), before)
    assert (
        (before != 0) <= (x == x.reshape(2, 2, 2, 3, 2, 3).max((2, 4)).repeat(2, 1).repeat(2, 2))
    ).all()


@pytest.mark.torch
@pytest.mark.parametrize("size, stride, shape", [(2, 0, (5, 7)), (3, 2, (8, 6)), (3, 1, (3, 5))])
def test_poolings_are_torchs_on_ragged_sizes(size, stride, shape):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(5).normal(size=(3, *shape, 4))
    xt = torch.tensor(x).permute(0, 3, 1, 2)
    pools = torch.nn.functional.max_pool2d, torch.nn.functional.avg_pool2d
    for layer, pool in zip((MaxPool(size, stride), AvgPool(size, stride)), pools, strict=True):
        expected = pool(xt, size, stride or None).permute(0, 2, 3, 1)
        t = run(layer, x)
        np.testing.assert_allclose(t.y, expected, rtol=1e-12)
        assert layer.out_shape(x.shape[1:]) == t.y.shape[1:]


# ---- norms --------------------------------------------------------------------------------------
def test_norms_by_hand():
    x = np.array([[[1.0, 3], [5, 7]]])  # one sample, two places, two channels
    eps = 1e-5
    one = 1 / np.sqrt(1 + eps)
    np.testing.assert_allclose(run(LayerNorm(), x).y, [[[-one, one], [-one, one]]])
    whole = (x - 4) / np.sqrt(5 + eps)
    np.testing.assert_allclose(run(GroupNorm(groups=1), x).y, whole)
    np.testing.assert_allclose(run(GroupNorm(groups=2), x).y, (x - [[[3, 5]]]) / np.sqrt(4 + eps))
    np.testing.assert_allclose(run(BatchNorm(), x).y, (x - [[[3, 5]]]) / np.sqrt(4 + eps))
    roots = np.sqrt(np.array([[[5.0], [37]]]) + eps)
    np.testing.assert_allclose(run(RmsNorm(), x).y, x / roots)
    p = {"g": np.array([2.0, -1]), "b": np.array([1.0, 0])}
    scaled = run(LayerNorm("relu"), x, p).y
    np.testing.assert_allclose(scaled, [[[max(0, 1 - 2 * one), 0], [max(0, 1 - 2 * one), 0]]])


@pytest.mark.parametrize("layer", [LayerNorm(), GroupNorm(groups=2), RmsNorm("tanh")])
def test_a_norm_of_samples_does_not_mix_them(layer):
    x = np.random.default_rng(6).normal(size=(5, 3, 2, 4))
    assert not layer.couples_samples and not layer.buffers
    np.testing.assert_allclose(run(layer, x).y[2:3], run(layer, x[2:3]).y, rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_batch_norm_is_torchs_over_many_steps(backend):
    torch = pytest.importorskip("torch")
    k, rng, layer = kernels.load(backend), np.random.default_rng(7), BatchNorm()
    module = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    p = layer.init(Key(0), (4, 2, 3), np.float64)
    for _ in range(4):
        x = 3 + 2 * rng.normal(size=(5, 4, 2, 3))
        t = layer.forward(k, p, x, TRAIN)
        y = module(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(t.y, y.detach(), rtol=1e-10, atol=1e-12)
        p = {**p, **layer.running(k, t)}
        np.testing.assert_allclose(p["mean"], module.running_mean, rtol=1e-12)
        np.testing.assert_allclose(p["var"], module.running_var, rtol=1e-12)
    module.eval()
    t = layer.forward(k, p, x, USE)
    y = module(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(t.y, y.detach(), rtol=1e-10)
    assert layer.running(k, t) == {}


def test_batch_norm_in_use_is_a_fixed_scale():
    layer, rng = BatchNorm("tanh"), np.random.default_rng(8)
    p = {n: rng.uniform(0.5, 2, 3) for n in ("g", "b", "mean", "var")}
    x, dx, dy = rng.normal(size=(3, 4, 2, 3))
    t = layer.forward(K, p, x, USE)
    a = (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["g"] + p["b"]
    np.testing.assert_allclose(t.y, np.tanh(a), rtol=1e-12)
    np.testing.assert_allclose(layer.forward(K, p, x[:1], USE).y, t.y[:1], rtol=1e-12)
    slope = (1 - t.y**2) * p["g"] / np.sqrt(p["var"] + 1e-5)
    np.testing.assert_allclose(layer.jvp(K, t, dx, {}), slope * dx, rtol=1e-10)
    down = layer.input_vjp(K, t, layer.act_vjp(K, t, dy))
    np.testing.assert_allclose(down, slope * dy, rtol=1e-10)


def test_a_channel_with_one_number_is_finite():
    layer = BatchNorm()
    t = run(layer, np.array([[3.0, -1]]))
    np.testing.assert_array_equal(t.y, [[0, 0]])
    moved = layer.running(K, t)
    np.testing.assert_allclose(moved["mean"], [0.3, -0.1])
    np.testing.assert_allclose(moved["var"], [0.9, 0.9])


NET = "conv 4 | batch_norm relu | block(conv 3 | batch_norm tanh) | flatten | dense 3"


def images(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(rng.normal(size=(rows, 4, 5, 2)), np.eye(3)[rng.integers(0, 3, rows)])


def engines(net=NET):
    yield Engine(net, rule("backprop"), (4, 5, 2), 3, dtype="float64")
    try:
        from fflearn.reference import TorchEngine

        yield TorchEngine(net, (4, 5, 2), 3, dtype="float64")
    except ImportError:
        pass


@pytest.mark.parametrize("which", ["ours", "torch"])
def test_running_statistics_move_in_training_steps_alone(which):
    found = dict(zip(("ours", "torch"), engines(), strict=False))
    if which not in found:
        pytest.skip("needs PyTorch")
    engine, batch = found[which], images()
    state = engine.init(0)
    names = {p for p in state.arrays() if p.endswith(("mean", "var"))}
    assert names == {f"params/{p}" for p in ("1/mean", "1/var", "2/1.mean", "2/1.var")}
    before = state.copy().arrays()
    engine.updates(state, batch)
    engine.predict(state, batch.x)
    engine.predict(state, batch.x)
    assert all((a == before[p]).all() for p, a in state.arrays().items())
    for u in engine.updates(state, batch):
        assert not any(n.endswith(("mean", "var")) for n in u.grads)
    engine.step(state, batch)
    assert all((state.arrays()[p] != before[p]).any() for p in names)
    assert not any(p.endswith(("mean", "var")) for p in state.arrays() if p.startswith("opt"))


@pytest.mark.torch
def test_both_paths_keep_the_same_statistics():
    pytest.importorskip("torch")
    ours, theirs = engines()
    mine, other = ours.init(0), theirs.init(0)
    for seed in range(3):
        ours.step(mine, images(7, seed))
        theirs.step(other, images(7, seed))
    for path, a in mine.arrays().items():
        np.testing.assert_allclose(a, other.arrays()[path], rtol=1e-7, atol=1e-9, err_msg=path)
    x = images(9, 5).x
    np.testing.assert_allclose(ours.predict(mine, x), theirs.predict(other, x), atol=1e-7)
    # and so do a few samples at a time: in use no sample sees another
    np.testing.assert_allclose(ours.predict(mine, x, rows=2), ours.predict(mine, x), rtol=1e-12)


def test_a_block_tells_of_its_layers_buffers():
    block = Block(Sequential((Conv(3), BatchNorm())))
    assert block.couples_samples and block.buffers == ("1.mean", "1.var")
    assert not Block(Sequential((Conv(3), LayerNorm()))).couples_samples


def test_buffers_are_not_counted_as_parameters():
    assert network("batch_norm relu").n_params((5,)) == 10


# ---- dropout ------------------------------------------------------------------------------------
def test_dropout_drops_its_share_and_keeps_the_mean():
    x = np.ones((400, 250), np.float32)
    y = run(Dropout(0.2), x).y
    assert set(np.unique(y)) == {0, np.float32(1.25)}
    assert (y == 0).mean() == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / x.size))
    # Rows and columns are dropped alike: no sample shares another's mask.
    assert (y[0] != y[1]).any() and (y[:, 0] != y[:, 1]).any()


def test_dropout_is_a_function_of_its_key():
    x, layer = np.ones((3, 40)), Dropout(0.5)

    def at(*path):
        return run(layer, x, env=Env(key=Key(0).fold(*path))).y

    np.testing.assert_array_equal(at("a"), at("a"))
    assert (at("a") != at("b")).any()
    longer = run(layer, np.ones((6, 40)), env=Env(key=Key(0).fold("a"))).y
    np.testing.assert_array_equal(longer[:3], at("a"))


def test_dropout_uses_one_mask_up_and_down():
    layer, rng = Dropout(0.3), np.random.default_rng(9)
    x, dx, da = rng.normal(size=(3, 6, 50))
    t = run(layer, x)
    scale = t.y / x
    np.testing.assert_allclose(layer.jvp(K, t, dx, {}), scale * dx, rtol=1e-12)
    np.testing.assert_allclose(layer.input_vjp(K, t, da), scale * da, rtol=1e-12)


def test_dropout_leaves_use_alone_and_each_step_and_layer_has_its_mask():
    x = np.ones((2, 30))
    assert run(Dropout(0.5), x, env=USE).y is x
    assert run(Dropout(0.0), x, env=Env()).y is x
    engine = Engine("dropout 0.5 | dropout 0.5 | dense 2", rule("backprop"), (30,), 2)
    state, batch = engine.init(0), Batch(x, np.eye(2))
    first, same = (engine.updates(state, batch)[2] for _ in range(2))
    both = engine.kernels.formed(first.grads["W"]) != 0
    np.testing.assert_array_equal(both, engine.kernels.formed(same.grads["W"]) != 0)
    assert 0.05 < (~both).mean()
    kept = np.unique(np.round(engine.kernels.formed(first.grads["W"]), 6))
    assert len(kept) > 1
    engine.step(state, batch)
    after = engine.kernels.formed(engine.updates(state, batch)[2].grads["W"]) != 0
    assert (after != both).any()


def test_dropout_without_a_key_is_told():
    with pytest.raises(SpecError, match="needs a key"):
        run(Dropout(), np.ones((2, 3)), env=Env())


# ---- wrong use ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Conv(0), "units to be 1 or more; got 0"),
        (lambda: Conv(4, stride=0), "stride to be 1 or more"),
        (lambda: Conv(4, kernel=2), "odd kernel for padding=same; got 2. Type padding=0"),
        (lambda: Conv(4, padding="valid"), "padding to be same or a number; got 'valid'"),
        (lambda: Conv(4, padding=-1), "padding to be same or a number; got '-1'"),
        (lambda: Conv(4, groups=3), "divide into 3 groups; got 4"),
        (lambda: Conv(4, "swish"), "activation to be one of"),
        (lambda: Act("swish"), "act needs one of relu"),
        (lambda: MaxPool(0), "size to be 1 or more; got 0"),
        (lambda: AvgPool(-1), "size to be 0 or more; got -1"),
        (lambda: Dropout(1.0), r"rate in \[0, 1\); got 1.0"),
        (lambda: Dropout(-0.1), r"rate in \[0, 1\); got -0.1"),
        (lambda: GroupNorm(groups=2.0), "groups to be 1 or more; got 2.0"),
        (lambda: GroupNorm(groups=True), "groups to be 1 or more; got True"),
        (lambda: BatchNorm("swish"), "batch_norm needs activation"),
        (lambda: LayerNorm(eps=0.0), "eps above 0"),
        (lambda: GroupNorm(groups=0), "groups to be 1 or more"),
    ],
)
def test_wrong_layers_are_told(make, told):
    with pytest.raises(SpecError, match=told):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "told"),
    [
        (Conv(4), (12,), r"needs images \(height, width, channels\)"),
        (Conv(4, groups=2), (5, 5, 3), "divide into 2 groups; its input has 3"),
        (Conv(4, padding=0, kernel=7), (5, 9, 3), "at least 7 x 7"),
        (MaxPool(), (12,), "needs images"),
        (MaxPool(4), (3, 9, 1), "at least 4 x 4"),
        (AvgPool(4), (9, 3, 1), "at least 4 x 4"),
        (AvgPool(), (9,), "needs images"),
        (GroupNorm(groups=4), (3, 3, 6), "divide into 4 groups; its input has 6"),
    ],
)
def test_shapes_that_do_not_fit_are_told(layer, shape, told):
    with pytest.raises(ShapeError, match=told):
        layer.out_shape(shape)


def test_a_sample_of_one_pixel_is_enough():
    assert Conv(4).out_shape((1, 1, 1)) == (1, 1, 4)
    assert Flatten().out_shape((2, 3)) == (6,)
    assert patches.out_size(5, 2, 2) == 2
