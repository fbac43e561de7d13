"""The compiled loops of convolution: a band of rows at a time, so that patches stay in cache.

Patches are laid side by side as in `patches.im2col`, but for one band only, in scratch arrays that
the loop owns; the matrix product on them is one BLAS call.  Bands depend on shapes alone, and each
sum runs in one order, so the bits do not depend on the number of threads.
"""

import numpy as np

from fflearn.kernels.blas import piece
from fflearn.kernels.jit import inner, kernel
from fflearn.kernels.team import spread

BAND = 1 << 16  # numbers in a scratch of patches: 256 KB of float32, which an L2 cache holds
PARTS = 8  # partial sums of a weight gradient, whatever the number of threads


@inner
def _band(height, width, n):
    """Output rows to a band, for rows of ``width`` patches of n numbers."""
    return max(1, min(height, BAND // (width * n)))


@inner
def _pad(image, padding, out):
    """Copy an image (H, W, C) into the middle of out, whose border is 0 already."""
    h, w, c = image.shape
    for i in range(h):
        for j in range(w):
            for e in range(c):
                out[i + padding, j + padding, e] = image[i, j, e]


@inner
def _read(padded, size, stride, i0, i1, width, cols):
    """Patches of output rows i0 .. i1 -> cols (places, K^2 C)."""
    line, run, step = (
        padded.shape[1] * padded.shape[2],
        size * padded.shape[2],
        stride * padded.shape[2],
    )
    source, to = padded.reshape(-1), cols.reshape(-1)
    for i in range(i0, i1):
        for k in range(size):
            at = (i - i0) * width * cols.shape[1] + k * run
            start = (i * stride + k) * line
            for _ in range(width):
                for e in range(run):
                    to[at + e] = source[start + e]
                at += cols.shape[1]
                start += step


@inner
def _add(cols, size, stride, i0, i1, width, padded):
    """Add cols to the pixels they were read from: the adjoint of `_read`."""
    line, run, step = (
        padded.shape[1] * padded.shape[2],
        size * padded.shape[2],
        stride * padded.shape[2],
    )
    source, to = cols.reshape(-1), padded.reshape(-1)
    for i in range(i0, i1):
        for k in range(size):
            at = (i - i0) * width * cols.shape[1] + k * run
            start = (i * stride + k) * line
            for _ in range(width):
                for e in range(run):
                    to[start + e] += source[at + e]
                at += cols.shape[1]
                start += step


@inner
def _conv(image, x, W, b, size, stride, padding, out):
    n, (height, width, units) = W.shape[0], out.shape[1:]
    h, w, c = x.shape[1:]
    band, none = _band(height, width, n), np.int64(0)
    one, beta = out.dtype.type(1), out.dtype.type(1 if b.size > 0 else 0)
    padded = np.zeros((h + 2 * padding, w + 2 * padding, c), x.dtype)
    _pad(x[image], padding, padded)
    cols = np.empty((band * width, n), x.dtype)
    for i0 in range(0, height, band):
        i1 = min(height, i0 + band)
        _read(padded, size, stride, i0, i1, width, cols)
        to = out[image, i0:i1].reshape(-1, units)
        if b.size > 0:
            for r in range(len(to)):
                for u in range(units):
                    to[r, u] = b[u]
        piece(False, False, cols, W, to, one, beta, none, len(to), none, units)


@kernel
def conv(x, W, b, size, stride, padding, out):
    """out (B, OH, OW, units) = patches W + b; W (K^2 C, units); an empty b adds nothing."""
    spread(_conv, len(x), False, (x, W, b, size, stride, padding, out))


@inner
def _conv_weights(p, x, da, scale, size, stride, padding, parts):
    n, (height, width, units) = parts.shape[1], da.shape[1:]
    h, w, c = x.shape[1:]
    band, none, one = _band(height, width, n), np.int64(0), parts.dtype.type(1)
    parts[p] = 0
    padded = np.zeros((h + 2 * padding, w + 2 * padding, c), x.dtype)
    cols = np.empty((band * width, n), x.dtype)
    for image in range(p * len(x) // len(parts), (p + 1) * len(x) // len(parts)):
        _pad(x[image], padding, padded)
        for i0 in range(0, height, band):
            i1 = min(height, i0 + band)
            _read(padded, size, stride, i0, i1, width, cols)
            rows = da[image, i0:i1].reshape(-1, units)
            own = cols[: len(rows)]
            piece(True, False, own, rows, parts[p], scale, one, none, n, none, units)


@kernel
def conv_weights(x, da, scale, size, stride, padding, parts):
    """parts (PARTS, K^2 C, units): scale times patches^T da, each over its share of the samples."""
    spread(_conv_weights, len(parts), False, (x, da, scale, size, stride, padding, parts))


@inner
def _conv_input(image, da, W, size, stride, padding, dx):
    n, (height, width, units) = W.shape[0], da.shape[1:]
    h, w, c = dx.shape[1:]
    band, none = _band(height, width, n), np.int64(0)
    one, zero = dx.dtype.type(1), dx.dtype.type(0)
    padded = np.zeros((h + 2 * padding, w + 2 * padding, c), dx.dtype)
    cols = np.empty((band * width, n), dx.dtype)
    for i0 in range(0, height, band):
        i1 = min(height, i0 + band)
        rows = da[image, i0:i1].reshape(-1, units)
        piece(False, True, rows, W, cols, one, zero, none, len(rows), none, n)
        _add(cols, size, stride, i0, i1, width, padded)
    dx[image] = padded[padding : padding + h, padding : padding + w]


@kernel
def conv_input(da, W, size, stride, padding, dx):
    """dx (B, H, W, C) = da W^T, added up where patches overlap."""
    spread(_conv_input, len(da), False, (da, W, size, stride, padding, dx))


# ---- stride 1: no patches are laid out --------------------------------------------------------
# In the flattened padded image, the pixels that all places have at one tap are consecutive rows,
# if places may run on into the border: one product per tap reads them where they are.


@inner
def _conv_taps(image, x, W, b, size, padding, out):
    (h, w, c), (height, width, units) = x.shape[1:], out.shape[1:]
    line, one, none = w + 2 * padding, out.dtype.type(1), np.int64(0)
    padded = np.zeros((h + 2 * padding + 1, line, c), x.dtype)
    _pad(x[image], padding, padded)
    pixels = padded.reshape(-1, c)
    wide = np.zeros((height * line, units), out.dtype)
    if b.size > 0:
        for r in range(len(wide)):
            for u in range(units):
                wide[r, u] = b[u]
    for k in range(size * size):
        start = k // size * line + k % size
        tap = W[k * c : (k + 1) * c]
        piece(False, False, pixels[start:], tap, wide, one, one, none, len(wide), none, units)
    for i in range(height):
        for j in range(width):
            for u in range(units):
                out[image, i, j, u] = wide[i * line + j, u]


@kernel
def conv_taps(x, W, b, size, padding, out):
    """As `conv` with stride 1."""
    spread(_conv_taps, len(x), False, (x, W, b, size, padding, out))


@inner
def _conv_weights_taps(p, x, da, scale, size, padding, parts):
    (h, w, c), (height, width, units) = x.shape[1:], da.shape[1:]
    line, one, none = w + 2 * padding, parts.dtype.type(1), np.int64(0)
    parts[p] = 0
    padded = np.zeros((h + 2 * padding + 1, line, c), x.dtype)
    pixels = padded.reshape(-1, c)
    wide = np.zeros((height * line, units), da.dtype)
    for image in range(p * len(x) // len(parts), (p + 1) * len(x) // len(parts)):
        _pad(x[image], padding, padded)
        for i in range(height):
            for j in range(width):
                for u in range(units):
                    wide[i * line + j, u] = da[image, i, j, u]
        for k in range(size * size):
            start = k // size * line + k % size
            rows, to = pixels[start : start + len(wide)], parts[p, k * c : (k + 1) * c]
            piece(True, False, rows, wide, to, scale, one, none, c, none, units)


@kernel
def conv_weights_taps(x, da, scale, size, padding, parts):
    """As `conv_weights` with stride 1."""
    spread(_conv_weights_taps, len(parts), False, (x, da, scale, size, padding, parts))
