"""Column by column: sums, in float64 and in a fixed order, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from fflearn.gpu.arrays import Arrays, matrices
from fflearn.gpu.scalars import THREADS
from fflearn.kernels.reference import Array

CHUNK = 256  # rows that a block adds up, where there are enough to divide
LANES = 4  # rows that a block takes at a time
WIDE = THREADS // LANES  # columns that it adds up side by side: a warp's, on a GPU
PLAIN, SQUARES, TIMES = range(3)


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""

    def column_sums(x, y, partial, out, rows, cols, per, what, factor):
        """Sums over ``per`` rows a block: x, (x - y)^2 with y (cols,), or x y.

        Where one block takes all rows, ``out`` is the sum times the factor.
        """
        sums = cuda.shared.array(THREADS, types.float64)
        t, tiles = cuda.threadIdx.x, (cols + WIDE - 1) // WIDE
        col, chunk = cuda.blockIdx.x % tiles * WIDE + t % WIDE, cuda.blockIdx.x // tiles
        s = 0.0
        if col < cols:
            for r in range(chunk * per + t // WIDE, min(rows, (chunk + 1) * per), LANES):
                v = x[r * cols + col]
                if what == SQUARES:
                    v -= y[col]
                    v *= v
                elif what == TIMES:
                    v *= y[r * cols + col]
                s += np.float64(v)
        sums[t] = s
        cuda.syncthreads()
        if t < WIDE and col < cols:
            for lane in range(1, LANES):
                s += sums[t + lane * WIDE]
            if per >= rows:
                out[col] = real(s * factor)
            else:
                partial[chunk * cols + col] = s

    def column_finish(partial, out, chunks, cols, factor):
        for col in range(cuda.grid(1), cols, cuda.gridsize(1)):
            s = 0.0
            for chunk in range(chunks):
                s += partial[chunk * cols + col]
            out[col] = real(s * factor)

    def standardize_columns(x, mean, var, n, size, cols, eps):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            col = i % cols
            n[i] = (x[i] - mean[col]) / math.sqrt(var[col] + eps)

    def standardize_columns_vjp(dn, n, var, mean, along, dx, size, cols, eps):
        """``mean`` and ``along`` are the means of dn and of dn n."""
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            col = i % cols
            d = dn[i] - n[i] * along[col] - mean[col]
            dx[i] = d / math.sqrt(var[col] + eps)

    return {
        "column_sums": (column_sums, "ppDpiiiid"),
        "column_finish": (column_finish, "Dpiid"),
        "standardize_columns": (standardize_columns, "ppppiif"),
        "standardize_columns_vjp": (standardize_columns_vjp, "ppppppiif"),
    }


class Columns(Arrays):
    """Methods of `Kernels` that launch these.  Along the other axis, `standardize` is of `Rows`."""

    def colmean(self, da: Array, n: float) -> Array:
        if not matrices(da):
            return super().colmean(da, n)
        return self._column_sums(da, da, PLAIN, 1 / float(n))

    def standardize(
        self, x: Array, axis: int, eps: float, center: bool = True
    ) -> tuple[Array, Array, Array]:
        if axis or not matrices(x):
            return super().standardize(x, axis, eps, center)
        x, n, (rows, cols) = self._plain(x), self.xp.empty(x.shape, x.dtype), x.shape
        mean = self._filled(0.0, cols, x.dtype)
        if center:
            mean = self._column_sums(x, x, PLAIN, 1 / rows)
        var = self._column_sums(x, mean, SQUARES, 1 / rows)
        self._each("standardize_columns", x, x, mean, var, n, x.size, cols, eps)
        return n, mean[None], var[None]

    def standardize_vjp(
        self, dn: Array, n: Array, var: Array, axis: int, eps: float, center: bool = True
    ) -> Array:
        if axis or not matrices(dn, n, var) or dn.shape != n.shape:
            return super().standardize_vjp(dn, n, var, axis, eps, center)
        dn, n, var = (self._plain(a) for a in (dn, n, var))
        dx, (rows, cols) = self.xp.empty(n.shape, n.dtype), n.shape
        mean = self._filled(0.0, cols, n.dtype)
        if center:
            mean = self._column_sums(dn, dn, PLAIN, 1 / rows)
        along = self._column_sums(dn, n, TIMES, 1 / rows)
        self._each("standardize_columns_vjp", n, dn, n, var, mean, along, dx, n.size, cols, eps)
        return dx

    def _column_sums(self, x: Array, y: Array, what: int, factor: float) -> Array:
        """Sums of columns times a factor, (R, N) -> (N,)."""
        x, y, (rows, cols) = self._plain(x), self._plain(y), x.shape
        tiles = -(-cols // WIDE)
        per = self._part(rows, tiles)
        chunks = -(-rows // per)
        out = self.xp.empty(cols, x.dtype)
        # One block for all rows has nothing to leave to another.
        partial = out if chunks == 1 else self.xp.empty(chunks * cols, np.float64)
        numbers = rows, cols, per, what, factor
        self._blocks("column_sums", x, tiles * chunks, x, y, partial, out, *numbers)
        if chunks > 1:
            self._each("column_finish", out, partial, out, chunks, cols, factor)
        return out

    def _part(self, rows: int, tiles: int) -> int:
        """How many of the rows a block adds up, where all of them are ``tiles`` blocks' work."""
        return -(-rows // max(1, min(-(-rows // CHUNK), self.device.grid[0] // tiles)))
