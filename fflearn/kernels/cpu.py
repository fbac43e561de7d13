"""`CpuKernels`: the reference with its hot methods compiled by Numba.

Each override allocates its outputs with NumPy (so that memory tools see them), hands them to a
compiled loop, and leaves to the reference what the loop does not cover: other dtypes, other
ranks, activations whose exp NumPy vectorises and Numba does not.  Complex states meet real
weights twice, with their real and their imaginary parts.

Differences from the reference, relative to the size of the summed terms: products and row sums
are reordered, so n-term sums differ by about sqrt(n) roundings; exp and log differ by an ulp or
two; everything else has the same bits.
"""

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numba
import numpy as np

from fflearn import random
from fflearn.kernels import compiled, convolution, draws, micro, team, winograd
from fflearn.kernels.blas import gemm
from fflearn.kernels.jit import CONFIG
from fflearn.kernels.patches import out_size
from fflearn.kernels.reference import EPS, Array, Kernels, Product, _real, adam_scales
from fflearn.kernels.threads import ONE_BLAS_THREAD

_FUSED = {"identity": compiled.IDENTITY, "relu": compiled.RELU, "hardsigmoid": compiled.HARDSIGMOID}
_GATED = _FUSED | {"tanh": compiled.TANH, "sigmoid": compiled.SIGMOID}
_GOODNESS = {
    "ssq": compiled.SSQ,
    "neg_ssq": compiled.NEG_SSQ,
    "msq": compiled.MSQ,
    "l2": compiled.L2,
    "lin": compiled.LIN,
}


def threading_layer() -> str:
    """Numba's threading layer: "omp", "tbb" or "workqueue"; "not started" before the first use.

    Numba falls back by itself where OpenMP is missing; its workqueue costs about 85 us a parallel
    region where OpenMP costs 5, and does not change the bits.
    """
    try:
        return numba.threading_layer()
    except ValueError:
        return "not started"


_ALONE, _BESIDE = threading.RLock(), nullcontext()  # made once: whoever enters leaves the same one


@cache
def _turns() -> AbstractContextManager[Any]:
    """What a thread holds while it runs a step: a lock, where Numba has its work queue alone.

    Two threads in a work queue end the process.
    """
    team.gather()
    return _ALONE if threading_layer() == "workqueue" else _BESIDE


class _Held(threading.local):
    """For how many threads this thread has set all up; 0 where it has not."""

    threads = 0


_HELD = _Held()


class _Running:
    """Compiled loops use up to ``threads`` threads, BLAS one; both are restored at the end."""

    def __init__(self, threads: int):
        self._wanted = threads

    def __enter__(self) -> None:
        _turns().__enter__()
        self._outer, self._before = _HELD.threads, numba.get_num_threads()
        self._now = max(1, min(self._wanted, CONFIG.NUMBA_NUM_THREADS))
        if self._now != self._before:
            numba.set_num_threads(self._now)
        ONE_BLAS_THREAD.__enter__()
        _HELD.threads = self._wanted

    def __exit__(self, *_: object) -> None:
        _HELD.threads = self._outer
        ONE_BLAS_THREAD.__exit__()
        if self._now != self._before:
            numba.set_num_threads(self._before)
        _turns().__exit__(None, None, None)


