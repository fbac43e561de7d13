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
from fflearn.topology import Residual, Sequential


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
        *hidden, last = net.body.items
        if not hidden:
            raise SpecError(
                "forward_forward needs a hidden layer besides the output layer. "
                "Type for instance: dense 256 relu | dense 10"
            )

        def normalise(layer: Any) -> Any:
            if not layer.weights:
                return layer  # pooling and the like: nothing there learns
            if not hasattr(layer, "norm"):
                raise SpecError(f"forward_forward cannot normalise the input of {layer.spec()!r}.")
            return replace(layer, norm=self.norm, draw="lecun")

        hidden = [net.map(normalise).body.items[i] for i in range(len(hidden))]
        if not self.head:
            return Network(Sequential(tuple(hidden)))
        head = replace(normalise(last), draw="zeros")
        first = 1 if len(hidden) > 2 else 0  # the head reads from this hidden layer on
        tail = Sequential((hidden[-1], head))
        for i in reversed(range(len(hidden) - 1)):
            if i >= first:
                skip = Sequential((replace(head, bias=False),))
                tail = Sequential((hidden[i], Residual(tail, skip)))
            else:
                tail = Sequential((hidden[i], *tail.items))
        return Network(tail)

    def in_shape(self, chain: Shape, spec: LayerSpec) -> Shape:
        if not spec.is_input:
            return chain
        return self._embedding(spec.net_in, spec.n_classes).shape(spec.net_in, spec.n_classes)

    def _embedding(self, net_in: Shape, n_classes: int) -> Any:
        return embedding(self.label, net_in, n_classes, self.strength)

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if self.is_head(v) or not self.peer:
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
        stages = sum(not self.is_head(s) for s in layers) + self.head
        return min(int(progress * stages), stages - 1)

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
            embed = self._embedding(batch.x.shape[1:], bus.n_classes)
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
        is_last = self.head and bus.variant == sum(not self.is_head(s) for s in bus.specs)
        return is_last, not is_last

    def _neutral(self, bus: Any, x: Any) -> Any:
        """The head's logits for inputs that carry every label equally."""
        embed = self._embedding(x.shape[1:], bus.n_classes)
        even = np.full((len(x), bus.n_classes), 1 / bus.n_classes, x.dtype)
        return bus.forward(embed(x, even), name="neutral")

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        idle = self.is_head(v) if m.name != "neutral" else False
        if idle or (m.name == "x" and v.variant is not None and v.index > v.variant):
            return m._replace(x=np.zeros((len(m.x), 1), m.x.dtype))
        if m.name == "neutral" and not self.is_head(v):
            return m._replace(x=v.forward(m.x).y)  # nothing to learn from: no trace is kept
        return super().forward(v, m, s)

    def update(self, v: LayerView, s: Signals) -> Update:
        if self.is_head(v):
            if "neutral" not in v.traces:
                return Update()
            t = v.traces["neutral"]
            return Update(v.param_vjp(t, v.act_vjp(t, s.top)))
        if v.variant is not None and v.index != v.variant:
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
        embed = self._embedding(x.shape[1:], bus.n_classes)
        scores = []
        for one_hot in np.eye(bus.n_classes, dtype=x.dtype):
            bus.forward(embed(x, np.broadcast_to(one_hot, (len(x), bus.n_classes))), name="score")
            found = bus.collect(self._score)
            hidden = [g for g in found if g is not None]
            scores.append(sum(hidden[1 if len(hidden) > 2 else 0 :]))
        return np.stack(scores, axis=1)

    def _score(self, v: LayerView) -> Any:
        if self.is_head(v):
            return None
        return self.objective(v).of(v.k, v.traces["score"].y)
