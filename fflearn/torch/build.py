"""A network of ours as modules of torch.nn, without its weights; `fflearn.interop` fills them in."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fflearn.networks import Network
from fflearn.random import Key
from fflearn.topology import Residual as Sum
from fflearn.topology import Sequential
from fflearn.torch.layers import function_of
from fflearn.torch.modules import (
    Block,
    Chain,
    MoveDim,
    Normalize,
    Own,
    Position,
    Recurrent,
    Residual,
    SelfAttention,
)

Shape = tuple[int, ...]
Modules = list[nn.Module]


class At(NamedTuple):
    """What torch holds between two layers."""

    shape: Shape  # of a sample, as ours
    first: Shape | None = None  # (*places, C), if torch has the channels of that map first


class Tie(NamedTuple):
    """A layer with arrays, and the module that holds them."""

    where: str  # of the arrays, as in a State: "params/3/", in a block "params/3/0."
    layer: Any
    module: nn.Module
    flat: Shape | None  # as of `fflearn.torch.weights.places`


class Built(NamedTuple):
    """A layer in torch."""

    modules: Modules
    first: Shape | None = None  # of its output
    holder: nn.Module | None = None  # of the weights
    flat: Shape | None = None


def build(net: Network, in_shape: Shape, dtype: str) -> tuple[nn.Module, list[Tie], list[str]]:
    """The network as a module whose weights are all 0, its ties, and what differs from ours.

    Samples with three axes are images, (B, C, H, W) in torch, at both ends; all others are as ours.
    """
    builder = _Builder("params/", "/")
    with torch.device("meta"):  # no memory, and no draw from torch's generator
        modules, at = builder.chain(net.body, entrance(in_shape))
        end = _to_front(at) if len(at.shape) == 3 else _to_back(at)
        module = _joined([*modules, *end])
    module.to(getattr(torch, dtype)).to_empty(device="cpu")
    for tensor in module.state_dict().values():
        tensor.zero_()
    return module.eval(), builder.ties, builder.notes


def entrance(in_shape: Shape) -> At:
    """How torch holds samples of a shape."""
    return At(in_shape, in_shape if len(in_shape) == 3 else None)


class _Builder:
    """Goes through a structure in the order in which its layers are numbered."""

    def __init__(self, before: str, after: str):
        self.before, self.after, self.count = before, after, 0
        self.ties: list[Tie] = []
        self.notes: list[str] = []

    def chain(self, item: Sequential, at: At) -> tuple[Modules, At]:
        modules: Modules = []
        for part in item.items:
            if isinstance(part, Sequential):
                more, at = self.chain(part, at)
            elif isinstance(part, Sum):
                more, at = self.sum(part, at)
            else:
                more, at = self.leaf(part, at)
            modules += more
        return modules, at

    def sum(self, item: Sum, at: At) -> tuple[Modules, At]:
        before = _to_back(at) if len(at.shape) == 1 else []  # a flattened map, in our order
        at = At(at.shape) if before else at
        body, end = self.chain(item.body, at)
        skip, other = ([], at) if item.skip is None else self.chain(item.skip, at)
        if end.first != other.first:
            body, skip, end = [*body, *_to_back(end)], [*skip, *_to_back(other)], At(end.shape)
        total = Residual(_joined(body), _joined(skip) if skip else nn.Identity())
        return [*before, total], end

    def leaf(self, layer: Any, at: At) -> tuple[Modules, At]:
        where, self.count = f"{self.before}{self.count}{self.after}", self.count + 1
        if hasattr(layer, "body"):
            inner = _Builder(where, ".")
            modules, end = inner.chain(layer.body, at)
            self.ties, self.notes = self.ties + inner.ties, self.notes + inner.notes
            return [Block(*modules)], end
        built = BUILD.get(layer.kind, _own)(layer, at)
        if built.holder is not None:
            self.ties.append(Tie(where, layer, built.holder, built.flat))
        if getattr(layer, "credit", "bptt") != "bptt":
            self.notes.append(f"{where}: autograd follows all of time, not credit={layer.credit}")
        return built.modules, At(layer.out_shape(at.shape), built.first)


def _joined(modules: Modules) -> nn.Module:
    inside = (part for module in modules for part in module.modules())
    return (Chain if any(isinstance(part, Own) for part in inside) else nn.Sequential)(*modules)


# ---- where the channels are ----------------------------------------------------------------------


def _to_front(at: At) -> Modules:
    return [] if at.first else [MoveDim(-1, 1)]


def _to_back(at: At) -> Modules:
    """What brings numbers into our order."""
    if at.first is None:
        return []
    if at.shape == at.first:
        return [MoveDim(1, -1)]
    *places, channels = at.first
    return [nn.Unflatten(1, (channels, *places)), MoveDim(1, -1), nn.Flatten()]


# ---- one function per kind of layer --------------------------------------------------------------


def _own(layer: Any, at: At) -> Built:
    function_of(layer)
    drawn = layer.init(Key(0), at.shape, np.float32)
    module = Own(layer, {n: torch.empty(a.shape) for n, a in drawn.items()})
    return Built([*_to_back(at), module], None, module if drawn else None)


def _dense(layer: Any, at: At) -> Built:
    flat = None if layer.places else at.first
    before = _to_back(at) if layer.places else []
    if len(at.shape) > layer.places + 1:
        before.append(nn.Flatten(1 + layer.places))
    linear = nn.Linear(math.prod(at.shape[layer.places :]), layer.units, bias=layer.bias)
    return Built([*before, *_length(layer), linear, *_activation(layer)], None, linear, flat)


def _conv(layer: Any, at: At) -> Built:
    conv = nn.Conv2d(
        at.shape[-1],
        layer.units,
        layer.kernel,
        layer.stride,
        layer.kernel // 2 if layer.padding == "same" else int(layer.padding),
        groups=layer.groups,
        bias=layer.bias,
    )
    modules = [*_to_front(at), *_length(layer, whole=True), conv, *_activation(layer)]
    return Built(modules, layer.out_shape(at.shape), conv)


def _length(layer: Any, whole: bool = False) -> Modules:
    return [] if layer.norm == "none" else [Normalize(layer.norm, whole)]


def _activation(layer: Any) -> Modules:
    return [ACTIVATIONS[layer.activation]()] if layer.activation in ACTIVATIONS else []


def _act(layer: Any, at: At) -> Built:
    return Built(_activation(layer), at.first)


def _dropout(layer: Any, at: At) -> Built:
    return Built([nn.Dropout(layer.rate)], at.first)


def _flatten(layer: Any, at: At) -> Built:
    return Built([nn.Flatten()] if len(at.shape) > 1 else [], at.first)


def _max_pool(layer: Any, at: At) -> Built:
    pool = nn.MaxPool2d(layer.size, layer.stride or None)
    return Built([*_to_front(at), pool], layer.out_shape(at.shape))


def _avg_pool(layer: Any, at: At) -> Built:
    if layer.size:
        pool = nn.AvgPool2d(layer.size, layer.stride or None)
        return Built([*_to_front(at), pool], layer.out_shape(at.shape))
    if at.first and len(at.shape) == 3:
        return Built([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return _own(layer, at)


def _over_channels(kind: Any, layer: Any, at: At) -> Built:
    """A norm of the last axis; if that is the only one, whatever the order of its numbers."""
    norm = kind(at.shape[-1], layer.eps, layer.affine)
    holder = norm if layer.learns else None
    if len(at.shape) == 1:
        return Built([norm, *_activation(layer)], at.first, holder, at.first)
    return Built([*_to_back(at), norm, *_activation(layer)], None, holder)


def _batch_norm(layer: Any, at: At) -> Built:
    if len(at.shape) == 1:
        return _over_channels(_batch_norm_1d, layer, at)
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    if len(at.shape) not in kinds:
        return _own(layer, at)
    norm = kinds[len(at.shape)](at.shape[-1], layer.eps, affine=layer.affine)
    return Built([*_to_front(at), norm, *_activation(layer)], at.shape, norm)


def _batch_norm_1d(features: int, eps: float, affine: bool) -> nn.Module:
    return nn.BatchNorm1d(features, eps, affine=affine)


def _group_norm(layer: Any, at: At) -> Built:
    if layer.each_place:
        return _own(layer, at)
    norm = nn.GroupNorm(layer.groups, at.shape[-1], layer.eps, layer.affine)
    one = len(at.shape) == 1
    before, first = (_to_back(at), None) if one else (_to_front(at), at.shape)
    return Built([*before, norm, *_activation(layer)], first, norm if layer.learns else None)


def _embed(layer: Any, at: At) -> Built:
    table = nn.Embedding(layer.vocab, layer.units)
    return Built([*_to_back(at), table], None, table)


def _position(layer: Any, at: At) -> Built:
    if layer.table != "learned":
        return _own(layer, at)
    places, units = at.shape
    table = nn.Embedding(places, units)
    return Built([*_to_back(at), Position(table)], None, table)


def _attention(layer: Any, at: At) -> Built:
    inner = nn.MultiheadAttention(at.shape[-1], layer.heads, bias=layer.bias, batch_first=True)
    return Built([*_to_back(at), SelfAttention(inner, layer.causal)], None, inner)


def _recurrent(layer: Any, at: At) -> Built:
    more = {"nonlinearity": layer.activation} if layer.kind == "rnn" else {}
    cell = CELLS[layer.kind](at.shape[-1], layer.units, batch_first=True, **more)
    cell.bias_hh_l0.requires_grad_(False)  # stays 0: we have one bias, and so has what is trained
    return Built([*_to_back(at), Recurrent(cell, layer.last)], None, cell)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": partial(nn.Hardtanh, 0.0, 1.0),  # torch's Hardsigmoid has another slope
    "gelu": nn.GELU,
}
CELLS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
BUILD: dict[str, Callable[[Any, At], Built]] = {
    **{kind: _recurrent for kind in CELLS},
    "act": _act,
    "attention": _attention,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "conv": _conv,
    "dense": _dense,
    "dropout": _dropout,
    "embed": _embed,
    "flatten": _flatten,
    "group_norm": _group_norm,
    "layer_norm": partial(_over_channels, nn.LayerNorm),
    "max_pool": _max_pool,
    "position": _position,
    "rms_norm": partial(_over_channels, nn.RMSNorm),
}
