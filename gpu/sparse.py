"""A sparse matrix on a device, as the layers of graphs use one.

CuPy's own calls cuSPARSE, which it refuses while a step is captured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numba import cuda

from fflearn.gpu.scalars import functions


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
    zero = functions(real).zero

    def sparse_product(starts, columns, values, x, y, cols, n):
        """A matrix in rows of (column, value), row i from starts[i] on, times x: n numbers."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            s = zero
            for e in range(starts[i // cols], starts[i // cols + 1]):
                s += values[e] * x[columns[e] * cols + i % cols]
            y[i] = s

    return {"sparse_product": (sparse_product, "IIpppii")}


class Sparse:
    """A matrix in compressed rows.

    Parameters
    ----------
    k : CudaKernels
        Whose device holds it.
    matrix : scipy.sparse matrix in the format csr
    """

    def __init__(self, k: Any, matrix: Any):
        self._k, self._matrix = k, matrix
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self._starts = k.asarray(matrix.indptr, np.int32)
        self._columns = k.asarray(matrix.indices, np.int32)
        self._values = k.asarray(matrix.data)
        self._others: dict[Any, Sparse] = {}

    @cached_property
    def T(self) -> Sparse:
        """The transpose."""
        return Sparse(self._k, self._matrix.T.tocsr())

    def astype(self, dtype: Any, copy: bool = True) -> Sparse:
        """The matrix with values of a type; always the same one, so that a graph may hold it."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        if dtype not in self._others:
            self._others[dtype] = Sparse(self._k, self._matrix.astype(dtype))
        return self._others[dtype]

    def __matmul__(self, rows: Any) -> Any:
        """Times a matrix (N, F) of the same type."""
        k, cols = self._k, rows.shape[1]
        y = k.xp.empty((self.shape[0], cols), rows.dtype)
        x = k.xp.ascontiguousarray(rows)
        given = self._starts, self._columns, self._values, x, y, cols, y.size
        k._each("sparse_product", y, *given)
        return y
