"""What cuBLAS is asked for, by a library of straw that computes it as cuBLAS would: by column."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fflearn.gpu import blas
from fflearn.kernels.reference import Kernels

DONE, FAILED = 0, 14


class Library:
    """The functions of cuBLAS that are called, on the host's memory."""

    def __init__(self):
        self.status, self.set, self.asked = DONE, [], None
        self.stream = self.workspace = None

    def cublasCreate_v2(self, handle):
        return self.status

    def cublasSetPointerMode_v2(self, handle, mode):
        assert mode == 1  # of the device
        return DONE

    def cublasSetStream_v2(self, handle, stream):
        self.stream, self.workspace = stream.value, None  # cuBLAS takes its own again
        self.set.append(stream.value)
        return DONE

    def cublasSetWorkspace_v2(self, handle, at, size):
        self.workspace = at.value, size.value
        return DONE

    def cublasGemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, a, of_a, lda, by_a, b, of_b, ldb, by_b, beta, c,
        of_c, ldc, by_c, times, compute, algorithm,
    ):  # fmt: skip
        assert self.workspace == (77, blas.WORKSPACE) and of_a == of_b == of_c
        self.asked = of_c, compute
        real = (ctypes.c_float, ctypes.c_double)[of_c]

        def matrices(at, rows, columns, ld, by):
            """Stored by column, ``ld`` numbers from one to the next."""
            assert ld >= rows
            flat = np.ctypeslib.as_array((real * (by.value * times)).from_address(at.value))
            stack = flat.reshape(times, -1)[:, : ld * columns]
            return stack.reshape(times, columns, ld).swapaxes(1, 2)[:, :rows]

        left = matrices(a, *((k, m) if ta else (m, k)), lda, by_a)
        right = matrices(b, *((n, k) if tb else (k, n)), ldb, by_b)
        out = matrices(c, m, n, ldc, by_c)
        one, other = (real.from_address(p.value).value for p in (alpha, beta))
        made = (left.swapaxes(1, 2) if ta else left) @ (right.swapaxes(1, 2) if tb else right)
        out[...] = one * made + other * out
        return self.status


class Placed:
    """An array with what CuPy's have to say about their memory."""

    def __init__(self, a):
        self.a, self.dtype, self.shape, self.size = a, a.dtype, a.shape, a.size
        self.data = SimpleNamespace(ptr=a.ctypes.data)


@pytest.fixture
def library(monkeypatch):
    straw, library = SimpleNamespace(cuda=SimpleNamespace(stream=5)), Library()
    straw.empty = lambda size, dtype: SimpleNamespace(data=SimpleNamespace(ptr=77))
    straw.cuda.get_current_stream = lambda: SimpleNamespace(ptr=straw.cuda.stream)
    monkeypatch.setitem(sys.modules, "cupy", straw)
    monkeypatch.setattr(blas, "_library", lambda: library)
    return library


@pytest.mark.parametrize("times", [(), (3,), (2, 3)])
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_a_product_is_the_reference_s(library, times, ta, tb, real):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(*times, 7, 4) if ta else (*times, 4, 7)).astype(real)
    b = rng.normal(size=(*times, 5, 7) if tb else (*times, 7, 5)).astype(real)
    c = rng.normal(size=(*times, 4, 5)).astype(real)
    r, tall = Kernels(), (a.swapaxes(-1, -2) if ta else a)
    want = real(0.5) * (r.matmul_nt(tall, b) if tb else r.matmul(tall, b)) + real(2) * c
    numbers = Placed(np.full((), 0.5, real)), Placed(np.full(1, 2, real))
    blas.Blas().gemm(ta, tb, Placed(a), Placed(b), Placed(c), *numbers)
    assert np.allclose(c, want, 1e-5 if real is np.float32 else 1e-13)


@pytest.mark.parametrize("precision", blas.PRECISIONS)
def test_the_precision_is_that_of_float32_alone(library, precision):
    # cublasComputeType_t: 32F, 32F_FAST_TF32, 32F_FAST_16BF; 64F
    single = {"": 68, "tf32": 77, "bf16": 75}[precision]
    for real, kind, compute in ((np.float32, 0, single), (np.float64, 1, 70)):
        a = Placed(np.ones((2, 2), real))
        blas.Blas(precision).gemm(False, False, a, a, Placed(np.zeros((2, 2), real)), a, a)
        assert library.asked == (kind, compute)


def test_a_new_stream_gets_the_workspace_too(library):
    a, made = Placed(np.ones((2, 2))), blas.Blas()
    for stream in (5, 5, 9, 9, 5):
        sys.modules["cupy"].cuda.stream = stream
        made.gemm(False, False, a, a, Placed(np.zeros((2, 2))), a, a)
        assert library.stream == stream
    assert library.set == [5, 9, 5]


def test_what_cublas_refuses_is_an_error(library):
    a, made = Placed(np.ones((2, 2))), blas.Blas()
    library.status = FAILED
    with pytest.raises(RuntimeError, match="status 14"):
        made.gemm(False, False, a, a, Placed(np.zeros((2, 2))), a, a)
