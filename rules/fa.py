"""Feedback alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Batch, Channel, Key, LayerView, Params, Rule, Signals, Update


@dataclass(frozen=True)
class FA(Rule):
    """Backprop with fixed random matrices in place of the transposed weights.

        da_l = dy_l * act'(a_l),   dy_{l-1} = da_l B_l^T,   B_l drawn as W_l, fixed

    References
    ----------
    Lillicrap, Cownden, Tweed, Akerman (2016), "Random synaptic feedback weights support error
    backpropagation for deep learning", Nature Communications 7, 13276.
    """

    channels: ClassVar = frozenset({Channel.FEEDBACK})
    averages: ClassVar = True
    short: ClassVar = ("feedback_alignment",)
    citation: ClassVar = "Lillicrap et al. (2016), Nat. Commun. 7, 13276"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3}
    probes: ClassVar = ("feedback_angle",)

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        return {} if v.is_input else v.draw_weights(key.fold("B"))

    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error, update=True)
        return {"loss": bus.mean(out.loss)}

    def feedback(self, v: LayerView, dy: Any) -> Any:
        v.state["da"] = da = v.act_vjp(v.trace, dy)
        return None if v.is_input else v.input_vjp(v.trace, da, v.aux)

    def update(self, v: LayerView, s: Signals) -> Update:
        return Update(v.param_vjp(v.trace, v.state["da"]))

    def feedback_angle(self, v: LayerView, u: Update) -> float:
        """Degrees between B and W over all matrices of a layer; nan where nothing goes down."""
        if not v.aux:
            return math.nan
        b, w = (np.concatenate([np.ravel(a[n]) for n in v.aux]) for a in (v.aux, v.params))
        b, w = b.astype(np.float64), w.astype(np.float64)
        return math.degrees(math.acos(np.clip(b @ w / math.sqrt((b @ b) * (w @ w)), -1, 1)))
