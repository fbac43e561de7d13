"""Derivatives of the kernels against finite differences, numbers by hand, and samples."""

import numpy as np
import pytest

from fflearn.kernels.reference import ACTIVATIONS, GOODNESS, NORMS, Product

DTYPES = (np.float32, np.float64)

H = 1e-6  # central difference: error about H^2 + eps / H, so 1e-6 relative is safe


def directional(f, x, dx):
    return (f(x + H * dx) - f(x - H * dx)) / (2 * H)


@pytest.fixture
def point():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 7))
    x[np.abs(x) < 0.01] = 0.5  # away from the kinks of relu and hardsigmoid
    x[np.abs(x - 1) < 0.01] = 0.5
    return x, rng.normal(size=x.shape), rng.normal(size=x.shape)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_act_vjp_is_the_derivative(k, kind, point):
    a, da, dy = point
    want = (dy * directional(lambda z: k.act(z, kind), a, da)).sum()
    got = (k.act_vjp(dy, a, k.act(a, kind), kind) * da).sum()
    assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kind", NORMS)
def test_normalize_derivatives(k, kind, point):
    x, dx, dn = point
    n = k.normalize(x, kind)
    tangent = k.normalize_jvp(dx, x, n, kind)
    want = directional(lambda z: k.normalize(z, kind), x, dx)
    np.testing.assert_allclose(tangent, want, rtol=1e-6, atol=1e-8)
    # <dn, J dx> = <J^T dn, dx>
    back = k.normalize_vjp(dn, x, n, kind)
    assert (dn * tangent).sum() == pytest.approx((back * dx).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", NORMS)
def test_normalize_makes_unit_rows_and_leaves_silent_rows_silent(k, kind):
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    n = k.normalize(x, kind)
    size = np.sqrt((n * n).mean(1)) if kind == "rms" else np.sqrt((n * n).sum(1))
    np.testing.assert_allclose(size, [1, 0], atol=1e-8)
    np.testing.assert_array_equal(k.normalize_vjp(x + 1, x, n, kind)[1], 0)


@pytest.mark.parametrize("name", ["softmax_ce", "mse", "bce"])
def test_loss_errors_are_the_derivative(k, name, point):
    z, dz, _ = point
    target = np.random.default_rng(4).dirichlet(np.ones(7), 6)
    want = directional(lambda q: getattr(k, name)(q, target)[0], z, dz)
    got = (getattr(k, name)(z, target)[1] * dz).sum(1)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", GOODNESS)
def test_goodness_vjp_is_the_derivative(k, kind, point):
    y, dy, dg = point
    want = dg[:, 0] * directional(lambda q: k.goodness(q, kind), y, dy)
    got = (k.goodness_vjp(dg[:, 0].copy(), y, kind) * dy).sum(1)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


def test_logistic_is_the_derivative_and_stable(k):
    g, phase = np.linspace(-4, 4, 9), np.array([1.0, -1.0, 1.0] * 3)
    want = directional(lambda q: k.logistic(q, phase, 0.3, 2.0)[0], g, np.ones(9))
    np.testing.assert_allclose(k.logistic(g, phase, 0.3, 2.0)[1], want, rtol=1e-6, atol=1e-9)
    far, up = np.array([-1e4, 1e4]), np.ones(2)
    loss, dg = k.logistic(far, up, 0.0, 1.0)
    np.testing.assert_array_equal(loss, [1e4, 0])
    np.testing.assert_array_equal(dg, [-1, 0])


def test_numbers_by_hand(k):
    one = np.ones((1, 1))
    loss, error = k.softmax_ce(np.array([[0.0, np.log(3)]]), np.array([[1.0, 0.0]]))
    assert loss[0] == pytest.approx(np.log(4))
    np.testing.assert_allclose(error, [[-0.75, 0.75]])
    assert k.mse(3 * one, one)[0][0] == 2
    assert k.bce(0 * one, one)[0][0] == pytest.approx(np.log(2))
    assert k.goodness(np.array([[3.0, 4.0]]), "l2")[0] == 5
    assert k.formed(Product(2 * one, 3 * one, 4))[0, 0] == 1.5


# ---- samples ----------------------------------------------------------------------------------
def test_sample_wrong_is_uniform_over_the_wrong(k):
    n, c = 4000, 5
    u = ((np.arange(n) + 0.5) / n).astype(np.float32)
    y = np.repeat(np.eye(c, dtype=np.float32)[2:3], n, 0)
    np.testing.assert_array_equal(k.sample_wrong(y, u).sum(0), [1000, 1000, 0, 1000, 1000])
    last = np.nextafter(np.float32(1), np.float32(0))
    for classes in range(2, 70):
        one = np.eye(classes, dtype=np.float32)
        for u in (last, np.float32(1)):  # 1 cannot be drawn, and would do no harm
            assert (k.sample_wrong(one, np.full(classes, u)) * one).sum() == 0


def test_sample_softmax_wrong_follows_the_softmax(k):
    n = 10_000
    u, p = (np.arange(n) + 0.5) / n, np.array([0.1, 0.4, 0.2, 0.3])
    logits, y = np.log(np.repeat(p[None], n, 0)), np.repeat(np.eye(4)[1:2], n, 0)
    counts = k.sample_softmax_wrong(logits, y, u).sum(0) / n
    np.testing.assert_allclose(counts, [1 / 6, 0, 2 / 6, 3 / 6], atol=2 / n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_softmax_wrong_is_never_the_true_class(k, dtype):
    y = np.eye(6, dtype=dtype)
    for u in (0, 0.5, np.nextafter(dtype(1), dtype(0)), 1):
        for scale in (0, 1e4, -1e4, 1e30):
            picked = k.sample_softmax_wrong(dtype(scale) * y, y, np.full(6, u, dtype))
            assert (picked * y).sum() == 0
            np.testing.assert_array_equal(picked.sum(1), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_softmax_wrong_excludes_a_class_however_certain(k, dtype):
    logits = np.array([[0, -5e3, -6e3], [0, -1e30, -1e30]], dtype)
    y = np.repeat(np.eye(3, dtype=dtype)[:1], 2, 0)
    picked = k.sample_softmax_wrong(logits, y, np.array([0.5, 0.0], dtype))
    np.testing.assert_array_equal(picked, [[0, 1, 0], [0, 1, 0]])
