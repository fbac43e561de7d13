"""Product feedback alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Array, Batch, Channel, Key, LayerView, Params, Rule, Signals, Update
from fflearn.errors import SpecError


@dataclass(frozen=True)
class PFA(Rule):
    """Feedback through two matrices in a row: B is fixed, R learns from its own input and output.

        mid_l = da_l B_l,   dy_{l-1} = mid_l R_l^T,   da_l = dy_l * act'(a_l)
        grad W_l = mean x_l^T da_l,   grad R_l = mean x_l^T mid_l

    with W (n_in, n), B (n, m), R (n_in, m), m = expansion n.  So grad R = (grad W) B: under an
    optimizer that is linear in gradients and weights the gap D = R - W B sees no gradient, only
    weight decay, which it shrinks by one factor c_t for all entries and all data: D_t = c_t D_0.
    The path that replaces W on the way down is R B^T = W (B B^T) + c_t D_0 B^T, with E[B B^T] = 1.
    At c = 0 its angle to W is arctan(1 / sqrt(expansion)), and 0 if the rows of B are orthonormal.

    In a convolution B acts on the channels of every place, and on those of each group apart; R is
    (K, K, C / groups, m), as W with m units.  A layer of several matrices has a pair for each.

    Parameters
    ----------
    expansion : int
        m / n, the size of the population between B and R over that of the layer.
    orthogonal : bool
        Whether the rows of B are orthonormal; "PFA-o" is that with expansion 1.  Else they are
        uniform with variance 1 / m.
    density : float
        Part of the entries of B and of R that exist; B's variance is 1 / (m density) then.
    matrix : str
        "dense" is B as above.  "signs" and "hadamard" hold one number per column and are never
        formed: m / n blocks, in each of which units change sign and order, or change sign and go
        through a Walsh-Hadamard transform of which n columns are taken.  B B^T = 1 for "signs",
        and for "hadamard" if n is a power of 2; else E[B B^T] = 1.
    collapsed : bool
        Keep the path P = R B^T itself instead of R, with grad P = (grad W) (B B^T): the same
        numbers with sgd, for a sixth of the products.  A simulation of the rule: P joins the
        neurons that W joins, which the rule is there to avoid.

    References
    ----------
    Ji-An & Benna (2024), "Deep learning without weight symmetry", arXiv:2405.20594.

    Differs from the paper: the first layer, which sends nothing down, has no B and R.  Products
    are taken in the cheaper order: (da B) R^T or da (R B^T)^T.
    """

    expansion: int = 10
    orthogonal: bool = False
    density: float = 1.0
    collapsed: bool = False
    matrix: str = "dense"

    choices: ClassVar = {"matrix": ("dense", "signs", "hadamard")}
    channels: ClassVar = frozenset({Channel.FEEDBACK})
    averages: ClassVar = True
    short: ClassVar = ("product_feedback_alignment",)
    citation: ClassVar = "Ji-An & Benna (2024), arXiv:2405.20594"
    optimizer: ClassVar = {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": (0.01, 0.01, 1e-4),
    }
    variants: ClassVar = {
        "o": {"expansion": 1, "orthogonal": True},
        "sparse": {"density": 0.3},
        "signs": {"matrix": "signs"},
        "collapsed": {"collapsed": True},
    }

    probes: ClassVar = ("path_angle", "path_norm_ratio")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion < 1:
            raise SpecError(f"pfa needs an expansion of 1 or more; got {self.expansion}.")
        if not 0 < self.density <= 1:
            raise SpecError(f"pfa needs a density above 0, at most 1; got {self.density}.")
        if self.density < 1 and (self.orthogonal or self.collapsed):
            raise SpecError(
                "pfa needs density=1 with orthogonal or collapsed: rows with missing entries are "
                "not orthonormal, and without all of R its path is no function of W."
            )
        if not self.plain and (self.orthogonal or self.collapsed or self.density < 1):
            raise SpecError(
                f"pfa needs matrix=dense with orthogonal, density or collapsed; got {self.matrix}. "
                f"Leave orthogonal=true out: the rows of matrix=signs are orthonormal."
            )

    def advise(self, optimizer: Any) -> str:
        if not optimizer.linear:
            also = " With collapsed=true this is not even pfa any more." if self.collapsed else ""
            return (
                f"pfa with {optimizer.name}: steps that are not linear in the gradient keep R from "
                f"following W, so feedback stays badly aligned.{also} Use sgd, momentum included."
            )
        if not np.any(optimizer.weight_decay):
            return (
                "pfa without weight decay: what R and W differ in at first never shrinks. Give "
                "much of it at first, then little: --weight-decay 0.03,1e-4"
            )
        return ""

    # -- B and R ---------------------------------------------------------------------------------
    @property
    def plain(self) -> bool:
        """Whether B is an array of its entries."""
        return self.matrix == "dense"

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        owned: Params = {}
        for name in () if v.is_input else v.weight_std():
            shape = v.params[name].shape
            # A convolution's W is (K, K, C / groups, n).
            groups = v.in_shape[-1] // shape[2] if name == "W" and len(shape) == 4 else 1
            draw = self.fixed if self.plain else self.structured
            b = draw(key.fold("B", name), shape[-1], groups)
            shape = (*shape[:-1], self.expansion * shape[-1])
            fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
            r = uniform(key.fold("R", name), shape, math.sqrt(6 / fans))
            r *= key.fold("exists", name).uniform(shape, np.float64) < self.density
            owned |= {f"R.{name}": r, f"B.{name}": b}
            if self.collapsed:
                owned |= {f"R.{name}": r @ b.T, f"B.{name}": b @ b.T}
        return owned

    def fixed(self, key: Key, n: int, groups: int) -> Array:
        """B (n, expansion n) with E[B B^T] = 1; every group of rows has columns of its own."""
        n, m = n // groups, self.expansion * n // groups
        b = np.zeros((groups, n, groups, m))
        for g in range(groups):
            k = key.fold(g)
            if self.orthogonal:
                b[g, :, g] = np.linalg.qr(k.normal((m, n), np.float64))[0].T
            else:
                b[g, :, g] = uniform(k, (n, m), math.sqrt(3 / (m * self.density)))
                b[g, :, g] *= k.fold("exists").uniform((n, m), np.float64) < self.density
        return b.reshape(groups * n, groups * m)

    def structured(self, key: Key, n: int, groups: int) -> Array:
        """B (groups, expansion, n / groups) in one number each: `into`.

        Its sign is that of a unit on the way in, its size less 1 the number of a column taken, of
        those of all blocks.
        """
        blocks, n = groups * self.expansion, n // groups
        wide = self.width(n)
        columns = [i * wide + key.fold(i).permutation(wide)[:n] for i in range(blocks)]
        signs = key.fold("signs").rademacher((blocks, n), np.float64)
        return (signs * (1 + np.stack(columns))).reshape(groups, self.expansion, n)

    def width(self, n: int) -> int:
        """Columns that a block of n units has before n of them are taken."""
        return 1 << (n - 1).bit_length() if self.matrix == "hadamard" else n

    def into(self, k: Any, x: Array, b: Array) -> Array:
        """x B: (..., n) -> (..., m)."""
        if self.plain:
            return times(k, x, b)
        groups, _, n = b.shape
        z = x.reshape(-1, groups, 1, n) * np.sign(b)
        if self.matrix == "hadamard":
            if more := self.width(n) - n:
                silent = np.zeros_like(z, shape=(*z.shape[:3], more))
                z = np.concatenate([z, silent], axis=3)
            z = hadamard(k, z)
        z = z.reshape(len(z), -1)[:, taken(b)] * self.scale(b)
        return z.reshape(*x.shape[:-1], b.size)

    def back(self, k: Any, x: Array, b: Array) -> Array:
        """x B^T: (..., m) -> (..., n)."""
        if self.plain:
            return times(k, x, b.T)
        groups, blocks, n = b.shape
        rows, wide = math.prod(x.shape[:-1]), self.width(n)
        z = np.zeros_like(x, shape=(rows, groups * blocks * wide))
        z[:, taken(b)] = x.reshape(rows, b.size)
        z = z.reshape(rows, groups, blocks, wide)
        if self.matrix == "hadamard":
            z = hadamard(k, z)[..., :n]
        return ((z * np.sign(b)).sum(axis=2) * self.scale(b)).reshape(*x.shape[:-1], groups * n)

    def scale(self, b: Array) -> float:
        """Size of the entries of B that are not 0."""
        _, blocks, n = b.shape
        return 1 / math.sqrt(blocks * n if self.matrix == "hadamard" else blocks)

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(f"R.{name}" for name in pairs(owned))

    def paths(self, v: LayerView) -> Params:
        """What stands for each of the layer's weight matrices on the way down: R B^T, by name."""
        r = {name: v.aux[f"R.{name}"] for name in pairs(v.aux)}
        if self.collapsed:
            return r
        return {name: self.back(v.k, r[name], v.aux[f"B.{name}"]) for name in r}

    # -- a step ----------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error, update=True)
        return {"loss": bus.mean(out.loss)}

    def feedback(self, v: LayerView, dy: Any) -> Any:
        v.state["da"] = da = v.act_vjp(v.trace, dy)
        if v.is_input:
            return None
        w = v.params.get("W")
        # rows (n_in + n) < n_in n: about where the population costs less than the path.  A sweep
        # over R, which a B without entries needs for the path, costs more in every usual batch.
        if (
            w is not None
            and w.ndim == 2
            and (not self.plain or da.size * sum(w.shape) < w.size * w.shape[1])
        ):
            v.state["mid"] = self.into(v.k, da, v.aux["B.W"])
        if "mid" in v.state and not self.collapsed:
            return v.input_vjp(v.trace, v.state["mid"], {"W": v.aux["R.W"]})
        return v.input_vjp(v.trace, da, self.paths(v))

    def update(self, v: LayerView, s: Signals) -> Update:
        g, of_r = v.param_vjp(v.trace, v.state["da"]), {}
        if "mid" in v.state:
            of_r["R.W"] = v.param_vjp(v.trace, v.state["mid"])["W"]
        else:
            for name in pairs(v.aux):
                g[name] = v.k.formed(g[name])
                of_r[f"R.{name}"] = self.into(v.k, g[name], v.aux[f"B.{name}"])
        if self.density < 1:  # what does not exist is 0 at first and gets no gradient
            of_r = {r: v.k.formed(a) * (v.aux[r] != 0) for r, a in of_r.items()}
        return Update(g, of_r)

    # -- probes ----------------------------------------------------------------------------------
    def path_angle(self, v: LayerView, u: Update) -> float:
        """Degrees between R B^T and W over all matrices of a layer; nan where nothing goes down."""
        p, w = self.flat(v)
        cosine = p @ w / math.sqrt((p @ p) * (w @ w)) if p.size else math.nan
        return math.degrees(math.acos(np.clip(cosine, -1, 1)))

    def path_norm_ratio(self, v: LayerView, u: Update) -> float:
        """|R B^T| / |W| over all matrices of a layer; nan where nothing goes down."""
        p, w = self.flat(v)
        return math.sqrt((p @ p) / (w @ w)) if p.size else math.nan

    def flat(self, v: LayerView) -> tuple[Array, Array]:
        """Paths and weights of a layer as two vectors in float64, empty where it has no path."""
        paths = self.paths(v)
        both = [(paths[n].ravel(), v.params[n].ravel()) for n in paths] or [((), ())]
        p, w = (np.concatenate(part).astype(np.float64) for part in zip(*both, strict=True))
        return p, w


