"""Forward-Forward, supervised: the label is written into the input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fflearn.base import (
    Batch,
    Channel,
    Key,
    LayerSpec,
    LayerView,
    Message,
    Params,
    Rates,
    Rule,
    Shape,
    Signals,
    Update,
)
from fflearn.errors import SpecError
from fflearn.labels import embedding, negatives
from fflearn.networks import Network
from fflearn.objectives.goodness import KINDS, Goodness, threshold
from fflearn.topology import Residual, Sequential, flatten, map_leaves


@dataclass(frozen=True)
class ForwardForward(Rule):
    """Each layer raises its goodness on positive data and lowers it on negative data.

        loss = softplus(-phase (g - theta) / T),   phase +1 right label, -1 wrong label
        da = (d loss / d g) (d g / d y) act'(a),   grad W = mean n(x)^T da

    with g the sum of squares of the layer's activity y, and n(x) the length-normalised input, so
    that no layer can read the goodness of the one below.  Layers learn as they fire; nothing is
    sent down.  The network's last layer becomes a softmax head on the normalised activity of the
    hidden layers (of all but the first where there are more than two), trained on inputs with a
    neutral label; its error does not reach the hidden layers.

    Parameters
    ----------
    goodness, norm : str
        g and n; see `fflearn.objectives.goodness.THRESHOLDS` for the pairs with a threshold.
    theta : float, optional
        Threshold; default the pair's own.
    temperature : float
        T.
    negatives : str
        "wrong", "all_wrong" or "hard" (from the head's own mistakes); "auto" is hard where a head
        learns along, else wrong.
    label, strength : str, float
        Label embedding ("auto", "overlay", "append", "channel") and the value it writes.
    peer : float
        Strength of peer normalisation: pulls each unit's running mean activity towards the
        layer's, so that no unit stays dead.
    head : bool
        Whether there is a softmax head; without, prediction is by goodness alone.
    head_lr, head_weight_decay : float
        Factors on the optimizer's settings for the head.
    order : str
        "simultaneous", or "greedy": one layer after the other, each for its part of the run.

    Notes
    -----
    Differs from the paper: nothing in the rule; the details (rms norm, sum of squares against the
    number of units, head, hard negatives, peer normalisation) follow the author's released code.

    References
    ----------
    Hinton (2022), "The Forward-Forward algorithm: some preliminary investigations",
    arXiv:2212.13345, sec. 2 and 3.3.
    """

    goodness: str = "ssq"
    norm: str = "rms"
    theta: float | None = None
    temperature: float = 1.0
    negatives: str = "auto"
    label: str = "auto"
    strength: float = 1.0
    peer: float = 0.03
    head: bool = True
    head_lr: float = 1.0
    head_weight_decay: float = 1.0
    order: str = "simultaneous"

    channels: ClassVar = frozenset({Channel.PHASE})
    needs_classes: ClassVar = True
    short: ClassVar = ("ff",)
    citation: ClassVar = "Hinton (2022), arXiv:2212.13345"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}

    def __post_init__(self) -> None:
        if self.goodness not in KINDS:
            raise SpecError(f"forward_forward needs goodness to be one of {', '.join(KINDS)}.")
        if self.order not in ("simultaneous", "greedy"):
            raise SpecError(
                f"forward_forward needs order simultaneous or greedy; got {self.order!r}."
            )
        if self.draw.needs_head and not self._head_learns_along:
            raise SpecError(
                f"negatives={self.negatives} are drawn from the head as it learns: they need "
                f"head=true and order=simultaneous."
            )
        if self.theta is None:
            threshold(self.norm, self.goodness, 1)

    @property
    def _head_learns_along(self) -> bool:
        return self.head and self.order == "simultaneous"

    @property
    def draw(self) -> Any:
        """How negatives are drawn."""
        if self.negatives != "auto":
            return negatives(self.negatives)
        return negatives("hard" if self._head_learns_along else "wrong")

    @property
    def ends_in_logits(self) -> bool:  # type: ignore[override]
        return self.head

    @property
    def predictors(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("goodness", "softmax") if self.head else ("goodness",)

    # -- the network this rule trains ------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        *below, last = net.body.items
        units: list[list[Any]] = []  # what learns, each with the pooling and the like behind it
        for item in below:
            if not units or learns(item):
                units.append([])
            units[-1].append(item)
        if len(units) > 1 and not learns(units[0][0]):  # at the input, before what learns
            units[:2] = [units[0] + units[1]]
        if not units or not learns(*units[0]) or (self.head and not hasattr(last, "norm")):
            raise SpecError(
                f"forward_forward needs a hidden layer that learns, and a layer with weights at "
                f"the end; got {net.spec()!r}. Type for instance: dense 256 relu | dense 10"
            )
        hidden = [map_leaves(Sequential(tuple(unit)), self.normalised).items for unit in units]
        if not self.head:
            return Network(Sequential(tuple(item for unit in hidden for item in unit)))
        head = replace(self.normalised(last), draw="zeros")
        first = 1 if len(hidden) > 2 else 0  # the head reads from this hidden layer on
        tail = Sequential((*hidden[-1], head))
        for i in reversed(range(len(hidden) - 1)):
            if i >= first:
                skip = Sequential((replace(head, bias=False),))
                tail = Sequential((*hidden[i], Residual(tail, skip)))
            else:
                tail = Sequential((*hidden[i], *tail.items))
        return Network(tail)

    def normalised(self, layer: Any) -> Any:
        """A layer as this rule trains it."""
        if not layer.weights:
            return layer
        if not hasattr(layer, "norm"):
            raise SpecError(f"forward_forward cannot normalise the input of {layer.spec()!r}.")
        if layer.couples_samples:
            raise SpecError(
                f"forward_forward shows a sample once with each label, and {layer.spec()!r} mixes "
                f"samples. For graphs take for instance single_forward or dfa."
            )
        return replace(layer, norm=self.norm, draw="lecun")

    def in_shape(self, chain: Shape, spec: LayerSpec) -> Shape:
        if not spec.is_input:
            return chain
        try:
            return self._embedding(spec).shape(spec.net_in, spec.n_classes)
        except SpecError as e:
            raise SpecError(f"forward_forward, layer {spec.name!r}: {e}") from None

    def _embedding(self, spec: LayerSpec) -> Any:
        """How labels are written into the input that this layer, at the bottom, reads."""
        name = self.label
        if name == "auto" and len(spec.out_shape) > 1:  # it reads places, not a row of features
            name = "overlay"
        return embedding(name, spec.net_in, spec.n_classes, self.strength)

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if self.head and len(v.net_out) > 1:
            raise SpecError(
                f"forward_forward needs one label per sample; the network ends in {v.name!r}, with "
                f"outputs of shape {v.net_out}."
            )
        if self.is_head(v) or not (self.peer and v.learns):
            return {}
        return {"mean_activity": np.full(math.prod(v.out_shape), 0.5)}

    def rates(self, spec: LayerSpec) -> Rates:
        return Rates(self.head_lr, self.head_weight_decay) if self.is_head(spec) else Rates()

    def is_head(self, layer: LayerView | LayerSpec) -> bool:
        """Whether a layer belongs to the softmax head."""
        return self.head and layer.is_output

    def variant(self, progress: float, layers: tuple[LayerSpec, ...]) -> int | None:
        """Greedy: which layer learns now; the head comes last and counts as one."""
        if self.order == "simultaneous":
            return None
        stages = [s.index for s in layers if s.learns and not self.is_head(s)]
        stages += [len(layers)] if self.head else []
        return stages[min(int(progress * len(stages)), len(stages) - 1)]

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        head_learns, hidden_learn = self._who_learns(bus)
        logits = top = None
        if head_learns:
            out = bus.readout(logits := self._neutral(bus, batch.x))
            top = out.error
        if hidden_learn:
            wrong = self.draw(bus.k, batch.y, logits, bus.key.fold("negatives"))
            again = len(wrong) // len(batch.y)
            embed = self._embedding(bus.specs[0])
            images = np.concatenate([batch.x] * (1 + again))
            pairs = embed(images, np.concatenate([batch.y, wrong]))
            phase = np.repeat(np.asarray([1, -1], batch.x.dtype), [len(batch.y), len(wrong)])
            bus.forward(pairs, update=True, top=top, phase=phase)
        else:
            bus.update(top=top)
        return {"head_loss": bus.mean(out.loss)} if head_learns else {}

    def _who_learns(self, bus: Any) -> tuple[bool, bool]:
        if bus.variant is None:
            return self.head, True
        is_last = bus.variant == len(bus.specs)
        return is_last, not is_last

    def _neutral(self, bus: Any, x: Any) -> Any:
        """The head's logits for inputs that carry every label equally."""
        embed = self._embedding(bus.specs[0])
        even = np.full((len(x), bus.n_classes), 1 / bus.n_classes, x.dtype)
        return bus.forward(embed(x, even), name="neutral")

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if self.is_head(v) and m.name != "neutral":
            return m._replace(x=np.zeros((len(m.x), 1), m.x.dtype))
        if m.name == "x" and v.variant is not None and v.index > v.variant:
            nothing = np.zeros((), m.x.dtype)  # not its turn yet
            return m._replace(x=np.broadcast_to(nothing, (len(m.x), *v.out_shape)))
        if m.name == "neutral" and not self.is_head(v):
            return m._replace(x=v.forward(m.x).y)  # nothing to learn from: no trace is kept
        return super().forward(v, m, s)

    def update(self, v: LayerView, s: Signals) -> Update:
        if self.is_head(v):
            if "neutral" not in v.traces:
                return Update()
            t = v.traces["neutral"]
            return Update(v.param_vjp(t, v.act_vjp(t, s.top)))
        if not v.learns or (v.variant is not None and v.index != v.variant):
            return Update()
        t, again = v.trace, self.draw.per_sample(v.n_classes)
        local = self.objective(v)(v.k, t.y, s.phase)
        v.report("loss", local.loss.mean())
        da = v.act_vjp(t, local.error)
        if again > 1:  # the mean over negatives weighs as much as the one positive
            per_row = np.where(s.phase > 0, (1 + again) / 2, (1 + again) / (2 * again))
            da = da * per_row.reshape(-1, *[1] * (da.ndim - 1)).astype(da.dtype)
        if not self.peer:
            return Update(v.param_vjp(t, da))
        n = len(t.y) // (1 + again)
        mean = 0.9 * v.aux["mean_activity"] + 0.1 * v.mean(t.y[:n].reshape(n, -1))
        pull = ((1 + again) * self.peer) * (mean - mean.mean())
        da = np.concatenate([da[:n] + pull.reshape(t.y.shape[1:]), da[n:]])
        return Update(v.param_vjp(t, da), aux_assign={"mean_activity": mean})

    def objective(self, v: LayerView) -> Goodness:
        """This layer's own objective."""
        theta = self.theta
        if theta is None:
            theta = threshold(self.norm, self.goodness, math.prod(v.out_shape))
        return Goodness(self.goodness, theta, self.temperature)

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Any, x: Any, by: str) -> Any:
        """By "softmax": the head's logits.  By "goodness": try each label, add up goodness."""
        if by == "softmax":
            return self._neutral(bus, x)
        embed = self._embedding(bus.specs[0])
        scores = []
        for one_hot in np.eye(bus.n_classes, dtype=x.dtype):
            bus.forward(embed(x, np.broadcast_to(one_hot, (len(x), bus.n_classes))), name="score")
            found = bus.collect(self._score)
            hidden = [g for g in found if g is not None]
            scores.append(sum(hidden[1 if len(hidden) > 2 else 0 :]))
        return np.stack(scores, axis=1)

    def _score(self, v: LayerView) -> Any:
        if self.is_head(v) or not v.learns:
            return None
        return self.objective(v).of(v.k, v.traces["score"].y)


def learns(*items: Any) -> bool:
    """Whether a layer among these, or inside them, has parameters."""
    return any(layer.learns for item in items for layer in flatten(item)[1])
