"""Number by number: activations, the logistic loss, the derivative of goodness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from fflearn.gpu import scalars
from fflearn.gpu.arrays import Arrays, matrices, reals
from fflearn.gpu.scalars import IDENTITY, functions
from fflearn.kernels.reference import BY_INPUT, Array

SSQ, NEG_SSQ, MSQ, L2, LIN = range(5)
ACTS = {
    "identity": scalars.IDENTITY,
    "relu": scalars.RELU,
    "hardsigmoid": scalars.HARDSIGMOID,
    "tanh": scalars.TANH,
    "sigmoid": scalars.SIGMOID,
    "gelu": scalars.GELU,
}
GOODNESS = {"ssq": SSQ, "neg_ssq": NEG_SSQ, "msq": MSQ, "l2": L2, "lin": LIN}


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
    f = functions(real)
    zero, act1, slope1, sigmoid, softplus = f.zero, f.act, f.slope, f.sigmoid, f.softplus

    def bias_act(a, b, noise, y, n, cols, biased, noisy, kind):
        """a += b + noise in place, and y = act(a), but for the identity, whose y is a."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            v = a[i]
            if biased:
                v += b[i % cols]
            if noisy:
                v += noise[i]
            a[i] = v
            if kind != IDENTITY:
                y[i] = act1(v, kind)

    def act(a, y, n, kind):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            y[i] = act1(a[i], kind)

    def act_vjp(dy, a, y, da, n, kind):
        """da = dy act'(a); da may be dy, and a may be y where y tells the slope."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            da[i] = dy[i] * slope1(a[i], y[i], kind)

    def logistic(g, phase, theta, temperature, loss, dg, n):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            slope = -phase[i] / temperature
            u = slope * (g[i] - theta)
            loss[i] = softplus(u)
            dg[i] = slope * sigmoid(u)

    def goodness_vjp(dg, g, y, dy, n, cols, kind, factor):
        """factor dg y; "lin" without y; "l2" over the norm g, 0 where that is 0."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            row = i // cols
            if kind == LIN:
                dy[i] = dg[row] * factor
            elif kind == L2:
                dy[i] = dg[row] / g[row] * y[i] if g[row] > zero else zero
            else:
                dy[i] = dg[row] * factor * y[i]

    return {
        "bias_act": (bias_act, "ppppiiiii"),
        "act": (act, "ppii"),
        "act_vjp": (act_vjp, "ppppii"),
        "logistic": (logistic, "ppffppi"),
        "goodness_vjp": (goodness_vjp, "ppppiiif"),
    }


class Elementwise(Arrays):
    """Methods of `Kernels` that launch these."""

    def act(self, a: Array, kind: str, into: Array | None = None, /) -> Array:
        y = self.xp.empty(a.shape, a.dtype) if into is None else into
        fits = kind in ACTS and reals(a, y) and a.shape == y.shape and y.flags.c_contiguous
        if kind == "identity" or not fits:
            return super().act(a, kind, into)
        self._each("act", y, self._plain(a), y, y.size, ACTS[kind])
        return y

    def act_vjp(
        self, dy: Array, a: Any, y: Array, kind: str, into: Array | None = None, /
    ) -> Array:
        of = a if kind in BY_INPUT else y  # what the slope is told by
        da = self.xp.empty(y.shape, y.dtype) if into is None else into
        fits = kind in ACTS and reals(dy, of, y, da) and dy.shape == y.shape == da.shape
        if kind == "identity" or not fits or not da.flags.c_contiguous:
            return super().act_vjp(dy, a, y, kind, into)
        given = (self._plain(v) for v in (dy, of, y))
        self._each("act_vjp", y, *given, da, y.size, ACTS[kind])
        return da

    def _finished(
        self, a: Array, b: Array | None, act: str, noise: Array | None
    ) -> tuple[Array, Array]:
        """Bias, noise and activation of a product just made, in one launch."""
        if not reals(*(v for v in (a, b, noise) if v is not None)):
            a = a if b is None else a + b
            a = a if noise is None else a + noise
            return a, self.act(a, act)
        if b is None and noise is None and act == "identity":
            return a, a
        y = None if act == "identity" else self.xp.empty(a.shape, a.dtype)
        nothing = self._filled(0.0, 1, a.dtype)
        given = (nothing if v is None else self._plain(v) for v in (b, noise))
        flags = b is not None, noise is not None, ACTS[act]
        to = nothing if y is None else y
        self._each("bias_act", a, a, *given, to, a.size, a.shape[-1], *flags)
        return a, a if y is None else y

    def logistic(
        self, g: Array, phase: Array, theta: float, temperature: float
    ) -> tuple[Array, Array]:
        if np.ndim(theta) or not reals(g, phase) or g.shape != phase.shape:
            return super().logistic(g, phase, theta, temperature)
        loss, dg = self.xp.empty(g.shape, g.dtype), self.xp.empty(g.shape, g.dtype)
        given = self._plain(g), self._plain(phase)
        self._each("logistic", g, *given, theta, temperature, loss, dg, g.size)
        return loss, dg

    def goodness_vjp(self, dg: Array, y: Array, kind: str) -> Array:
        if not matrices(y) or kind not in GOODNESS or dg.shape != y.shape[:1]:
            return super().goodness_vjp(dg, y, kind)
        n = y.shape[1]
        factor = {"ssq": 2.0, "neg_ssq": -2.0, "msq": 2.0 / n, "l2": 1.0, "lin": 1.0 / n}[kind]
        g = self.goodness(y, "l2") if kind == "l2" else dg
        dy, dg = self.xp.empty(y.shape, y.dtype), self._plain(dg.astype(y.dtype, copy=False))
        self._each("goodness_vjp", y, dg, g, self._plain(y), dy, y.size, n, GOODNESS[kind], factor)
        return dy
