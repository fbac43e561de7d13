"""Recurrent Forward-Forward: layers see the one below and the one above, over time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fflearn.base import (
    Array,
    Batch,
    Channel,
    Key,
    LayerSpec,
    LayerView,
    Params,
    Rule,
    Shape,
    Signals,
    Trace,
    Update,
)
from fflearn.errors import SpecError
from fflearn.labels import negatives, phases
from fflearn.networks import Network
from fflearn.objectives.goodness import Goodness
from fflearn.topology import Residual, Sequential, leaves_of
from fflearn.units import one_unit

PASSIVE = ("max_pool", "avg_pool", "flatten")  # layers without weights that a network may have


class Tick(NamedTuple):
    """What a layer did in one tick."""

    t: Trace  # from what it read below, with what came from above added to the pre-activation
    h: Array  # (rows, *out)  the new state
    heard: tuple[Array, ...]  # (rows, m), or (rows, *places, m): what each D reads


@dataclass(frozen=True)
class RecurrentFF(Rule):
    """Forward-Forward where each layer reads both neighbours' states of one tick ago.

        a_l(t) = n(h_{l-1}(t-1)) W_l + b_l + n(h_{l+1}(t-1)) D_l
        h_l(t) = (1 - damping) act(a_l(t)) + damping h_l(t-1)
        loss   = mean over ticks of softplus(-phase (g - theta) / T),    g = sum of h_l(t)^2
        da_l(t) = (d loss / d h_l(t)) (1 - damping) act'(a_l(t))
        grad W_l = mean n(h_{l-1}(t-1))^T da_l(t),    grad D_l = mean n(h_{l+1}(t-1))^T da_l(t)

    The image is held at the bottom and a label at the top, the right one (phase +1) or a wrong
    one (phase -1).  No gradient goes through time or to a neighbour: what a layer reads, and its
    own old state, are constants.  n is x / sqrt(mean x^2).  All layers take a tick at once.

    Between layers with places, images, D_l is shared by places: each reads the state of the place
    above that lies over it.  Any other D_l reads all of the layer above.  Pooling is a part of the
    convolution before it, whose activation comes after the pooling.

    A feedforward pass gives the first states, and the network's last layer reads them: a softmax
    classifier, whose error does not reach the hidden layers.  The wrong labels are drawn from it.

    Parameters
    ----------
    ticks : int
        Ticks of a training step.
    damping : float
        Share of the old state that stays, from 0 to below 1.
    temperature : float
        T.  theta is the layer's number of units.
    negatives : str
        "hard", from what the classifier believes of the wrong labels, or "wrong", uniform.
    score_from, score_to : int
        Prediction tries every label and adds up goodness over layers and these ticks.

    Notes
    -----
    The paper does not say which state is scored; here it is the damped one.  D_l is drawn from
    N(0, 1 / n), with n the numbers it reads.  The paper's layers are dense, or local without
    shared weights.

    References
    ----------
    Hinton (2022), "The Forward-Forward algorithm: some preliminary investigations",
    arXiv:2212.13345, sec. 3.4.
    """

    ticks: int = 5
    damping: float = 0.3
    temperature: float = 1.0
    negatives: str = "hard"
    score_from: int = 3
    score_to: int = 5

    channels: ClassVar = frozenset({Channel.PHASE, Channel.FEEDBACK})
    choices: ClassVar = {"negatives": ("hard", "wrong")}
    needs_classes: ClassVar = True
    short: ClassVar = ("recurrent_forward_forward",)
    citation: ClassVar = "Hinton (2022), arXiv:2212.13345, sec. 3.4"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}
    predictors: ClassVar = ("goodness", "softmax")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.damping < 1:
            raise SpecError(
                f"recurrent_ff needs a damping from 0 to below 1; got {self.damping}. Type "
                f"damping=0.3"
            )
        if self.ticks < 1:
            raise SpecError(f"recurrent_ff needs 1 tick or more; got ticks={self.ticks}.")
        if not 1 <= self.score_from <= self.score_to:
            raise SpecError(
                f"recurrent_ff adds up goodness from tick score_from to score_to, 1 or later; got "
                f"{self.score_from} to {self.score_to}. Type score_from=3,score_to=5"
            )

    # -- the network this rule trains ------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        top = leaves_of(net.nodes, len(net.nodes) - 1)
        below = [layer.kind in PASSIVE for i, layer in enumerate(net.leaves) if i not in top]
        if below and all(below):
            raise SpecError(
                f"recurrent_ff needs hidden layers that learn; {net.spec()!r} has none. Type for "
                f"instance: dense 256 relu | {net.leaves[-1].spec()}"
            )
        drawn = iter([self.normalised(layer, i in top) for i, layer in enumerate(net.leaves)])
        return Network(with_pooling(net.map(lambda _: next(drawn)).body))

    def normalised(self, layer: Any, at_top: bool) -> Any:
        """A layer as this rule trains it."""
        if layer.kind in PASSIVE:
            return layer
        if layer.kind not in ("dense", "conv"):
            raise SpecError(
                f"recurrent_ff sends states down between dense layers and convolutions; "
                f"{layer.spec()!r} is neither. Use forward_forward for such a network."
            )
        return replace(layer, norm="rms", draw="zeros" if at_top else "lecun")

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if len(v.net_out) > 1:
            raise SpecError(
                f"recurrent_ff needs one label per sample; the network ends in {v.name!r}, with "
                f"outputs of shape {v.net_out}."
            )
        if v.is_output:
            if v.is_input or v.above:
                raise SpecError(
                    f"recurrent_ff needs hidden layers below {v.name!r}, and none that reads the "
                    f"network's output. Type for instance: dense 256 relu | dense {v.n_classes}"
                )
            return {}
        found = {}
        for i, shape in enumerate(v.above):
            m, n = math.prod(shape), math.prod(v.out_shape)
            if by_place(v, shape):
                m, n = shape[-1], v.out_shape[-1]
            found[f"D{i}"] = key.fold("D", i).normal((m, n), np.float64) / math.sqrt(m)
        return found

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(owned)

    def has_state(self, v: LayerSpec) -> bool:
        return not v.is_output

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(logits := bus.forward(batch.x))
        draw = negatives(self.negatives)
        wrong = draw(bus.k, batch.y, logits, bus.key.fold("negatives"))
        labels = np.concatenate([batch.y, wrong])
        x = np.concatenate([batch.x, batch.x])
        phase = phases(x, len(batch.x), len(x) - len(batch.x))
        bus.each(self.start, 2)
        bus.each(self.hear, phase=phase)
        for _ in range(self.ticks):
            bus.relax(x, lambda: labels)
            bus.each(self.tally)
            bus.each(self.commit)
        bus.update(top=out.error)
        return {"head_loss": bus.mean(out.loss)}

    def start(self, v: LayerView, s: Signals, copies: int) -> None:
        """The states of the feedforward pass, once for each label that will be tried."""
        v.state["s"] = np.concatenate([v.trace.y] * copies)

    def hear(self, v: LayerView, s: Signals) -> None:
        """Keeps, for all ticks, which rows have the right label."""
        if not v.is_output:
            v.state["phase"] = s.phase

    def relax(self, v: LayerView, below: Any, above: Any) -> None:
        """The next state, not in force before `commit`: the layers below read the old one."""
        if v.is_output:
            return
        heard = tuple(over(v, n) for n in above)
        a = sum(
            v.k.matmul(n.reshape(-1, n.shape[-1]), v.aux[f"D{i}"]).reshape(-1, *v.out_shape)
            for i, n in enumerate(heard)
        )
        t = v.forward(below, noise=a)
        kept, new = (t.y.dtype.type(share) for share in (self.damping, 1 - self.damping))
        v.state["tick"] = Tick(t, new * t.y + kept * v.state["s"], heard)

    def commit(self, v: LayerView, s: Signals) -> None:
        """The tick is over: the next state is the state."""
        if not v.is_output:
            v.state["s"] = v.state["tick"].h

    def feedback(self, v: LayerView, m: Any) -> Any:
        """The normalised state; of the output layer, the label."""
        if v.is_input:
            return None
        rows = m if v.is_output else v.state["s"]
        return (v.k.normalize(rows.reshape(len(rows), -1), "rms").reshape(rows.shape),)

    # -- what a layer learns -----------------------------------------------------------------------
    def tally(self, v: LayerView, s: Signals) -> None:
        """Adds this tick's gradients to those of the ticks before."""
        if v.is_output:
            return
        t, h, heard = v.state["tick"]
        loss, error = self.objective(v)(v.k, h, v.state["phase"])
        da = v.act_vjp(t, error * h.dtype.type((1 - self.damping) / self.ticks))
        found = dict(v.param_vjp(t, da))
        for i, n in enumerate(heard):
            found[f"D{i}"] = v.product(n, da.reshape(*n.shape[:-1], -1))
        before = v.state.get("found", {})
        v.state["found"] = {n: v.k.formed(g) + before.get(n, 0) for n, g in found.items()}
        v.state["loss"] = v.mean(loss) / self.ticks + v.state.get("loss", 0)

    def update(self, v: LayerView, s: Signals) -> Update:
        if v.is_output:
            return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, s.top)))
        v.report("loss", v.state["loss"])
        found = v.state["found"]
        return Update({n: found[n] for n in v.params}, {n: found[n] for n in v.aux})

    def objective(self, v: LayerView) -> Goodness:
        """This layer's own objective."""
        return Goodness("ssq", float(math.prod(v.out_shape)), self.temperature)

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Any, x: Any, by: str) -> Any:
        """By "softmax": the feedforward classifier.  By "goodness": try each label."""
        logits = bus.forward(x)
        if by == "softmax":
            return logits
        scores = []
        for one_hot in bus.k.constant(np.eye(bus.n_classes, dtype=x.dtype)):
            label, total = np.broadcast_to(one_hot, (len(x), bus.n_classes)), 0
            bus.each(self.start, 1)
            for tick in range(1, self.score_to + 1):
                bus.relax(x, lambda label=label: label)
                bus.each(self.commit)
                if tick >= self.score_from:
                    total = total + sum(g for g in bus.collect(self.goodness) if g is not None)
            scores.append(total)
        return np.stack(scores, axis=1)

    def goodness(self, v: LayerView) -> Any:
        """(rows,) of one hidden layer's state."""
        return None if v.is_output else self.objective(v).of(v.k, v.state["s"])


