"""Forward gradients: a derivative along noise rides up with the activity; noise times it is a gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fflearn.base import (
    Array,
    Batch,
    Channel,
    Key,
    LayerView,
    Message,
    Params,
    Point,
    Rule,
    Signals,
    Update,
)
from fflearn.errors import SpecError
from fflearn.objectives.softmax_cross_entropy import SoftmaxCrossEntropy
from fflearn.topology import plus


class Local(NamedTuple):
    """A layer's own loss: L places have a label each, P more are averaged over."""

    h: Array  # (B, L, 1, F)  mean activity of F channels, what M reads
    loss: Array  # (B,)
    error: Array  # (B, L, 1, C)
    places: int  # P


@dataclass(frozen=True)
class ForwardGradient(Rule):
    """Each layer scales its own noise u by the derivative of the loss along everybody's noise.

        activity (FG-A):  a'_l = (tangent from below) + u_l,   d_i = e_i . y'_i of the output
                          da_l = mean over directions of d_i u_l act'(a_l)^0,   output: da_L = e
        weights (FG-W):   y'_l = jvp(x'_l, u_l),   grad_l = mean over directions of (mean_i d_i) u_l

    e is the error at the output, act'^0 is 0 where act' is and else 1.  The mean is the gradient,
    exactly; what rides up is an exact derivative, and nothing goes down.  Noise is made again from
    its key when the layer learns, never stored.

    Parameters
    ----------
    perturb : str
        "activity": u_l (B, *out) on the pre-activations of hidden layers, and d_i per sample.
        "weights": u_l shaped as the parameters of all layers, and one number d per batch.
    noise : str
        "gaussian" or "rademacher"; "orthonormal": with d numbers perturbed in all layers together,
        `directions` of the d columns of an orthogonal matrix, whose rows get random signs.
    directions : int
        K, a pass of tangents each; the variance goes with 1/K.  With as many orthonormal ones as
        there are numbers to perturb the estimate is the gradient.
    guess : str
        "random"; "local": each hidden layer's direction is the gradient dy of a loss of its own, on
        a projection M of its activity, and the update follows the projection d dy / |dy|^2 of the
        true gradient on it, per sample.
    target : str
        Whose derivative d is: of the "global" loss; of the layer's own "local" one, where nothing
        but activity crosses layers.
    per_batch : bool
        perturb=activity with one number for the whole batch: for layers that mix samples (batch
        norm), where a number per sample is biased.  The variance is that of B times more noise.
    groups : int
        target=local: as many losses per place as there are groups of channels.  All have the same
        value and each is differentiated by its own group alone, so d is of channels / groups units.

    Notes
    -----
    Noise is on the pre-activation at the end of each layer, in a block behind its last norm; in a
    block of blocks, as those of the network local_mixer, at the end of each of these.  Derivatives
    are exact below it, down to the next noise; those of a recurrent layer through time.

    Local losses are per place and group.  M is drawn from N(0, 1/channels), learns by its own
    exact gradient, and reads the channels' mean over places.  Noise in a block counts the losses
    of the places and groups that it reaches.  Differs from the papers: M has no bias; in Fournier
    et al. the local head is a small network.

    References
    ----------
    Baydin, Pearlmutter, Syme, Wood, Torr (2022), "Gradients without backpropagation",
    arXiv:2202.08587, algorithm 1 (weights).  Ren, Kornblith, Liao, Hinton (2023), "Scaling forward
    gradient with local losses", ICLR 2023, arXiv:2210.03310 (activity, local losses).  Fournier et
    al. (2023), "Can forward gradient match backpropagation?", ICML 2023, arXiv:2306.06968 (guess,
    target).
    """

    choices: ClassVar = {
        "perturb": ("activity", "weights"),
        "noise": ("gaussian", "rademacher", "orthonormal"),
        "guess": ("random", "local"),
        "target": ("global", "local"),
    }

    perturb: str = "activity"
    noise: str = "rademacher"
    directions: int = 4
    guess: str = "random"
    target: str = "global"
    per_batch: bool = False
    groups: int = 1

    short: ClassVar = ("fg",)
    citation: ClassVar = "Ren, Kornblith, Liao & Hinton (2023), arXiv:2210.03310"
    variants: ClassVar = {
        "weights": {"perturb": "weights", "directions": 12},
        "local": {"target": "local"},
        "guess": {"guess": "local"},
    }
    probes: ClassVar = ("signal_to_noise",)

    @property
    def op_by_op(self) -> str:  # type: ignore[override]
        return "the columns of noise are drawn anew" if self.noise == "orthonormal" else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("directions", "groups"):
            if getattr(self, name) < 1:
                raise SpecError(
                    f"forward_gradient needs {name} to be 1 or more; got {getattr(self, name)}."
                )
        if self.guess == "local" and (self.perturb == "weights" or self.per_batch):
            raise SpecError(
                "forward_gradient[guess=local] has a direction and a number per sample, on the "
                "activity. Leave perturb and per_batch out."
            )
        if self.target == "local" and (self.noise == "orthonormal" or self.per_batch):
            raise SpecError(
                "forward_gradient[target=local] has directions of each layer's own, and a number "
                "per sample and place. Leave noise=orthonormal and per_batch out."
            )
        if self.target == "global" and self.groups > 1:
            raise SpecError("forward_gradient[groups] is of local losses: add target=local.")
        if self.perturb == "weights" and (self.per_batch or self.groups > 1):
            raise SpecError(
                "forward_gradient[perturb=weights] has one number per batch. Leave per_batch and "
                "groups out."
            )

    # -- what it is, by its parameters -----------------------------------------------------------
    @property
    def channels(self) -> frozenset[Channel]:  # type: ignore[override]
        if self.target == "local":
            return frozenset({Channel.TARGET})
        label = {Channel.TARGET} if self.guess == "local" else set()
        return frozenset({Channel.TANGENT, Channel.LOSS if self.apart else Channel.SCALAR, *label})

    @property
    def apart(self) -> bool:
        """Whether each sample has a number of its own."""
        return self.perturb == "activity" and not self.per_batch

    @property
    def needs_apart(self) -> bool:  # type: ignore[override]
        return self.apart and self.target == "global"

    @property
    def needs_classes(self) -> bool:  # type: ignore[override]
        return "local" in (self.guess, self.target)

    @property
    def optimizer(self) -> dict[str, Any]:  # type: ignore[override]
        lr = 1e-2 if self.perturb == "weights" else 2e-3
        return {"name": "adam", "lr": lr, "schedule": "cosine"}

    def advise(self, optimizer: Any) -> str:
        if self.perturb == "activity" or not optimizer.linear or np.max(optimizer.lr) <= 1e-3:
            return ""
        return (
            "forward_gradient[perturb=weights]: the mean square of an estimate is d / directions "
            "times the gradient's, d the number of weights, so steps linear in it diverge at "
            "learning rates that suit backprop. Use lr=2e-4 (Baydin et al.), or adam."
        )

    # -- before training -------------------------------------------------------------------------
    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if not self.needs_classes or not v.learns or v.is_output:
            return {}
        n = v.out_shape[-1]
        if n % self.groups:
            raise SpecError(
                f"forward_gradient needs groups to divide the channels of every hidden layer; "
                f"{v.name!r} has {n}. Type groups={math.gcd(n, self.groups)}"
            )
        return {"M": key.fold("M").normal((n, v.n_classes), np.float64) / math.sqrt(n)}

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(owned)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        if self.target == "local":
            out = bus.readout(bus.forward(batch.x, update="hidden", target=batch.y))
            bus.update(only="output", top=out.error)
            return {"loss": bus.mean(out.loss)}
        if self.noise == "orthonormal":
            bus.each(self.place, len(batch.x), *self.basis(bus))
        out = bus.readout(bus.forward(batch.x))
        for name in self.passes(bus.specs):
            if name != "x":
                label = {"target": batch.y} if self.guess == "local" else {}
                bus.forward(batch.x, name, **label)
            if bus.tangent is not None:  # else there is no hidden layer to perturb
                slope = (out.error * bus.tangent).reshape(len(batch.x), -1).sum(1)
                number = {"loss": slope} if self.apart else {"scalar": bus.mean(slope)}
                bus.each(self.take, name, **number)
        bus.update(top=out.error)
        return {"loss": bus.mean(out.loss)}

    def passes(self, specs: Any) -> list[str]:
        """Names of the passes that carry a tangent; the first random one rides on "x"."""
        if self.guess == "local":
            return [str(s.index) for s in specs if self.estimates(s)]
        return ["x", *map(str, range(1, self.directions))]

    def estimates(self, spec: Any) -> bool:
        """Whether the layer's gradient is estimated; an output layer may have its own error."""
        inner = self.perturb == "weights" and self.target == "global"
        return spec.learns and (inner or not spec.is_output)

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if m.name == "x":
            v.traces["x"] = v.forward(m.x)
        tangent = None
        if self.guess == "random" and self.target == "global":
            tangent = v.jvp(v.trace, m.tangent, self.noise_of(v, m.name))
        elif m.name == str(v.index):
            v.state["local"] = own = self.local(v, s.target)
            v.state["guess"] = tangent = self.local_gradient(v, own)
        else:
            tangent = v.jvp(v.trace, m.tangent, {})
        return m._replace(x=v.trace.y, tangent=tangent)

    def take(self, v: LayerView, s: Signals, name: str) -> None:
        """Keep the derivative along a direction."""
        if self.estimates(v.spec) and (self.guess == "random" or name == str(v.index)):
            v.state[f"slope.{name}"] = s.loss if self.apart else s.scalar

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.learns:
            return Update()
        if not self.estimates(v.spec):
            return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, s.top)))
        if self.target == "local":
            v.state["local"] = own = self.local(v, s.target)
            v.report("loss", v.mean(own.loss))
            if self.guess == "local":
                v.state["guess"] = self.local_gradient(v, own)
        local = v.state.get("local")
        plastic = {"M": v.product(local.h, local.error)} if local else {}
        return Update(self.estimate(v, self.passes([v.spec])), plastic)

    # -- noise -----------------------------------------------------------------------------------
    def noise_of(self, v: LayerView, name: str) -> Params:
        """u_l of a pass, by parameter or by point; made again at each call."""
        if not self.estimates(v.spec):
            return {}
        if self.noise != "orthonormal":
            tag = f"u.{name}"
            return self.random(v, tag, "normal" if self.noise == "gaussian" else "rademacher")
        start, total, shift, columns = v.state["basis"]
        column = columns[0 if name == "x" else int(name)]
        u = {}
        for n, signs in self.random(v, "signs", "rademacher").items():
            size = signs.size if self.perturb == "weights" else signs[0].size
            i = (np.arange(start, start := start + size) + shift) % total
            # The cosines of DCT-II, all of length sqrt(total); whole numbers keep the angle exact.
            angle = math.pi / (2 * total) * ((2 * i + 1) * column % (4 * total))
            wave = math.sqrt(2 if column else 1) * np.cos(angle)
            u[n] = (signs * wave.reshape(signs.shape)).astype(signs.dtype)
        return u

    def random(self, v: LayerView, tag: str, draw: str) -> Params:
        if self.perturb == "weights":
            return v.noise_like_params(tag, draw)
        y = v.trace.y
        keys = {p: v.key.fold(tag, *p.name.split(".")[:-1]) for p in v.points}
        return {p.name: getattr(k, draw)((len(y), *p.shape), y.dtype) for p, k in keys.items()}

    def basis(self, bus: Any) -> list[int]:
        """Where each layer's numbers begin, and how many there are; a seed; which columns are used."""
        sizes = bus.sizes
        if self.perturb == "activity":
            sizes = [sum(math.prod(p.shape) for p in s.points) for s in bus.specs]
        own = [n if self.estimates(s) else 0 for n, s in zip(sizes, bus.specs, strict=True)]
        total = sum(own)
        if self.directions > total:
            raise SpecError(
                f"forward_gradient has {total} numbers to perturb here, so no {self.directions} "
                f"orthonormal directions. Type directions={total}"
            )
        seed = int(bus.key.fold("shift").words(1)[0])
        columns = bus.key.fold("columns").permutation(total)[: self.directions]
        return [*np.cumsum([0, *own]).tolist(), seed, *columns.tolist()]

    def place(self, v: LayerView, s: Signals, rows: int, *numbers: int) -> None:
        """Keep what `basis` says of this layer: its first row, all rows, their shift, the columns.

        Each sample has the rows in an order of its own, the same in all layers: samples' noises
        are then independent, and the batch averages them.
        """
        total, seed, *columns = numbers[v.depth :]
        weights = self.perturb == "weights"
        shift = 0 if weights else Key(seed).fold("shift").integers(total, (rows, 1))
        v.state["basis"] = numbers[v.index], total, shift, columns

    # -- derivatives -----------------------------------------------------------------------------
    def estimate(self, v: LayerView, names: list[str]) -> Params:
        """The gradient of the own parameters, from the named directions."""
        t = v.trace
        if self.guess == "local":
            dy = v.state["guess"]
            if self.target == "global":
                square = (dy * dy).sum(tuple(range(1, dy.ndim)), keepdims=True)
                along = as_rows(v.state[f"slope.{names[0]}"], dy)
                dy = along / np.maximum(square, np.finfo(dy.dtype).tiny) * dy
            return v.param_vjp(t, v.act_vjp(t, dy))
        mean: Params = {}
        for name in names:
            noise = self.noise_of(v, name)
            slopes = self.slopes(v, name, noise)
            for n, u in noise.items():
                mean[n] = plus(mean.get(n), slopes[n] * u / len(names))
        if self.perturb == "weights":
            return mean
        if self.per_batch:
            mean = {n: len(da) * da for n, da in mean.items()}
        return v.points_vjp(t, mean, weighted=self.per_batch)

    def slopes(self, v: LayerView, name: str, u: Params) -> Params:
        """The derivative along a direction, by what it moves and shaped to multiply its noise."""
        if self.target == "local":
            return self.local_slopes(v, v.state["local"], u)
        return {n: as_rows(v.state[f"slope.{name}"], a) for n, a in u.items()}

    def local(self, v: LayerView, label: Any) -> Local:
        """The layer's own loss, of the mean activity over places that have no label of their own."""
        y, labels = v.trace.y, v.net_out[: v.spec.places]
        places = y.reshape(len(y), math.prod(labels), -1, y.shape[-1])
        h = places.mean(2, keepdims=True)
        g = v.k.matmul(h.reshape(-1, h.shape[-1]), v.aux["M"])
        loss, error = SoftmaxCrossEntropy()(v.k, g.reshape(len(y), *labels, -1), label)
        return Local(h, loss, error.reshape(*h.shape[:3], -1), places.shape[2])

    def local_gradient(self, v: LayerView, own: Local) -> Any:
        """d own loss / d y, (B, *out)."""
        rows = own.error.reshape(-1, own.error.shape[-1])
        dh = v.k.matmul_nt(rows, v.aux["M"]).reshape(own.h.shape) / own.places
        return np.repeat(dh, own.places, axis=2).reshape(v.trace.y.shape)

    def local_slopes(self, v: LayerView, own: Local, u: Params) -> Params:
        """Derivatives of the own losses along noise: at each point of those that it reaches.

        For noise on weights the batch mean of their sum: ().
        """
        moved = v.jvp(v.trace, None, u)
        along = moved * self.local_gradient(v, own)
        slope = along.reshape(*own.error.shape[:2], own.places, self.groups, -1).sum(4)
        if self.perturb == "weights":
            return dict.fromkeys(u, v.mean(slope.reshape(len(slope), -1).sum(1)))
        return {p.name: self.felt(slope, p) for p in v.points}

    def felt(self, slope: Any, point: Point) -> Any:
        """Numbers (B, L, P, G) of the layer's output, for the noise (B, *shape) at a point."""
        if not point.places:
            slope = slope.sum((1, 2), keepdims=True)
        if point.groups % self.groups:
            slope = slope.sum(3, keepdims=True)
        slope = np.repeat(slope, point.shape[-1] // slope.shape[3], axis=3)
        places = point.shape[:-1] if point.places else [1] * (len(point.shape) - 1)
        return slope.reshape(len(slope), *places, -1)

    # -- a probe ---------------------------------------------------------------------------------
    def signal_to_noise(self, v: LayerView, u: Update) -> float | None:
        """|gradient|^2 over the variance of its estimate, judged by how directions disagree."""
        names = self.passes([v.spec])
        if not self.estimates(v.spec) or len(names) < 2:
            return None
        each = [self.estimate(v, [name]) for name in names]
        rows = [np.concatenate([np.ravel(v.k.formed(g[n])) for n in sorted(g)]) for g in each]
        mean, n = np.mean(rows, axis=0), len(rows)
        noise = sum(((row - mean) ** 2).sum() for row in rows) / (n * (n - 1))
        return float(((mean**2).sum() - noise) / noise)


def as_rows(slope: Any, u: Any) -> Any:
    """A number per sample, or one for all, to multiply noise by."""
    return slope.reshape(-1, *[1] * (u.ndim - 1)) if slope.ndim else slope
