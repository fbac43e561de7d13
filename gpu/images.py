"""CUDA kernels of images, channels last: patches, pooling, convolution (see `kernels.patches`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import cuda, types

from fflearn.gpu.scalars import SIMULATED, functions

# A block of a convolution makes SIDE x SIDE numbers, DEPTH terms of their sums at a time; each of
# its SQUARE x SQUARE threads makes EACH x EACH of them, in registers.
EACH = 4
SQUARE = DEPTH = 4 if SIMULATED else 16
SIDE, STRIP = SQUARE * EACH, DEPTH // EACH
PITCH = SIDE + 1  # a column more: no two threads go to one bank of shared memory
FORWARD, WEIGHTS, INPUT = range(3)


def table(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.kernels.table`."""
    zero = functions(real).zero

    # ---- patches ----------------------------------------------------------------------------------
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

    # ---- pooling ------------------------------------------------------------------------------------
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
        "conv": (_convolution(real, FORWARD), "pppp" + "i" * 15),
        "conv_weights": (_convolution(real, WEIGHTS), "pppp" + "i" * 15),
        "conv_input": (_convolution(real, INPUT), "pppp" + "i" * 15),
    }


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
