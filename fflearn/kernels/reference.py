"""The kernels in NumPy: the definition of every number a step computes.

Rows come first: x (R, n_in), W (n_in, n_out), a, y, da (R, n_out).  ``da`` is the derivative of
each row's own loss; the mean over rows is taken once, where a gradient is formed.  Outputs have
the dtype of the inputs, float32 or float64.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fflearn import random
from fflearn.kernels import patches
from fflearn.kernels.threads import ONE_BLAS_THREAD

Array = NDArray

ACTIVATIONS = ("relu", "tanh", "sigmoid", "hardsigmoid", "gelu", "identity")
BY_INPUT = ("gelu",)  # whose slope y = act(a) does not tell
GOODNESS = ("ssq", "msq", "l2", "lin", "neg_ssq")
NORMS = ("rms", "unit")
EPS = 1e-8  # of `normalize`: below float32 resolution for any row that carries a signal


class Product(NamedTuple):
    """A weight gradient not yet formed: x^T da / n, so that an optimizer may fold it in.

    Parameters
    ----------
    x : Array (R, n_in)
    da : Array (R, n_out)
    n : float
        What to divide by: the number of samples, or the sum of their weights.
    """

    x: Array
    da: Array
    n: float


class Kernels:
    """Every kernel, in NumPy.  A backend subclasses this and overrides what it does better."""

    name = "reference"
    on_host = True  # its arrays are NumPy's
    # Kernels that write to arguments, and to which; the others write to nothing they are given.
    writes: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "sgd": (0, 2),
        "adam": (0, 2, 3),
        "act": (2,),
        "act_vjp": (4,),
    }

    @property
    def lowerings(self) -> Any:
        """Module that says which operations of a tape run without Python; None where none do."""
        return None

    @property
    def side_by_side(self) -> bool:
        """Whether several threads may run steps at the same time."""
        return True

    def running(self, threads: int) -> AbstractContextManager[None]:
        """A context in which steps run; here it holds BLAS to one thread whatever is asked."""
        return ONE_BLAS_THREAD

    def steps(self, engine: Any) -> Any:
        """A backend's own way to repeat an engine's steps; None where the tape does."""
        return None

    # ---- arrays -----------------------------------------------------------------------------
    def asarray(self, a: Any, dtype: Any = None) -> Array:
        """An array of this backend, C-contiguous: copied from the host where it lies elsewhere."""
        return np.ascontiguousarray(a, dtype)

    def fits(self, nbytes: int) -> bool:
        """Whether there is room for data of that size, and for the steps."""
        return True

    def host(self, a: Any) -> np.ndarray:
        """A NumPy array with the values of this backend's."""
        return np.asarray(a)

    def side(self, a: Any) -> Any:
        """A batch's side data, dense or sparse, as the layers of this backend can use it."""
        return a

    def constant(self, a: np.ndarray) -> Array:
        """A small array made on the host, as one that activity may be combined with.

        What a hook writes down (a table, a mask) and does not compute goes through here; what has
        the shape of activity is made by ``np.zeros_like(x, shape=...)`` and its kin.
        """
        return a

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        """Arrays of one shape side by side, on a new axis; any number of them."""
        return np.stack(arrays, axis)

    def one_hot(self, ids: Array, n: int, dtype: Any) -> Array:
        """(*shape) whole numbers -> (*shape, n), 1 at the number and 0 elsewhere."""
        return (ids[..., None] == self.constant(np.arange(n))).astype(dtype)

    def sum_by_id(self, ids: Array, rows: Array, n: int) -> Array:
        """Rows (R, N) added up by their ids (R,), in float64 and in their order: (n, N)."""
        at = ids[:, None] * rows.shape[1] + np.arange(rows.shape[1])
        total = np.bincount(at.ravel(), rows.ravel(), n * rows.shape[1])
        return total.reshape(n, rows.shape[1]).astype(rows.dtype, copy=False)

    # ---- products ---------------------------------------------------------------------------
    def matmul(self, a: Array, b: Array) -> Array:
        """a b: (R, K), (K, N) -> (R, N); also stacks of such matrices, here and below."""
        return a @ b

    def matmul_tn(self, a: Array, b: Array) -> Array:
        """a^T b: (R, M), (R, N) -> (M, N)."""
        return a.swapaxes(-1, -2) @ b

    def matmul_nt(self, a: Array, b: Array) -> Array:
        """a b^T: (R, K), (N, K) -> (R, N)."""
        return a @ b.swapaxes(-1, -2)

    def dense(
        self,
        x: Array,
        W: Array,
        b: Array | None,
        act: str,
        noise: Array | None = None,
        keep: bool = True,
    ) -> tuple[Array | None, Array]:
        """a = x W + b + noise and y = act(a), both (R, n_out); y is a for the identity.

        Without ``keep``, None for a.
        """
        a = self.matmul(x, W)
        if b is not None:
            a += b
        if noise is not None:
            a += noise
        return (a, self.act(a, act)) if keep else (None, self.act(a, act, a))

    def formed(self, g: Array | Product) -> Array:
        """The gradient as an array: x^T da / n of a `Product`; an array passes through."""
        if not isinstance(g, Product):
            return g
        return self.matmul_tn(g.x, g.da) / _real(g.n, g.da)

    def colmean(self, da: Array, n: float) -> Array:
        """Sum of the rows over n: (R, n_out) -> (n_out,)."""
        return da.sum(0) / _real(n, da)

    # ---- convolutions -----------------------------------------------------------------------
    def conv(self, x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
        """(B, H, W, C) -> (B, OH, OW, units), W (K, K, C / groups, units): `patches.conv`."""
        return patches.conv(x, W, b, stride, padding)

    def conv_weights(
        self, x: Array, da: Array, n: float, shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        """Gradient by W, of ``shape``: the sum over samples and places, over n."""
        groups = x.shape[3] // shape[2]
        return patches.conv_weights(x, da, n, shape[0], stride, padding, groups)

    def conv_input(
        self, da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        """The adjoint of `conv` in x: (B, OH, OW, units) -> (B, *in_shape)."""
        return patches.conv_input(da, W, in_shape, stride, padding)

    # ---- pooling ----------------------------------------------------------------------------
    def max_pool(self, x: Array, size: int, stride: int) -> tuple[Array, Array]:
        """(B, H, W, C) -> the largest of each patch and its tap, (B, OH, OW, C)."""
        return patches.max_pool(x, size, stride)

    def pick(self, x: Array, tap: Array, size: int, stride: int) -> Array:
        """The pixel of each patch at its tap: (B, H, W, C) -> (B, OH, OW, C)."""
        return patches.pick(x, tap, size, stride)

    def put(
        self, dy: Array, tap: Array, in_shape: tuple[int, ...], size: int, stride: int
    ) -> Array:
        """The adjoint of `pick`: (B, OH, OW, C) -> (B, *in_shape)."""
        return patches.put(dy, tap, in_shape, size, stride)

    def avg_pool(self, x: Array, size: int, stride: int) -> Array:
        """The mean of each patch: (B, H, W, C) -> (B, OH, OW, C)."""
        return patches.avg_pool(x, size, stride)

    def avg_pool_input(self, da: Array, in_shape: tuple[int, ...], size: int, stride: int) -> Array:
        """The adjoint of `avg_pool`: (B, OH, OW, C) -> (B, *in_shape)."""
        return patches.avg_pool_input(da, in_shape, size, stride)

    # ---- activations ------------------------------------------------------------------------
    def act(self, a: Array, kind: str, into: Array | None = None, /) -> Array:
        """y = act(a), elementwise; gelu is the exact a Phi(a).  Complex a: tanh, sigmoid.

        Written ``into`` an array, if one is given, which may be a; a itself for the identity.
        """
        if kind == "identity":
            return a
        if kind == "relu":
            return np.maximum(a, 0, out=into)
        if kind == "tanh":
            if np.iscomplexobj(a):
                return np.subtract(2 * _sigmoid(2 * a), 1, out=into)
            return np.tanh(a, out=into)
        if kind == "sigmoid":
            return np.positive(_sigmoid(a), out=into)
        if kind == "hardsigmoid":
            return np.clip(a, 0, 1, out=into)
        if kind == "gelu":
            return np.multiply(a, self._normal_cdf(a), out=into)
        raise ValueError(f"act needs one of {', '.join(ACTIVATIONS)}; got {kind!r}.")

    def act_grad(self, a: Any, y: Array, kind: str) -> Array:
        """act'(a), elementwise; 0 at the kinks of relu and hardsigmoid.

        Only the kinds `BY_INPUT` read a.
        """
        if kind == "identity":
            return np.ones_like(y)
        if kind == "relu":
            return (y > 0).astype(y.dtype)
        if kind == "tanh":
            return 1 - y * y
        if kind == "sigmoid":
            return y * (1 - y)
        if kind == "hardsigmoid":
            return ((y > 0) & (y < 1)).astype(y.dtype)
        if kind == "gelu":
            return self._normal_cdf(a) + a * np.exp(-0.5 * a * a) * _real(1 / np.sqrt(2 * np.pi), a)
        raise ValueError(f"act_grad needs one of {', '.join(ACTIVATIONS)}; got {kind!r}.")

    def act_vjp(
        self, dy: Array, a: Any, y: Array, kind: str, into: Array | None = None, /
    ) -> Array:
        """da = dy act'(a), written ``into`` an array, if one is given; dy itself for the identity.

        ``into`` may be dy.
        """
        return dy if kind == "identity" else np.multiply(dy, self.act_grad(a, y, kind), out=into)

    def erfc(self, a: Array) -> Array:
        """The complementary error function, elementwise."""
        from scipy.special import erfc  # 0.1 s to import, and only gelu needs it

        return erfc(a)

    def ndtri(self, p: Array) -> Array:
        """The inverse of the normal distribution, elementwise."""
        from scipy.special import ndtri  # comes with scikit-learn; slow to import

        return ndtri(p)

    def _normal_cdf(self, a: Array) -> Array:
        return _real(0.5, a) * self.erfc(a * _real(-np.sqrt(0.5), a))

    # ---- normalisation ----------------------------------------------------------------------
    def normalize(self, x: Array, kind: str) -> Array:
        """x / (r + eps) by row, eps = 1e-8: r is sqrt(mean x^2) for "rms", ||x|| for "unit"."""
        return x / (_radius(x, kind) + _real(EPS, x))

    def normalize_vjp(self, dn: Array, x: Array, n: Array, kind: str) -> Array:
        """dx = dn / (r + eps) - n (c / r) sum(dn n), with r^2 = c sum(x^2); dn, x, n (R, N).

        A row of zeros gets 0: the true derivative there is 1 / eps, which is finite but would
        let one silent row swamp every other.
        """
        r = _radius(x, kind)
        c = 1 / x.shape[-1] if kind == "rms" else 1.0
        live = r > 0
        r = np.where(live, r, 1)
        along = (dn * n).sum(-1, keepdims=True) * (_real(c, x) / r)
        return np.where(live, dn / (r + _real(EPS, x)) - n * along, 0)

    def normalize_jvp(self, dx: Array, x: Array, n: Array, kind: str) -> Array:
        """dn for a tangent dx: the Jacobian of `normalize` is symmetric, so this is its vjp."""
        return self.normalize_vjp(dx, x, n, kind)

    def standardize(
        self, x: Array, axis: int, eps: float, center: bool = True
    ) -> tuple[Array, Array, Array]:
        """n = (x - mean) / sqrt(var + eps) over an axis of x (R, N); without center, mean is 0.

        Returns
        -------
        n : Array (R, N)
        mean, var : Array (1, N) or (R, 1)
            var is biased: the mean of (x - mean)^2.
        """
        # Sums of float32 columns lose digits with every row: they are taken in float64.
        mean = x.mean(axis, np.float64, keepdims=True).astype(x.dtype)
        if not center:
            mean = np.zeros_like(mean)
        n = x - mean
        var = (n * n).mean(axis, np.float64, keepdims=True).astype(x.dtype)
        return n / np.sqrt(var + _real(eps, x)), mean, var

    def standardize_vjp(
        self, dn: Array, n: Array, var: Array, axis: int, eps: float, center: bool = True
    ) -> Array:
        """dx = (dn - mean(dn) - n mean(dn n)) / sqrt(var + eps), all (R, N).

        The Jacobian is symmetric: for a tangent dx in place of dn this is the tangent of n.
        """
        d = dn - n * (dn * n).mean(axis, keepdims=True)
        if center:
            d = d - dn.mean(axis, keepdims=True)
        return d / np.sqrt(var + _real(eps, n))

    # ---- losses -----------------------------------------------------------------------------
    def softmax(self, z: Array) -> Array:
        """exp(z) / sum exp(z) over the last axis, shifted by the maximum."""
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def softmax_ce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        """Cross-entropy -sum target log softmax(logits), and softmax(logits) - target.

        Parameters
        ----------
        logits, target : Array (R, C)
            The rows of target sum to one (one-hot or soft).

        Returns
        -------
        loss : Array (R,)
        error : Array (R, C)
            d loss / d logits, per row.
        """
        z = logits - logits.max(-1, keepdims=True)
        e = np.exp(z)
        total = e.sum(-1, keepdims=True)
        return (target * (np.log(total) - z)).sum(-1), e / total - target

    def mse(self, y: Array, target: Array) -> tuple[Array, Array]:
        """1/2 sum (y - target)^2 (R,), and y - target (R, C)."""
        error = y - target
        return _real(0.5, y) * (error * error).sum(-1), error

    def bce(self, logits: Array, target: Array) -> tuple[Array, Array]:
        """Binary cross-entropy summed over classes (R,), and sigmoid(logits) - target (R, C)."""
        loss = np.maximum(logits, 0) - logits * target + np.log1p(np.exp(-np.abs(logits)))
        return loss.sum(-1), _sigmoid(logits) - target

    def goodness(self, y: Array, kind: str) -> Array:
        """Goodness of each row, (R, N) -> (R,).

        "ssq" sum y^2, "neg_ssq" -sum y^2, "msq" mean y^2, "l2" ||y||, "lin" mean y.
        """
        if kind == "lin":
            return y.mean(-1)
        if kind == "msq":
            return (y * y).mean(-1)
        ssq = (y * y).sum(-1)
        if kind == "ssq":
            return ssq
        if kind == "neg_ssq":
            return -ssq
        if kind == "l2":
            return np.sqrt(ssq)
        raise ValueError(f"goodness needs one of {', '.join(GOODNESS)}; got {kind!r}.")

    def goodness_vjp(self, dg: Array, y: Array, kind: str) -> Array:
        """dy (R, N) = dg (R,) d goodness / d y; 0 for "l2" where the norm is 0.

        With respect to the activity y: the gate act'(a) is `act_vjp`'s work.
        """
        if kind == "lin":
            return np.repeat((dg / _real(y.shape[-1], y))[:, None], y.shape[-1], 1)
        if kind == "l2":
            norm = self.goodness(y, "l2")
            scale = np.where(norm > 0, dg / np.where(norm > 0, norm, 1), 0)
        elif kind in ("ssq", "neg_ssq", "msq"):
            factor = {"ssq": 2.0, "neg_ssq": -2.0, "msq": 2.0 / y.shape[-1]}[kind]
            scale = dg * _real(factor, y)
        else:
            raise ValueError(f"goodness_vjp needs one of {', '.join(GOODNESS)}; got {kind!r}.")
        return scale[:, None] * y

    def logistic(
        self, g: Array, phase: Array, theta: float, temperature: float
    ) -> tuple[Array, Array]:
        """softplus(u) with u = -phase (g - theta) / T, and its derivative by g; all (R,).

        phase is +1 for rows whose goodness should exceed theta, -1 for the others.
        """
        slope = -phase / _real(temperature, g)
        u = slope * (g - _real(theta, g))
        return np.maximum(u, 0) + np.log1p(np.exp(-np.abs(u))), slope * _sigmoid(u)

    # ---- optimizers (the only kernels that write in place) ------------------------------------
    def sgd(
        self,
        w: Array,
        g: Array | Product,
        m: Array | None,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        """g += wd w;  m = momentum m + g;  w -= lr m, in place, as torch.optim.SGD.

        m starts at zero; None (with momentum 0) keeps no buffer.
        """
        d = self.formed(g)
        if weight_decay:
            d = d + _real(weight_decay, w) * w
        if m is not None:
            m *= _real(momentum, w)
            m += d
            d = m
        w -= _real(lr, w) * d

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
        """Adam, or AdamW if decoupled, in place, as torch.optim; t is the 1-based step.

        m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2;
        w -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
        """
        d = self.formed(g)
        if weight_decay and decoupled:
            w *= _real(1 - lr * weight_decay, w)
        elif weight_decay:
            d = d + _real(weight_decay, w) * w
        m += _real(1 - beta1, w) * (d - m)
        v *= _real(beta2, w)
        v += _real(1 - beta2, w) * (d * d)
        scale, root = adam_scales(lr, beta1, beta2, t)
        w -= _real(scale, w) * (m / (np.sqrt(v) * _real(root, w) + _real(eps, w)))

    # ---- random numbers and samples -----------------------------------------------------------
    def random_words(self, static: int, step: int, n: int) -> Array:
        """Philox words, uint32 (n,): see `fflearn.random.words`."""
        return random.words(static, step, n)

    def uniform(self, static: int, step: int, shape: random.Shape, dtype=np.float32) -> Array:
        """Uniform numbers in [0, 1): see `fflearn.random.uniform`."""
        return random.uniform(static, step, shape, dtype)

    def normal(self, static: int, step: int, shape: random.Shape, dtype=np.float32) -> Array:
        """Standard normal numbers: see `fflearn.random.normal`."""
        return random.normal(static, step, shape, dtype)

    def sample_wrong(self, y: Array, u: Array) -> Array:
        """One-hot (B, C) of a class other than y's, uniform: (label + 1 + floor(u (C - 1))) % C.

        y is one-hot (B, C) with C >= 2, u uniform in [0, 1) (B,).
        """
        c = y.shape[-1]
        # u (C - 1) can round up to C - 1, which would be the true class: hence the minimum.
        skip = np.minimum((u * (c - 1)).astype(np.int64), c - 2)
        return self.one_hot((y.argmax(-1) + 1 + skip) % c, c, y.dtype)

    def sample_softmax_wrong(self, logits: Array, y: Array, u: Array) -> Array:
        """One-hot (B, C) of a class drawn from softmax(logits) with y's class excluded.

        Inverse of the cumulative sum at u (B,): the first class whose sum exceeds u times the
        total.  Its own probability is then not 0, so it is never the true one.
        """
        c = y.shape[-1]
        z = np.where(self.one_hot(y.argmax(-1), c, bool), -np.inf, logits)
        cumulative = np.exp(z - z.max(-1, keepdims=True)).cumsum(-1)
        above = cumulative > u[:, None] * cumulative[:, -1:]
        # u < 1 times the total can still round to the total: then nothing is above it.
        label = np.where(above.any(-1), above.argmax(-1), z.argmax(-1))
        return self.one_hot(label, c, y.dtype)


def adam_scales(lr: float, beta1: float, beta2: float, t: int) -> tuple[float, float]:
    """lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t), in float64."""
    return lr / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t)


def _real(value: float, like: Array) -> np.floating:
    # A float64 scalar would turn float32 arrays into float64 ones.
    return like.dtype.type(value)


def _sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a.real))  # never overflows
    if not np.iscomplexobj(a):
        return np.where(a >= 0, 1, e) / (1 + e)
    # 1 / (1 + exp(-a)), its fraction made real: in real functions, ten times faster.
    c, s = e * np.cos(a.imag), e * np.sin(a.imag)
    d, out = 1 + 2 * c + e * e, np.empty_like(a)
    out.real[...], out.imag[...] = (np.where(a.real >= 0, 1, e * e) + c) / d, s / d
    return out


def _radius(x: Array, kind: str) -> Array:
    if kind not in NORMS:
        raise ValueError(f"normalize needs one of {', '.join(NORMS)}; got {kind!r}.")
    mean = np.mean if kind == "rms" else np.sum
    return np.sqrt(mean(x * x, axis=-1, keepdims=True))
