"""Self-contrastive Forward-Forward: a sample paired with itself against a sample paired with another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Array, Batch, LayerSpec, LayerView, Message, Rule, Signals, Update
from fflearn.errors import SpecError
from fflearn.networks import Network
from fflearn.objectives.goodness import Goodness
from fflearn.units import rests, silence, turn, waits


@dataclass(frozen=True)
class SelfContrastive(Rule):
    """Each layer raises its goodness on pairs of a sample and itself, not on pairs of two samples.

        positive: y+ = act(2 a(x))        negative: y- = act(a(x) + a(x')),   x' another sample
        loss = softplus(theta_pos - g+) + mean over x' of softplus(g- - theta_neg) + sparsity |g+|
        d+ = (d loss / d y+) act'(2 a(x)),    d- = (d loss / d y-) act'(a(x) + a(x'))
        da(x) = 2 d+(x) + d-(x, x') + d-(x'', x),    x'' the sample that has x for its other

    a = n(x) W + b is the layer's pre-activation: a pair goes in side by side, through the same
    weights.  g is the mean of y^2 over the units, at each place of an image by itself: softplus is
    averaged over places, |g+| is the length of g+ over them.  What a layer passes on is act(a
    minus its mean over the units).

    No labels: the hidden layers learn as they fire and are sent nothing.  The output layer, a
    linear read-out, learns from the network's own error.

    Parameters
    ----------
    theta_pos, theta_neg : float
        The two thresholds, in units of g.
    sparsity : float
        Strength of the penalty on the positive goodness.
    others : int
        Negative pairs of each sample in a step; every one shifts the batch by another number of
        rows, drawn anew by each layer.
    norm : str
        n of the hidden layers: "rms" or "unit", see `dense`; "given" keeps each layer's own.
    order : str
        "simultaneous", or "greedy": one layer after the other, each for its part of the run.

    Notes
    -----
    The sample x' is one of the batch, so a(x') is already known: a pair costs no further pass.  In a
    batch of one sample there is no other, and the negative pair is the positive one.  With sample
    weights, what a pair tells a sample weighs as that sample does.  Differs from the paper: every
    layer pairs its inputs anew (a switch there), all layers learn at once by default (greedy there),
    and inputs have mean square 1 instead of mean 0 and variance 1.

    References
    ----------
    Chen, Liu, Laydevant, Grollier (2025), "Self-contrastive Forward-Forward algorithm", Nat. Commun. 16,
    arXiv:2409.11593.
    """

    theta_pos: float = 2.0
    theta_neg: float = 2.0
    sparsity: float = 0.0
    others: int = 2
    norm: str = "rms"
    order: str = "simultaneous"

    choices: ClassVar = {"norm": ("rms", "unit", "given"), "order": ("simultaneous", "greedy")}
    keeps: ClassVar = frozenset({"x", "a"})
    short: ClassVar = ("scff",)
    citation: ClassVar = "Chen, Liu, Laydevant & Grollier (2025), arXiv:2409.11593"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.others < 1:
            raise SpecError(f"self_contrastive needs others to be 1 or more; got {self.others}.")
        if not self.sparsity >= 0:
            raise SpecError(f"self_contrastive needs a sparsity of 0 or more; got {self.sparsity}.")

    # -- the network this rule trains ------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        def normalised(layer: Any) -> Any:
            if layer.weights and not hasattr(layer, "norm"):
                raise SpecError(
                    f"self_contrastive adds up the pre-activations of two samples, and those of "
                    f"{layer.spec()!r} are not a sum of inputs. Use dense, conv or graph layers."
                )
            return replace(layer, norm=self.norm) if layer.weights else layer

        return net if self.norm == "given" else net.map(normalised)

    def variant(self, progress: float, layers: tuple[LayerSpec, ...]) -> int | None:
        """Greedy: which layer learns now; the read-out comes last."""
        return None if self.order == "simultaneous" else turn(progress, layers)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        y = bus.forward(batch.x, update="hidden")
        if bus.variant not in (None, len(bus.specs)):
            return {}  # the hidden layer that learns has a loss of its own
        out = bus.readout(y)
        bus.update(only="output", top=out.error)
        return {"loss": bus.mean(out.loss)}

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if waits(v):
            return silence(v, m)
        v.traces[m.name] = t = v.forward(m.x)
        if v.is_output or not v.learns:
            return m._replace(x=t.y)
        return m._replace(x=v.act(t.a - t.a.mean(-1, keepdims=True)))

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.learns or rests(v):
            return Update()
        t = v.trace
        if v.is_output:
            return Update(v.param_vjp(t, v.act_vjp(t, s.top)))
        loss, d = self.pair(v, t.a, 1)
        da = 2 * d
        n, share = len(t.a), t.a.dtype.type(1 / self.others)
        for j in range(self.others):
            rows = self.other(v, n, j)
            less, d = self.pair(v, t.a[rows], -1)
            loss, da = loss + share * less, da + share * (d + d[np.argsort(rows)])
        v.report("loss", v.mean(loss))
        return Update(v.param_vjp(t, da))

    def other(self, v: LayerView, n: int, j: int) -> Array:
        """Which row is each row's other: the batch shifted by 1 to n - 1 rows."""
        shift = 1 + v.key.fold("other", j).integers(max(n - 1, 1), ())
        return (v.k.constant(np.arange(n)) + shift) % n

    def pair(self, v: LayerView, a: Any, phase: int) -> tuple[Any, Any]:
        """Pre-activations (B, *out) of the partners -> loss (B,), d loss/d their sum (B, *out)."""
        t = v.trace
        both = t.a + a
        y = v.act(both)
        rows = y.reshape(-1, y.shape[-1])
        places = len(rows) // len(y)
        goodness = Goodness("msq", self.theta_pos if phase > 0 else self.theta_neg)
        loss, dy = goodness(v.k, rows, np.full_like(rows, phase, shape=len(rows)))
        loss, dy = loss.reshape(len(y), places).mean(1), dy / places
        if phase > 0 and self.sparsity:
            g = goodness.of(v.k, rows).reshape(len(y), places)
            size = v.k.goodness(g, "l2")
            dg = v.k.goodness_vjp(np.full_like(size, self.sparsity), g, "l2")
            loss = loss + y.dtype.type(self.sparsity) * size
            dy = dy + v.k.goodness_vjp(dg.ravel(), rows, "msq")
        return loss, v.act_vjp(t._replace(a=both, y=y), dy.reshape(y.shape))
