"""Convolution and pooling by patches, in NumPy: the definition of both.

Images are (B, H, W, C), channels last.  A place (i, j) of the output reads the patch of K x K
pixels that starts at (i stride - padding, j stride - padding); pixels outside are 0.  The pixels
of a patch are its taps, row by row.  Output sizes are rounded down: a last patch that does not
fit is left out, as torch does.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray


def out_size(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """Patches along an axis of ``size`` pixels; 0 or less where none fits."""
    return (size + 2 * padding - kernel) // stride + 1


def taps(x: Array, kernel: int, stride: int) -> Iterator[Array]:
    """The pixel that each patch has at one tap, tap by tap: K^2 views (B, OH, OW, C) of x."""
    h, w = (stride * (out_size(n, kernel, stride) - 1) + 1 for n in x.shape[1:3])
    for i in range(kernel):
        for j in range(kernel):
            yield x[:, i : i + h : stride, j : j + w : stride]


def im2col(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """Patches side by side: (B, H, W, C) -> (B, OH, OW, K^2, C)."""
    return np.stack(list(taps(_padded(x, padding), kernel, stride)), axis=3)


def col2im(cols: Array, in_shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> Array:
    """The adjoint of `im2col`: patches (B, OH, OW, K^2, C) added up to (B, *in_shape)."""
    b, (h, w, c) = len(cols), in_shape
    out = np.zeros_like(cols, shape=(b, h + 2 * padding, w + 2 * padding, c))
    for t, view in enumerate(taps(out, kernel, stride)):
        view += cols[:, :, :, t]
    return out[:, padding : padding + h, padding : padding + w]


def conv(x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
    """a_ij = sum over taps of x W, plus b: (B, H, W, C) -> (B, OH, OW, units).

    W is (K, K, C / groups, units): unit u reads the channels of its own group, and the number of
    groups follows from the shapes.
    """
    cols = im2col(x, len(W), stride, padding)
    a = np.matmul(_by_group(cols, W.shape[2]), _matrices(W, x.shape[3]))
    a = np.moveaxis(a, 0, 1).reshape(*cols.shape[:3], W.shape[3])
    return a if b is None else a + b


def conv_weights(
    x: Array, da: Array, n: float, kernel: int, stride: int, padding: int, groups: int
) -> Array:
    """Sum over samples and places of x^T da, over n: the gradient (K, K, C / groups, units)."""
    cols, c = im2col(x, kernel, stride, padding), x.shape[3] // groups
    own = np.moveaxis(da.reshape(-1, groups, da.shape[3] // groups), 1, 0)
    g = np.matmul(_by_group(cols, c).transpose(0, 2, 1), own) / da.dtype.type(n)
    return np.moveaxis(g, 0, 1).reshape(kernel, kernel, c, da.shape[3])


def conv_input(da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int) -> Array:
    """da W^T, added up where patches overlap: (B, OH, OW, units) -> (B, *in_shape)."""
    w = _matrices(W, in_shape[2])
    own = np.moveaxis(da.reshape(-1, len(w), w.shape[2]), 1, 0)
    cols = np.matmul(own, w.transpose(0, 2, 1))  # (groups, places, taps and channels of a group)
    cols = cols.reshape(len(w), -1, len(W) ** 2, W.shape[2]).transpose(1, 2, 0, 3)
    cols = cols.reshape(*da.shape[:3], len(W) ** 2, in_shape[2])
    return col2im(cols, in_shape, len(W), stride, padding)


def max_pool(x: Array, size: int, stride: int) -> tuple[Array, Array]:
    """The largest pixel of each patch, and its tap: the first, where several are as large."""
    first, *others = taps(x, size, stride)
    y, tap = first, np.zeros_like(first, dtype=np.min_scalar_type(size * size - 1))
    for t, pixel in enumerate(others, 1):
        tap = np.where(pixel > y, tap.dtype.type(t), tap)
        y = np.maximum(y, pixel)  # not `where`: NaN passes through
    return y, tap


def pick(x: Array, tap: Array, size: int, stride: int) -> Array:
    """The pixel of each patch at its tap: (B, H, W, C) -> (B, OH, OW, C)."""
    out = np.zeros_like(x, shape=tap.shape)
    for t, pixel in enumerate(taps(x, size, stride)):
        out += pixel * (tap == t)
    return out


def put(dy: Array, tap: Array, in_shape: tuple[int, ...], size: int, stride: int) -> Array:
    """The adjoint of `pick`: each number goes to its patch's tap, (B, OH, OW, C) -> (B, *in)."""
    out = np.zeros_like(dy, shape=(len(dy), *in_shape))
    for t, view in enumerate(taps(out, size, stride)):
        view += dy * (tap == t)
    return out


def avg_pool(x: Array, size: int, stride: int) -> Array:
    """The mean of each patch: (B, H, W, C) -> (B, OH, OW, C)."""
    return sum(taps(x, size, stride)) * x.dtype.type(1 / size**2)


def avg_pool_input(da: Array, in_shape: tuple[int, ...], size: int, stride: int) -> Array:
    """The adjoint of `avg_pool`: (B, OH, OW, C) -> (B, *in_shape)."""
    out, share = np.zeros_like(da, shape=(len(da), *in_shape)), da * da.dtype.type(1 / size**2)
    for view in taps(out, size, stride):
        view += share
    return out


def _padded(x: Array, padding: int) -> Array:
    if not padding:
        return x
    b, h, w, c = x.shape
    out = np.zeros_like(x, shape=(b, h + 2 * padding, w + 2 * padding, c))
    out[:, padding : padding + h, padding : padding + w] = x
    return out


def _by_group(cols: Array, c: int) -> Array:
    """(B, OH, OW, K^2, C) -> (groups, places, K^2 c), c channels to a group."""
    taps, channels = cols.shape[3:]
    apart = cols.reshape(-1, taps, channels // c, c).transpose(2, 0, 1, 3)
    return apart.reshape(channels // c, -1, taps * c)


def _matrices(W: Array, channels: int) -> Array:
    """(K, K, c, units) -> (groups, K^2 c, units / groups)."""
    groups = channels // W.shape[2]
    return np.moveaxis(W.reshape(-1, groups, W.shape[3] // groups), 1, 0)
