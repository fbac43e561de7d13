"""Backpropagation, in the same contract: the yardstick, and the one that declares transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.base import Batch, Channel, LayerView, Rule, Signals, Update


@dataclass(frozen=True)
class Backprop(Rule):
    """Exact gradient: each layer sends the transposed-weight image of its error down.

        da_l = dy_l * act'(a_l),   dy_{l-1} = da_l W_l^T,   grad W_l = mean x_l^T da_l

    References
    ----------
    Rumelhart, Hinton, Williams (1986), "Learning representations by back-propagating errors",
    Nature 323, 533-536.
    """

    channels: ClassVar = frozenset({Channel.TRANSPOSE})
    averages: ClassVar = True
    short: ClassVar = ("bp",)
    citation: ClassVar = "Rumelhart, Hinton & Williams (1986), Nature 323"

    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error, update=True)
        return {"loss": bus.mean(out.loss)}

    def feedback(self, v: LayerView, dy: Any) -> Any:
        v.state["da"] = da = v.act_vjp(v.trace, dy)
        return None if v.is_input else v.input_vjp(v.trace, da)

    def update(self, v: LayerView, s: Signals) -> Update:
        return Update(v.param_vjp(v.trace, v.state["da"]))
