"""PEPITA: a second forward pass, whose input the error of the first has changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fflearn.base import (
    Batch,
    Channel,
    Key,
    LayerView,
    Message,
    Params,
    Rule,
    Signals,
    Trace,
    Update,
)
from fflearn.errors import SpecError
from fflearn.networks import Network

NOISE = 0.1  # deviation of the noise that layers are mirrored with


@dataclass(frozen=True)
class Pepita(Rule):
    """The error changes the input; a layer learns from how its activity differs in a second pass.

        e = yhat - t,   x' = x - e F,   F (C, n_in) fixed;   h_l, h'_l: activities of both passes
        difference:  grad W_l = mean of h'_{l-1}^T (h_l - h'_l),   grad W_L = mean of h'_{L-1}^T e
        hebbian:     grad W_l = mean of h_{l-1}^T h_l - h'_{l-1}^T h'_l,
                     grad W_L = mean of h_{L-1}^T yhat - h'_{L-1}^T t
        time_local:  the same two halves; the first is learned in the first pass, the second pass
                     runs with what it made of the weights

    No derivative of an activation is taken and nothing goes down; only the layers that read the
    input get the error.  Weights that are shared by places learn from the mean over places.

    Parameters
    ----------
    form : str
        "difference", "hebbian" or "time_local".
    scale : float
        The entries of F are uniform in +-scale sqrt(6 / n_in).
    mirror : float
        Above 0, the rate of weight mirroring: F is the product of matrices B_l as large as the
        W_l, which e passes on its way down.  In every step a layer answers noise, and
        B_l <- (1 - mirror / 2) B_l + mirror noise^T answer.

    Notes
    -----
    Differs from the papers: the input loses e F, as in the second paper, so that W_1 and F come to
    descend, and no sign is left to choose; the first paper adds it, with an F that is as likely
    as its negative.  Biases, which the papers do not have, learn as weights of a constant input.
    On the way through mirrored matrices the error keeps its size in every layer, and so has at the
    input that of e F; the paper scales the product, which here no layer knows.

    References
    ----------
    Dellaferrera, Kreiman (2022), "Error-driven input modulation: solving the credit assignment
    problem without a backward pass", ICML, arXiv:2201.11665, algorithm 1.  hebbian, time_local,
    mirror: Srinivasan, Mignacco, Sorbaro, Refinetti, Cooper, Kreiman, Dellaferrera (2024),
    "Forward learning with top-down feedback: empirical and analytical characterization", ICLR,
    arXiv:2302.05440.
    """

    form: str = "difference"
    scale: float = 0.05
    mirror: float = 0.0

    choices: ClassVar = {"form": ("difference", "hebbian", "time_local")}
    needs_classes: ClassVar = True  # the changed input is near the given one where e is bounded
    citation: ClassVar = "Dellaferrera & Kreiman (2022), arXiv:2201.11665"
    variants: ClassVar = {
        "hebbian": {"form": "hebbian"},
        "tl": {"form": "time_local", "scale": 0.5},
        "mirrored": {"mirror": 0.1},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mirror < 2:
            raise SpecError(f"pepita needs mirror to be at least 0 and below 2; got {self.mirror}.")
        if self.mirror and self.form == "time_local":
            raise SpecError(
                "pepita[form=time_local] keeps nothing of the first pass, and the way down with "
                "mirror above 0 needs it. Take another form, or mirror=0."
            )

    @property
    def channels(self) -> frozenset[Channel]:  # type: ignore[override]
        return frozenset({Channel.FEEDBACK if self.mirror else Channel.ERROR})

    @property
    def optimizer(self) -> dict[str, Any]:  # type: ignore[override]
        if not self.mirror and self.form != "time_local":
            return {"name": "adam", "lr": 3e-3, "schedule": "cosine"}
        lr = 0.03 if self.mirror else 3e-3  # a half alone is as large as the activity
        return {"name": "sgd", "lr": lr, "momentum": 0.9, "schedule": "cosine"}

    def advise(self, optimizer: Any) -> str:
        if self.form != "time_local" or optimizer.linear:
            return ""
        return (
            f"pepita[form=time_local] with {optimizer.name}: it learns twice in a step, and only "
            f"what is linear in the gradient adds the two halves up. Use sgd, momentum included."
        )

    # -- F -----------------------------------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        for leaf, sources in net.nodes:
            if leaf is not None and sources[0] < 0 and net.leaves[leaf].kind == "embed":
                raise SpecError(
                    f"pepita changes the network's input by numbers, and {net.leaves[leaf].spec()!r} "
                    f"reads ids. Take a network that reads numbers."
                )
        return net

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        if self.mirror:
            if len(v.weight_std()) > 1:
                raise SpecError(
                    f"pepita[mirror={self.mirror}] mirrors layers of one weight matrix; not "
                    f"{v.name!r}. Take mirror=0, or leave the layer out."
                )
            return {n: key.fold("B").normal(v.params[n].shape, np.float64) for n in v.weight_std()}
        if not v.is_input:
            return {}
        n = len(v.net_out) - 1  # places of the output, each with an error of its own
        if v.net_in[:n] != v.net_out[:n]:
            raise SpecError(
                f"pepita needs inputs with the places {v.net_out[:n]} of the output, which have an "
                f"error each; {v.name!r} reads samples of shape {v.net_in}."
            )
        shape = (v.n_classes, math.prod(v.net_in[n:]))
        half = self.scale * math.sqrt(6 / shape[1])
        return {"F": half * (2 * shared.fold("F").uniform(shape, np.float64) - 1)}

    # -- a step ------------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        early = "hidden" if self.form == "time_local" else False
        out = bus.readout(bus.forward(batch.x, update=early))
        top = Top(out.error, batch.y)
        if early:
            bus.update(only="output", top=top)
        if self.mirror:
            bus.forward(batch.x - bus.feedback(out.error), "modulated")
        else:
            bus.forward(batch.x, "modulated", update=early, error=out.error)
        bus.update(only="output" if early else "all", top=top)
        return {"loss": bus.mean(out.loss)}

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if m.name == "modulated" and "F" in v.aux:
            down = v.k.matmul(s.error.reshape(-1, v.n_classes), v.aux["F"])
            m = m._replace(x=m.x - down.reshape(m.x.shape))
        return super().forward(v, m, s)

    def feedback(self, v: LayerView, m: Any) -> Any:
        """The error on its way down: it keeps its size, and at the input gets that of e F."""
        size = self.scale * math.sqrt(2 * v.n_classes / math.prod(v.net_in)) if v.is_input else 1.0
        weights = {}
        for name, b in v.aux.items():
            readers = math.prod(b.shape[:-2]) * b.shape[-1]  # outputs that read an input
            weights[name] = b * (size / np.sqrt(readers * (b * b).mean()))
        return v.input_vjp(v.trace, m, weights)

    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.params:
            return Update()
        if self.form == "time_local":
            return Update(self.half(v, s, "modulated" if "modulated" in v.traces else "x"))
        if self.form == "hebbian":
            halves = [self.half(v, s, name) for name in ("x", "modulated")]
            g = {n: v.k.formed(halves[0][n]) + v.k.formed(halves[1][n]) for n in halves[0]}
        else:
            t = v.traces["modulated"]
            g = gradient(v, t, s.top.error if v.is_output else v.trace.y - t.y)
        return Update(g, aux_assign=self.mirrored(v) if self.mirror else {})

    def half(self, v: LayerView, s: Signals, name: str) -> Params:
        """What one pass says: towards silence in the first, towards its activity in the second."""
        t, sign = v.traces[name], 1 if name == "x" else -1
        if not v.is_output:
            return gradient(v, t, sign * t.y)
        target = one_hot(v.k, s.top) / math.prod(v.net_out[:-1])
        return gradient(v, t, s.top.error + target if name == "x" else -target)

    def mirrored(self, v: LayerView) -> Params:
        """B after one answer of the layer to noise: on average it adds what is like W."""
        noise = NOISE * v.key.fold("mirror").normal(v.trace.x.shape, v.trace.x.dtype)
        t = v.forward(noise)
        heard = gradient(v, t, t.y)
        keep = 1 - self.mirror / 2
        return {n: keep * b + self.mirror * v.k.formed(heard[n]) for n, b in v.aux.items()}


class Top(NamedTuple):
    """What the output layer learns from."""

    error: Any  # (B, *net_out)
    y: Any  # the batch's labels: one-hot, or ids (B, *places)


def one_hot(k: Any, top: Top) -> Any:
    """The target of every output, (B, *net_out)."""
    if top.y.ndim == top.error.ndim:
        return top.y
    return k.one_hot(top.y, top.error.shape[-1], top.error.dtype)


def gradient(v: LayerView, t: Trace, da: Any) -> Params:
    """Batch mean of input times da, by parameter; the mean over places, where those share it."""
    places = 1 if v.is_output else math.prod(v.out_shape[:-1])  # an output's error is that mean
    return v.param_vjp(t, da / places)
