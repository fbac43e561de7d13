"""Zeroth-order estimates: the loss is measured where weights were moved, and nothing else is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import (
    Array,
    Batch,
    Channel,
    Key,
    LayerView,
    Message,
    Params,
    Rule,
    Signals,
    Update,
)
from fflearn.errors import SpecError


@dataclass(frozen=True)
class ZerothOrder(Rule):
    """Every layer moves its weights along a direction; how the loss answers is the slope along it.

        s_k = (L(w + mu u_k) - L(w)) / mu     or (L(w + mu u_k) - L(w - mu u_k)) / (2 mu)
        random (RGE, SPSA):   grad = mean over k of s_k u_k,   u_k over all layers at once
        coordinate (CGE):     grad = sum over k of s_k e_k,    e_k one weight of one layer

    L is the mean loss of the batch, so it may be anything that can be measured.  Layers learn from
    the numbers s_k alone; directions are made again from their keys, never stored.  Weights are
    never written to: a pass runs with moved copies.  With coordinates the layers below the moved
    one are not run again, and the layers above read what it made.

    Parameters
    ----------
    noise : str
        "gaussian", "rademacher" or "coordinate".
    directions : int
        K of random directions; of coordinates there are as many as `density` leaves.
    mu : float
        How far weights are moved, above 0.
    central : bool
        Both sides, second order in mu; otherwise one side, first order, at about half the cost.
    sign : str
        "estimate" learns the sign of every entry of grad, "slope" the mean of sign(s_k) u_k.
    density : float
        Part of each layer's weights that is moved, in (0, 1]; the others get no gradient, and a tensor
        with none no update.
    ratios : tuple of float
        A density for each layer, in place of the one for all; see `pruning_ratios`.
    shuffle : int
        Steps between two draws of the weights that are moved.

    Notes
    -----
    Random directions estimate the gradient of the loss smoothed by mu u.  Differs from the papers:
    directions of different layers are drawn from keys of their own, and DeepZero's unit-length
    random directions are not: their scale is one of the learning rate.

    References
    ----------
    Spall (1992), "Multivariate stochastic approximation using a simultaneous perturbation gradient
    approximation", IEEE Trans. Automat. Contr. 37(3), eq. 2.2.  Chen et al. (2024), "DeepZero:
    scaling up zeroth-order optimization for deep model training", ICLR, arXiv:2310.02025, eq. 1, 2
    (coordinates, density, reuse).  Feng, Pang, Du, Chen, Yan, Lin (2023), "Does federated learning
    really need backpropagation?" (BAFFLE), arXiv:2301.12195 (numbers from clients).  sign: Liu,
    Chen, Chen, Hong (2019), "signSGD via zeroth-order oracle", ICLR.
    """

    noise: str = "rademacher"
    directions: int = 12
    mu: float = 1e-3
    central: bool = False
    sign: str = "none"
    density: float = 1.0
    ratios: tuple[float, ...] = ()
    shuffle: int = 1

    channels: ClassVar = frozenset({Channel.SCALAR})
    needs_slopes: ClassVar = False
    choices: ClassVar = {
        "noise": ("gaussian", "rademacher", "coordinate"),
        "sign": ("none", "estimate", "slope"),
    }
    short: ClassVar = ("zo",)
    optimizer: ClassVar = {"name": "adam", "lr": 1e-2, "schedule": "cosine"}
    citation: ClassVar = "Chen et al. (2024), arXiv:2310.02025"
    variants: ClassVar = {
        "central": {"central": True, "directions": 8},
        "deepzero": {"noise": "coordinate", "density": 0.1, "mu": 0.03, "central": True},
        "sign": {"sign": "estimate"},
    }

    @property
    def op_by_op(self) -> str:  # type: ignore[override]
        some = self.noise == "coordinate" or self.density < 1 or self.ratios
        return "which weights are moved is drawn anew" if some else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("directions", "shuffle"):
            if getattr(self, name) < 1:
                raise SpecError(
                    f"zeroth_order needs {name} to be 1 or more; got {getattr(self, name)}."
                )
        if not self.mu > 0:
            raise SpecError(f"zeroth_order needs a mu above 0; got {self.mu}.")
        for part in (self.density, *self.ratios):
            if not 0 <= part <= 1 or not self.density:
                raise SpecError(f"zeroth_order needs a density above 0, at most 1; got {part}.")

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if len(self.ratios) not in (0, v.depth):
            raise SpecError(
                f"zeroth_order needs one of the ratios for each of the {v.depth} layers; got "
                f"{len(self.ratios)}. Leave ratios out, or take what pruning_ratios gives."
            )
        return {}

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        loss, numbers = self.measure(bus, batch)
        self.learn(bus, numbers)
        return {"loss": loss}

    def measure(self, bus: Any, batch: Batch) -> tuple[Any, Array]:
        """The mean loss, and the slope along each direction: () and float64 (K,)."""
        total = self.place(bus)
        still = bus.readout(bus.forward(batch.x)).loss
        slopes = []
        for k in range(total):
            up = bus.readout(bus.forward(batch.x, f"+{k}")).loss
            down = bus.readout(bus.forward(batch.x, f"-{k}")).loss if self.central else still
            # Per sample, where nearly equal losses subtract exactly; their means would round first.
            change = bus.mean(up - down).astype(np.float64)
            slopes.append(change / ((1 + self.central) * self.mu))
        return bus.mean(still), np.stack(slopes)

    def learn(self, bus: Any, numbers: Array) -> None:
        """Every layer learns from the slopes (K,), wherever they were measured."""
        total = self.place(bus)
        if len(numbers) != total:
            raise SpecError(
                f"zeroth_order has {total} directions here; got {len(numbers)} numbers."
            )
        for k in range(total):
            bus.each(self.take, k, scalar=numbers[k])
        bus.update()

    def place(self, bus: Any) -> int:
        """Tell every layer which directions are its own; how many there are."""
        if self.noise != "coordinate":
            return self.directions
        parts = self.ratios or (self.density,) * len(bus.sizes)
        starts = np.cumsum([0, *map(moved, bus.sizes, parts)]).tolist()
        bus.each(self.own, *starts)
        return starts[-1]

    def own(self, v: LayerView, s: Signals, *starts: int) -> None:
        """Keep the numbers of this layer's first direction and of the next layer's first."""
        v.state["own"] = starts[v.index], starts[v.index + 1]

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if m.name == "x":
            t = v.forward(m.x)
            if self.noise == "coordinate" or len(v.learned) < len(v.params):
                v.traces["x"] = t  # read above moved weights; running statistics follow it
            return m._replace(x=t.y)
        side, k = m.name[0], int(m.name[1:])  # a pass is called "+17" or "-17"
        if self.noise == "coordinate" and k >= v.state["own"][1]:
            return m._replace(x=v.trace.y)  # the moved layer is above: nothing changed here
        mu = self.mu if side == "+" else -self.mu
        there = {n: v.params[n] + mu * u for n, u in self.direction(v, k).items()}
        return m._replace(x=v.forward(m.x, params={**v.params, **there}).y)

    def take(self, v: LayerView, s: Signals, k: int) -> None:
        """Keep the slope along a direction, if it moves this layer."""
        start, stop = v.state.get("own", (0, self.directions))
        if v.learned and start <= k < stop:
            v.state[f"slope{k}"] = s.scalar

    def update(self, v: LayerView, s: Signals) -> Update:
        g: Params = {}
        if self.noise == "coordinate":
            start, stop = v.state["own"]
            if start == stop:
                return Update()
            slopes = v.k.stack([self.weight(v, k) for k in range(start, stop)])
            found = np.zeros_like(slopes, np.float64, shape=size(v))
            found[v.k.constant(self.chosen(v))] = slopes
            touched = split(v, np.isin(np.arange(size(v)), self.chosen(v)))
            g = {n: a for n, a in split(v, found).items() if touched[n].any()}
        else:
            for k in range(self.directions if v.learned else 0):
                part = self.weight(v, k) / self.directions
                for n, u in self.direction(v, k).items():
                    own = part.astype(u.dtype) * u
                    g[n] = own if n not in g else g[n] + own
        if self.sign == "estimate":
            g = {n: np.sign(a) for n, a in g.items()}
        return Update({n: a.astype(v.params[n].dtype, copy=False) for n, a in g.items()})

    def weight(self, v: LayerView, k: int) -> Any:
        """What a direction counts with."""
        slope = v.state[f"slope{k}"]
        return np.sign(slope) if self.sign == "slope" else slope

    # -- directions ------------------------------------------------------------------------------
    def direction(self, v: LayerView, k: int) -> Params:
        """u_k of this layer, by parameter: made again at each call; {} where it is not moved."""
        if self.noise == "coordinate":
            start, stop = v.state["own"]
            if not start <= k < stop:
                return {}
            one = np.zeros(size(v))
            one[self.chosen(v)[k - start]] = 1
            return {n: v.k.asarray(a, v.params[n].dtype) for n, a in split(v, one).items()}
        u = v.noise_like_params(f"u{k}", {"gaussian": "normal"}.get(self.noise, self.noise))
        if self.density == 1 and not self.ratios:
            return u
        there = split(v, np.isin(np.arange(size(v)), self.chosen(v)))
        return {n: a * v.k.asarray(there[n]) for n, a in u.items() if there[n].any()}

    def chosen(self, v: LayerView) -> Array:
        """Which of the layer's numbers may be moved, in this and the steps until the next draw."""
        if "chosen" not in v.state:
            part = self.ratios[v.index] if self.ratios else self.density
            draw = v.key.using(None).at(v.key.step // self.shuffle).fold("moved")
            v.state["chosen"] = np.sort(draw.permutation(size(v))[: moved(size(v), part)])
        return v.state["chosen"]


def size(v: LayerView) -> int:
    """How many numbers a layer learns."""
    return sum(p.size for p in v.learned.values())


def moved(n: int, part: float) -> int:
    """How many of a layer's n numbers may be moved: at least one, unless none are to be."""
    return min(n, max(1, round(part * n))) if part else 0


def split(v: LayerView, flat: Array) -> Params:
    """(n,) -> arrays shaped as what the layer learns, by parameter."""
    ends = np.cumsum([p.size for p in v.learned.values()]).tolist()
    return {
        n: flat[end - p.size : end].reshape(p.shape)
        for end, (n, p) in zip(ends, v.learned.items(), strict=True)
    }


def pruning_ratios(
    engine: Any, state: Any, batch: Batch, density: float, mu: float = 5e-3
) -> tuple[float, ...]:
    """Which part of each layer's weights DeepZero moves: what ZO-GraSP would leave (no changes).

        score = -w * (H g),   H g = (g(w + mu g) - g(w)) / mu,   g as the engine's rule estimates it

    The `density` of all weights with the largest absolute scores stays; a layer's ratio is its
    part of them.

    Parameters
    ----------
    engine : Engine
        Of any rule that learns a gradient: of this one, with random directions or coordinates.
    state : State
    batch : Batch
    density : float
        In (0, 1].

    References
    ----------
    Chen et al. (2024), arXiv:2310.02025, sec. 4.  Wang, Zhang, Grosse (2020), "Picking winning
    tickets before training by preserving gradient flow" (GraSP), ICLR, arXiv:2002.07376, eq. 8.
    """
    if not 0 < density <= 1:
        raise SpecError(f"pruning_ratios needs a density above 0, at most 1; got {density}.")
    there, scores = state.copy(), []
    here = [formed(engine, u) for u in engine.updates(state, batch)]
    for slots, g in zip(there.params, here, strict=True):
        for n, a in g.items():
            slots[n] += mu * a
    for slots, g, h in zip(
        state.params, here, (formed(engine, u) for u in engine.updates(there, batch)), strict=True
    ):
        each = [np.abs(slots[n] * (h[n] - g[n]) / mu).ravel() for n in g]
        scores.append(np.concatenate(each or [np.zeros(0)]))
    every = np.concatenate(scores)
    order = np.argsort(-every, kind="stable")[: max(1, round(density * len(every)))]
    stays = np.isin(np.arange(len(every)), order)
    ends = np.cumsum(list(map(len, scores))).tolist()
    return tuple(float(part.mean()) if len(part) else 0.0 for part in np.split(stays, ends[:-1]))


def formed(engine: Any, u: Update) -> Params:
    """The gradients of a layer as arrays."""
    return {n: np.asarray(engine.kernels.formed(g)) for n, g in u.grads.items()}
