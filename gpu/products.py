"""CUDA kernels of products: small dense ones with what follows them, sparse times dense.

cuBLAS is faster where a product fills the GPU; where it does not, the launches are what costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda

from fflearn.gpu.scalars import IDENTITY, SIMULATED, functions

TILE = 4 if SIMULATED else 16  # a block makes TILE x TILE numbers of the product, a thread each
PITCH = TILE + 1  # a column more: no two threads go to one bank of shared memory


def table(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.kernels.table`."""
    f = functions(real)
    T, zero, act = f.T, f.zero, f.act

    def product(a, b, bias, noise, alpha, beta, c, y, m, n, k, ta, tb, keeps, biased, noisy, kind):
        """c = alpha op(a) op(b) + beta c + bias + noise, (m, n), and y = act(c)."""
        left = cuda.shared.array((TILE, PITCH), T)
        right = cuda.shared.array((TILE, PITCH), T)
        i, j, across = cuda.threadIdx.x // TILE, cuda.threadIdx.x % TILE, (n + TILE - 1) // TILE
        top, side = cuda.blockIdx.x // across * TILE, cuda.blockIdx.x % across * TILE
        s = zero
        for at in range(0, k, TILE):
            if ta:
                inside = at + i < k and top + j < m
                left[j, i] = a[(at + i) * m + top + j] if inside else zero
            else:
                inside = at + j < k and top + i < m
                left[i, j] = a[(top + i) * k + at + j] if inside else zero
            if tb:
                inside = at + j < k and side + i < n
                right[j, i] = b[(side + i) * k + at + j] if inside else zero
            else:
                inside = at + i < k and side + j < n
                right[i, j] = b[(at + i) * n + side + j] if inside else zero
            cuda.syncthreads()
            for q in range(TILE):
                s += left[i, q] * right[q, j]
            cuda.syncthreads()
        if top + i < m and side + j < n:
            to = (top + i) * n + side + j
            v = alpha[0] * s
            if keeps:
                v += beta[0] * c[to]
            if biased:
                v += bias[side + j]
            if noisy:
                v += noise[to]
            c[to] = v
            if kind != IDENTITY:
                y[to] = act(v, kind)

    def sparse_product(starts, columns, values, x, y, cols, n):
        """A matrix in rows of (column, value), row i from starts[i] on, times x: n numbers."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            s = zero
            for e in range(starts[i // cols], starts[i // cols + 1]):
                s += values[e] * x[columns[e] * cols + i % cols]
            y[i] = s

    return {
        "product": (product, "ppppppppiiiiiiiii"),
        "sparse_product": (sparse_product, "IIpppii"),
    }