def with_pooling(item: Any) -> Any:
    """The structure with each convolution and the pooling behind it as one block.

    The activation moves behind the pooling, where what comes from above joins in.  A flattening
    is left out: dense layers do it.
    """
    if isinstance(item, Residual):
        skip = None if item.skip is None else with_pooling(item.skip)
        return Residual(with_pooling(item.body), skip)
    if not isinstance(item, Sequential):
        return item
    parts: list[Any] = []
    for part in map(with_pooling, item.items):
        kind = getattr(part, "kind", "")
        if kind not in PASSIVE:
            parts.append(part)
        elif kind != "flatten":
            if not parts or getattr(parts[-1], "kind", "") != "conv":
                raise SpecError(
                    f"recurrent_ff needs a convolution right before {part.spec()!r}. Use stride=2 "
                    f"in a convolution in its place."
                )
            conv = parts.pop()
            linear = replace(conv, activation="identity").spec()
            parts.append(one_unit(f"{linear} | {part.spec()} | act {conv.activation}"))
    return Sequential(tuple(parts))


def by_place(v: LayerView, above: Shape) -> bool:
    """Whether a layer and one above it both have places, as images have."""
    return len(above) == len(v.out_shape) > 1


def over(v: LayerView, state: Any) -> Any:
    """Of a state above, (rows, *above), what D reads: at each place of this layer what lies over it."""
    if not by_place(v, state.shape[1:]):
        return state.reshape(len(state), -1)
    for axis, n in enumerate(v.out_shape[:-1], 1):
        wide = np.repeat(state, -(-n // state.shape[axis]), axis=axis)
        state = np.split(wide, [n], axis=axis)[0]
    return state
