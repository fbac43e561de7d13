"""The control of every comparison: hidden layers stay as drawn, the output layer learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.base import Batch, LayerView, Rule, Signals, Update


@dataclass(frozen=True)
class Frozen(Rule):
    """A linear read-out of random features: what a rule must beat to have trained anything.

    grad W_L = mean x_L^T e,   hidden layers: none
    """

    short: ClassVar = ("control",)
    citation: ClassVar = "control: random features with a trained read-out"
    optimizer: ClassVar = {"name": "adam", "lr": 1e-2}

    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x))
        bus.update(top=out.error)
        return {"loss": bus.mean(out.loss)}

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.is_output:
            return Update()
        return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, s.top)))
