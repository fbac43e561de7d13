"""Which calls of `native` an operation of a tape is, where there are such: the CPU backend's table.

A lowering gets the tape being made, the refs of the operation's results, and its arguments as the
operation has them: a ref (with shape, strides and dtype) for each value of the step, other values as
they are.  It returns False, before it has added anything, where it does not apply: the operation is
then called from Python.  Conditions are those under which `CpuKernels` takes the compiled loop.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fflearn import random
from fflearn.kernels import compiled, native
from fflearn.kernels.cpu import _FUSED, _GATED, _GOODNESS, _alike, _fast
from fflearn.kernels.reference import EPS, Product, adam_scales

Lowering = Callable[..., bool | None]
KERNELS: dict[str, Lowering] = {}  # by the kernel's name
METHODS: dict[str, Lowering] = {}  # of arrays, by name
FUNCTIONS: dict[Any, Lowering] = {}

HALF = 0xFFFFFFFF


def _into(table: dict, *names: Any) -> Callable[[Lowering], Lowering]:
    def put(lowering: Lowering) -> Lowering:
        table.update(dict.fromkeys(names, lowering))
        return lowering

    return put


# ---- refs -----------------------------------------------------------------------------------------


def contiguous(r: Any) -> bool:
    """Whether its numbers follow one another, row by row."""
    step = r.dtype.itemsize
    for n, stride in zip(reversed(r.shape), reversed(r.strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def plain(t: Any, r: Any) -> Any:
    """The array or a copy of it, so that it is contiguous."""
    if contiguous(r):
        return r
    flat = t.scratch(r.shape)
    _copy(t, flat, r)
    return flat


def vec(r: Any) -> tuple[Any, int]:
    """The words of an array as a vector."""
    return r, r.size


def mat(r: Any) -> tuple[Any, int, int]:
    """The words of a matrix."""
    return (r, *r.shape)


NOTHING = (0, 0)  # a vector without numbers


def single(*items: Any) -> bool:
    """Whether all are float32."""
    return all(getattr(i, "dtype", None) == np.float32 for i in items)


def loops(shape: tuple[int, ...], *operands: Any) -> list[int] | None:
    """Three sizes, and three strides of each operand broadcast to the shape; None if more are needed."""
    spread = []
    for r in operands:
        missing = len(shape) - len(r.shape)
        own = [s if n > 1 else 0 for n, s in zip(r.shape, r.strides, strict=True)]
        spread.append([0] * missing + own)
    dims: list[tuple[int, ...]] = []
    for n, *strides in zip(shape, *spread, strict=True):
        if n == 1:
            continue
        if dims and all(b == s * n for b, s in zip(dims[-1][1:], strides, strict=True)):
            dims[-1] = (dims[-1][0] * n, *strides)
        else:
            dims.append((n, *strides))
    if len(dims) > 3 or 0 in shape:
        return None
    dims = [(1, *[0] * len(operands))] * (3 - len(dims)) + dims
    sizes, *strides = zip(*dims, strict=True)
    return [*sizes, *(s for own in strides for s in own)]


def _copy(t: Any, to: Any, source: Any) -> bool:
    found = loops(to.shape, to, source)
    if found is None or not single(to, source):
        return False
    t.call(native.copy, to, source, *found)
    return True


# ---- products ---------------------------------------------------------------------------------------


def _gemm(t: Any, ta: bool, tb: bool, a: Any, b: Any, out: Any, alpha: Any, beta: Any) -> None:
    a, b = plain(t, a), plain(t, b)
    numbers = t.number(alpha), t.number(beta)
    t.call(native.gemm, *mat(a), *mat(b), *mat(out), int(ta), int(tb), *numbers)


def _product(ta: bool, tb: bool) -> Lowering:
    def lowering(t: Any, outs: list[Any], a: Any, b: Any) -> bool | None:
        if (
            not single(a, b)
            or not _fast(a, b)
            or a.shape[0 if ta else 1] != b.shape[1 if tb else 0]
        ):
            return False
        _gemm(t, ta, tb, a, b, outs[0], 1.0, 0.0)
        return None

    return lowering


KERNELS |= {
    "matmul": _product(False, False),
    "matmul_tn": _product(True, False),
    "matmul_nt": _product(False, True),
}


def _formable(g: Any) -> bool:
    single_ones = isinstance(g, Product) and single(g.x, g.da) and _fast(g.x, g.da)
    return single_ones and len(g.x.shape) == 2 and g.x.shape[0] == g.da.shape[0]


@_into(KERNELS, "formed")
def _formed(t: Any, outs: list[Any], g: Any) -> bool | None:
    if not _formable(g):
        return False
    _gemm(t, True, False, g.x, g.da, outs[0], 1 / float(g.n), 0.0)
    return None


@_into(KERNELS, "dense")
def _dense(
    t: Any, outs: list[Any], x: Any, W: Any, b: Any, act: str, noise: Any = None, keep: bool = True
) -> bool | None:
    shape = (x.shape[0], W.shape[-1])
    fits = (b is None or single(b) and b.shape == shape[1:]) and (
        noise is None or single(noise) and noise.shape == shape
    )
    if not fits or not single(x, W) or not _fast(x, W) or x.shape[1] != W.shape[0]:
        return False
    y = outs[-1]
    x, W = plain(t, x), plain(t, W)
    bias = NOTHING if b is None else vec(plain(t, b))
    extra = (0, 0, 0) if noise is None else mat(plain(t, noise))
    fused = _FUSED.get(act, compiled.IDENTITY)
    a = outs[0] if keep else y
    to = mat(y) if keep and fused != compiled.IDENTITY else (0, 0, 0)
    t.call(native.dense, *mat(x), *mat(W), *bias, *extra, *mat(a), *to, fused)
    if act not in _FUSED:
        t.then(t.kernels.act, (a, act, y), y)
    return None


@_into(KERNELS, "colmean")
def _colmean(t: Any, outs: list[Any], da: Any, n: Any) -> bool | None:
    if not single(da) or not _fast(da):
        return False
    t.call(native.colmean, *mat(plain(t, da)), *vec(outs[0]), t.number(n))
    return None


# ---- rows -------------------------------------------------------------------------------------------


@_into(KERNELS, "act")
def _act(t: Any, outs: list[Any], a: Any, kind: str, into: Any = None) -> bool | None:
    y = outs[0] if into is None else into
    if kind not in _FUSED or kind == "identity" or not single(a, y) or not _alike(a, y):
        return False
    if not contiguous(y):
        return False
    t.call(native.act, *vec(plain(t, a)), *vec(y), _FUSED[kind])
    return None


@_into(KERNELS, "act_vjp")
def _act_vjp(
    t: Any, outs: list[Any], dy: Any, a: Any, y: Any, kind: str, into: Any = None
) -> bool | None:
    da = outs[0] if into is None else into
    fits = kind in _GATED and kind != "identity" and single(dy, y, da)
    if not fits or not _alike(dy, y, da) or not contiguous(da):
        return False
    t.call(native.act_vjp, *vec(plain(t, dy)), *vec(plain(t, y)), *vec(da), _GATED[kind])
    return None


@_into(KERNELS, "normalize")
def _normalize(t: Any, outs: list[Any], x: Any, kind: str) -> bool | None:
    if not single(x) or not _fast(x) or kind not in ("rms", "unit"):
        return False
    t.call(native.normalize, *mat(plain(t, x)), *mat(outs[0]), *_share(t, x, kind))
    return None


@_into(KERNELS, "normalize_vjp", "normalize_jvp")
def _normalize_vjp(t: Any, outs: list[Any], dn: Any, x: Any, n: Any, kind: str) -> bool | None:
    fits = single(dn, x, n) and kind in ("rms", "unit")
    if not fits or not _fast(x) or not _alike(dn, x, n):
        return False
    rows = (*mat(plain(t, dn)), *mat(plain(t, x)), *mat(plain(t, n)))
    t.call(native.normalize_vjp, *rows, *mat(outs[0]), *_share(t, x, kind))
    return None


def _share(t: Any, x: Any, kind: str) -> tuple[Any, Any]:
    return t.number(1 / x.shape[1] if kind == "rms" else 1.0), t.number(EPS)


@_into(KERNELS, "softmax_ce")
def _softmax_ce(t: Any, outs: list[Any], logits: Any, target: Any) -> bool | None:
    if not single(logits, target) or not _fast(logits) or not _alike(logits, target):
        return False
    loss, error = outs
    rows = (*mat(plain(t, logits)), *mat(plain(t, target)))
    t.call(native.softmax_ce, *rows, *vec(loss), *mat(error))
    return None


@_into(KERNELS, "goodness")
def _goodness(t: Any, outs: list[Any], y: Any, kind: str) -> bool | None:
    if not single(y) or not _fast(y) or kind not in _GOODNESS:
        return False
    t.call(native.goodness, *mat(plain(t, y)), *vec(outs[0]), _GOODNESS[kind])
    return None


@_into(KERNELS, "goodness_vjp")
def _goodness_vjp(t: Any, outs: list[Any], dg: Any, y: Any, kind: str) -> bool | None:
    fits = single(dg, y) and _fast(y) and kind in _GOODNESS and dg.shape == y.shape[:1]
    if not fits:
        return False
    n = y.shape[1]
    factor = {"ssq": 2.0, "neg_ssq": -2.0, "msq": 2.0 / n, "l2": 1.0, "lin": 1.0 / n}[kind]
    rows = (*vec(plain(t, dg)), *mat(plain(t, y)))
    t.call(native.goodness_vjp, *rows, *mat(outs[0]), _GOODNESS[kind], t.number(factor))
    return None


@_into(KERNELS, "logistic")
def _logistic(
    t: Any, outs: list[Any], g: Any, phase: Any, theta: float, temperature: float
) -> bool | None:
    phase = t.ref(phase)
    fits = single(g, phase) and not np.ndim(theta) and len(g.shape) == 1
    if not fits or not _alike(g, phase):
        return False
    rows = (*vec(plain(t, g)), *vec(plain(t, phase)))
    t.call(
        native.logistic, *rows, *vec(outs[0]), *vec(outs[1]), t.number(theta), t.number(temperature)
    )
    return None


# ---- optimizers -------------------------------------------------------------------------------------


def _updatable(w: Any, g: Any, *buffers: Any) -> bool:
    if isinstance(g, Product):
        fits = _formable(g) and w.shape == (g.x.shape[-1], g.da.shape[-1])
    else:
        fits = single(g) and w.shape == g.shape
    held = [w, *(m for m in buffers if m is not None)]
    return fits and single(*held) and _alike(*held) and all(map(contiguous, held))


@_into(KERNELS, "sgd")
def _sgd(
    t: Any, outs: list[Any], w: Any, g: Any, m: Any, lr: Any, momentum: float, weight_decay: Any
) -> bool | None:
    if not _updatable(w, g, m):
        return False
    if isinstance(g, Product):
        if m is None:
            rows = (*mat(plain(t, g.x)), *mat(plain(t, g.da)), *mat(w))
            t.call(native.descend, *rows, t.number(lr), t.number(g.n), t.number(weight_decay))
            return None
        _gemm(t, True, False, g.x, g.da, m, 1 / g.n, momentum)
        g, momentum = m, 0.0
    kept = NOTHING if m is None else vec(m)
    numbers = t.number(lr), t.number(momentum), t.number(weight_decay)
    t.call(native.sgd, *vec(w), *vec(plain(t, g)), *kept, *numbers)
    return None


@_into(KERNELS, "adam")
def _adam(
    t: Any, outs: list[Any], w: Any, g: Any, m: Any, v: Any, lr: Any, beta1: float, beta2: float,
    eps: float, weight_decay: Any, decoupled: bool, step: Any,
) -> bool | None:  # fmt: skip
    if not _updatable(w, g, m, v):
        return False
    d = g
    if isinstance(g, Product):
        d = t.scratch(w.shape)
        _gemm(t, True, False, g.x, g.da, d, 1 / float(g.n), 0.0)
    scale, root = t.host(adam_scales, 2, lr, beta1, beta2, step)
    (keep,) = t.host(kept_part, 1, lr, weight_decay) if decoupled else (1.0,)
    decay = 0.0 if decoupled else weight_decay
    numbers = keep, decay, 1 - beta1, beta2, 1 - beta2, scale, root, eps
    flat = (*vec(w), *vec(plain(t, d)), *vec(m), *vec(v))
    t.call(native.adam, *flat, *map(t.number, numbers))
    return None


def kept_part(lr: float, weight_decay: float) -> float:
    """What decoupled decay multiplies weights by."""
    return 1 - lr * weight_decay


# ---- random numbers ---------------------------------------------------------------------------------


def _draw(kernel: native.Native, dtype: Any, per_block: int) -> Lowering:
    def lowering(
        t: Any, outs: list[Any], static: int, step: Any, shape: Any, kind: Any = np.float32
    ) -> bool | None:
        if outs[0].dtype != dtype or not isinstance(static, int) or not random.size(shape):
            return False
        n = -(-random.size(shape) // per_block) * per_block
        t.call(kernel, outs[0], n, static & HALF, static >> 32, t.whole(step))
        return None

    return lowering


KERNELS |= {
    "random_words": _draw(native.words, np.uint32, 4),
    "uniform": _draw(native.uniform, np.float32, 4),
    "normal": _draw(native.normal, np.float32, 4),
}


@_into(FUNCTIONS, np.unpackbits)
def _unpack_bits(
    t: Any, outs: list[Any], a: Any, axis: Any = None, count: Any = None, bitorder: str = "big"
) -> bool | None:
    if bitorder != "little" or count is not None or len(a.shape) != 1 or not contiguous(a):
        return False
    t.call(native.unpack_bits, *vec(outs[0]), *vec(a))
    return None


# ---- elementwise ------------------------------------------------------------------------------------


def _binary(code: int, in_place: bool = False) -> Lowering:
    def lowering(t: Any, outs: list[Any], a: Any, b: Any, **kwargs: Any) -> bool | None:
        one, two = t.ref(a), t.ref(b)
        out = one if in_place else outs[0]
        if kwargs or not single(one, two, out):
            return False
        found = loops(out.shape, out, one, two)
        if found is None:
            return False
        t.call(native.binary, out, one, two, code, *found)
        return None

    return lowering


FUNCTIONS |= {
    fn: _binary(code, in_place)
    for code, names in {
        native.ADD: (operator.add, np.add, operator.iadd),
        native.SUB: (operator.sub, np.subtract, operator.isub),
        native.MUL: (operator.mul, np.multiply, operator.imul),
        native.DIV: (operator.truediv, np.true_divide, operator.itruediv),
    }.items()
    for fn, in_place in zip(names, (False, False, True), strict=True)
}


def _unary(code: int) -> Lowering:
    def lowering(t: Any, outs: list[Any], a: Any, **kwargs: Any) -> bool | None:
        if kwargs or not single(a, outs[0]) or not contiguous(outs[0]) or not a.size:
            return False
        t.call(native.unary, *vec(outs[0]), *vec(plain(t, a)), code)
        return None

    return lowering


FUNCTIONS |= dict.fromkeys((operator.neg, np.negative), _unary(native.NEGATIVE))
FUNCTIONS |= dict.fromkeys((operator.abs, np.absolute), _unary(native.ABSOLUTE))
FUNCTIONS[np.sqrt] = _unary(native.ROOT)


@_into(FUNCTIONS, operator.setitem)
def _setitem(t: Any, outs: list[Any], to: Any, at: Any, value: Any) -> bool | None:
    source = t.ref(value)
    return at is Ellipsis and single(to, source) and _copy(t, to, source)


@_into(FUNCTIONS, operator.getitem)
def _getitem(t: Any, outs: list[Any], a: Any, at: Any) -> bool | None:
    """One number of an array; what is an array itself is a view, and so no operation."""
    places = at if isinstance(at, tuple) else (at,)
    single_number = single(a, outs[0]) and all(type(i) is int for i in places)
    if not single_number or len(places) != len(a.shape):
        return False
    each = zip(places, a.shape, a.strides, strict=True)
    offset = a.offset + sum(i % n * stride for i, n, stride in each)
    return _copy(t, outs[0], a._replace(offset=offset, shape=(), strides=()))


@_into(METHODS, "copy")
def _copied(t: Any, outs: list[Any], a: Any, order: str = "C") -> bool | None:
    return single(a, outs[0]) and _copy(t, outs[0], a)


@_into(METHODS, "astype")
def _astype(t: Any, outs: list[Any], a: Any, dtype: Any, **kwargs: Any) -> bool | None:
    (out,) = outs
    if out.dtype != np.float32:
        return False
    if a.dtype == np.float32:
        return _copy(t, out, a)
    if a.dtype == np.uint8 and contiguous(a) and contiguous(out):
        t.call(native.from_octets, *vec(out), a)
        return None
    if a.dtype == np.float64 and a.size == 1:
        t.call(native.from_double, out, a)
        return None
    return False


@_into(FUNCTIONS, np.zeros_like)
def _zeros_like(t: Any, outs: list[Any], a: Any, **kwargs: Any) -> bool | None:
    return _filled(t, outs, 0.0)


@_into(FUNCTIONS, np.ones_like)
def _ones_like(t: Any, outs: list[Any], a: Any, **kwargs: Any) -> bool | None:
    return _filled(t, outs, 1.0)


@_into(FUNCTIONS, np.full_like)
def _full_like(t: Any, outs: list[Any], a: Any, value: Any, **kwargs: Any) -> bool | None:
    return isinstance(value, (int, float)) and _filled(t, outs, value)


def _filled(t: Any, outs: list[Any], value: float) -> bool | None:
    (out,) = outs
    if not single(out) or math.prod(out.shape) * 4 != out.buffer.nbytes:
        return False
    t.call(native.fill, *vec(out), t.number(value))
    return None


@_into(FUNCTIONS, np.concatenate)
def _concatenate(
    t: Any, outs: list[Any], arrays: Any, axis: int = 0, dtype: Any = None
) -> bool | None:
    (out,), parts = outs, [t.ref(a) for a in arrays]
    if not single(out, *parts) or len(out.shape) > 3:
        return False
    offset, stride = out.offset, out.strides[axis]
    for part in parts:
        if part.size:
            _copy(t, out._replace(offset=offset, shape=part.shape), part)
        offset += part.shape[axis] * stride
    return None


@_into(FUNCTIONS, np.stack)
def _stack(t: Any, outs: list[Any], arrays: Any, axis: int = 0) -> bool | None:
    (out,), parts = outs, [t.ref(a) for a in arrays]
    if not single(out, *parts) or len(out.shape) > 3:
        return False
    axis %= len(out.shape)
    rest = [i for i in range(len(out.shape)) if i != axis]
    inner = {f: tuple(getattr(out, f)[i] for i in rest) for f in ("shape", "strides")}
    for i, part in enumerate(parts):
        if part.size:
            _copy(t, out._replace(offset=out.offset + i * out.strides[axis], **inner), part)
    return None


# ---- sums -------------------------------------------------------------------------------------------

BUFFERED = 8192  # elements that NumPy casts, and sums, at a time


@_into(METHODS, "mean")
def _mean(
    t: Any, outs: list[Any], a: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False
) -> bool | None:
    if dtype is None:
        return _summed(t, outs, a, axis, mean=True)
    fits = single(a) and dtype is np.float64 and axis is None and contiguous(a)
    if not fits or not 0 < a.size <= BUFFERED or len(a.shape) != 1:
        return False
    t.call(native.mean64, outs[0], *vec(a))
    return None


@_into(METHODS, "sum")
def _sum(t: Any, outs: list[Any], a: Any, axis: Any = None, keepdims: bool = False) -> bool | None:
    return _summed(t, outs, a, axis, mean=False)


def _summed(t: Any, outs: list[Any], a: Any, axis: Any, mean: bool) -> bool | None:
    """Over all of an array, or an axis of a matrix: where NumPy's order is known."""
    (out,), n = outs, a.size
    if not single(a, out) or not a.size or not contiguous(a) or not contiguous(out):
        return False
    if axis is None:
        shape = 1, a.size
    elif len(a.shape) == 2 and type(axis) is int and min(a.shape) > 1:
        shape, n = a.shape, a.shape[axis]
    else:
        return False
    by_row = axis is None or axis % 2 == 1
    kernel = native.rows_sum if by_row else native.columns_sum
    t.call(kernel, *vec(out), a, *shape, t.number(n if mean else 0))
    return None
