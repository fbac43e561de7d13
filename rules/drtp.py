"""Direct random target projection."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Batch, Channel, Key, LayerView, Params, Rule, Signals, Update
from fflearn.errors import SpecError
from fflearn.networks import Network

UNBOUNDED = ("relu", "gelu")


@dataclass(frozen=True)
class DRTP(Rule):
    """The label, through a fixed random matrix, is the target of every hidden layer.

        z_l = t B_l,   B_l (C, n_l) fixed;   output layer: da_L = e
        linear (DRTP):  loss_l = -y_l . z_l,         da_l = -z_l * act'(a_l)
        l2 (tpSGD):     loss_l = |y_l - z_l|^2 / 2,  da_l = (y_l - z_l) * act'(a_l)
        l1 (tpSGD):     loss_l = |y_l - z_l|_1,      da_l = sign(y_l - z_l) * act'(a_l)

    A hidden layer needs no error, so it learns as it fires, before the layer above does: one
    hidden layer's activity is alive at a time.  With a label per place (token, node) a layer's
    place gets the label of the same place, and n_l counts the units of one place.

    Parameters
    ----------
    loss : str
        Of the hidden layers: "linear", "l2" or "l1".
    scale : float
        The entries of B_l are uniform.  With "linear" in +-scale sqrt(6 / n_l) (He's draw, as in
        the code of the paper); with "l2" and "l1" they are activities to be reached, in +-scale.
    bounded : bool
        Train with tanh in place of relu and gelu: the linear loss has no end, so units without a
        bound, and their weights, grow as long as training lasts.

    Notes
    -----
    The paper leaves the sign of B open, since its draw is symmetric: here it is that of DFA's
    error e = y - t with y = 0.

    References
    ----------
    Frenkel, Lefebvre, Bol (2021), "Learning without feedback: fixed random learning signals
    allow for feedforward training of deep neural networks", Front. Neurosci. 15, 629892.  l2 and
    l1: Lomnitz, Daniels, Zhang, Piacentino (2022), "Learning with local gradients at the edge"
    (tpSGD), arXiv:2208.08503.
    """

    loss: str = "linear"
    scale: float = 1.0
    bounded: bool = True

    channels: ClassVar = frozenset({Channel.TARGET})
    averages: ClassVar = True
    choices: ClassVar = {"loss": ("linear", "l2", "l1")}
    needs_classes: ClassVar = True  # its signal has the sign of the error for labels of 0 and 1
    short: ClassVar = ("direct_random_target_projection",)
    citation: ClassVar = "Frenkel, Lefebvre & Bol (2021), Front. Neurosci. 15, 629892"
    optimizer: ClassVar = {"name": "adam", "lr": 1e-2}
    variants: ClassVar = {"tpsgd": {"loss": "l2", "scale": 0.9}}

    def adapt(self, net: Network) -> Network:
        def limited(layer: Any) -> Any:
            if not self.bounded or getattr(layer, "activation", "") not in UNBOUNDED:
                return layer
            if layer.kind == "block":
                raise SpecError(
                    f"drtp bounds no layer inside of {layer.spec()!r}. End it in tanh, or take "
                    f"bounded=false."
                )
            return replace(layer, activation="tanh")

        return net.map(limited)

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if v.is_output or not v.params:
            return {}
        n = math.prod(v.out_shape[v.spec.places :])
        half = self.scale * (math.sqrt(6 / n) if self.loss == "linear" else 1)
        return {"B": half * (2 * key.fold("B").uniform((v.n_classes, n), np.float64) - 1)}

    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x, update="hidden", target=batch.y))
        bus.update(only="output", top=out.error)
        return {"loss": bus.mean(out.loss)}

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.params:
            return Update()
        if v.is_output:
            da = v.act_vjp(v.trace, s.top)
        else:
            dy = self.pull(v.trace.y, self.target(v, s.target))
            da = v.act_vjp(v.trace, dy, into=dy)
        return Update(v.param_vjp(v.trace, da))

    def target(self, v: LayerView, label: Any) -> Any:
        """z: labels (B, *places, C), or class ids (B, *places), -> (B, *out)."""
        if label.ndim > len(v.net_out):
            z = v.k.matmul(label.reshape(-1, v.n_classes), v.aux["B"])
        else:
            z = v.aux["B"][label]
        return z.reshape(v.trace.y.shape)

    def pull(self, y: Any, z: Any) -> Any:
        """d loss_l / d y_l, both (B, *out); z may be overwritten."""
        if self.loss == "linear":
            z *= -1
            return z
        return y - z if self.loss == "l2" else np.sign(y - z)
