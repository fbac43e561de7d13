"""Local losses: each layer's activity, projected to the classes, has a cross-entropy of its own."""

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
    LayerSpec,
    LayerView,
    Message,
    Params,
    Rule,
    Signals,
    Update,
)
from fflearn.objectives.softmax_cross_entropy import SoftmaxCrossEntropy
from fflearn.units import rests, silence, turn, waits


class Scores(NamedTuple):
    """What a layer makes of its activity; L places have a label each, P more are averaged over."""

    h: Array  # (B, L, P, n)  what M reads
    z: Array  # (B, L, P, C)  h M
    g: Array  # (B, *L, C)    the scores


@dataclass(frozen=True)
class LocalLoss(Rule):
    """Each layer learns to tell the classes apart by a projection of its own activity.

        linear:  g = mean over places p of h_p M           square:  g = mean over p of (h_p M)^2
        loss = -log softmax(g)_label,     e = softmax(g) - target,     dz_p = e g'(z_p) / places
        dh_p = dz_p M^T,     da = dh act'(a),     grad M = mean over samples of sum_p h_p^T dz_p

    h is the layer's activity, M (n, C) its own projection.  Layers learn as they fire and nothing
    is sent down; the output layer learns from the network's own error.

    Parameters
    ----------
    score : str
        "linear" (Mono-Forward, local classifiers) or "square" (scalable Forward-Forward).
    read : str
        What M reads: "all" of a sample's activity at once, or the "channels" of each place of an
        image, over which scores are averaged.  Of dense layers these are the same.
    learned : bool
        Whether M learns; otherwise it stays as it was drawn.
    order : str
        "simultaneous", or "greedy": one layer after the other, each for its part of the run.

    Notes
    -----
    M is drawn from N(0, 1/n).  With a label per place (token, node) each place has scores of its
    own.  Differs from the papers: there, the network's last layer is the last hidden layer's M;
    here it learns beside it.  Mono-Forward: layers learn in the same step by default, not one
    after the other.  Scalable Forward-Forward: M has no bias, the log-sum is over all classes, and activity is
    passed on as it is, unless the layer that reads it has a norm.

    References
    ----------
    Gong, Li, Abdulla (2025), "Mono-Forward", arXiv:2501.09238: G = a M^T.  M fixed: Mostafa,
    Ramesh, Cauwenberghs (2018), "Deep supervised learning using local errors", Front. Neurosci. 12,
    608, arXiv:1711.06756.  Square, of channels: Krutsylo (2025), "Scalable Forward-Forward
    algorithm", arXiv:2501.03176, a 1 x 1 convolution whose mean square is a class's goodness.
    """

    score: str = "linear"
    read: str = "all"
    learned: bool = True
    order: str = "simultaneous"

    channels: ClassVar = frozenset({Channel.TARGET})
    choices: ClassVar = {
        "score": ("linear", "square"),
        "read": ("all", "channels"),
        "order": ("simultaneous", "greedy"),
    }
    needs_classes: ClassVar = True
    short: ClassVar = ("mono_forward",)
    citation: ClassVar = "Gong, Li & Abdulla (2025), arXiv:2501.09238"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}
    variants: ClassVar = {
        "fixed": {"learned": False},
        "square": {"score": "square", "read": "channels"},
    }
    predictors: ClassVar = ("logits", "layers")

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if v.is_output or not v.params:
            return {}
        n = self.width(v)
        return {"M": key.fold("M").normal((n, v.n_classes), np.float64) / math.sqrt(n)}

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(owned) if self.learned else ()

    def width(self, v: LayerView) -> int:
        """How many numbers M reads at once."""
        return math.prod(v.out_shape[v.spec.places :]) if self.read == "all" else v.out_shape[-1]

    def variant(self, progress: float, layers: tuple[LayerSpec, ...]) -> int | None:
        """Greedy: which layer learns now; the output layer comes last."""
        return None if self.order == "simultaneous" else turn(progress, layers)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        y = bus.forward(batch.x, update="hidden", target=batch.y)
        if bus.variant not in (None, len(bus.specs)):
            return {}  # the hidden layer that learns has a loss of its own
        out = bus.readout(y)
        bus.update(only="output", top=out.error)
        return {"loss": bus.mean(out.loss)}

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        return silence(v, m) if waits(v) else super().forward(v, m, s)

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.params or rests(v):
            return Update()
        t = v.trace
        if v.is_output:
            return Update(v.param_vjp(t, v.act_vjp(t, s.top)))
        h, z, g = self.scores(v, t.y)
        loss, error = SoftmaxCrossEntropy()(v.k, g, s.target)
        v.report("loss", v.mean(loss))
        dz = self.down(error.reshape(*z.shape[:2], 1, -1), z)
        dh = v.k.matmul_nt(dz.reshape(-1, dz.shape[-1]), v.aux["M"])
        grads = v.param_vjp(t, v.act_vjp(t, dh.reshape(t.y.shape)))
        return Update(grads, {"M": v.product(h, dz)} if self.learned else {})

    def scores(self, v: LayerView, y: Any) -> Scores:
        """Activity (B, *out) -> its projections, and a score per class."""
        labels = v.net_out[:-1]
        h = y.reshape(len(y), math.prod(labels), -1, self.width(v))
        z = v.k.matmul(h.reshape(-1, h.shape[-1]), v.aux["M"]).reshape(*h.shape[:3], -1)
        g = (z if self.score == "linear" else z * z).mean(2)
        return Scores(h, z, g.reshape(len(y), *labels, -1))

    def down(self, error: Any, z: Any) -> Any:
        """d loss/d g (B, L, 1, C) -> d loss/d z (B, L, P, C)."""
        share = error / z.shape[2]
        return share + np.zeros_like(z) if self.score == "linear" else 2 * share * z

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Any, x: Any, by: str) -> Any:
        """By "logits": the output layer alone.  By "layers": the scores of all, added up."""
        out = bus.forward(x)
        if by == "logits":
            return out
        return out + sum(g for g in bus.collect(self.own) if g is not None)

    def own(self, v: LayerView) -> Any:
        """One hidden layer's scores, or None where there is no M."""
        return self.scores(v, v.trace.y).g if v.aux else None
