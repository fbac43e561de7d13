"""Complex states with real weights: what holomorphic relaxation needs of every backend."""

import numpy as np
import pytest

from fflearn import kernels

DTYPES = [np.complex64, np.complex128]
TOLERANCE = {np.complex64: 1e-5, np.complex128: 1e-13}  # products of a few dozen terms


def draw(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_by_real_weights(k, dtype):
    a, W, b = draw((7, 12), dtype), draw((12, 5), dtype, 1).real, draw(5, dtype, 2).real
    close = {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    found = k.matmul(a, W)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, a @ W, **close)
    np.testing.assert_allclose(k.matmul_nt(found, W), (a @ W) @ W.T, **close)
    before, after = k.dense(a, W, b, "sigmoid", found)
    np.testing.assert_allclose(before, 2 * (a @ W) + b, **close)
    np.testing.assert_array_equal(after, k.act(before, "sigmoid"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_by_real_weights(k, dtype, stride):
    x, W, b = draw((3, 6, 5, 9), dtype), draw((3, 3, 9, 4), dtype, 1).real, draw(4, dtype).real
    plain = kernels.load("reference")
    close = {"rtol": TOLERANCE[dtype], "atol": 100 * TOLERANCE[dtype]}
    real, imaginary = (plain.conv(part.copy(), W, None, stride, 1) for part in (x.real, x.imag))
    a = k.conv(x, W, b, stride, 1)
    assert a.dtype == dtype
    np.testing.assert_allclose(a, real + 1j * imaginary + b, **close)
    np.testing.assert_allclose(k.conv(x, W, None, stride, 1), a - b, **close)
    down = k.conv_input(a, W, x.shape[1:], stride, 1)
    parts = [plain.conv_input(p.copy(), W, x.shape[1:], stride, 1) for p in (a.real, a.imag)]
    np.testing.assert_allclose(down, parts[0] + 1j * parts[1], **close)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_and_tanh_off_the_real_axis(k, dtype):
    a = 6 * draw(500, dtype)
    a = a[np.abs(1 + np.exp(-a)) > 0.1]  # away from its poles
    by_definition = 1 / (1 + np.exp(-a.astype(np.complex128)))
    np.testing.assert_allclose(k.act(a, "sigmoid"), by_definition, rtol=100 * TOLERANCE[dtype])
    doubled = 2 / (1 + np.exp(-2 * a.astype(np.complex128))) - 1
    kept = np.abs(1 + np.exp(-2 * a)) > 0.1
    found = k.act(a, "tanh")
    assert found.dtype == dtype
    np.testing.assert_allclose(found[kept], doubled[kept], rtol=100 * TOLERANCE[dtype])
    far = np.array([1000 + 1j, -1000 + 1j], dtype)
    np.testing.assert_array_equal(k.act(far, "sigmoid"), np.array([1, 0], dtype))
    real = a.real.copy()
    on_the_axis = k.act(real.astype(dtype), "sigmoid")
    assert on_the_axis.dtype == dtype and not on_the_axis.imag.any()
    np.testing.assert_allclose(on_the_axis.real, k.act(real, "sigmoid"), rtol=TOLERANCE[dtype])
