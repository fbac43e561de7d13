"""Convolutions, channels last: products whose patches are not stored, or cuBLAS on patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda, types

from fflearn.gpu.arrays import reals
from fflearn.gpu.columns import PLAIN, Columns
from fflearn.gpu.patches import Patches
from fflearn.gpu.products import Products
from fflearn.gpu.scalars import SIMULATED, functions
from fflearn.kernels.patches import out_size
from fflearn.kernels.reference import Array

# A block of a convolution makes SIDE x SIDE numbers, DEPTH terms of their sums at a time; each of
# its SQUARE x SQUARE threads makes EACH x EACH of them, in registers.
EACH = 4
SQUARE = DEPTH = 4 if SIMULATED else 16
SIDE, STRIP = SQUARE * EACH, DEPTH // EACH
PITCH = SIDE + 1  # a column more: no two threads go to one bank of shared memory
FORWARD, WEIGHTS, INPUT = range(3)


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
    made = {"conv": FORWARD, "conv_weights": WEIGHTS, "conv_input": INPUT}
    return {name: (_convolution(real, what), "pppp" + "i" * 15) for name, what in made.items()}


def _convolution(real: Any, what: int) -> Callable[..., None]:
    """One of the three products of a convolution; its patches are never stored.

    FORWARD: places x taps and channels of a group, times W.  WEIGHTS: the transpose of that, times
    da, whose places are divided into parts of ``per`` that are added up afterwards.  INPUT: pixels
    x taps and units of a group, of da, times the transpose of W.  ``rows``, ``cols`` and ``inner``
    are the sizes of such a product.
    """
    f = functions(real)
    T, zero = f.T, f.zero

    def conv(
        x, by, bias, out, rows, cols, inner, per, groups, h, w, c, oh, ow, k, stride, padding,
        units, biased,
    ):  # fmt: skip
        left = cuda.shared.array((DEPTH, PITCH), T)
        right = cuda.shared.array((DEPTH, SIDE), T)
        sums = cuda.local.array((EACH, EACH), T)
        row0 = cuda.local.array(EACH, types.int64)
        col0 = cuda.local.array(EACH, types.int64)
        image = cuda.local.array(EACH, types.int64)
        t, block = cuda.threadIdx.x, cuda.blockIdx.x
        across, tall = (cols + SIDE - 1) // SIDE, (rows + SIDE - 1) // SIDE
        side, top = block % across * SIDE, block // across % tall * SIDE
        group, part = block // (across * tall) % groups, block // (across * tall * groups)
        cg, ug = c // groups, units // groups
        first, last = part * per, min(inner, (part + 1) * per)
        for a in range(EACH):
            for b in range(EACH):
                sums[a, b] = zero
            # Where the rows begin that this thread brings to shared memory.
            place = top + t // DEPTH + SQUARE * a
            if what == FORWARD:
                row0[a] = place // ow % oh * stride - padding
                col0[a] = place % ow * stride - padding
                image[a] = place // (oh * ow) * h
            elif what == INPUT:
                row0[a] = place // w % h + padding
                col0[a] = place % w + padding
                image[a] = place // (h * w) * oh
        strip, lane = t // SIDE, t % SIDE
        tap, channel = (top + lane) // cg, group * cg + (top + lane) % cg
        for at in range(first, last, DEPTH):
            if what == WEIGHTS:
                for a in range(EACH):
                    place, v = at + strip + STRIP * a, zero
                    if place < last and top + lane < rows:
                        row = place // ow % oh * stride - padding + tap // k
                        col = place % ow * stride - padding + tap % k
                        if row >= 0 and row < h and col >= 0 and col < w:
                            v = x[((place // (oh * ow) * h + row) * w + col) * c + channel]
                    left[strip + STRIP * a, lane] = v
            else:
                i, many = at + t % DEPTH, cg if what == FORWARD else ug
                tap, channel = i // many, group * many + i % many
                for a in range(EACH):
                    v = zero
                    if i < last and top + t // DEPTH + SQUARE * a < rows:
                        if what == FORWARD:
                            row, col = row0[a] + tap // k, col0[a] + tap % k
                            if row >= 0 and row < h and col >= 0 and col < w:
                                v = x[((image[a] + row) * w + col) * c + channel]
                        else:
                            row, col = row0[a] - tap // k, col0[a] - tap % k
                            if row >= 0 and col >= 0 and row % stride == 0 and col % stride == 0:
                                row, col = row // stride, col // stride
                                if row < oh and col < ow:
                                    v = x[((image[a] + row) * ow + col) * units + channel]
                    left[t % DEPTH, t // DEPTH + SQUARE * a] = v
            for a in range(EACH):
                i, v = at + strip + STRIP * a, zero
                if i < last and side + lane < cols:
                    if what == INPUT:
                        v = by[(i // ug * cg + side + lane) * units + group * ug + i % ug]
                    else:
                        v = by[i * units + group * ug + side + lane]
                right[strip + STRIP * a, lane] = v
            cuda.syncthreads()
            for q in range(DEPTH):
                for a in range(EACH):
                    for b in range(EACH):
                        one, other = t // SQUARE + SQUARE * a, t % SQUARE + SQUARE * b
                        sums[a, b] += left[q, one] * right[q, other]
            cuda.syncthreads()
        for a in range(EACH):
            for b in range(EACH):
                row, col = top + t // SQUARE + SQUARE * a, side + t % SQUARE + SQUARE * b
                if row < rows and col < cols:
                    if what == INPUT:
                        out[row * c + group * cg + col] = sums[a, b]
                    else:
                        unit = group * ug + col
                        v = sums[a, b] + bias[unit] if biased else sums[a, b]
                        out[(part * rows + row) * units + unit] = v

    return conv


class Convolutions(Products, Columns, Patches):
    """Methods of `Kernels` that launch these, or a product."""

    def conv(self, x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
        places = _places(x.shape, W.shape, stride, padding)
        if not places or not reals(*(v for v in (x, W, b) if v is not None)):
            return super().conv(x, W, b, stride, padding)
        groups = x.shape[3] // W.shape[2]
        if self._is_direct(groups):
            out = self.xp.empty((*places, W.shape[3]), x.dtype)
            bias = W if b is None else b
            sizes = places[0] * places[1] * places[2], W.shape[3] // groups, W.size // W.shape[3]
            shape = x.shape, W.shape, places, stride, padding
            self._convolve("conv", x, W, bias, out, sizes, sizes[2], *shape, b is not None)
            return out
        cols = self._im2col(x, places, len(W), stride, padding)
        a = self.matmul(cols, W.reshape(-1, W.shape[3]))
        return self._finished(a, b, "identity", None)[0].reshape(*places, W.shape[3])

    def conv_weights(
        self, x: Array, da: Array, n: float, shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        places = _places(x.shape, shape, stride, padding)
        if not places or (*places, shape[3]) != da.shape or not reals(x, da):
            return super().conv_weights(x, da, n, shape, stride, padding)
        groups = x.shape[3] // shape[2]
        if self._is_direct(groups):
            sizes = shape[0] ** 2 * shape[2], shape[3] // groups, da.size // shape[3]
            # Parts of the places are added up apart, so that there is work for a whole GPU.
            tiles = -(-sizes[0] // SIDE) * -(-sizes[1] // SIDE) * groups
            per = self._part(sizes[2], 2 * tiles)
            sums = self.xp.empty((-(-sizes[2] // per), sizes[0] * shape[3]), x.dtype)
            given = x.shape, shape, places, stride, padding
            self._convolve("conv_weights", x, da, da, sums, sizes, per, *given, False)
            return self._column_sums(sums, sums, PLAIN, 1 / float(n)).reshape(shape)
        cols = self._im2col(x, places, shape[0], stride, padding)
        rows = da.reshape(-1, da.shape[3])
        return self._product(True, False, cols, rows, 1 / float(n)).reshape(shape)

    def conv_input(
        self, da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        full = (len(da), *in_shape)
        places = _places(full, W.shape, stride, padding)
        if not places or (*places, W.shape[3]) != da.shape or not reals(da, W):
            return super().conv_input(da, W, in_shape, stride, padding)
        x, groups = self.xp.empty(full, da.dtype), in_shape[2] // W.shape[2]
        if self._is_direct(groups):
            inner = W.size // (W.shape[2] * groups)
            sizes = x.size // in_shape[2], W.shape[2], inner
            given = full, W.shape, places, stride, padding
            self._convolve("conv_input", da, W, W, x, sizes, inner, *given, False)
            return x
        cols = self.matmul_nt(da.reshape(-1, da.shape[3]), W.reshape(-1, W.shape[3]))
        patches = *in_shape, *places[1:], len(W), stride, padding
        self._each("col2im", x, cols, x, x.size, *patches)
        return x

    def _is_direct(self, groups: int) -> bool:
        """Whether a convolution is one kernel: no patches are stored.  cuBLAS knows no groups."""
        return self.device.direct or groups > 1

    def _convolve(
        self,
        kernel: str,
        x: Array,
        by: Array,
        bias: Array,
        out: Array,
        sizes: tuple[int, int, int],
        per: int,
        full: tuple[int, ...],
        weights: tuple[int, ...],
        places: tuple[int, int, int],
        stride: int,
        padding: int,
        biased: bool,
    ) -> None:
        """A convolution as a product of ``sizes``, see `_convolution`."""
        groups = full[3] // weights[2]
        blocks = -(-sizes[0] // SIDE) * -(-sizes[1] // SIDE) * groups * -(-sizes[2] // per)
        shape = groups, *full[1:], *places[1:], weights[0], stride, padding, weights[3], biased
        arrays = *(self._plain(a) for a in (x, by, bias)), out
        args = *arrays, *sizes, per, *shape
        self.device.launch(kernel, x.dtype.type, blocks, SQUARE * SQUARE, args)


def _places(
    x: tuple[int, ...], W: tuple[int, ...], stride: int, padding: int
) -> tuple[int, int, int] | None:
    """Samples, rows and columns of places of a convolution; None where there are none."""
    if len(x) != 4 or len(W) != 4 or not W[2] or x[3] % W[2] or W[3] % (x[3] // W[2] or 1):
        return None
    high, wide = (out_size(n, W[0], stride, padding) for n in x[1:3])
    return (x[0], high, wide) if min(x[0], x[3], W[3], high, wide) > 0 else None
