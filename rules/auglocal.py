"""AugLocal: each unit learns through a head made of copies of later units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fflearn.base import Batch, Channel, LayerView, Message, Rule, Shape, Signals, Update
from fflearn.errors import ShapeError, SpecError
from fflearn.networks import Network
from fflearn.objectives.softmax_cross_entropy import SoftmaxCrossEntropy
from fflearn.topology import Sequential
from fflearn.units import copies, cut, in_units


@dataclass(frozen=True)
class AugLocal(Rule):
    """Each unit of the network follows the exact gradient of a loss at the end of its own head.

        loss_m = -log softmax(head_m(unit_m(x_m)))_label,   x_m is a constant for unit m
        head_m = copies of d_m later units, then a copy of the network's last layers
        d_m = max(1, round(depth (1 - r_m) + r_m)),   r_m = decay m / (M - 2),   m = 0 .. M - 2
        copied: the units round(m + i (M - 1 - m) / d_m), i = 1 .. d_m; all later ones if d_m are enough

    Copies have weights of their own, which learn along.  The last unit holds the network's last
    layers and learns from the network's own error.  The others learn as they fire; nothing is
    sent down.

    Parameters
    ----------
    depth : int
        Copies in the first unit's head.  0: none in any head, greedy layer-wise training.
    decay : float
        From 0 to 1: how much of the depth is gone at the last unit that has a head.

    Raises
    ------
    SpecError
        Before training: a unit that no head fits, a head that does not end as the network does.

    Notes
    -----
    For the units see `fflearn.units.in_units`; one written ``block(body; head)`` keeps that head.
    Differs from the paper, where a copy has stride 2 if it is wider than what it reads (here: if
    it reads larger images than the unit it copies), and heads of depth 1 end in a batch norm.

    References
    ----------
    Ma, Wu, Si, Tan (2024), "Scaling supervised local learning with augmented auxiliary networks",
    ICLR 2024, arXiv:2402.17318, sec. 3.  Depth 0: Belilovsky, Eickenberg, Oyallon (2019), "Greedy
    layerwise learning can scale to ImageNet", arXiv:1812.11446; Nokland, Eidnes (2019), "Training
    neural networks with local error signals", arXiv:1901.06656, the prediction loss.
    """

    depth: int = 2
    decay: float = 0.5

    channels: ClassVar = frozenset({Channel.TARGET})
    citation: ClassVar = "Ma, Wu, Si & Tan (2024), arXiv:2402.17318"
    needs_classes: ClassVar = True
    variants: ClassVar = {"greedy": {"depth": 0}}

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise SpecError(f"auglocal needs a depth of 0 or more; got {self.depth}. Type depth=2")
        if not 0 <= self.decay <= 1:
            raise SpecError(f"auglocal needs a decay from 0 to 1; got {self.decay}. Type decay=0.5")

    # -- the network this rule trains ------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        return in_units(net)

    def heads(self, net: Network, in_shape: Shape) -> Network:
        *hidden, last = net.body.items
        if last.head is not None:
            raise SpecError(
                f"{last.spec()!r} is the last unit and learns from the network's output. Leave "
                f"its head out."
            )
        out, reads = net.shapes(in_shape), net.input_shapes(in_shape)
        *own, end = cut(last.body)
        rest = tuple(item for run in own for item in run)  # of the last unit, without the end
        bodies = [*(unit.body.items for unit in hidden), rest]
        ends_on = Network(Sequential(rest)).shapes(reads[-1])[-1] if rest else reads[-1]
        units = []
        for m, unit in enumerate(hidden):
            parts = [(bodies[j], reads[j]) for j in self.copied(m, len(out)) if bodies[j]]
            try:
                if unit.head is None:
                    unit = replace(unit, head=copies([*parts, (end, ends_on)], out[m]))
                found = unit.ahead.out_shape(out[m])
            except ShapeError as e:
                raise SpecError(f"auglocal finds no head for {unit.spec()!r}: {e}") from e
            if found != out[-1]:
                raise SpecError(
                    f"the head of {unit.spec()!r} gives {found}, where the network gives {out[-1]}. "
                    f"End it in such a layer."
                )
            units.append(unit)
        return Network(Sequential((*units, last)))

    def depths(self, n: int) -> list[int]:
        """d_m of each of ``n`` units but the last."""
        if not self.depth:
            return [0] * (n - 1)
        gone = [self.decay * m / max(n - 2, 1) for m in range(n - 1)]
        return [max(1, round(self.depth * (1 - r) + r)) for r in gone]

    def copied(self, m: int, n: int) -> list[int]:
        """Which of ``n`` units the head of unit ``m`` has copies of."""
        depth, later = self.depths(n)[m], n - 1 - m
        if depth >= later:
            return list(range(m + 1, n))
        return [round(m + later / depth * i) for i in range(1, depth + 1)]

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        out = bus.readout(bus.forward(batch.x, update="hidden", target=batch.y))
        bus.update(only="output", top=out.error)
        return {"loss": bus.mean(out.loss)}

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        t = v.forward(m.x)
        v.traces[m.name] = v.head(t)
        return m._replace(x=t.y)

    def update(self, v: LayerView, s: Signals) -> Update:
        t = v.trace
        if v.is_output:
            error = s.top
        else:
            loss, error = SoftmaxCrossEntropy()(v.k, t.y, s.target)
            v.report("loss", v.mean(loss))
        return Update(v.param_vjp(t, v.act_vjp(t, error)))
