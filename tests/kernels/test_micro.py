"""The register tiles of `fflearn.kernels.micro`, and what runs where a processor has none."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fflearn.kernels import micro
from fflearn.kernels.jit import kernel

pytestmark = pytest.mark.skipif(not micro.AVAILABLE, reason="this processor has no AVX-512")
F = np.float32


@kernel
def product(ta, tb, a, b, out, alpha, beta, i0, i1, j0, j1):
    """`micro.product` of arrays."""
    micro.product(
        ta, tb, a.ctypes.data, a.shape[1], b.ctypes.data, b.shape[1], a.shape[0 if ta else 1],
        out.ctypes.data, out.shape[1], alpha, beta, i0, i1, j0, j1,
    )  # fmt: skip


SIZES = [(1, 1, 1), (8, 3, 32), (9, 1, 33), (23, 257, 47), (40, 512, 96), (7, 300, 16), (5, 31, 17)]


def operands(ta, tb, m, k, n):
    rng = np.random.default_rng(m * k * n)
    a, b = rng.normal(size=(k, m) if ta else (m, k)), rng.normal(size=(n, k) if tb else (k, n))
    return a.astype(F), b.astype(F), rng.normal(size=(m, n)).astype(F)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("beta", [0, 1, -0.5])
def test_it_is_the_product(ta, tb, beta):
    for m, k, n in SIZES:
        a, b, out = operands(ta, tb, m, k, n)
        want = 2 * (a.T if ta else a).astype(float) @ (b.T if tb else b) + beta * out.astype(float)
        size = np.abs(a.T if ta else a).astype(float) @ np.abs(b.T if tb else b) + np.abs(out)
        if not beta:
            out[:] = np.nan  # it must not be read
        product(ta, tb, a, b, out, F(2), F(beta), 0, m, 0, n)
        # k roundings of each partial sum at most; those of sums of random signs are far fewer.
        assert (np.abs(out - want) <= 4 * np.sqrt(k + 8) * np.finfo(F).eps * size).all(), (m, k, n)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_a_part_has_the_bits_of_the_whole_and_touches_nothing_else(ta, tb):
    a, b, _ = operands(ta, tb, 45, 300, 75)
    whole, part = np.empty((45, 75), F), np.full((45, 75), -7, F)
    product(ta, tb, a, b, whole, F(1), F(0), 0, 45, 0, 75)
    product(ta, tb, a, b, part, F(1), F(0), 3, 30, 32, 71)
    assert np.array_equal(part[3:30, 32:71], whole[3:30, 32:71])
    part[3:30, 32:71] = -7
    assert (part == -7).all()


def test_a_nan_stays_in_its_row_and_tiny_numbers_are_kept():
    a, b, out = operands(False, False, 11, 40, 35)
    a[4, 7] = np.nan
    product(False, False, a, b, out, F(1), F(0), 0, 11, 0, 35)
    assert np.isnan(out[4]).all() and np.isfinite(np.delete(out, 4, 0)).all()
    tiny, one = np.full((3, 2), 1e-40, F), np.eye(2, dtype=F)
    out = np.empty((3, 2), F)
    product(False, False, tiny, one, out, F(1), F(0), 0, 3, 0, 2)
    assert np.array_equal(out, tiny)  # denormal numbers are not flushed to 0


PORTABLE = """
import numpy as np
from fflearn import kernels
from fflearn.kernels import jit, micro
assert not micro.AVAILABLE and jit.cache_folder().name.endswith("-portable")
k, rng = kernels.load("numba"), np.random.default_rng(0)
x, w = rng.normal(size=(37, 300)).astype("f"), rng.normal(size=(300, 41)).astype("f")
with k.running(1):
    assert np.abs(k.matmul(x, w) - x @ w).max() < 1e-4
print("portable")
"""


def test_a_processor_without_it_uses_blas():
    env = os.environ | {"FFLEARN_CPU": "portable"}
    done = subprocess.run(
        [sys.executable, "-c", PORTABLE], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "portable", done.stderr
