"""`CudaKernels`: every kernel on a GPU's arrays.

What is not overridden is the reference's own code, which CuPy runs on its arrays as NumPy does on
its.  Hot methods are one launch of `fflearn.gpu.kernels`, or one product by cuBLAS.  Settings that
change from step to step (learning rate, weight decay, the step itself) are read from the device's
memory, so that a captured step stays true (`fflearn.gpu.graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fflearn import random
from fflearn.errors import RecordError
from fflearn.gpu import columns, scalars
from fflearn.gpu import kernels as cuda
from fflearn.gpu.columns import WIDE
from fflearn.gpu.images import SIDE, SQUARE
from fflearn.gpu.products import TILE
from fflearn.gpu.scalars import THREADS
from fflearn.gpu.sparse import Sparse
from fflearn.kernels.patches import out_size
from fflearn.kernels.reference import EPS, Array, Kernels, Product

ACTS = {
    "identity": scalars.IDENTITY,
    "relu": scalars.RELU,
    "hardsigmoid": scalars.HARDSIGMOID,
    "tanh": scalars.TANH,
    "sigmoid": scalars.SIGMOID,
    "gelu": scalars.GELU,
}
GOODNESS = {
    "ssq": cuda.SSQ,
    "neg_ssq": cuda.NEG_SSQ,
    "msq": cuda.MSQ,
    "l2": cuda.L2,
    "lin": cuda.LIN,
}
BYTE = 16  # the side of the largest patch whose taps fit in a byte
CHUNK = 256  # rows that a block adds up, where there are enough to divide


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
    no_graphs = ""  # why steps cannot be captured

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
            self._once_only("settle", np.float64, self.live, self.counter, *numbers)
        self._known = (step, progress, lr, weight_decay)

    def forget(self) -> None:
        """Bring the settings anew, whatever the device has."""
        self._known = ()

    def advance(self) -> None:
        """Count a step, on the device."""
        self._once_only("advance", np.float64, self.counter)
        self.advanced()

    def advanced(self) -> None:
        """Note that the device has counted a step."""
        self._known = (self._known[0] + 1, *self._known[1:])

    # ---- arrays -------------------------------------------------------------------------------
    def asarray(self, a: Any, dtype: Any = None) -> Array:
        with self.device.here():
            return self.xp.ascontiguousarray(self.xp.asarray(a, dtype))

    def fits(self, nbytes: int) -> bool:
        """Whether there is room for data of that size, and for the steps."""
        with self.device.here():
            return self.device.fits(nbytes)

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
            placed = Sparse(self, a.tocsr()) if hasattr(a, "tocsr") else self.asarray(a)
            self._sides[id(a)] = a, placed
        return self._sides[id(a)][1]

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        # Of more than 8 small arrays CuPy brings the addresses from the host.
        parts = [self.xp.stack(arrays[i : i + 8], axis) for i in range(0, len(arrays), 8)]
        while len(parts) > 1:
            groups = (parts[i : i + 8] for i in range(0, len(parts), 8))
            parts = [self.xp.concatenate(group, axis) for group in groups]
        return parts[0]

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
        given = [v for v in (x, W, b, noise) if v is not None]
        if _fast(x, W) and _real(*given) and self._is_small(len(x), *W.shape) and act in ACTS:
            return self._small(False, False, x, W, act=act, b=b, noise=noise)
        return self._finished(self.matmul(x, W), b, act, noise)

    def formed(self, g: Array | Product) -> Array:
        if not isinstance(g, Product):
            return g
        return self._product(True, False, g.x, g.da, 1 / float(g.n))

    def colmean(self, da: Array, n: float) -> Array:
        if not _fast(da):
            return super().colmean(da, n)
        return self._column_sums(da, da, columns.PLAIN, 1 / float(n))

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

    def softmax(self, z: Array) -> Array:
        if not z.ndim or not z.size or not _real(z):
            return super().softmax(z)
        y, cols = self.xp.empty(z.shape, z.dtype), z.shape[-1]
        self._blocks("softmax", z, z.size // cols, _plain(self, z), y, cols)
        return y

    def softmax_ce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        if not _fast(logits, target) or logits.shape != target.shape:
            return super().softmax_ce(logits, target)
        return self._loss("softmax_ce", logits, target)

    def mse(self, y: Array, target: Array) -> tuple[Array, Array]:
        if not _fast(y, target) or y.shape != target.shape:
            return super().mse(y, target)
        return self._loss("row_loss", y, target, False)

    def bce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        if not _fast(logits, target) or logits.shape != target.shape:
            return super().bce(logits, target)
        return self._loss("row_loss", logits, target, True)

    def _loss(self, kernel: str, y: Array, target: Array, *how: bool) -> tuple[Array, Array]:
        loss, error = self.xp.empty(len(y), y.dtype), self.xp.empty(y.shape, y.dtype)
        given = _plain(self, y), _plain(self, target)
        self._rows(kernel, y, *given, loss, error, y.shape[1], *how)
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

    # ---- columns --------------------------------------------------------------------------------------
    def standardize(
        self, x: Array, axis: int, eps: float, center: bool = True
    ) -> tuple[Array, Array, Array]:
        if not _fast(x):
            return super().standardize(x, axis, eps, center)
        x, n, (rows, cols) = _plain(self, x), self.xp.empty(x.shape, x.dtype), x.shape
        if axis:
            mean, var = (self.xp.empty((rows, 1), x.dtype) for _ in "mv")
            self._rows("standardize_rows", x, x, n, mean, var, cols, eps, center)
            return n, mean, var
        mean = self._filled(0.0, cols, x.dtype)
        if center:
            mean = self._column_sums(x, x, columns.PLAIN, 1 / rows)
        var = self._column_sums(x, mean, columns.SQUARES, 1 / rows)
        self._each("standardize_columns", x, x, mean, var, n, x.size, cols, eps)
        return n, mean[None], var[None]

    def standardize_vjp(
        self, dn: Array, n: Array, var: Array, axis: int, eps: float, center: bool = True
    ) -> Array:
        if not _fast(dn, n, var) or dn.shape != n.shape:
            return super().standardize_vjp(dn, n, var, axis, eps, center)
        dn, n, var = (_plain(self, a) for a in (dn, n, var))
        dx, (rows, cols) = self.xp.empty(n.shape, n.dtype), n.shape
        if axis:
            self._rows("standardize_rows_vjp", n, dn, n, var, dx, cols, eps, center)
            return dx
        mean = self._filled(0.0, cols, n.dtype)
        if center:
            mean = self._column_sums(dn, dn, columns.PLAIN, 1 / rows)
        along = self._column_sums(dn, n, columns.TIMES, 1 / rows)
        self._each("standardize_columns_vjp", n, dn, n, var, mean, along, dx, n.size, cols, eps)
        return dx

    def _column_sums(self, x: Array, y: Array, what: int, factor: float) -> Array:
        """Sums of columns (see `fflearn.gpu.columns`) times a factor, (R, N) -> (N,)."""
        x, y, (rows, cols) = _plain(self, x), _plain(self, y), x.shape
        tiles = -(-cols // WIDE)
        per = -(-rows // max(1, min(-(-rows // CHUNK), self.device.grid[0] // tiles)))
        chunks = -(-rows // per)
        out = self.xp.empty(cols, x.dtype)
        # One block for all rows has nothing to leave to another.
        partial = self.live if chunks == 1 else self.xp.empty(chunks * cols, np.float64)
        numbers = rows, cols, per, what, factor
        self._blocks("column_sums", x, tiles * chunks, x, y, partial, out, *numbers)
        if chunks > 1:
            self._each("column_finish", out, partial, out, chunks, cols, factor)
        return out

    # ---- images -----------------------------------------------------------------------------------------
    def conv(self, x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
        places = _places(x.shape, W.shape, stride, padding)
        if not places or not _real(*(v for v in (x, W, b) if v is not None)):
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
        if not places or (*places, shape[3]) != da.shape or not _real(x, da):
            return super().conv_weights(x, da, n, shape, stride, padding)
        groups = x.shape[3] // shape[2]
        if self._is_direct(groups):
            sizes = shape[0] ** 2 * shape[2], shape[3] // groups, da.size // shape[3]
            # Parts of the places are added up apart, so that there is work for a whole GPU.
            tiles = -(-sizes[0] // SIDE) * -(-sizes[1] // SIDE) * groups
            per = -(
                -sizes[2] // max(1, min(-(-sizes[2] // CHUNK), self.device.grid[0] // (2 * tiles)))
            )
            sums = self.xp.empty((-(-sizes[2] // per), sizes[0] * shape[3]), x.dtype)
            given = x.shape, shape, places, stride, padding
            self._convolve("conv_weights", x, da, da, sums, sizes, per, *given, False)
            return self._column_sums(sums, sums, columns.PLAIN, 1 / float(n)).reshape(shape)
        cols = self._im2col(x, places, shape[0], stride, padding)
        rows = da.reshape(-1, da.shape[3])
        return self._product(True, False, cols, rows, 1 / float(n)).reshape(shape)

    def conv_input(
        self, da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        full = (len(da), *in_shape)
        places = _places(full, W.shape, stride, padding)
        if not places or (*places, W.shape[3]) != da.shape or not _real(da, W):
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
        """A convolution as a product of ``sizes``, see `fflearn.gpu.images`."""
        groups = full[3] // weights[2]
        blocks = -(-sizes[0] // SIDE) * -(-sizes[1] // SIDE) * groups * -(-sizes[2] // per)
        shape = groups, *full[1:], *places[1:], weights[0], stride, padding, weights[3], biased
        arrays = *(_plain(self, a) for a in (x, by, bias)), out
        args = *arrays, *sizes, per, *shape
        self.device.launch(kernel, x.dtype.type, blocks, SQUARE * SQUARE, args)

    def _im2col(
        self, x: Array, places: tuple[int, int, int], kernel: int, stride: int, padding: int
    ) -> Array:
        """Patches (places, taps and channels) of images."""
        h, w, c = x.shape[1:]
        if kernel == stride == 1 and not padding:
            return x.reshape(-1, c)
        cols = self.xp.empty((places[0] * places[1] * places[2], kernel * kernel * c), x.dtype)
        sizes = h, w, c, *places[1:], kernel, stride, padding
        self._each("im2col", x, _plain(self, x), cols, cols.size, *sizes)
        return cols

    def max_pool(self, x: Array, size: int, stride: int) -> tuple[Array, Array]:
        if not _real(x) or size > BYTE:
            return super().max_pool(x, size, stride)
        b, h, w, c = x.shape
        shape = b, out_size(h, size, stride), out_size(w, size, stride), c
        y, tap = self.xp.empty(shape, x.dtype), self.xp.empty(shape, np.uint8)
        self._each(
            "max_pool", y, _plain(self, x), y, tap, y.size, h, w, c, *shape[1:3], size, stride
        )
        return y, tap

    def pick(self, x: Array, tap: Array, size: int, stride: int) -> Array:
        if not _real(x) or size > BYTE:
            return super().pick(x, tap, size, stride)
        y = self.xp.empty(tap.shape, x.dtype)
        self._pool("pool_down", x, tap, y, x.shape, tap.shape, size, stride, True)
        return y

    def put(
        self, dy: Array, tap: Array, in_shape: tuple[int, ...], size: int, stride: int
    ) -> Array:
        if not _real(dy) or size > BYTE:
            return super().put(dy, tap, in_shape, size, stride)
        dx = self.xp.empty((len(dy), *in_shape), dy.dtype)
        self._pool("pool_up", dy, tap, dx, dx.shape, dy.shape, size, stride, True)
        return dx

    def avg_pool(self, x: Array, size: int, stride: int) -> Array:
        if not _real(x):
            return super().avg_pool(x, size, stride)
        high, wide = (out_size(n, size, stride) for n in x.shape[1:3])
        y = self.xp.empty((len(x), high, wide, x.shape[3]), x.dtype)
        self._pool("pool_down", x, None, y, x.shape, y.shape, size, stride, False)
        return y

    def avg_pool_input(self, da: Array, in_shape: tuple[int, ...], size: int, stride: int) -> Array:
        if not _real(da):
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
        tap = self._filled(0, 1, np.uint8) if tap is None else _plain(self, tap)
        sizes = *full[1:], *pooled[1:3], size, stride
        given = _plain(self, a), tap, out, out.size
        self._each(kernel, out, *given, *sizes, by_tap, 1 / size**2)

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
            return self._add_product(g.x, g.da, by, keep, w)
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

    def _add_product(self, x: Array, da: Array, by: Array, keep: Array, w: Array) -> None:
        """w = keep w + by x^T da."""
        sizes = x.shape[1], len(x), da.shape[1]
        if self._is_small(*sizes):
            self._small(True, False, x, da, by, beta=keep, into=w)
            return
        m, inner, n = sizes
        given = _plain(self, x), _plain(self, da)
        self.device.gemm(True, False, m, n, inner, by, *given, keep, w)

    def _fold(self, s: Settings, n: float, dtype: Any) -> tuple[Array, Array]:
        """-lr / n and 1 - lr weight_decay."""

        def fill(out: Array) -> None:
            self._once_only("fold", out.dtype.type, s.live, s.rate, s.decays, n, out)

        out = self._once(("fold", s, n, dtype), 2, dtype, fill)
        return out[:1], out[1:]

    def _adam_scales(self, s: Settings, beta1: float, beta2: float) -> Array:
        def fill(out: Array) -> None:
            numbers = s.rate, beta1, beta2
            self._once_only("adam_scales", np.float64, s.live, s.counter, *numbers, out)

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
        return self._draw("words", static, step, n, np.dtype(np.uint32))

    def uniform(self, static: int, step: Any, shape: random.Shape, dtype=np.float32) -> Array:
        return self._draw("uniform", static, step, shape, random.real(dtype))

    def normal(self, static: int, step: Any, shape: random.Shape, dtype=np.float32) -> Array:
        return self._draw("normal", static, step, shape, random.real(dtype))

    def _draw(self, kernel: str, static: int, step: Any, shape: Any, dtype: np.dtype) -> Array:
        counter = step if hasattr(step, "dtype") else self.asarray(np.array([step], np.uint64))
        out = self.xp.empty(shape, dtype)
        real = np.float64 if dtype == np.float64 else np.float32
        self._each(kernel, out, static, counter, out, out.size, real=real)
        return out

    # ---- launches -----------------------------------------------------------------------------------------
    def _once_only(self, kernel: str, real: Any, *args: Any) -> None:
        """One thread."""
        self.device.launch(kernel, real, 1, 1, args)

    def _each(self, kernel: str, like: Array, *args: Any, real: Any = None) -> None:
        """Threads that share the elements of an array; none where it is empty."""
        most, threads = self.device.grid
        if like.size:
            blocks = min(-(-like.size // threads), most)
            self.device.launch(kernel, real or like.dtype.type, blocks, threads, args)

    def _rows(self, kernel: str, like: Array, *args: Any) -> None:
        """A block for each row."""
        self._blocks(kernel, like, len(like), *args)

    def _blocks(self, kernel: str, like: Array, blocks: int, *args: Any) -> None:
        self.device.launch(kernel, like.dtype.type, blocks, THREADS, args)

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
        if a.dtype.char in "FD" and b.dtype == a.real.dtype:  # complex states and real weights
            parts = [self._product(ta, tb, part, b, alpha) for part in (a.real, a.imag)]
            found = self.xp.empty(parts[0].shape, a.dtype)
            found.real[...], found.imag[...] = parts
            return found
        stacked = a.ndim > 2 and a.shape[:-2] == b.shape[:-2]
        if not (_real(a, b) and a.size and b.size and (stacked or a.ndim == b.ndim == 2)):
            found = _turned(a, ta) @ _turned(b, tb)
            return found if alpha == 1.0 else found * found.dtype.type(alpha)
        m, inner = a.shape[:-3:-1] if ta else a.shape[-2:]
        n, own = b.shape[-2:] if tb else b.shape[:-3:-1]
        if inner != own:
            raise ValueError(f"a product of {(m, inner)} and {(own, n)}: the middle differs.")
        if not stacked and self._is_small(m, inner, n):
            return self._small(ta, tb, a, b, self._filled(alpha, (), a.dtype))[0]
        c = self.xp.empty((*a.shape[:-2], m, n), a.dtype)
        batch = c.size // (m * n), m * inner, inner * n, m * n
        given = _plain(self, a), _plain(self, b)
        number, none = self._filled(alpha, (), a.dtype), self._filled(0.0, (), a.dtype)
        self.device.gemm(ta, tb, m, n, inner, number, *given, none, c, batch)
        return c

    def _is_small(self, m: int, inner: int, n: int) -> bool:
        """Whether a product is better made, and finished, by a kernel of our own."""
        return m * inner * n <= self.device.small

    def _small(
        self,
        ta: bool,
        tb: bool,
        x: Array,
        W: Array,
        alpha: Array | None = None,
        act: str = "identity",
        b: Array | None = None,
        noise: Array | None = None,
        beta: Array | None = None,
        into: Array | None = None,
    ) -> tuple[Array, Array]:
        """alpha op(x) op(W) + b + noise, or + beta ``into`` in place; and its activation."""
        m, inner = x.shape[::-1] if ta else x.shape
        n = len(W) if tb else W.shape[1]
        c = self.xp.empty((m, n), x.dtype) if into is None else into
        y = c if act == "identity" else self.xp.empty(c.shape, c.dtype)
        alpha = self._filled(1.0, (), c.dtype) if alpha is None else alpha
        given = (_plain(self, v) for v in (x, W, *(c if v is None else v for v in (b, noise))))
        scales = alpha, alpha if beta is None else beta
        flags = ta, tb, beta is not None, b is not None, noise is not None, ACTS[act]
        args = *given, *scales, c, y, m, n, inner, *flags
        blocks = -(-m // TILE) * -(-n // TILE)
        self.device.launch("product", c.dtype.type, blocks, TILE * TILE, args)
        return c, y


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


def _turned(a: Array, turn: bool) -> Array:
    return a.swapaxes(-1, -2) if turn else a


def _places(
    x: tuple[int, ...], W: tuple[int, ...], stride: int, padding: int
) -> tuple[int, int, int] | None:
    """Samples, rows and columns of places of a convolution; None where there are none."""
    if len(x) != 4 or len(W) != 4 or not W[2] or x[3] % W[2] or W[3] % (x[3] // W[2] or 1):
        return None
    high, wide = (out_size(n, W[0], stride, padding) for n in x[1:3])
    return (x[0], high, wide) if min(x[0], x[3], W[3], high, wide) > 0 else None