def pairs(owned: Any) -> list[str]:
    """Names of the weight matrices that have a B and an R among these arrays."""
    return [name[2:] for name in owned if name.startswith("R.")]


def uniform(key: Key, shape: tuple[int, ...], bound: float) -> Array:
    """Uniform in (-bound, bound), in float64: both precisions start alike."""
    return (2 * key.uniform(shape, np.float64) - 1) * bound


def taken(b: Array) -> Array:
    """Numbers of the columns that a structured B takes (m,)."""
    return np.abs(b).ravel().astype(np.intp) - 1


def hadamard(k: Any, x: Array) -> Array:
    """x H along the last axis of N = 2^i, H of -1 and 1: by H = H_a x H_b in N (a + b) products."""
    n = x.shape[-1]
    a = 1 << (n.bit_length() // 2)
    b = n // a
    z = times(k, x.reshape(-1, a, b), k.constant(sylvester(b, x.dtype)))
    z = times(k, z.swapaxes(1, 2), k.constant(sylvester(a, x.dtype)))
    return z.swapaxes(1, 2).reshape(x.shape)


def sylvester(n: int, dtype: Any) -> Array:
    """The Hadamard matrix of n = 2^i rows, Sylvester's."""
    h = np.ones((1, 1), dtype)
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


def times(k: Any, a: Array, b: Array) -> Array:
    """(..., n) by (n, m) -> (..., m)."""
    return k.matmul(a.reshape(-1, len(b)), b).reshape(*a.shape[:-1], b.shape[1])
