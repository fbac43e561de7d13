"""Direct feedback alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    Signals,
    Update,
)
from fflearn.errors import SpecError


@dataclass(frozen=True)
class DFA(Rule):
    """The output error reaches every hidden layer at once, through a fixed random matrix.

        da_l = (e B_l) * act'(a_l),   B_l (C, n_l) fixed;   output layer: da_L = e

    With an error per place (token, node) a layer's place gets the error of the same place, and
    n_l counts the units of one place.  The entries of B_l are N(0, 1/(n_l C)), so that |e B_l| is |e| / sqrt(C) at every width.

    Parameters
    ----------
    scale : float
        Factor on B.
    shared : bool
        B_l is the first n_l columns of one matrix; otherwise each layer draws its own.
    hidden_lr : float
        Factor on the learning rate of hidden layers.  With Adam, which cancels the scale of B, it
        is what makes their steps smaller than the output layer's; transformers need about 0.1.
    recompute : bool
        Keep nothing of the forward pass and run it again once the error is known, each layer
        learning as it fires: the same bits, one layer's activity in memory, one pass more.

    References
    ----------
    Nokland (2016), "Direct feedback alignment provides learning in deep neural networks",
    arXiv:1609.01596, eq. 7.  Shared matrix: Launay, Poli, Krzakala (2019), "Principled training
    of neural networks with direct feedback alignment", arXiv:1906.04554.
    """

    scale: float = 1.0
    shared: bool = True
    hidden_lr: float = 1.0
    recompute: bool = False

    channels: ClassVar = frozenset({Channel.ERROR})
    averages: ClassVar = True
    short: ClassVar = ("direct_feedback_alignment",)
    citation: ClassVar = "Nokland (2016), arXiv:1609.01596"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3}

    def __post_init__(self) -> None:
        if not self.hidden_lr >= 0:
            raise SpecError(f"dfa needs hidden_lr to be 0 or more; got {self.hidden_lr}.")

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if v.is_output or not v.params:
            return {}
        n, c = math.prod(v.out_shape[v.spec.places :]), v.n_classes
        source = shared if self.shared else key
        # Drawn row by row, so that fewer units take the first rows of the same matrix.
        rows = source.fold("B").normal((n, c), np.float64)
        return {"B": self.scale / math.sqrt(n * c) * rows.T}

    def rates(self, spec: LayerSpec) -> Rates:
        return Rates(lr=1.0 if spec.is_output else self.hidden_lr)

    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x, name="first" if self.recompute else "x"))
        if self.recompute:
            bus.forward(batch.x, update=True, error=out.error, top=out.error)
        else:
            bus.update(error=out.error, top=out.error)
        return {"loss": bus.mean(out.loss)}

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if m.name == "first":
            return m._replace(x=v.forward(m.x).y)
        return super().forward(v, m, s)

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.params:
            return Update()
        if v.is_output:
            da = v.act_vjp(v.trace, s.top)
        else:
            error = s.error.reshape(-1, v.n_classes)
            dy = v.k.matmul(error, v.aux["B"]).reshape(v.trace.y.shape)
            da = v.act_vjp(v.trace, dy, into=dy)
        return Update(v.param_vjp(v.trace, da))
