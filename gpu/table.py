"""`CudaKernels`: every kernel on a GPU's arrays.

What is not overridden is the reference's own code, which CuPy runs on its arrays as NumPy does on
its.  Hot methods are one launch of `fflearn.gpu.kernels`, or one product by cuBLAS.  Settings that
change from step to step (learning rate, weight decay, the step itself) are read from the device's
memory, so that a captured step stays true (`fflearn.gpu.graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fflearn import random
from fflearn.errors import RecordError
from fflearn.gpu import kernels as cuda
from fflearn.gpu.kernels import THREADS
from fflearn.kernels.patches import out_size
from fflearn.kernels.reference import EPS, Array, Kernels, Product

BLOCKS = 1056  # of an elementwise kernel, at most: 8 for each of 132 multiprocessors
ACTS = {
    "identity": cuda.IDENTITY,
    "relu": cuda.RELU,
    "hardsigmoid": cuda.HARDSIGMOID,
    "tanh": cuda.TANH,
    "sigmoid": cuda.SIGMOID,
    "gelu": cuda.GELU,
}
GOODNESS = {
    "ssq": cuda.SSQ,
    "neg_ssq": cuda.NEG_SSQ,
    "msq": cuda.MSQ,
    "l2": cuda.L2,
    "lin": cuda.LIN,
}
FEW = 64  # columns that one thread goes through by itself


@dataclass(frozen=True)
class Setting:
    """A number that lies in the device's memory, times a factor known here."""

    which: int
    factor: float = 1.0

    def __mul__(self, factor: float) -> Setting:
        return Setting(self.which, self.factor * factor)

    __rmul__ = __mul__

    def __float__(self) -> float:
        raise RecordError(
            "a learning rate, weight decay or progress was read in a step on a GPU, where it is "
            "known to the device alone. Multiply it by a number, or return gradients and leave it "
            "to the optimizer."
        )


class Settings(NamedTuple):
    """Where an optimizer reads what it multiplies by."""

    live: Array  # float64 (3,): learning rate, weight decay, progress
    rate: float  # factor of the learning rate
    decays: float  # and of the weight decay
    counter: Array  # uint64 (1,): the step, counted from 0


