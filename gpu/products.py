"""Products: by cuBLAS where one fills the GPU, small ones with what follows them in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from fflearn.gpu.arrays import matrices, reals
from fflearn.gpu.elementwise import ACTS, Elementwise
from fflearn.gpu.scalars import IDENTITY, SIMULATED, functions
from fflearn.kernels.reference import Array, Product

TILE = 4 if SIMULATED else 16  # a block makes TILE x TILE numbers of the product, a thread each
PITCH = TILE + 1  # a column more: no two threads go to one bank of shared memory


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
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

    return {"product": (product, "ppppppppiiiiiiiii")}


class Products(Elementwise):
    """Methods of `Kernels` that launch this, or call cuBLAS."""

    def matmul(self, a: Array, b: Array) -> Array:
        return self._product(False, False, a, b)

    def matmul_tn(self, a: Array, b: Array) -> Array:
        return self._product(True, False, a, b)

    def matmul_nt(self, a: Array, b: Array) -> Array:
        return self._product(False, True, a, b)

    def dense(
        self,
        x: Array,
        W: Array,
        b: Array | None,
        act: str,
        noise: Array | None = None,
        keep: bool = True,
    ) -> tuple[Array | None, Array]:
        given = [v for v in (x, W, b, noise) if v is not None]
        if matrices(x, W) and reals(*given) and self._is_small(len(x), *W.shape) and act in ACTS:
            a, y = self._small(False, False, x, W, act=act, b=b, noise=noise)
        else:
            a, y = self._finished(self.matmul(x, W), b, act, noise)
        return a if keep else None, y

    def formed(self, g: Array | Product) -> Array:
        if not isinstance(g, Product):
            return g
        return self._product(True, False, g.x, g.da, 1 / float(g.n))

    def sum_by_id(self, ids: Array, rows: Array, n: int) -> Array:
        # A product, whose order of summation is fixed; atomic additions would have none.
        member = self.one_hot(ids, n, np.float64)
        return self.matmul_tn(member, rows.astype(np.float64)).astype(rows.dtype)

    def _product(self, ta: bool, tb: bool, a: Array, b: Array, alpha: float = 1.0) -> Array:
        if a.dtype.char in "FD" and b.dtype == a.real.dtype:  # complex states and real weights
            parts = [self._product(ta, tb, part, b, alpha) for part in (a.real, a.imag)]
            found = self.xp.empty(parts[0].shape, a.dtype)
            found.real[...], found.imag[...] = parts
            return found
        stacked = a.ndim > 2 and a.shape[:-2] == b.shape[:-2]
        if not (reals(a, b) and a.size and b.size and (stacked or a.ndim == b.ndim == 2)):
            found = _turned(a, ta) @ _turned(b, tb)
            return found if alpha == 1.0 else found * found.dtype.type(alpha)
        m, inner = a.shape[:-3:-1] if ta else a.shape[-2:]
        n, own = b.shape[-2:] if tb else b.shape[:-3:-1]
        if inner != own:
            raise ValueError(f"a product of {(m, inner)} and {(own, n)}: the middle differs.")
        if not stacked and self._is_small(m, inner, n):
            return self._small(ta, tb, a, b, self._filled(alpha, (), a.dtype))[0]
        c = self.xp.empty((*a.shape[:-2], m, n), a.dtype)
        number, none = self._filled(alpha, (), a.dtype), self._filled(0.0, (), a.dtype)
        self.device.gemm(ta, tb, self._plain(a), self._plain(b), c, number, none)
        return c

    def _is_small(self, m: int, inner: int, n: int) -> bool:
        """Whether a product is better made, and finished, by a kernel of our own."""
        return m * inner * n <= self.device.small

    def _small(
        self,
        ta: bool,
        tb: bool,
        x: Array,
        W: Array,
        alpha: Array | None = None,
        act: str = "identity",
        b: Array | None = None,
        noise: Array | None = None,
        beta: Array | None = None,
        into: Array | None = None,
    ) -> tuple[Array, Array]:
        """alpha op(x) op(W) + b + noise, or + beta ``into`` in place; and its activation."""
        m, inner = x.shape[::-1] if ta else x.shape
        n = len(W) if tb else W.shape[1]
        c = self.xp.empty((m, n), x.dtype) if into is None else into
        y = c if act == "identity" else self.xp.empty(c.shape, c.dtype)
        alpha = self._filled(1.0, (), c.dtype) if alpha is None else alpha
        given = (self._plain(v) for v in (x, W, *(c if v is None else v for v in (b, noise))))
        scales = alpha, alpha if beta is None else beta
        flags = ta, tb, beta is not None, b is not None, noise is not None, ACTS[act]
        args = *given, *scales, c, y, m, n, inner, *flags
        blocks = -(-m // TILE) * -(-n // TILE)
        self.device.launch("product", c.dtype.type, blocks, TILE * TILE, args)
        return c, y


def _turned(a: Array, turn: bool) -> Array:
    return a.swapaxes(-1, -2) if turn else a
