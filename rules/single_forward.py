"""Single-forward: cross-entropy over each layer's own class goodnesses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Array, Batch, Channel, Key, LayerView, Params, Rule, Signals, Update
from fflearn.errors import SpecError
from fflearn.networks import Network
from fflearn.topology import leaves_of
from fflearn.units import one_unit


@dataclass(frozen=True)
class SingleForward(Rule):
    """Each layer has a group of units per class, and raises the true class's goodness above others.

        g_k = mean over group k of y^2,   loss = -log softmax(g / T)_label
        da = (softmax(g / T) - target)_k(j) / T * (d g_k / d y_j) * act'(a),   grad W = mean n(x)^T da

    One pass, no negatives: a layer learns as it fires, from its own activity and the label, and
    nothing is sent down.  The layers' inputs are normalised, so that no layer can read
    the goodness of the one below.  Output layers have one unit per class, whose goodness is the
    unit itself: there the loss is softmax cross-entropy.  A class's score is the sum over layers
    of softmax(g / T).  Unit j of n belongs to class floor(j C / n); places of an image share it.

    Parameters
    ----------
    goodness : str
        g of a group: "msq" mean of y^2, "ssq" sum of y^2, "lin" mean of y.
    norm : str
        n of every layer: "rms" or "unit", see `dense`; "given" keeps each layer's own.  "batch"
        (CwC): a batch norm ends every hidden layer, before its goodness is taken.  "group"
        (DeeperForward): a layer that reads another begins with a group norm, a group per class.
    temperature : float
        T > 0.

    Notes
    -----
    Differs from the paper: classes are groups of a layer's units, where the paper adds a node
    per class to the graph and scores by the product with its activity; so the rule also trains
    layers without a graph, and a node's update needs no other node's label.  On graphs the
    training mask is the sample weights.  CwC: layers learn in the same step, not in turns.
    DeeperForward: scale and shift of the group norm are learned, by the layer that it begins.

    References
    ----------
    Park, Yang, Lee et al. (2024), "Forward learning of graph neural networks" (ForwardGNN),
    ICLR 2024, arXiv:2403.11004, the single-forward approach.  Groups of units as class goodness:
    Papachristodoulou et al. (2024), "Convolutional channel-wise competitive learning for the
    Forward-Forward algorithm" (CwC), AAAI 2024, arXiv:2312.12668.  Mean goodness and group norm:
    Sun, Zhang, He et al. (2025), "DeeperForward: enhanced Forward-Forward training for deeper and
    better performance", ICLR 2025.
    """

    goodness: str = "msq"
    norm: str = "rms"
    temperature: float = 1.0

    channels: ClassVar = frozenset({Channel.TARGET})
    choices: ClassVar = {
        "goodness": ("msq", "ssq", "lin"),
        "norm": ("rms", "unit", "batch", "group", "given"),
    }
    needs_classes: ClassVar = True
    short: ClassVar = ("sf_gnn",)
    citation: ClassVar = "Park et al. (2024), arXiv:2403.11004"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}
    predictors: ClassVar = ("layers", "logits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise SpecError(f"single_forward needs a temperature above 0; got {self.temperature}.")

    # -- the network this rule trains ------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        if self.norm == "given":
            return net
        top = leaves_of(net.nodes, len(net.nodes) - 1)
        classes = getattr(net.leaves[top[0]], "units", 1)
        leaves: list[Any] = []
        above_weights: list[bool] = []  # of each node: whether weights lie below it, or in it
        for leaf, sources in net.nodes:
            below = any(above_weights[s] for s in sources if s >= 0)
            if leaf is not None:
                layer = net.leaves[leaf]
                leaves.append(self.normalised(layer, leaf in top, classes if below else 0))
                below = below or bool(layer.weights)
            above_weights.append(below)
        drawn = iter(leaves)
        return net.map(lambda _: next(drawn))

    def normalised(self, layer: Any, at_top: bool, groups: int) -> Any:
        """A layer as this rule trains it; without groups, it reads the data."""
        if not layer.weights:
            return layer
        if self.norm == "batch":
            if getattr(layer, "activation", "") == "identity" and hasattr(layer, "bias"):
                layer = replace(layer, bias=at_top)  # the batch norm would take it out again
            return layer if at_top else one_unit(f"{layer.spec()} | batch_norm")
        if self.norm == "group":
            if not at_top and getattr(layer, "units", 0) % max(groups, 1):
                raise SpecError(
                    f"single_forward with norm=group needs as many units for every class: "
                    f"{layer.spec()!r} for {groups} classes. Type another number of units."
                )
            return one_unit(f"group_norm groups={groups} | {layer.spec()}") if groups else layer
        if not hasattr(layer, "norm"):
            raise SpecError(
                f"single_forward cannot normalise the input of {layer.spec()!r}. Use norm=given, "
                f"or a layer that has norm=."
            )
        return replace(layer, norm=self.norm)

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if len(v.net_out) > 1:
            raise SpecError(
                f"single_forward needs one label per sample; the network ends in {v.name!r}, with "
                f"outputs of shape {v.net_out}."
            )
        if v.params and v.out_shape[-1] < v.n_classes:
            raise SpecError(
                f"single_forward needs a unit per class in every layer: {v.n_classes}; layer "
                f"{v.name!r} has {v.out_shape[-1]}. Widen it."
            )
        return {}

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        bus.forward(batch.x, update=True, target=batch.y)
        return {}

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.params:
            return Update()
        y = v.trace.y
        loss, error = v.k.softmax_ce(self.logits(v, y), s.target)
        v.report("loss", v.mean(loss))
        return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, self.down(v, y, error))))

    def groups(self, v: LayerView) -> Array:
        """(units, C): what a unit's part in each class's goodness is multiplied by."""
        n, c = v.out_shape[-1], v.n_classes
        member = np.eye(c)[np.arange(n) * c // n]
        size = 1.0 if self.kind(v) == "ssq" else member.sum(0)
        return v.k.constant(member / size / self.temperature)

    def kind(self, v: LayerView) -> str:
        """Which goodness a layer has: an output unit's is the unit itself."""
        return "lin" if v.is_output else self.goodness

    def logits(self, v: LayerView, y: Any) -> Any:
        """Goodness of each class over T: activity (B, *places, units) -> (B, C)."""
        g = y if self.kind(v) == "lin" else y * y
        if g.ndim > 2:
            g = g.reshape(len(g), -1, g.shape[-1]).mean(1)
        return v.k.matmul(g, self.groups(v).astype(y.dtype))

    def down(self, v: LayerView, y: Any, error: Any) -> Any:
        """d loss/d logits (B, C) -> d loss/d y (B, *places, units)."""
        dg = v.k.matmul(error, self.groups(v).T.astype(y.dtype))
        if y.ndim > 2:
            places = y[0].size // y.shape[-1]
            dg = dg.reshape(len(y), *[1] * (y.ndim - 2), -1) / places + np.zeros_like(y)
        return dg if self.kind(v) == "lin" else 2 * y * dg

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Any, x: Any, by: str) -> Any:
        """By "logits": the output layer alone.  By "layers": each layer's belief, added up."""
        out = bus.forward(x)
        if by == "logits":
            return out
        return sum(p for p in bus.collect(self.belief) if p is not None)

    def belief(self, v: LayerView) -> Any:
        """softmax(g / T) of one layer, or None where it has nothing to learn."""
        return v.k.softmax(self.logits(v, v.trace.y)) if v.params else None