class CudaKernels(Kernels):
    """Kernels for float32 and float64 arrays of one device.

    Parameters
    ----------
    device : CupyDevice or SimulatedDevice
        Whose arrays, products and launches these are: see `fflearn.gpu.device`.
    """

    name = "cuda"
    on_host = False

    def __init__(self, device: Any):
        self.device, self.xp = device, device.xp
        self._constants: dict[Any, Array] = {}
        self._sides: dict[int, tuple[Any, Any]] = {}
        with device.here():
            self.live = self.xp.zeros(3, np.float64)
            self.counter = self.xp.zeros(1, np.uint64)
        self._known: tuple[Any, ...] = ()
        self._made: dict[Any, Array] = {}

    @contextmanager
    def running(self, threads: int) -> Iterator[None]:
        """A context in which steps run: on this device, and on its own stream."""
        with self.device.here():
            yield

    def steps(self, engine: Any) -> Any:
        from fflearn.gpu.graphs import Graphs

        return Graphs(engine)

    # ---- settings of a step -----------------------------------------------------------------
    def settle(self, step: int, progress: float, lr: float, weight_decay: float) -> None:
        """Bring step and settings to the device, unless it has them already."""
        self._made.clear()
        if (step, progress, lr, weight_decay) != self._known:
            numbers = lr, weight_decay, progress, step
            self._launch("settle", np.float64, 1, self.live, self.counter, *numbers)
        self._known = (step, progress, lr, weight_decay)

    def advance(self) -> None:
        """Count a step, on the device."""
        self._launch("advance", np.float64, 1, self.counter)
        self.advanced()

    def advanced(self) -> None:
        """Note that the device has counted a step."""
        self._known = (self._known[0] + 1, *self._known[1:])

    # ---- arrays -------------------------------------------------------------------------------
    def asarray(self, a: Any, dtype: Any = None) -> Array:
        with self.device.here():
            return self.xp.ascontiguousarray(self.xp.asarray(a, dtype))

    def host(self, a: Any) -> np.ndarray:
        with self.device.here():
            return self.device.host(a)

    def constant(self, a: np.ndarray) -> Array:
        key = (a.shape, a.dtype.str, a.tobytes())
        if key not in self._constants:
            self._constants[key] = self.asarray(a)
        return self._constants[key]

    def side(self, a: Any) -> Any:
        if id(a) not in self._sides:  # kept with the original, whose name it has for that long
            self._sides[id(a)] = a, self.device.side(a)
        return self._sides[id(a)][1]

    def sum_by_id(self, ids: Array, rows: Array, n: int) -> Array:
        # A product, whose order of summation is fixed; atomic additions would have none.
        member = self.one_hot(ids, n, np.float64)
        return self.matmul_tn(member, rows.astype(np.float64)).astype(rows.dtype)

    def erfc(self, a: Array) -> Array:
        return self.device.special("erfc", a)

    def ndtri(self, p: Array) -> Array:
        return self.device.special("ndtri", p)

    # ---- products -------------------------------------------------------------------------------
    def matmul(self, a: Array, b: Array) -> Array:
        return self._product(False, False, a, b)

    def matmul_tn(self, a: Array, b: Array) -> Array:
        return self._product(True, False, a, b)

    def matmul_nt(self, a: Array, b: Array) -> Array:
        return self._product(False, True, a, b)

    def dense(
        self, x: Array, W: Array, b: Array | None, act: str, noise: Array | None = None
    ) -> tuple[Array, Array]:
        a = self.matmul(x, W)
        return self._finished(a, b, act, noise)

    def formed(self, g: Array | Product) -> Array:
        if not isinstance(g, Product):
            return g
        return self._product(True, False, g.x, g.da, 1 / float(g.n))

    def colmean(self, da: Array, n: float) -> Array:
        if not _fast(da):
            return super().colmean(da, n)
        ones = self._filled(1.0, len(da), da.dtype)
        return self._product(False, False, ones[None], da, 1 / float(n))[0]

    # ---- activations ------------------------------------------------------------------------------
    def act(self, a: Array, kind: str) -> Array:
        if kind == "identity" or kind not in ACTS or not _real(a):
            return super().act(a, kind)
        a, y = _plain(self, a), self.xp.empty(a.shape, a.dtype)
        self._each("act", a, a, y, a.size, ACTS[kind])
        return y

    def act_vjp(self, dy: Array, a: Array, y: Array, kind: str) -> Array:
        if kind == "identity" or kind not in ACTS or not _real(dy, a, y) or dy.shape != a.shape:
            return super().act_vjp(dy, a, y, kind)
        da = self.xp.empty(a.shape, a.dtype)
        self._each(
            "act_vjp", a, _plain(self, dy), _plain(self, a), _plain(self, y), da, a.size, ACTS[kind]
        )
        return da

    # ---- rows ---------------------------------------------------------------------------------------
    def normalize(self, x: Array, kind: str) -> Array:
        if not _fast(x) or kind not in ("rms", "unit"):
            return super().normalize(x, kind)
        n, cols = self.xp.empty(x.shape, x.dtype), x.shape[1]
        self._rows("normalize", x, _plain(self, x), n, cols, _share(x, kind), EPS)
        return n

    def normalize_vjp(self, dn: Array, x: Array, n: Array, kind: str) -> Array:
        if (
            not _fast(x)
            or not _real(dn, x, n)
            or dn.shape != x.shape
            or kind not in ("rms", "unit")
        ):
            return super().normalize_vjp(dn, x, n, kind)
        dx, rows = self.xp.empty(x.shape, x.dtype), (_plain(self, a) for a in (dn, x, n))
        self._rows("normalize_vjp", x, *rows, dx, x.shape[1], _share(x, kind), EPS)
        return dx

    def softmax_ce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        fits = _fast(logits, target) and logits.shape == target.shape
        if not fits or logits.shape[1] > FEW:
            return super().softmax_ce(logits, target)
        rows, cols = logits.shape
        loss, error = self.xp.empty(rows, logits.dtype), self.xp.empty(logits.shape, logits.dtype)
        given = _plain(self, logits), _plain(self, target)
        self._launch("softmax_ce", logits.dtype.type, rows, *given, loss, error, rows, cols)
        return loss, error

    def goodness(self, y: Array, kind: str) -> Array:
        if not _fast(y) or kind not in GOODNESS:
            return super().goodness(y, kind)
        g = self.xp.empty(len(y), y.dtype)
        self._rows("goodness", y, _plain(self, y), g, y.shape[1], GOODNESS[kind])
        return g

    def goodness_vjp(self, dg: Array, y: Array, kind: str) -> Array:
        if not _fast(y) or kind not in GOODNESS or dg.shape != y.shape[:1]:
            return super().goodness_vjp(dg, y, kind)
        n = y.shape[1]
        factor = {"ssq": 2.0, "neg_ssq": -2.0, "msq": 2.0 / n, "l2": 1.0, "lin": 1.0 / n}[kind]
        g = self.goodness(y, "l2") if kind == "l2" else dg
        dy, dg = self.xp.empty(y.shape, y.dtype), _plain(self, dg.astype(y.dtype, copy=False))
        self._each("goodness_vjp", y, dg, g, _plain(self, y), dy, y.size, n, GOODNESS[kind], factor)
        return dy

    def logistic(
        self, g: Array, phase: Array, theta: float, temperature: float
    ) -> tuple[Array, Array]:
        if np.ndim(theta) or not _real(g, phase) or g.shape != phase.shape:
            return super().logistic(g, phase, theta, temperature)
        loss, dg = self.xp.empty(g.shape, g.dtype), self.xp.empty(g.shape, g.dtype)
        given = _plain(self, g), _plain(self, phase)
        self._each("logistic", g, *given, theta, temperature, loss, dg, g.size)
        return loss, dg

    # ---- convolutions ---------------------------------------------------------------------------------
    def conv(self, x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
        if not _real(x, W) or W.shape[2] != x.shape[3]:
            return super().conv(x, W, b, stride, padding)
        cols, shape = self._im2col(x, len(W), stride, padding)
        a = self.matmul(cols, W.reshape(-1, W.shape[3]))
        return self._finished(a, b, "identity", None)[0].reshape(*shape, W.shape[3])

    def conv_weights(
        self, x: Array, da: Array, n: float, shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        if not _real(x, da) or shape[2] != x.shape[3]:
            return super().conv_weights(x, da, n, shape, stride, padding)
        cols, _ = self._im2col(x, shape[0], stride, padding)
        rows = da.reshape(-1, da.shape[3])
        return self._product(True, False, cols, rows, 1 / float(n)).reshape(shape)

    def conv_input(
        self, da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        if not _real(da, W) or W.shape[2] != in_shape[2]:
            return super().conv_input(da, W, in_shape, stride, padding)
        cols = self.matmul_nt(da.reshape(-1, da.shape[3]), W.reshape(-1, W.shape[3]))
        x = self.xp.empty((len(da), *in_shape), da.dtype)
        sizes = *in_shape, *da.shape[1:3], len(W), stride, padding
        self._each("col2im", x, cols, x, x.size, *sizes)
        return x

    def _im2col(
        self, x: Array, kernel: int, stride: int, padding: int
    ) -> tuple[Array, tuple[int, int, int]]:
        """Patches (places, taps and channels) of images, and the shape of the places."""
        rows, (h, w, c) = len(x), x.shape[1:]
        high, wide = (out_size(n, kernel, stride, padding) for n in (h, w))
        shape = rows, high, wide
        if kernel == stride == 1 and not padding:
            return x.reshape(-1, c), shape
        cols = self.xp.empty((rows * high * wide, kernel * kernel * c), x.dtype)
        sizes = h, w, c, high, wide, kernel, stride, padding
        self._each("im2col", x, _plain(self, x), cols, cols.size, *sizes)
        return cols, shape

    # ---- optimizers -------------------------------------------------------------------------------------
    def sgd(
        self,
        w: Array,
        g: Array | Product,
        m: Array | None,
        lr: Any,
        momentum: float,
        weight_decay: Any,
    ) -> None:
        s = self._settings(lr, weight_decay, 1)
        if isinstance(g, Product) and m is None:
            # The whole update is one product: no gradient is ever stored.
            by, keep = self._fold(s, float(g.n), w.dtype)
            return self._gemm(True, False, g.x, g.da, by, keep, w)
        d = self.formed(g)
        kept = d if m is None else m
        numbers = s.rate, s.decays, momentum, m is not None
        self._each("sgd", w, w, _plain(self, d), kept, w.size, s.live, *numbers)

    def adam(
        self,
        w: Array,
        g: Array | Product,
        m: Array,
        v: Array,
        lr: Any,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: Any,
        decoupled: bool,
        t: Any,
    ) -> None:
        s, d = self._settings(lr, weight_decay, t), self.formed(g)
        scales = self._adam_scales(s, beta1, beta2)
        numbers = s.rate, s.decays, decoupled, 1 - beta1, beta2, 1 - beta2, eps
        self._each("adam", w, w, _plain(self, d), m, v, w.size, s.live, scales, *numbers)

    def _settings(self, lr: Any, weight_decay: Any, t: int) -> Settings:
        if isinstance(lr, Setting):
            return Settings(self.live, lr.factor, weight_decay.factor, self.counter)
        numbers = self.asarray(np.array([lr, weight_decay, 0.0]))
        return Settings(numbers, 1.0, 1.0, self.asarray(np.array([t - 1], np.uint64)))

    def _fold(self, s: Settings, n: float, dtype: Any) -> tuple[Array, Array]:
        """-lr / n and 1 - lr weight_decay."""

        def fill(out: Array) -> None:
            self._launch("fold", out.dtype.type, 1, s.live, s.rate, s.decays, n, out)

        out = self._once(("fold", s, n, dtype), 2, dtype, fill)
        return out[:1], out[1:]

    def _adam_scales(self, s: Settings, beta1: float, beta2: float) -> Array:
        def fill(out: Array) -> None:
            numbers = s.rate, beta1, beta2
            self._launch("adam_scales", np.float64, 1, s.live, s.counter, *numbers, out)

        return self._once(("adam", s, beta1, beta2), 2, np.float64, fill)

    def _once(self, key: Any, n: int, dtype: Any, fill: Callable[[Array], None]) -> Array:
        """A few numbers that follow from the settings: made once per step."""
        name, s, *others = key
        if s.live is not self.live:  # settings of this call alone
            out = self.xp.empty(n, dtype)
            fill(out)
            return out
        key = name, s.rate, s.decays, *others
        out = self._made.get(key)
        if out is None:
            out = self._made[key] = self.xp.empty(n, dtype)
            fill(out)
        return out

    # ---- random numbers ---------------------------------------------------------------------------------
    def random_words(self, static: int, step: Any, n: int) -> Array:
        return self._draw("words", static, step, n, np.uint32, np.float32, 4)

    def uniform(self, static: int, step: Any, shape: random.Shape, dtype=np.float32) -> Array:
        dtype = random.real(dtype)
        return self._draw("uniform", static, step, shape, dtype, dtype.type, 16 // dtype.itemsize)

    def normal(self, static: int, step: Any, shape: random.Shape, dtype=np.float32) -> Array:
        dtype = random.real(dtype)
        return self._draw("normal", static, step, shape, dtype, dtype.type, 4)

    def _draw(
        self, kernel: str, static: int, step: Any, shape: Any, dtype: Any, real: Any, per_block: int
    ) -> Array:
        counter = step if hasattr(step, "dtype") else self.asarray(np.array([step], np.uint64))
        out = self.xp.empty(shape, dtype)
        if out.size:
            self._launch(kernel, real, -(-out.size // per_block), static, counter, out, out.size)
        return out

    # ---- launches -----------------------------------------------------------------------------------------
    def _launch(self, kernel: str, real: Any, n: int, *args: Any) -> None:
        """As many threads as there are elements."""
        self.device.launch(kernel, real, -(-n // THREADS), THREADS, args)

    def _each(self, kernel: str, like: Array, *args: Any) -> None:
        """Threads that share the elements of an array; none where it is empty."""
        if like.size:
            blocks = min(-(-like.size // THREADS), BLOCKS)
            self.device.launch(kernel, like.dtype.type, blocks, THREADS, args)

    def _rows(self, kernel: str, like: Array, *args: Any) -> None:
        """A block for each row."""
        self.device.launch(kernel, like.dtype.type, len(like), THREADS, args)

    def _finished(
        self, a: Array, b: Array | None, act: str, noise: Array | None
    ) -> tuple[Array, Array]:
        """Bias, noise and activation of a product just made, in one launch."""
        if not _real(*(v for v in (a, b, noise) if v is not None)):
            a = a if b is None else a + b
            a = a if noise is None else a + noise
            return a, self.act(a, act)
        if b is None and noise is None and act == "identity":
            return a, a
        y = None if act == "identity" else self.xp.empty(a.shape, a.dtype)
        nothing = self._filled(0.0, 1, a.dtype)
        given = (nothing if v is None else _plain(self, v) for v in (b, noise))
        flags = b is not None, noise is not None, ACTS[act]
        to = nothing if y is None else y
        self._each("bias_act", a, a, *given, to, a.size, a.shape[-1], *flags)
        return a, a if y is None else y

    def _filled(self, value: float, shape: Any, dtype: Any) -> Array:
        return self.constant(np.full(shape, value, dtype))

    def _product(self, ta: bool, tb: bool, a: Array, b: Array, alpha: float = 1.0) -> Array:
        if not _fast(a, b):
            found = (a.T if ta else a) @ (b.T if tb else b)
            return found if alpha == 1.0 else found * found.dtype.type(alpha)
        m, inner = a.shape[::-1] if ta else a.shape
        n, own = b.shape if tb else b.shape[::-1]
        if inner != own:
            raise ValueError(f"a product of {(m, inner)} and {(own, n)}: the middle differs.")
        c = self.xp.empty((m, n), a.dtype)
        number, none = self._filled(alpha, (), a.dtype), self._filled(0.0, (), a.dtype)
        self._gemm(ta, tb, a, b, number, none, c)
        return c

    def _gemm(
        self, ta: bool, tb: bool, a: Array, b: Array, alpha: Array, beta: Array, c: Array
    ) -> None:
        inner = a.shape[0] if ta else a.shape[1]
        given = _plain(self, a), _plain(self, b)
        self.device.gemm(ta, tb, *c.shape, inner, alpha, *given, beta, c)


def _real(*arrays: Array) -> bool:
    """All float32 or all float64."""
    dtype = arrays[0].dtype
    return dtype.char in "fd" and all(a.dtype == dtype for a in arrays)


def _fast(*arrays: Array) -> bool:
    """Matrices with elements, of one real type."""
    return _real(*arrays) and all(a.ndim == 2 and a.size for a in arrays)


def _plain(k: CudaKernels, a: Array) -> Array:
    return a if a.flags.c_contiguous else k.xp.ascontiguousarray(a)


def _share(x: Array, kind: str) -> float:
    """The c of r^2 = c sum(x^2)."""
    return 1 / x.shape[1] if kind == "rms" else 1.0
