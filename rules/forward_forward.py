"""Forward-Forward: high goodness on positive data, low goodness on negative data."""

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
from fflearn.labels import Hybrid, Labelled, embedding, negatives, phases
from fflearn.networks import Network
from fflearn.objectives.goodness import Goodness, Logistic, Loss, loss, threshold
from fflearn.topology import Sequential, map_leaves
from fflearn.units import learning_units, rests, silence, turn, waits, with_head


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
    loss, temperature : str, float
        "logistic" is the loss above, with T.  "symba", "margin" and "softmax" compare a sample's
        positive with its negatives, without a threshold: `fflearn.objectives.goodness.LOSSES`.
    negatives : str
        "wrong", "all_wrong" or "hard" (from the head's own mistakes); "auto" is hard where a head
        learns along, else wrong.  "hybrid" is unsupervised: no label is written into the input,
        negatives are parts of two samples, and only the head learns from labels.
    pairs : str
        "full": every sample is shown with its label and with wrong ones.  "half": the first half
        of a batch with its labels, the other half with wrong ones, for half the work per sample;
        a single sample is shown both ways.
    collaboration, gamma : str, float
        "all" or "below": gamma times what the goodness of all other layers, or of those below,
        exceeds their thresholds by, is added to g - theta, as a constant.  "none" adds nothing.
    label, strength : str, float
        Label embedding ("auto", "overlay", "append", "channel") and the value it writes.
    peer : float
        Strength of peer normalisation: pulls each unit's running mean activity towards the
        layer's, so that no unit stays dead.  Made for "ssq": the slopes of "msq" are as much
        smaller as the layer has units, and the pull drowns them.
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
    Of layer collaboration, theta and gamma's factor are not in the paper; all layers update at once.

    References
    ----------
    Hinton (2022), "The Forward-Forward algorithm: some preliminary investigations",
    arXiv:2212.13345, sec. 2, 3.2 and 3.3.  Lorberbom, Gat, Adi, Schwing & Hazan (2024), "Layer
    collaboration in the Forward-Forward algorithm", AAAI 2024, arXiv:2305.12393.
    """

    goodness: str = "ssq"
    norm: str = "rms"
    theta: float | None = None
    loss: str = "logistic"
    temperature: float = 1.0
    negatives: str = "auto"
    pairs: str = "full"
    collaboration: str = "none"
    gamma: float = 1.0
    label: str = "auto"
    strength: float = 1.0
    peer: float = 0.03
    head: bool = True
    head_lr: float = 1.0
    head_weight_decay: float = 1.0
    order: str = "simultaneous"

    choices: ClassVar = {
        "goodness": ("ssq", "msq", "l2"),
        "order": ("simultaneous", "greedy"),
        "collaboration": ("none", "all", "below"),
        "pairs": ("full", "half"),
    }
    needs_classes: ClassVar = True
    keeps: ClassVar = frozenset()
    short: ClassVar = ("ff",)
    citation: ClassVar = "Hinton (2022), arXiv:2212.13345"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}
    variants: ClassVar = {
        "unsupervised": {"negatives": "hybrid"},
        "collaboration": {"collaboration": "all"},
        "half": {"pairs": "half"},
        "symba": {"loss": "symba", "goodness": "msq", "temperature": 0.25, "peer": 0.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draw.needs_head and not self._head_learns_along:
            raise SpecError(
                f"negatives={self.negatives} are drawn from the head as it learns: they need "
                f"head=true and order=simultaneous."
            )
        if self.collaboration == "all" and self.order == "greedy":
            raise SpecError(
                "collaboration=all needs the goodness of layers above, which greedy has not trained "
                "yet. Use collaboration=below, or order=simultaneous."
            )
        if self.pairs == "half" and (self.loss != "logistic" or self.negatives == "all_wrong"):
            raise SpecError(
                f"pairs=half shows no sample with both a right and a wrong label, so loss="
                f"{self.loss} with negatives={self.negatives} has nothing to compare. Use "
                f"loss=logistic and one negative per sample, or pairs=full."
            )
        if self.unsupervised and not self.head:
            raise SpecError("negatives=hybrid need head=true: nothing else learns the labels.")
        if self.theta is None:
            threshold(self.norm, self.goodness, 1)
        loss(self.loss, self.temperature)

    @property
    def channels(self) -> frozenset[Channel]:  # type: ignore[override]
        return frozenset({Channel.PHASE} if self.alone else {Channel.PHASE, Channel.GOODNESS})

    @property
    def alone(self) -> bool:
        """Whether layers learn without the others' goodness."""
        return self.collaboration == "none"

    @property
    def _head_learns_along(self) -> bool:
        return self.head and self.order == "simultaneous"

    @property
    def unsupervised(self) -> bool:
        """Whether the input carries no label."""
        return self.negatives == Hybrid.name

    @property
    def draw(self) -> Any:
        """How negatives are drawn."""
        if self.unsupervised:
            return Hybrid()
        if self.negatives != "auto":
            return negatives(self.negatives)
        return negatives("hard" if self._head_learns_along else "wrong")

    @property
    def ends_in_logits(self) -> bool:  # type: ignore[override]
        return self.head

    @property
    def predictors(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.unsupervised:
            return ("softmax",)
        return ("goodness", "softmax") if self.head else ("goodness",)

    # -- the network this rule trains ------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        units, last = learning_units(net), net.body.items[-1]
        if not units or (self.head and not hasattr(last, "norm")):
            raise SpecError(
                f"forward_forward needs a hidden layer that learns, and a layer with weights at "
                f"the end; got {net.spec()!r}. Type for instance: dense 256 relu | dense 10"
            )
        units = [map_leaves(unit, self.normalised) for unit in units]
        if not self.head:
            return Network(Sequential(tuple(item for unit in units for item in unit.items)))
        head = replace(self.normalised(last), draw="zeros")
        return with_head(units, head, first=1 if len(units) > 2 else 0)

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
            return self._shown(spec).shape(spec.net_in, spec.n_classes)
        except SpecError as e:
            raise SpecError(f"forward_forward, layer {spec.name!r}: {e}") from None

    def _shown(self, spec: LayerSpec) -> Any:
        """How samples are shown to this layer, at the bottom."""
        if self.unsupervised:
            return self.draw
        name = self.label
        if name == "auto" and len(spec.out_shape) > 1:  # it reads places, not a row of features
            name = "overlay"
        embed = embedding(name, spec.net_in, spec.n_classes, self.strength)
        return Labelled(embed, self.draw)

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if self.head and len(v.net_out) > 1:
            raise SpecError(
                f"forward_forward needs one label per sample; the network ends in {v.name!r}, with "
                f"outputs of shape {v.net_out}."
            )
        if self.is_head(v) or not (self.peer and v.learns):
            return {}
        return {"mean_activity": np.full(math.prod(v.out_shape), 0.5)}

    def advise(self, optimizer: Any) -> str:
        if not self.peer or self.goodness != "msq":
            return ""
        return (
            "forward_forward[goodness=msq] with peer normalisation: its pull is made for the slopes of "
            "ssq, which are as much larger as a layer has units, and here it drowns what a layer "
            "learns from goodness. Add peer=0."
        )

    def rates(self, spec: LayerSpec) -> Rates:
        return Rates(self.head_lr, self.head_weight_decay) if self.is_head(spec) else Rates()

    def is_head(self, layer: LayerView | LayerSpec) -> bool:
        """Whether a layer belongs to the softmax head."""
        return self.head and layer.is_output

    def variant(self, progress: float, layers: tuple[LayerSpec, ...]) -> int | None:
        """Greedy: which layer learns now; the head comes last and counts as one."""
        return None if self.order == "simultaneous" else turn(progress, layers, self.head)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        head_learns, hidden_learn = self._who_learns(bus)
        logits = top = None
        if head_learns:
            out = bus.readout(logits := self._neutral(bus, batch.x))
            top = out.error
        if hidden_learn:
            shown, key = self._shown(bus.specs[0]), bus.key.fold("negatives")
            n, half = len(batch.x), self.pairs == "half" and len(batch.x) > 1
            show = shown.half if half else shown.pairs
            counts = (n - n // 2, n // 2) if half else (n, n * self.draw.per_sample(bus.n_classes))
            phase = phases(batch.x, *counts)
            given = bus.k, batch.x, batch.y, logits, key
            if self.alone:
                bus.forward(show(*given), update=True, top=top, phase=phase)
            else:
                bus.forward(show(*given))
                bus.update(top=top, phase=phase, goodness=bus.gather(self.surplus))
        else:
            bus.update(top=top)
        return {"head_loss": bus.mean(out.loss)} if head_learns else {}

    def _who_learns(self, bus: Any) -> tuple[bool, bool]:
        if bus.variant is None:
            return self.head, True
        is_last = bus.variant == len(bus.specs)
        return is_last, not is_last

    def _neutral(self, bus: Any, x: Any) -> Any:
        """The head's logits for inputs that carry no label, or every label equally."""
        return bus.forward(self._shown(bus.specs[0]).neutral(x, bus.n_classes), name="neutral")

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if m.name == "neutral" and not self.is_head(v):
            return m._replace(x=v.forward(m.x).y)  # nothing to learn from: no trace is kept
        if m.name != "x":
            return super().forward(v, m, s)
        if self.is_head(v):
            up = m._replace(x=np.zeros_like(m.x, shape=(len(m.x), 1)))
        else:
            up = silence(v, m) if waits(v) else super().forward(v, m, s)
        if v.learns and "x" in v.traces:
            v.state["surplus"] = self.gauge.of(v.k, up.x) - self.threshold(v)
        else:
            v.state["surplus"] = np.zeros_like(up.x, shape=len(up.x))
        return up

    def update(self, v: LayerView, s: Signals) -> Update:
        if self.is_head(v):
            if "neutral" not in v.traces:
                return Update()
            t = v.traces["neutral"]
            return Update(v.param_vjp(t, v.act_vjp(t, s.top)))
        if not v.learns or rests(v, self.head):
            return Update()
        t, again = v.trace, self.draw.per_sample(v.n_classes)
        u = v.state["surplus"]
        if not self.alone:
            u = u + self.gamma * self.others(v, s.goodness)
        if self.pairs == "half":
            losses, du = Logistic(self.temperature).of_rows(v.k, u, s.phase)
        else:
            blocks = (1 + again, -1)
            losses, du = self.objective(v.k, u.reshape(blocks), s.phase.reshape(blocks))
        v.report("loss", v.mean(losses))
        dy = self.gauge.vjp(v.k, du.ravel(), t.y)
        da = v.act_vjp(t, dy, into=dy)
        if not self.peer:
            return Update(v.param_vjp(t, da))
        n, rows = -(-len(t.y) // (1 + again)), t.y.reshape(len(t.y), -1)  # n positives, first
        if self.pairs == "half":
            right = (s.phase > 0).astype(rows.dtype)[:, None]
            share = np.maximum(v.mean(right), 1e-12)  # all weight may be on negatives
            activity = v.mean(rows * right) / share
        else:
            share, activity = 1 / (1 + again), v.mean(rows[:n])
        mean = 0.9 * v.aux["mean_activity"] + 0.1 * activity
        pull = self.peer / share * (mean - mean.mean())
        positive = da[:n]
        positive += pull.reshape(t.y.shape[1:])
        return Update(v.param_vjp(t, da), aux_assign={"mean_activity": mean})

    @property
    def gauge(self) -> Goodness:
        """What goodness is."""
        return Goodness(self.goodness)

    @property
    def objective(self) -> Loss:
        """What a layer makes of goodness."""
        return loss(self.loss, self.temperature)

    def threshold(self, v: LayerView) -> float:
        """theta of a layer."""
        if self.theta is not None:
            return self.theta
        return threshold(self.norm, self.goodness, math.prod(v.out_shape))

    def surplus(self, v: LayerView) -> Any:
        """g - theta of each row (rows,) of the last pass; 0 of layers that have no goodness."""
        return v.state["surplus"]

    def others(self, v: LayerView, surplus: Any) -> Any:
        """The sum (rows,) of the surplus (rows, depth) of the layers this one works with."""
        total = surplus[:, : v.index].sum(axis=1)
        if self.collaboration == "all":
            total = total + surplus[:, v.index + 1 :].sum(axis=1)
        return total

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Any, x: Any, by: str) -> Any:
        """By "softmax": the head's logits.  By "goodness": try each label, add up goodness."""
        if by == "softmax":
            return self._neutral(bus, x)
        shown, c, scores = self._shown(bus.specs[0]), bus.n_classes, []
        n = -(-len(x) // c)  # samples at a time, so that about as many rows as there are samples
        for part in (x[i : i + n] for i in range(0, len(x), n)):
            bus.forward(shown.each(part, c, bus.k), name="score")
            found = bus.collect(self._score)
            hidden = [g for g in found if g is not None]
            total = sum(hidden[1 if len(hidden) > 2 and self.alone else 0 :])
            scores.append(total.reshape(c, len(part)).T)
        return np.concatenate(scores)

    def _score(self, v: LayerView) -> Any:
        if self.is_head(v) or not v.learns:
            return None
        return self.gauge.of(v.k, v.traces["score"].y)
