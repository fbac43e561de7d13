"""Dual propagation: errors as differences between two states of a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Batch, Channel, Key, LayerView, Message, Params, Rule, Signals, Update
from fflearn.errors import SpecError
from fflearn.networks import Network


@dataclass(frozen=True)
class DualPropagation(Rule):
    """Every unit is a dyad, nudged up and down; its difference is the error, its mean the activity.

        u_l = -beta dy_l,                  dy_L = e,   dy_{l-1} = da_l W_l^T
        hi = act(a + (1 - alpha) u),       lo = act(a - alpha u)           (lagrangian)
        hi = act(a + alpha u),             lo = act(a - (1 - alpha) u)     (the first paper's)
        da = (lo - hi) / beta,             s = alpha hi + (1 - alpha) lo
        grad W_l = mean of s_{l-1}^T da_l

    It is backprop with a finite difference in place of act': exact, at any beta, where no nudge
    crosses a bend of a piecewise linear act.  The nudge is per sample: beta does not shrink with
    the batch.  e is that of the first forward pass, at every sweep.

    Parameters
    ----------
    beta : float
        Strength of the nudge, above 0.
    alpha : float
        Which side is nudged how far, in [0, 1]; the error is second order in beta at 1/2, first
        order elsewhere.
    lagrangian : bool
        Whether the sides are those of the adjoint method, whose mean is the activity up to
        second order in beta for every alpha; the two agree at alpha = 1/2.
    sweeps : int
        How often the means go up.  0 is the fast form: one forward pass, one sweep down, and the
        forward activity in place of s.  With 1 gradients use s, as in the paper; with more the
        dyads settle, a sweep up and one down at a time.
    damping : float
        lambda: from its second visit on a dyad goes 1 / (1 + lambda) of the way.
    tied : bool
        False: the way down has weights of its own in place of W_l, that get the updates of W_l and
        its decay (Kolen-Pollack), so that weight decay makes the two alike.

    Notes
    -----
    Differs from the papers: the fast form's code nudges by the gradient of the batch mean (our
    beta = 2 / batch).  Dyads are visited top first in every sweep; the second paper also goes
    bottom first, to the same fixed points.  Damping holds the pre-activations back, not the
    activities, which leaves the fixed points where they are for every act, and lambda is given
    instead of computed from the norm of the weights above, which no layer knows.  Pooling is a
    layer of its own, with dyads, whose choice is that of the mean below.

    References
    ----------
    Hoier, Staudt, Zach (2023), "Dual propagation: accelerating contrastive Hebbian learning with
    dyadic neurons", ICML, arXiv:2302.01228.  lagrangian (DP^T), damping: Hoier, Zach (2024), "Two
    tales of single-phase contrastive Hebbian learning", ICML, arXiv:2402.08573.  tied=false: Kolen,
    Pollack (1994), "Backpropagation without weight transport", ICNN.
    """

    beta: float = 0.1
    alpha: float = 0.5
    lagrangian: bool = True
    sweeps: int = 0
    damping: float = 0.0
    tied: bool = True

    keeps: ClassVar = frozenset({"x", "a"})
    short: ClassVar = ("dp",)
    citation: ClassVar = "Hoier, Staudt & Zach (2023), arXiv:2302.01228"
    variants: ClassVar = {"kp": {"tied": False}, "settled": {"sweeps": 3}}

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise SpecError(f"dual_propagation needs a beta above 0; got {self.beta}.")
        if not 0 <= self.alpha <= 1:
            raise SpecError(f"dual_propagation needs an alpha in [0, 1]; got {self.alpha}.")
        for name in ("sweeps", "damping"):
            value = getattr(self, name)
            if not value >= 0:
                raise SpecError(f"dual_propagation needs {name} to be 0 or more; got {value}.")

    @property
    def channels(self) -> frozenset[Channel]:  # type: ignore[override]
        return frozenset({Channel.TRANSPOSE if self.tied else Channel.FEEDBACK})

    @property
    def optimizer(self) -> dict[str, Any]:  # type: ignore[override]
        if self.tied:
            return {"name": "adam", "lr": 3e-3}
        return {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1}

    def advise(self, optimizer: Any) -> str:
        through_gradients = not (optimizer.linear or getattr(optimizer, "decoupled", False))
        if self.tied or (np.any(optimizer.weight_decay) and not through_gradients):
            return ""
        return (
            "dual_propagation[tied=false]: only weight decay makes the weights of the way down "
            "those of the way up, and not where it goes through adam's scales. Use adamw or sgd "
            "with a weight_decay above 0, much at first: --optimizer adamw --weight-decay 10,0.1"
        )

    # -- before training -------------------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        for layer in net.leaves if self.sweeps else ():
            pools = layer.kind == "max_pool"  # linear, once it has chosen
            if layer.couples_samples or not (layer.linear or pools):
                raise SpecError(
                    f"dual_propagation[sweeps={self.sweeps}] sends means of two states through "
                    f"the layers, so they need to be linear in their input, sample by sample, or "
                    f"max pooling; not {layer.spec()!r}. Use sweeps=0, or leave the layer out."
                )
        return net

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        return {} if self.tied or v.is_input else v.draw_weights(key.fold("B"))

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(owned)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error)
        for sweep in range(self.sweeps):
            if sweep:
                bus.feedback(out.error)
            bus.forward(batch.x)
        bus.update()
        return {"loss": bus.mean(out.loss)}

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        v.traces["x"] = t = v.forward(m.x)
        return m._replace(x=v.state.get("mean", t.y))

    def feedback(self, v: LayerView, dy: Any) -> Any:
        """d loss/d y (B, *out) -> (B, *in), by way of the dyad."""
        a, beta = v.trace.a, self.beta
        up = (1 - self.alpha) if self.lagrangian else self.alpha
        dyad = a - beta * up * dy, a + beta * (1 - up) * dy
        if self.damping and "dyad" in v.state:
            both = zip(dyad, v.state["dyad"], strict=True)
            dyad = tuple((z + self.damping * old) / (1 + self.damping) for z, old in both)
        hi, lo = map(v.act, dyad)
        if self.sweeps:
            v.state.update(dyad=dyad, mean=self.alpha * hi + (1 - self.alpha) * lo)
        v.state["da"] = da = (lo - hi) / beta
        return None if v.is_input else v.input_vjp(v.trace, da, None if self.tied else v.aux)

    def update(self, v: LayerView, s: Signals) -> Update:
        g = v.param_vjp(v.trace, v.state["da"])
        return Update(g, {n: g[n] for n in v.aux})
