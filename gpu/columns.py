"""CUDA kernels that add up columns, in float64 and in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types

from fflearn.gpu.scalars import THREADS

LANES = 4  # rows that a block takes at a time
WIDE = THREADS // LANES  # columns that it adds up side by side: a warp's, on a GPU
PLAIN, SQUARES, TIMES = range(3)


def table(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.kernels.table`."""

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
