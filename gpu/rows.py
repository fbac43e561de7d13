"""Row by row, a block each: losses, goodness, normalisation.  Sums are made in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.extending import register_jitable

from fflearn.gpu.arrays import matrices, reals
from fflearn.gpu.columns import Columns
from fflearn.gpu.elementwise import GOODNESS, L2, LIN, MSQ, NEG_SSQ
from fflearn.gpu.scalars import THREADS, functions
from fflearn.kernels.reference import EPS, NORMS, Array


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
    f = functions(real)
    T, zero, half, sigmoid = f.T, f.zero, f.half, f.sigmoid

    # (Here, since the simulator reaches into no other module.)
    @register_jitable
    def total(partial, t, value):
        """The sum of one value per thread, known to all of them; always in the same order."""
        partial[t] = value
        cuda.syncthreads()
        k = THREADS // 2
        while k > 0:
            if t < k:
                partial[t] += partial[t + k]
            cuda.syncthreads()
            k //= 2
        found = partial[0]
        cuda.syncthreads()
        return found

    @register_jitable
    def highest(partial, t, value):
        """The largest of one value per thread, known to all of them."""
        partial[t] = value
        cuda.syncthreads()
        k = THREADS // 2
        while k > 0:
            if t < k:
                partial[t] = max(partial[t], partial[t + k])
            cuda.syncthreads()
            k //= 2
        found = partial[0]
        cuda.syncthreads()
        return found

    def normalize(x, n, cols, c, eps):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s = zero
        for j in range(t, cols, THREADS):
            s += x[row + j] * x[row + j]
        r = math.sqrt(total(partial, t, s) * c) + eps
        for j in range(t, cols, THREADS):
            n[row + j] = x[row + j] / r

    def normalize_vjp(dn, x, n, dx, cols, c, eps):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s, along = zero, zero
        for j in range(t, cols, THREADS):
            s += x[row + j] * x[row + j]
            along += dn[row + j] * n[row + j]
        r = math.sqrt(total(partial, t, s) * c)
        along = total(partial, t, along)
        for j in range(t, cols, THREADS):
            if r > zero:
                dx[row + j] = dn[row + j] / (r + eps) - n[row + j] * (along * (c / r))
            else:
                dx[row + j] = zero

    def goodness(y, g, cols, kind):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s = zero
        for j in range(t, cols, THREADS):
            v = y[row + j]
            s += v if kind == LIN else v * v
        s = total(partial, t, s)
        if t == 0:
            if kind == NEG_SSQ:
                s = -s
            elif kind == MSQ or kind == LIN:
                s /= real(cols)
            elif kind == L2:
                s = math.sqrt(s)
            g[cuda.blockIdx.x] = s

    def softmax(z, y, cols):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        top, s = z[row], zero
        for j in range(t, cols, THREADS):
            top = max(top, z[row + j])
        top = highest(partial, t, top)
        for j in range(t, cols, THREADS):
            s += math.exp(z[row + j] - top)
        s = total(partial, t, s)
        for j in range(t, cols, THREADS):
            y[row + j] = math.exp(z[row + j] - top) / s

    def softmax_ce(z, target, loss, error, cols):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        top, s, value = z[row], zero, zero
        for j in range(t, cols, THREADS):
            top = max(top, z[row + j])
        top = highest(partial, t, top)
        for j in range(t, cols, THREADS):
            s += math.exp(z[row + j] - top)
        s = total(partial, t, s)
        log_s = math.log(s)
        for j in range(t, cols, THREADS):
            d = z[row + j] - top
            value += target[row + j] * (log_s - d)
            error[row + j] = math.exp(d) / s - target[row + j]
        value = total(partial, t, value)
        if t == 0:
            loss[cuda.blockIdx.x] = value

    def row_loss(y, target, loss, error, cols, binary):
        """Half the squares of y - target added up, or the binary cross-entropies of logits y."""
        partial = cuda.shared.array(THREADS, T)
        row, t, s = cuda.blockIdx.x * cols, cuda.threadIdx.x, zero
        for j in range(t, cols, THREADS):
            v, wanted = y[row + j], target[row + j]
            if binary:
                s += max(v, zero) - v * wanted + math.log1p(math.exp(-abs(v)))
                error[row + j] = sigmoid(v) - wanted
            else:
                d = v - wanted
                s += half * d * d
                error[row + j] = d
        s = total(partial, t, s)
        if t == 0:
            loss[cuda.blockIdx.x] = s

    def standardize_rows(x, n, mean, var, cols, eps, center):
        partial = cuda.shared.array(THREADS, types.float64)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        m = zero
        if center:
            s = 0.0
            for j in range(t, cols, THREADS):
                s += np.float64(x[row + j])
            m = real(total(partial, t, s) / cols)
        s = 0.0
        for j in range(t, cols, THREADS):
            d = x[row + j] - m
            s += np.float64(d * d)
        v = real(total(partial, t, s) / cols)
        r = math.sqrt(v + eps)
        for j in range(t, cols, THREADS):
            n[row + j] = (x[row + j] - m) / r
        if t == 0:
            mean[cuda.blockIdx.x], var[cuda.blockIdx.x] = m, v

    def standardize_rows_vjp(dn, n, var, dx, cols, eps, center):
        partial = cuda.shared.array(THREADS, types.float64)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s, along = 0.0, 0.0
        for j in range(t, cols, THREADS):
            s += np.float64(dn[row + j])
            along += np.float64(dn[row + j] * n[row + j])
        m = real(total(partial, t, s) / cols) if center else zero
        a = real(total(partial, t, along) / cols)
        r = math.sqrt(var[cuda.blockIdx.x] + eps)
        for j in range(t, cols, THREADS):
            dx[row + j] = (dn[row + j] - n[row + j] * a - m) / r

    return {
        "normalize": (normalize, "ppiff"),
        "normalize_vjp": (normalize_vjp, "ppppiff"),
        "goodness": (goodness, "ppii"),
        "softmax": (softmax, "ppi"),
        "softmax_ce": (softmax_ce, "ppppi"),
        "row_loss": (row_loss, "ppppii"),
        "standardize_rows": (standardize_rows, "ppppifi"),
        "standardize_rows_vjp": (standardize_rows_vjp, "ppppifi"),
    }


class Rows(Columns):
    """Methods of `Kernels` that launch these."""

    def normalize(self, x: Array, kind: str) -> Array:
        if not matrices(x) or kind not in NORMS:
            return super().normalize(x, kind)
        n, cols = self.xp.empty(x.shape, x.dtype), x.shape[1]
        self._rows("normalize", x, self._plain(x), n, cols, _share(x, kind), EPS)
        return n

    def normalize_vjp(self, dn: Array, x: Array, n: Array, kind: str) -> Array:
        if not matrices(dn, x, n) or dn.shape != x.shape or kind not in NORMS:
            return super().normalize_vjp(dn, x, n, kind)
        dx, rows = self.xp.empty(x.shape, x.dtype), (self._plain(a) for a in (dn, x, n))
        self._rows("normalize_vjp", x, *rows, dx, x.shape[1], _share(x, kind), EPS)
        return dx

    def standardize(
        self, x: Array, axis: int, eps: float, center: bool = True
    ) -> tuple[Array, Array, Array]:
        if not axis or not matrices(x):
            return super().standardize(x, axis, eps, center)
        x, n = self._plain(x), self.xp.empty(x.shape, x.dtype)
        mean, var = (self.xp.empty((len(x), 1), x.dtype) for _ in "mv")
        self._rows("standardize_rows", x, x, n, mean, var, x.shape[1], eps, center)
        return n, mean, var

    def standardize_vjp(
        self, dn: Array, n: Array, var: Array, axis: int, eps: float, center: bool = True
    ) -> Array:
        if not axis or not matrices(dn, n, var) or dn.shape != n.shape:
            return super().standardize_vjp(dn, n, var, axis, eps, center)
        dx, given = self.xp.empty(n.shape, n.dtype), (self._plain(a) for a in (dn, n, var))
        self._rows("standardize_rows_vjp", n, *given, dx, n.shape[1], eps, center)
        return dx

    def softmax(self, z: Array) -> Array:
        if not z.ndim or not z.size or not reals(z):
            return super().softmax(z)
        y, cols = self.xp.empty(z.shape, z.dtype), z.shape[-1]
        self._blocks("softmax", z, z.size // cols, self._plain(z), y, cols)
        return y

    def softmax_ce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        if not matrices(logits, target) or logits.shape != target.shape:
            return super().softmax_ce(logits, target)
        return self._loss("softmax_ce", logits, target)

    def mse(self, y: Array, target: Array) -> tuple[Array, Array]:
        if not matrices(y, target) or y.shape != target.shape:
            return super().mse(y, target)
        return self._loss("row_loss", y, target, False)

    def bce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        if not matrices(logits, target) or logits.shape != target.shape:
            return super().bce(logits, target)
        return self._loss("row_loss", logits, target, True)

    def _loss(self, kernel: str, y: Array, target: Array, *how: bool) -> tuple[Array, Array]:
        loss, error = self.xp.empty(len(y), y.dtype), self.xp.empty(y.shape, y.dtype)
        given = self._plain(y), self._plain(target)
        self._rows(kernel, y, *given, loss, error, y.shape[1], *how)
        return loss, error

    def goodness(self, y: Array, kind: str) -> Array:
        if not matrices(y) or kind not in GOODNESS:
            return super().goodness(y, kind)
        g = self.xp.empty(len(y), y.dtype)
        self._rows("goodness", y, self._plain(y), g, y.shape[1], GOODNESS[kind])
        return g


def _share(x: Array, kind: str) -> float:
    """The c of r^2 = c sum(x^2)."""
    return 1 / x.shape[1] if kind == "rms" else 1.0
