"""Products by cuBLAS, called through its C interface: CuPy refuses its own calls under capture.

Matrices are row-major.  ``alpha`` and ``beta`` lie in device memory, so that a captured product
reads them when it runs; the workspace is ours, so a replayed product uses no other memory.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache
from typing import Any

import numpy as np

from fflearn.errors import BackendUnavailable

PRECISIONS = ("", "tf32", "bf16")
WORKSPACE = 32 << 20  # bytes: what cuBLAS recommends for compute capability 9
DEVICE_POINTERS, NO_TRANSPOSE, TRANSPOSE = 1, 0, 1
FLOAT, DOUBLE = 0, 1  # cudaDataType_t
DEFAULT_ALGORITHM = -1
# cublasComputeType_t by real and precision
COMPUTE = {
    (np.float32, ""): 68,
    (np.float32, "tf32"): 77,
    (np.float32, "bf16"): 75,
    (np.float64, ""): 70,
    (np.float64, "tf32"): 70,
    (np.float64, "bf16"): 70,
}


@cache
def _library() -> Any:
    """The cuBLAS that CuPy has loaded, or that the system finds."""
    from cupy.cuda import device

    device.get_cublas_handle()  # loads the library that belongs to CuPy, wherever it lies
    with open("/proc/self/maps") as maps:
        loaded = [line.split()[-1] for line in maps if "libcublas.so" in line]
    name = loaded[0] if loaded else ctypes.util.find_library("cublas")
    if name is None:
        raise BackendUnavailable(
            "the 'cuda' kernels need cuBLAS, which was not found. Type: pip install "
            "\"fflearn[gpu]\", or choose the 'numba' kernels."
        )
    return ctypes.CDLL(name)


class Blas:
    """A cuBLAS handle with a workspace of its own, on the stream that is current in a call."""

    def __init__(self, precision: str = ""):
        import cupy

        self._lib, self._precision = _library(), precision
        self._handle = ctypes.c_void_p()
        self._check(self._lib.cublasCreate_v2(ctypes.byref(self._handle)))
        self._workspace = cupy.empty(WORKSPACE, np.uint8)
        self._check(self._lib.cublasSetPointerMode_v2(self._handle, DEVICE_POINTERS))
        self._stream: int | None = None

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"cuBLAS answered with status {status}")

    def _on(self, stream: int) -> None:
        # Setting the stream takes the workspace away, so both are set, and only where it changed.
        if stream != self._stream:
            self._check(self._lib.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)))
            at = ctypes.c_void_p(self._workspace.data.ptr)
            size = ctypes.c_size_t(WORKSPACE)
            self._check(self._lib.cublasSetWorkspace_v2(self._handle, at, size))
            self._stream = stream

    def gemm(self, ta: bool, tb: bool, a: Any, b: Any, c: Any, alpha: Any, beta: Any) -> None:
        """c = alpha op(a) op(b) + beta c: matrices, or stacks of as many, C-contiguous.

        Where ``ta``, op transposes the last two axes of a; ``alpha`` and ``beta`` hold one number.
        """
        import cupy

        self._on(cupy.cuda.get_current_stream().ptr)
        real = c.dtype.type
        kind = FLOAT if real is np.float32 else DOUBLE
        (m, n), k = c.shape[-2:], a.shape[-2 if ta else -1]
        pointer, length = ctypes.c_void_p, ctypes.c_longlong
        # Column-major cuBLAS sees every row-major matrix transposed: c^T = op(b)^T op(a)^T.
        self._check(
            self._lib.cublasGemmStridedBatchedEx(
                self._handle,
                TRANSPOSE if tb else NO_TRANSPOSE,
                TRANSPOSE if ta else NO_TRANSPOSE,
                n,
                m,
                k,
                pointer(alpha.data.ptr),
                pointer(b.data.ptr),
                kind,
                k if tb else n,
                length(k * n),
                pointer(a.data.ptr),
                kind,
                m if ta else k,
                length(m * k),
                pointer(beta.data.ptr),
                pointer(c.data.ptr),
                kind,
                n,
                length(m * n),
                c.size // (m * n),
                COMPUTE[real, self._precision],
                DEFAULT_ALGORITHM,
            )
        )