class CpuKernels(Kernels):
    """Numba kernels for float32 and float64; the same bits for any number of threads."""

    name = "numba"

    @property
    def side_by_side(self) -> bool:
        return _turns() is _BESIDE

    @property
    def lowerings(self) -> Any:
        from fflearn.kernels import lowering  # which reads from here

        return lowering

    def running(self, threads: int) -> AbstractContextManager[None]:
        """Compiled loops use up to ``threads`` threads, BLAS one; both are restored at the end.

        Entering takes microseconds, many for a small step; again inside, for as many threads,
        it takes none.
        """
        return _BESIDE if _HELD.threads == threads else _Running(threads)

    # ---- products ---------------------------------------------------------------------------
    def matmul(self, a: Array, b: Array) -> Array:
        if _mixed(a, b):
            return _by_parts(self.matmul, a, b)
        if not _fast(a, b):
            return super().matmul(a, b)
        return _product(False, False, a, b, (a.shape[0], b.shape[1]))

    def matmul_tn(self, a: Array, b: Array) -> Array:
        if not _fast(a, b):
            return super().matmul_tn(a, b)
        return _product(True, False, a, b, (a.shape[1], b.shape[1]))

    def matmul_nt(self, a: Array, b: Array) -> Array:
        if _mixed(a, b):
            return _by_parts(self.matmul_nt, a, b)
        if not _fast(a, b):
            return super().matmul_nt(a, b)
        return _product(False, True, a, b, (a.shape[0], b.shape[0]))

    def dense(
        self,
        x: Array,
        W: Array,
        b: Array | None,
        act: str,
        noise: Array | None = None,
        keep: bool = True,
    ) -> tuple[Array | None, Array]:
        shape = (len(x), W.shape[-1])
        # A compiled loop reads what it is told to: shapes that do not fit go to NumPy, which
        # broadcasts them or raises.
        fits = (b is None or b.shape == shape[1:]) and (noise is None or noise.shape == shape)
        if not fits or not _fast(x, W) or x.shape[1] != W.shape[0]:
            return super().dense(x, W, b, act, noise, keep)
        a = np.empty(shape, x.dtype)
        fused = _FUSED.get(act, compiled.IDENTITY)
        both = keep and fused != compiled.IDENTITY
        y = np.empty(shape if both else (0, 0), x.dtype)
        bias = np.empty(0, a.dtype) if b is None else _plain(b, a.dtype)
        extra = np.empty((0, 0), a.dtype) if noise is None else _plain(noise, a.dtype)
        compiled.dense(_plain(x), _plain(W), bias, extra, a, y, fused)
        if not both:
            y = a if act in _FUSED else self.act(a, act, None if keep else a)
        return a if keep else None, y

    def formed(self, g: Array | Product) -> Array:
        if not isinstance(g, Product) or not _fast(g.x, g.da):
            return super().formed(g)
        return _product(True, False, g.x, g.da, (g.x.shape[1], g.da.shape[1]), 1 / float(g.n))

    def colmean(self, da: Array, n: float) -> Array:
        if not _fast(da):
            return super().colmean(da, n)
        out = np.empty(da.shape[1], da.dtype)
        compiled.colmean(_plain(da), _real(n, da), out)
        return out

    # ---- convolutions -----------------------------------------------------------------------
    def conv(self, x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
        if _mixed(x, W):
            a = _by_parts(self.conv, x, W, None, stride, padding)
            return a if b is None else a + b
        shape = _conv_shape(x, W, stride, padding)
        if not shape or (b is not None and b.shape != shape[3:]):
            return super().conv(x, W, b, stride, padding)
        out = np.empty(shape, x.dtype)
        bias = np.empty(0, x.dtype) if b is None else _plain(b, x.dtype)
        if _by_winograd(x, W.shape, stride, shape):
            planes, products = _tiles(x, shape)
            packed = np.empty(
                (len(planes), -(-W.shape[3] // micro.WIDE), x.shape[3], micro.WIDE), x.dtype
            )
            winograd.conv(_plain(x), _plain(W), bias, padding, planes, products, packed, out)
            return out
        plain = _plain(x), _plain(W).reshape(-1, W.shape[3]), bias
        if _by_taps(x, stride):
            convolution.conv_taps(*plain, len(W), padding, out)
        else:
            convolution.conv(*plain, len(W), stride, padding, out)
        return out

    def conv_weights(
        self, x: Array, da: Array, n: float, shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        like = np.broadcast_to(_real(0, x), shape)
        if _conv_shape(x, like, stride, padding) != da.shape or da.dtype != x.dtype:
            return super().conv_weights(x, da, n, shape, stride, padding)
        if _by_winograd(x, shape, stride, da.shape):
            planes, errors = _tiles(x, da.shape)
            sums, out = np.empty((len(planes), *shape[2:]), x.dtype), np.empty(shape, x.dtype)
            given = _plain(x), _plain(da), _real(1 / n, x)
            winograd.conv_weights(*given, padding, planes, errors, sums, out)
            return out
        # Shares of the samples are summed apart, however many threads there are.
        parts = np.empty((min(len(x), convolution.PARTS), math.prod(shape[:3]), shape[3]), x.dtype)
        plain = _plain(x), _plain(da), _real(1 / n, x), shape[0]
        if _by_taps(x, stride):
            convolution.conv_weights_taps(*plain, padding, parts)
        else:
            convolution.conv_weights(*plain, stride, padding, parts)
        return parts.sum(0).reshape(shape)

    def conv_input(
        self, da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        if _mixed(da, W):
            return _by_parts(self.conv_input, da, W, in_shape, stride, padding)
        out = np.empty((len(da), *in_shape), da.dtype)
        if _conv_shape(out, W, stride, padding) != da.shape:
            return super().conv_input(da, W, in_shape, stride, padding)
        if stride == 1 and padding < len(W):
            # Each pixel gathers from the places that read it: a convolution with W turned round.
            turned = W[::-1, ::-1].swapaxes(2, 3)
            return self.conv(da, turned, None, 1, len(W) - 1 - padding)
        flat = _plain(W).reshape(-1, W.shape[3])
        convolution.conv_input(_plain(da), flat, len(W), stride, padding, out)
        return out

    # ---- columns ----------------------------------------------------------------------------
    def standardize(
        self, x: Array, axis: int, eps: float, center: bool = True
    ) -> tuple[Array, Array, Array]:
        if not _fast(x) or axis or not center:
            return super().standardize(x, axis, eps, center)
        n, sums = np.empty(x.shape, x.dtype), np.empty((convolution.PARTS, x.shape[1]))
        mean, var = np.empty((2, 1, x.shape[1]), x.dtype)
        compiled.standardize(_plain(x), _real(eps, x), sums, n, mean[0], var[0])
        return n, mean, var

    def standardize_vjp(
        self, dn: Array, n: Array, var: Array, axis: int, eps: float, center: bool = True
    ) -> Array:
        if not _fast(n) or not _alike(dn, n) or axis or not center:
            return super().standardize_vjp(dn, n, var, axis, eps, center)
        dx, sums = np.empty(n.shape, n.dtype), np.empty((2, convolution.PARTS, n.shape[1]))
        scale = 1 / np.sqrt(var[0] + _real(eps, n))
        compiled.standardize_vjp(_plain(dn), _plain(n), scale, sums, dx)
        return dx

    # ---- rows -------------------------------------------------------------------------------
    def act_vjp(
        self, dy: Array, a: Any, y: Array, kind: str, into: Array | None = None, /
    ) -> Array:
        da = np.empty(y.shape, y.dtype) if into is None else into
        fits = kind in _GATED and _alike(dy, y, da) and da.flags.c_contiguous
        if kind == "identity" or not fits:
            return super().act_vjp(dy, a, y, kind, into)
        compiled.act_vjp(_flat(dy), _flat(y), da.reshape(-1), _GATED[kind])
        return da

    def normalize(self, x: Array, kind: str) -> Array:
        if not _fast(x) or kind not in ("rms", "unit"):
            return super().normalize(x, kind)
        out = np.empty(x.shape, x.dtype)
        compiled.normalize(_plain(x), _share(x, kind), _real(EPS, x), out)
        return out

    def normalize_vjp(self, dn: Array, x: Array, n: Array, kind: str) -> Array:
        if not _fast(x) or not _alike(dn, x, n) or kind not in ("rms", "unit"):
            return super().normalize_vjp(dn, x, n, kind)
        out = np.empty(x.shape, x.dtype)
        rows = _plain(dn), _plain(x), _plain(n)
        compiled.normalize_vjp(*rows, _share(x, kind), _real(EPS, x), out)
        return out

    def softmax_ce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        if not _fast(logits) or not _alike(logits, target):
            return super().softmax_ce(logits, target)
        loss, error = np.empty(len(logits), logits.dtype), np.empty(logits.shape, logits.dtype)
        compiled.softmax_ce(_plain(logits), _plain(target), loss, error)
        return loss, error

    def goodness(self, y: Array, kind: str) -> Array:
        if not _fast(y) or kind not in _GOODNESS:
            return super().goodness(y, kind)
        out = np.empty(len(y), y.dtype)
        compiled.goodness(_plain(y), _GOODNESS[kind], out)
        return out

    def goodness_vjp(self, dg: Array, y: Array, kind: str) -> Array:
        if not _fast(y) or kind not in _GOODNESS or dg.shape != y.shape[:1]:
            return super().goodness_vjp(dg, y, kind)
        n = y.shape[1]
        factor = {"ssq": 2.0, "neg_ssq": -2.0, "msq": 2.0 / n, "l2": 1.0, "lin": 1.0 / n}[kind]
        out = np.empty(y.shape, y.dtype)
        dg = _plain(dg, y.dtype)
        compiled.goodness_vjp(dg, _plain(y), _GOODNESS[kind], _real(factor, y), out)
        return out

    def logistic(
        self, g: Array, phase: Array, theta: float, temperature: float
    ) -> tuple[Array, Array]:
        if np.ndim(theta) or g.ndim != 1 or not _alike(g, phase):
            return super().logistic(g, phase, theta, temperature)
        loss, dg = np.empty(g.shape, g.dtype), np.empty(g.shape, g.dtype)
        rows = _plain(g), _plain(phase)
        compiled.logistic(*rows, _real(theta, g), _real(temperature, g), loss, dg)
        return loss, dg

    # ---- optimizers -------------------------------------------------------------------------
    def sgd(
        self,
        w: Array,
        g: Array | Product,
        m: Array | None,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        if not _updatable(w, g, m):
            return super().sgd(w, g, m, lr, momentum, weight_decay)
        lr, momentum, weight_decay = float(lr), float(momentum), float(weight_decay)
        if isinstance(g, Product):
            if m is None:
                # The whole update is one product: no gradient is ever stored.
                return _fold(g, w, -lr / g.n, 1 - lr * weight_decay)
            # m becomes momentum m + g; then it is its own gradient, with only decay to add.
            _fold(g, m, 1 / g.n, momentum)
            g, momentum = m, 0.0
        flat_m = np.empty(0, w.dtype) if m is None else m.reshape(-1)
        numbers = (_real(value, w) for value in (lr, momentum, weight_decay))
        compiled.sgd(w.reshape(-1), _flat(g, w.dtype), flat_m, *numbers)

    def adam(
        self,
        w: Array,
        g: Array | Product,
        m: Array,
        v: Array,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
        t: int,
    ) -> None:
        if not _updatable(w, g, m, v):
            return super().adam(w, g, m, v, lr, beta1, beta2, eps, weight_decay, decoupled, t)
        d = self.formed(g)
        scale, root = adam_scales(lr, beta1, beta2, t)
        keep = 1 - lr * weight_decay if decoupled else 1.0
        decay = 0.0 if decoupled else weight_decay
        numbers = keep, decay, 1 - beta1, beta2, 1 - beta2, scale, root, eps
        flat = w.reshape(-1), _flat(d, w.dtype), m.reshape(-1), v.reshape(-1)
        compiled.adam(*flat, *(_real(value, w) for value in numbers))

    # ---- random numbers -----------------------------------------------------------------------
    def random_words(self, static: int, step: int, n: int) -> Array:
        return _draw(draws.words, static, step, n, np.uint32, 4)

    def uniform(self, static: int, step: int, shape: random.Shape, dtype=np.float32) -> Array:
        dtype = random.real(dtype)
        return _draw(draws.uniform, static, step, shape, dtype, 16 // dtype.itemsize)

    def normal(self, static: int, step: int, shape: random.Shape, dtype=np.float32) -> Array:
        return _draw(draws.normal, static, step, shape, random.real(dtype), 4)


def _draw(fill, static: int, step: int, shape: random.Shape, dtype, per_block: int) -> Array:
    n = random.size(shape)
    out = np.empty(-(-n // per_block) * per_block, dtype)
    mask = 0xFFFFFFFF
    halves = static & mask, static >> 32, step & mask, step >> 32
    fill(*map(np.uint64, halves), out)
    return out[:n].reshape(shape)


def _fast(*arrays: Array) -> bool:
    """Matrices with elements, all float32 or all float64."""
    dtype = arrays[0].dtype
    if dtype.char not in "fd":
        return False
    for a in arrays:  # a loop: all() over a generator takes twice as long, on every call
        if a.ndim != 2 or a.dtype != dtype or a.size == 0:
            return False
    return True


def _mixed(rows: Array, weights: Array) -> bool:
    """Complex rows and real weights."""
    return rows.dtype.char in "FD" and weights.dtype.char in "fd"


def _by_parts(product: Callable[..., Array], rows: Array, *others: Any) -> Array:
    """A product that is linear in its rows: real parts, then imaginary ones, in one call."""
    both = product(np.concatenate([rows.real, rows.imag]), *others)
    out = np.empty_like(rows, shape=(len(rows), *both.shape[1:]))
    out.real, out.imag = both[: len(rows)], both[len(rows) :]
    return out


def _alike(*arrays: Array) -> bool:
    """One shape and one dtype, float32 or float64, with elements."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if dtype.char not in "fd" or 0 in shape:
        return False
    for a in arrays:
        if a.dtype != dtype or a.shape != shape:
            return False
    return True


def _conv_shape(x: Array, W: Array, stride: int, padding: int) -> tuple[int, ...]:
    """Shape of x W where a compiled convolution covers it: not in groups; else ()."""
    if x.ndim != 4 or W.ndim != 4 or x.dtype != W.dtype or x.dtype.char not in "fd":
        return ()
    high, wide = (out_size(n, len(W), stride, padding) for n in x.shape[1:3])
    fits = W.shape[0] == W.shape[1] and W.shape[2] == x.shape[3] and min(high, wide) > 0
    return (len(x), high, wide, W.shape[3]) if fits and x.size and W.size else ()


def _by_taps(x: Array, stride: int) -> bool:
    """Whether a product per tap beats laying patches out: they are thin for a few channels."""
    return stride == 1 and x.shape[3] >= 8


def _by_winograd(x: Array, weights: tuple[int, ...], stride: int, out: tuple[int, ...]) -> bool:
    """Whether `winograd` does this convolution with less work: enough channels and places."""
    large = min(weights[2:]) >= micro.LANES and min(out[1:3]) >= winograd.M - 1
    return micro.AVAILABLE and stride == 1 and weights[0] == 3 and large and x.dtype.char == "f"


def _tiles(x: Array, out: tuple[int, ...]) -> tuple[Array, Array]:
    """Scratch for transformed tiles: of x (B, H, W, C), and of outputs (B, OH, OW, units)."""
    n, c, units = winograd.N**2, x.shape[3], out[3]
    tiles = len(x) * -(-out[1] // winograd.M) * -(-out[2] // winograd.M)
    tiles = min(tiles, max(64, winograd.CHUNK // (n * (c + units))))
    return np.empty((n, tiles, c), x.dtype), np.empty((n, tiles, units), x.dtype)


def _updatable(w: Array, g: Array | Product, *buffers: Array | None) -> bool:
    """w and its buffers can be updated through flat views, by a gradient that fits."""
    if isinstance(g, Product):
        shape = (g.x.shape[-1], g.da.shape[-1])
        fits = _fast(w, g.x, g.da) and len(g.x) == len(g.da) and w.shape == shape
    else:
        fits = w.shape == g.shape
    held = [w, *(m for m in buffers if m is not None)]
    return fits and _alike(*held) and all(a.flags.c_contiguous for a in held)


def _plain(a: Array, dtype: np.dtype | None = None) -> Array:
    """The array, C-contiguous and of the one type that the loops are compiled for."""
    a = np.ascontiguousarray(a, dtype)
    if not a.flags.writeable:
        # To Numba a read-only array is another type: every loop would be compiled once more for
        # each argument that is a view of the state.  The loops write to their outputs only.
        view = a.view()
        try:
            view.flags.writeable = True
        except ValueError:  # memory that nobody may write (a mapped file): compile for it
            return a
        return view
    return a


def _flat(a: Array, dtype: np.dtype | None = None) -> Array:
    return _plain(a, dtype).reshape(-1)


def _share(x: Array, kind: str) -> np.floating:
    """The c of r^2 = c sum(x^2)."""
    return _real(1 / x.shape[1] if kind == "rms" else 1.0, x)


def _product(
    ta: bool, tb: bool, a: Array, b: Array, shape: tuple[int, int], alpha: float = 1.0
) -> Array:
    if a.shape[0 if ta else 1] != b.shape[1 if tb else 0]:
        # BLAS would read past the end: NumPy's message is the one users know.
        return (a.T if ta else a) @ (b.T if tb else b)
    out = np.empty(shape, a.dtype)
    gemm(ta, tb, _plain(a), _plain(b), out, _real(alpha, a), _real(0, a))
    return out


def _fold(g: Product, out: Array, alpha: float, beta: float) -> None:
    """out = alpha x^T da + beta out."""
    gemm(True, False, _plain(g.x), _plain(g.da), out, _real(alpha, out), _real(beta, out))
