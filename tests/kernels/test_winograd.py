"""Convolutions by Winograd's products against the definition, with a bound for every number."""

import numpy as np
import pytest

from fflearn import kernels
from fflearn.kernels import cpu, micro, patches, winograd

pytestmark = pytest.mark.skipif(not micro.AVAILABLE, reason="this processor has no AVX-512")
F = np.float32
EPS = np.finfo(F).eps
# Batch, height, width, channels, units, padding: ragged tiles, borders, several chunks of tiles.
CASES = [
    (2, 4, 4, 16, 16, 1),
    (3, 9, 6, 33, 40, 1),
    (2, 8, 11, 17, 35, 0),
    (2, 6, 5, 19, 16, 2),
    (5, 32, 30, 20, 64, 1),
]


def sandwich(matrix, x):
    """M X M^T over the first two axes."""
    m = np.asarray(matrix, float)
    return np.einsum("pr,rs...,qs->pq...", m, x, m)


def tiles(image, start, size, shape):
    """Tiles (size, size, B, down, across, C) of |image|, 0 outside of it."""
    down, across = (-(-n // 4) for n in shape[1:3])
    padded = np.pad(np.abs(image), ((0, 0), (-start, 12), (-start, 12), (0, 0)))
    taps = range(size)
    return np.stack(
        [
            np.stack([padded[:, i : i + 4 * down : 4, j : j + 4 * across : 4] for j in taps])
            for i in taps
        ]
    )


def bounds(x, w, da, padding):
    """One rounding of every sum, if nothing cancelled: for outputs, and for the gradient."""
    bt, g, at = (np.abs(m) for m in (winograd.BT, winograd.G, winograd.AT))
    seen = sandwich(bt, tiles(x, -padding, 6, da.shape))
    out = sandwich(at, np.einsum("pqbijc,pqcu->pqbiju", seen, sandwich(g, np.abs(w))))
    out = out.transpose(2, 3, 0, 4, 1, 5).reshape(len(x), 4 * out.shape[3], 4 * out.shape[4], -1)
    sent = sandwich(at.T, tiles(da, 0, 4, da.shape))
    gradient = sandwich(g.T, np.einsum("pqbijc,pqbiju->pqcu", seen, sent))
    return EPS * out[:, : da.shape[1], : da.shape[2]], EPS * gradient


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_the_convolution(shape, threads):
    batch, high, wide, c, units, padding = shape
    rng, k = np.random.default_rng(high), kernels.load("numba")
    x = rng.normal(size=(batch, high, wide, c)).astype(F)
    w, b = rng.normal(size=(3, 3, c, units)).astype(F), rng.normal(size=units).astype(F)
    want = patches.conv(x.astype(float), w.astype(float), b.astype(float), 1, padding)
    assert cpu._by_winograd(x, w.shape, 1, want.shape)
    da = rng.normal(size=want.shape).astype(F)
    back = patches.conv_weights(x.astype(float), da.astype(float), 3.0, 3, 1, padding, 1)
    with k.running(threads):
        found = k.conv(x, w, b, 1, padding)
        gradient = k.conv_weights(x, da, 3.0, w.shape, 1, padding)
    of_output, of_gradient = bounds(x, w, da, padding)
    assert (np.abs(found - want) <= of_output).all()
    assert (np.abs(gradient - back) <= of_gradient / 3).all()


def test_the_identities_it_rests_on():
    rng = np.random.default_rng(0)
    d, g, dy = rng.normal(size=(6, 6)), rng.normal(size=(3, 3)), rng.normal(size=(4, 4))
    plain = np.array([[(d[i : i + 3, j : j + 3] * g).sum() for j in range(4)] for i in range(4)])
    at, bt, gm = winograd.AT, winograd.BT, winograd.G
    tile = sandwich(bt, d)
    assert np.allclose(sandwich(at, sandwich(gm, g) * tile), plain, atol=1e-12)
    by_g = np.array([[(d[i : i + 4, j : j + 4] * dy).sum() for j in range(3)] for i in range(3)])
    turned = np.transpose(at), np.transpose(gm)
    assert np.allclose(sandwich(turned[1], sandwich(turned[0], dy) * tile), by_g, atol=1e-12)


def test_the_bits_do_not_depend_on_the_threads():
    rng, k = np.random.default_rng(1), kernels.load("numba")
    x, w = rng.normal(size=(7, 13, 10, 24)).astype(F), rng.normal(size=(3, 3, 24, 36)).astype(F)
    found = []
    for threads in (1, 2):
        with k.running(threads):
            a = k.conv(x, w, None, 1, 1)
            found.append((a, k.conv_weights(x, a, 7.0, w.shape, 1, 1)))
    for one, two in zip(*found, strict=True):
        assert np.array_equal(one, two)
