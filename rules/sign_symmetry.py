"""Sign symmetry: feedback weights share the signs of the forward weights, not their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Batch, Channel, Key, LayerView, Params, Rule, Signals, Update


@dataclass(frozen=True)
class SignSymmetry(Rule):
    """Backprop with ``M_l * sign(W_l)`` in place of W_l on the way down.

        da_l = dy_l * act'(a_l),   dy_{l-1} = da_l (M_l * sign(W_l))^T

    Parameters
    ----------
    magnitudes : str
        M: "uniform" (uSF), the standard deviation of the initial weights; "fixed_random" (frSF),
        |a fixed draw of the weights|; "batch_random" (brSF), |a new draw| in every step.

    References
    ----------
    Liao, Leibo, Poggio (2016), "How important is weight symmetry in backpropagation?",
    arXiv:1510.05067, sec. 2 (uSF, brSF, frSF).
    """

    magnitudes: str = "uniform"

    channels: ClassVar = frozenset({Channel.SIGN})
    averages: ClassVar = True
    choices: ClassVar = {"magnitudes": ("uniform", "batch_random", "fixed_random")}
    short: ClassVar = ("sf", "usf")
    citation: ClassVar = "Liao, Leibo & Poggio (2016), arXiv:1510.05067"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3}
    variants: ClassVar = {
        "brsf": {"magnitudes": "batch_random"},
        "frsf": {"magnitudes": "fixed_random"},
    }

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if v.is_input or self.magnitudes != "fixed_random":
            return {}
        return {n: np.abs(w) for n, w in v.draw_weights(key.fold("M")).items()}

    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error, update=True)
        return {"loss": bus.mean(out.loss)}

    def feedback(self, v: LayerView, dy: Any) -> Any:
        v.state["da"] = da = v.act_vjp(v.trace, dy)
        return None if v.is_input else v.input_vjp(v.trace, da, self.feedback_weights(v))

    def feedback_weights(self, v: LayerView) -> Params:
        """M * sign(W) of every weight matrix, by name."""
        if self.magnitudes == "uniform":
            std = v.weight_std()
            return {n: s * s.dtype.type(std[n]) for n, s in v.signs().items()}
        if self.magnitudes == "fixed_random":
            return {n: s * v.aux[n] for n, s in v.signs().items()}
        fresh = v.draw_weights(v.key.fold("M"))
        return {n: s * np.abs(fresh[n]) for n, s in v.signs().items()}

    def update(self, v: LayerView, s: Signals) -> Update:
        return Update(v.param_vjp(v.trace, v.state["da"]))
