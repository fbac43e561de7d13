"""Arguments for every CUDA kernel, and which kernels each case must launch.

Used by the tests (in Numba's simulator, and on a GPU) and by `benchmarks.gpu`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fflearn import random
from fflearn.kernels.reference import ACTIVATIONS, GOODNESS, Kernels, Product

CONVOLUTIONS = ((3, 1, 1), (3, 2, 1), (1, 1, 0), (2, 2, 0), (5, 3, 1), (1, 2, 0), (1, 1, 2))


class Draw:
    """Arguments of one case: the same for whoever asks with the same seed."""

    def __init__(self, real: Any, k: Any):
        self.rng, self.real, self.put, self.back = np.random.default_rng(7), real, k.asarray, k.host

    def __call__(self, *shape: int) -> Any:
        return self.put(self.rng.normal(size=shape).astype(self.real))

    def hollow(self, *shape: int) -> Any:
        """Not contiguous."""
        return self(*shape[:-1], 2 * shape[-1])[..., ::2]

    def one_hot(self, rows: int, cols: int) -> Any:
        return self.put(np.eye(cols, dtype=self.real)[self.rng.integers(0, cols, rows)])

    def known(self, name: str, *args: Any) -> list[Any]:
        """What the reference makes of arguments: the same input for whoever is tested."""
        given = (self.back(a) if hasattr(a, "dtype") else a for a in args)
        made = getattr(Kernels(), name)(*given)
        return [self.put(a) for a in (made if isinstance(made, tuple) else (made,))]


def dense(k, d, act, biased, noisy, rows=5):
    b, noise = (d(3) if biased else None), (d(rows, 3) if noisy else None)
    return k.dense(d(rows, 7), d(7, 3), b, act, noise)


def vjp(k, d, act):
    a = d.hollow(3, 29)
    return k.act(a, act), k.act_vjp(d.hollow(3, 29), a, *d.known("act", a, act), act)


def normalized(k, d, kind, cols):
    x = d(3, cols)
    x[1] = 0
    n = k.normalize(x, kind)
    return n, k.normalize_vjp(d(3, cols), x, *d.known("normalize", x, kind), kind)


def scored(k, d, kind):
    y = d.hollow(4, 19)
    y[2] = 0
    return k.goodness(y, kind), k.goodness_vjp(d.hollow(4), y, kind)


def lost(k, d, name, cols):
    return getattr(k, name)(d.hollow(5, cols), d.one_hot(5, cols))


def standardized(k, d, axis, center, rows, cols):
    x = d(rows, cols) + d.real(3)
    n, mean, var = k.standardize(x, axis, 1e-5, center)
    known = d.known("standardize", x, axis, 1e-5, center)
    return n, mean, var, k.standardize_vjp(d(rows, cols), known[0], known[2], axis, 1e-5, center)


def stepped(k, d, decay, momentum, product):
    w, m = d(7, 3), (d.put(np.ones((7, 3), d.real)) if momentum else None)
    g = Product(d(5, 7), d(5, 3), 5.0)
    k.sgd(w, g if product else d.hollow(7, 3), m, 0.1, momentum, decay)
    return (w,) if m is None else (w, m)


def adam(k, d, decay, decoupled):
    w, m, v = d(7, 3), d(7, 3), np.abs(d(7, 3))
    k.adam(w, Product(d(5, 7), d(5, 3), 5.0), m, v, 0.1, 0.9, 0.999, 1e-8, decay, decoupled, 3)
    return w, m, v


def convolved(k, d, kernel, stride, padding, groups=1):
    x, W = d(2, 4, 5, 3 * groups), d(kernel, kernel, 3, 4 * groups)
    a = k.conv(x, W, d(4 * groups), stride, padding)
    da = d(*a.shape)
    plain = k.conv(x, W, None, stride, padding)
    g = k.conv_weights(x, da, 2.0, W.shape, stride, padding)
    return a, plain, g, k.conv_input(da, W, x.shape[1:], stride, padding)


def pooled(k, d, size, stride):
    x = np.round(d(2, 5, 7, 3))  # with ties
    x[0, 1, 1, 0] = np.nan
    y, tap = k.max_pool(x, size, stride)
    x, known = d(2, 5, 7, 3), d.known("max_pool", x, size, stride)[1]
    dy = d(*y.shape)
    summed = k.avg_pool(x, size, stride), k.avg_pool_input(dy, x.shape[1:], size, stride)
    picked = k.pick(x, known, size, stride), k.put(dy, known, x.shape[1:], size, stride)
    return y, tap, *summed, *picked


def spread(k, d):
    from scipy.sparse import csr_array

    dense = d(7, 7) * (d(7, 7) > 0.5)
    dense[3] = 0
    matrix, rows = k.side(csr_array(d.back(dense))), d(7, 5)
    again = matrix.astype(np.float64) @ rows.astype(np.float64)
    return matrix @ rows, matrix.T @ rows, again


def drawn(k, d, name, n, static, step):
    if name == "random_words":
        return (k.random_words(static, step, n),)
    return (getattr(k, name)(static, step, (n,), d.real),)


CASES: dict[str, tuple[Any, set[str], dict[str, Any]]] = {}


def case(name: str, call: Any, *launches: str, **options: Any) -> None:
    CASES[name] = call, set(launches), options


for act in ACTIVATIONS:
    for biased in (False, True):
        for noisy in (False, True):
            name, given = f"dense {act} {biased} {noisy}", (act, biased, noisy)
            fused = () if act == "identity" and not biased and not noisy else ("bias_act",)
            case(name, partial(dense, act=act, biased=biased, noisy=noisy), *fused)
            call = partial(dense, act=act, biased=biased, noisy=noisy)
            case(name + " small", call, "product", small=1 << 20)
    if act != "identity":
        case(f"act {act}", partial(vjp, act=act), "act", "act_vjp")
for kind in ("rms", "unit"):
    for cols in (5, 37):
        call = partial(normalized, kind=kind, cols=cols)
        case(f"normalize {kind} {cols}", call, "normalize", "normalize_vjp")
for kind in GOODNESS:
    case(f"goodness {kind}", partial(scored, kind=kind), "goodness", "goodness_vjp")
for cols in (3, 37):
    for name in ("softmax_ce", "mse", "bce"):
        kernel = "softmax_ce" if name == "softmax_ce" else "row_loss"
        case(f"{name} {cols}", partial(lost, name=name, cols=cols), kernel)
    case(f"softmax {cols}", lambda k, d, n=cols: (k.softmax(d.hollow(2, 3, n) * 30),), "softmax")
phases = np.array([1, -1, 1, -1, 1, 1, -1, -1, 1])
case(
    "logistic",
    lambda k, d: k.logistic(d.hollow(9), d.put(phases.astype(d.real)), 0.3, 1.5),
    "logistic",
)
for rows, parts in ((3, ()), (28, ("column_finish",))):  # 10, 10 and 8 rows a block
    call = lambda k, d, n=rows: (k.colmean(d.hollow(n, 5), 2.5),)
    divided = {"parts": 10} if parts else {}
    case(f"colmean {rows}", call, "column_sums", *parts, **divided)
    for center in (True, False):
        call = partial(standardized, axis=0, center=center, rows=rows, cols=5)
        names = "column_sums", "standardize_columns", "standardize_columns_vjp", *parts
        case(f"standardize 0 {center} {rows}", call, *names, **divided)
for center in (True, False):
    call = partial(standardized, axis=1, center=center, rows=3, cols=37)
    case(f"standardize 1 {center}", call, "standardize_rows", "standardize_rows_vjp")
for decay in (0.0, 0.1):
    for momentum in (0.0, 0.9):
        names = ("sgd",) if momentum else ("fold",)
        call = partial(stepped, decay=decay, momentum=momentum, product=True)
        case(f"sgd {decay} {momentum}", call, *names)
        names = ("product", *names)
        case(f"sgd {decay} {momentum} small", call, *names, small=1 << 20)
    call = partial(stepped, decay=decay, momentum=0.0, product=False)
    case(f"sgd {decay} of an array", call, "sgd")
    for decoupled in (False, True):
        call = partial(adam, decay=decay, decoupled=decoupled)
        case(f"adam {decay} {decoupled}", call, "adam", "adam_scales")
for at in CONVOLUTIONS:
    names = ("bias_act",) if at == (1, 1, 0) else ("im2col", "bias_act")
    call = partial(convolved, kernel=at[0], stride=at[1], padding=at[2])
    case(f"conv {at}", call, "col2im", *names)
DIRECT = "conv", "conv_weights", "conv_input", "column_sums"
for at in ((3, 1, 1), (2, 3, 0), (5, 3, 1)):
    call = partial(convolved, kernel=at[0], stride=at[1], padding=at[2])
    case(f"conv {at} direct", call, *DIRECT, direct=True)
call = partial(convolved, kernel=3, stride=2, padding=1, groups=2)
case("conv groups", call, *DIRECT)
call = partial(convolved, kernel=2, stride=1, padding=0)
case("conv parts", call, *DIRECT, direct=True, parts=7)
for size, stride in ((2, 2), (3, 2), (3, 1), (2, 3)):
    case(
        f"pool {size} {stride}",
        partial(pooled, size=size, stride=stride),
        "max_pool",
        "pool_down",
        "pool_up",
    )
case("sparse", spread, "sparse_product")
for n in (1, 2, 3, 6, 131):
    for step in (0, 2**40 + 1):
        for name, kernel in (
            ("random_words", "words"),
            ("uniform", "uniform"),
            ("normal", "normal"),
        ):
            call = partial(drawn, name=name, n=n, static=random.Key(n).static(), step=step)
            case(f"{name} {n} {step}", call, kernel)


def off(found: Any, want: np.ndarray) -> float:
    """The largest difference, in roundings of the largest number; infinite where kinds differ."""
    if found.shape != want.shape or found.dtype != want.dtype:
        return np.inf
    if want.dtype.kind in "ui":
        return 0.0 if np.array_equal(found, want) else np.inf
    if not np.array_equal(np.isnan(found), np.isnan(want)):
        return np.inf
    scale = np.finfo(want.dtype).eps * max(1.0, np.nanmax(np.abs(want)))
    return float(np.nanmax(np.abs(found - want)) / scale)
