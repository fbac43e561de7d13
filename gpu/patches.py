"""Images, channels last: patches and pooling (see `fflearn.kernels.patches`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from fflearn.gpu.arrays import Arrays, reals
from fflearn.gpu.scalars import functions
from fflearn.kernels.patches import out_size
from fflearn.kernels.reference import Array

BYTE = 16  # the side of the largest patch whose taps fit in a byte


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
    zero = functions(real).zero

    def im2col(x, cols, n, h, w, c, oh, ow, k, stride, padding):
        """The pixels under each patch side by side: n is the number of numbers in cols."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            channel = i % c
            tap = (i // c) % (k * k)
            place = i // (c * k * k)
            row = (place // ow) % oh * stride - padding + tap // k
            col = place % ow * stride - padding + tap % k
            inside = row >= 0 and row < h and col >= 0 and col < w
            at = ((place // (ow * oh) * h + row) * w + col) * c + channel
            cols[i] = x[at] if inside else zero

    def col2im(cols, x, n, h, w, c, oh, ow, k, stride, padding):
        """The adjoint of `im2col`: each pixel gathers from the patches that hold it."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            channel = i % c
            col = (i // c) % w + padding
            row = (i // (c * w)) % h + padding
            image = i // (c * w * h)
            s = zero
            for ki in range(k):
                for kj in range(k):
                    oi, oj = row - ki, col - kj
                    if oi >= 0 and oj >= 0 and oi % stride == 0 and oj % stride == 0:
                        oi, oj = oi // stride, oj // stride
                        if oi < oh and oj < ow:
                            at = ((image * oh + oi) * ow + oj) * k * k + ki * k + kj
                            s += cols[at * c + channel]
            x[i] = s

    def max_pool(x, y, tap, n, h, w, c, oh, ow, size, stride):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            row, col = i // (c * ow) % oh * stride, i // c % ow * stride
            at = ((i // (c * ow * oh) * h + row) * w + col) * c + i % c
            best, found = x[at], 0
            for t in range(1, size * size):
                v = x[at + (t // size * w + t % size) * c]
                if v > best:
                    found = t
                if v > best or math.isnan(v):  # which passes through
                    best = v
            y[i], tap[i] = best, found

    def pool_down(x, tap, y, n, h, w, c, oh, ow, size, stride, by_tap, share):
        """Of each patch the pixel at its tap, or the sum of all times ``share``."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            row, col = i // (c * ow) % oh * stride, i // c % ow * stride
            at = ((i // (c * ow * oh) * h + row) * w + col) * c + i % c
            if by_tap:
                t = tap[i]
                y[i] = x[at + (t // size * w + t % size) * c]
            else:
                s = zero
                for t in range(size * size):
                    s += x[at + (t // size * w + t % size) * c]
                y[i] = s * share

    def pool_up(dy, tap, dx, n, h, w, c, oh, ow, size, stride, by_tap, share):
        """The adjoint of `pool_down`: each pixel gathers from the patches that hold it."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            col, row, image = i // c % w, i // (c * w) % h, i // (c * w * h)
            s = zero
            for t in range(size * size):
                oi, oj = row - t // size, col - t % size
                if oi >= 0 and oj >= 0 and oi % stride == 0 and oj % stride == 0:
                    oi, oj = oi // stride, oj // stride
                    if oi < oh and oj < ow:
                        at = ((image * oh + oi) * ow + oj) * c + i % c
                        if not by_tap:
                            s += dy[at] * share
                        elif tap[at] == t:
                            s += dy[at]
            dx[i] = s

    sizes = "i" * 8
    return {
        "im2col": (im2col, "ppi" + sizes),
        "col2im": (col2im, "ppi" + sizes),
        "max_pool": (max_pool, "ppBiiiiiiii"),
        "pool_down": (pool_down, "pBpiiiiiiiiif"),
        "pool_up": (pool_up, "pBpiiiiiiiiif"),
    }


class Patches(Arrays):
    """Methods of `Kernels` that launch these."""

    def _im2col(
        self, x: Array, places: tuple[int, int, int], kernel: int, stride: int, padding: int
    ) -> Array:
        """Patches (places, taps and channels) of images."""
        h, w, c = x.shape[1:]
        if kernel == stride == 1 and not padding:
            return x.reshape(-1, c)
        cols = self.xp.empty((places[0] * places[1] * places[2], kernel * kernel * c), x.dtype)
        sizes = h, w, c, *places[1:], kernel, stride, padding
        self._each("im2col", x, self._plain(x), cols, cols.size, *sizes)
        return cols

    def max_pool(self, x: Array, size: int, stride: int) -> tuple[Array, Array]:
        if not reals(x) or size > BYTE:
            return super().max_pool(x, size, stride)
        b, h, w, c = x.shape
        shape = b, out_size(h, size, stride), out_size(w, size, stride), c
        y, tap = self.xp.empty(shape, x.dtype), self.xp.empty(shape, np.uint8)
        self._each(
            "max_pool", y, self._plain(x), y, tap, y.size, h, w, c, *shape[1:3], size, stride
        )
        return y, tap

    def pick(self, x: Array, tap: Array, size: int, stride: int) -> Array:
        if not reals(x) or size > BYTE:
            return super().pick(x, tap, size, stride)
        y = self.xp.empty(tap.shape, x.dtype)
        self._pool("pool_down", x, tap, y, x.shape, tap.shape, size, stride, True)
        return y

    def put(
        self, dy: Array, tap: Array, in_shape: tuple[int, ...], size: int, stride: int
    ) -> Array:
        if not reals(dy) or size > BYTE:
            return super().put(dy, tap, in_shape, size, stride)
        dx = self.xp.empty((len(dy), *in_shape), dy.dtype)
        self._pool("pool_up", dy, tap, dx, dx.shape, dy.shape, size, stride, True)
        return dx

    def avg_pool(self, x: Array, size: int, stride: int) -> Array:
        if not reals(x):
            return super().avg_pool(x, size, stride)
        high, wide = (out_size(n, size, stride) for n in x.shape[1:3])
        y = self.xp.empty((len(x), high, wide, x.shape[3]), x.dtype)
        self._pool("pool_down", x, None, y, x.shape, y.shape, size, stride, False)
        return y

    def avg_pool_input(self, da: Array, in_shape: tuple[int, ...], size: int, stride: int) -> Array:
        if not reals(da):
            return super().avg_pool_input(da, in_shape, size, stride)
        dx = self.xp.empty((len(da), *in_shape), da.dtype)
        self._pool("pool_up", da, None, dx, dx.shape, da.shape, size, stride, False)
        return dx

    def _pool(
        self,
        kernel: str,
        a: Array,
        tap: Array | None,
        out: Array,
        full: tuple[int, ...],
        pooled: tuple[int, ...],
        size: int,
        stride: int,
        by_tap: bool,
    ) -> None:
        tap = self._filled(0, 1, np.uint8) if tap is None else self._plain(tap)
        sizes = *full[1:], *pooled[1:3], size, stride
        given = self._plain(a), tap, out, out.size
        self._each(kernel, out, *given, *sizes, by_tap, 1 / size**2)
