"""A chain of modules of torch.nn as a network of ours, without its weights.

Modules are known by their exact type: a subclass may compute anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fflearn import layers
from fflearn.errors import ShapeError, SpecError
from fflearn.layers.batch_norm import MOMENTUM
from fflearn.networks import Network
from fflearn.topology import Residual as Sum
from fflearn.topology import Sequential
from fflearn.torch.build import At, Shape, entrance
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


def network_of(module: nn.Module, in_shape: Shape) -> tuple[Network, list[str]]:
    """The network that computes what a module computes, and where the two differ in training.

    Raises
    ------
    SpecError, ShapeError
        The first module that has no counterpart, by name, and why.
    """
    reader = _Reader(entrance(in_shape))
    reader.read("", module)
    reader.end()
    return Network(Sequential(tuple(reader.items))), reader.notes


class _Reader:
    """A chain of layers, as far as it has been read."""

    def __init__(self, at: At):
        self.at = at
        self.items: list[Any] = []
        self.notes: list[str] = []
        self.name = ""  # of the module that is being read
        self.awaits: tuple[type, ...] = ()  # what must come next, if not anything may
        self.norm = "none"  # of the next layer with weights

    def read(self, name: str, module: nn.Module) -> None:
        self.name, kind = name, type(module)
        if kind in (nn.Sequential, Chain):
            self.read_parts(name, module)
            return
        told = f"{name!r}, a {kind.__name__}"
        if kind not in READ:
            known = f"Known: {', '.join(sorted(k.__name__ for k in READ))}."
            raise SpecError(f"fflearn has no layer for {told}. {HINTS.get(kind, known)}")
        if self.awaits and kind not in self.awaits:
            raise SpecError(f"{told}, stands where {self._awaited()} must.")
        self.awaits = ()
        try:
            READ[kind](self, module)
        except (SpecError, ShapeError) as e:
            raise type(e)(f"{told}: {e}") from e

    def read_parts(self, name: str, module: nn.Module) -> None:
        for part, inner in module._modules.items():  # named_children leaves repeated ones out
            assert inner is not None
            self.read(f"{name}.{part}".lstrip("."), inner)

    def branch(self, name: str, module: nn.Module, parts: bool = False) -> tuple[list[Any], At]:
        """What a part of its own reads from here."""
        inner = _Reader(self.at)
        (inner.read_parts if parts else inner.read)(name, module)
        inner.end()
        self.notes += inner.notes
        return inner.items, inner.at

    def add(self, layer: Any, first: Shape | None) -> None:
        self.at = At(layer.out_shape(self.at.shape), first)
        self.items.append(layer)

    def end(self) -> None:
        if self.awaits:
            raise SpecError(f"{self._awaited()} must come after {self.name!r}.")

    def _awaited(self) -> str:
        return "a " + " or ".join(kind.__name__ for kind in self.awaits)

    @property
    def last(self) -> Any:
        return self.items[-1] if self.items else None

    def take_norm(self) -> str:
        norm, self.norm = self.norm, "none"
        return norm


def _needs(ok: Any, what: str) -> None:
    if not ok:
        raise SpecError(f"fflearn's counterpart needs {what}.")


def _needs_images(r: _Reader) -> None:
    ok = len(r.at.shape) == 3 and r.at.first == r.at.shape
    _needs(ok, f"images with the channels first; a sample has the shape {r.at.shape} here")


def _needs_back(r: _Reader) -> None:
    _needs(r.at.first is None, "features on the last axis; here the channels come first")


def _made(kind: str, *values: Any, **options: Any) -> Any:
    return layers.load(kind)(*values, **options)


# ---- structure -----------------------------------------------------------------------------------


def _residual(r: _Reader, m: Any) -> None:
    body, end = r.branch(f"{r.name}.body".lstrip("."), m.body)
    skip, other = r.branch(f"{r.name}.skip".lstrip("."), m.skip)
    _needs(end == other, "branches that end in one shape and order of axes")
    r.items.append(Sum(Sequential(tuple(body)), Sequential(tuple(skip)) if skip else None))
    r.at = end


def _block(r: _Reader, m: Any) -> None:
    body, end = r.branch(r.name, m, parts=True)
    r.items.append(_made("block", Sequential(tuple(body))))
    r.at = end


def _identity(r: _Reader, m: Any) -> None:
    pass


def _move_dim(r: _Reader, m: Any) -> None:
    shape, way = r.at.shape, (m.source, m.destination)
    moves = {(1, -1): (shape, None), (-1, 1): (None, shape)}
    _needs(len(shape) > 1 and way in moves, "MoveDim(-1, 1) or MoveDim(1, -1)")
    before, after = moves[way]
    _needs(r.at.first == before, "channels that are not there yet")
    r.at = At(shape, after)


def _flatten(r: _Reader, m: Any) -> None:
    shape, kept = r.at.shape, m.start_dim - 1
    _needs(kept >= 0 and m.end_dim == -1, "end_dim=-1, and the batch left alone")
    if kept:  # for a dense layer per place, which flattens by itself
        _needs_back(r)
        r.at, r.awaits = At((*shape[:kept], math.prod(shape[kept:]))), (nn.Linear, Normalize)
    elif len(shape) > 1:
        r.add(_made("flatten"), r.at.first)


def _unflatten(r: _Reader, m: Any) -> None:
    *places, channels = r.at.first or (0,)
    taken_apart = m.dim == 1 and tuple(m.unflattened_size) == (channels, *places)
    _needs(taken_apart and getattr(r.last, "kind", "") == "flatten", "an nn.Flatten that it undoes")
    r.items.pop()
    r.at = At((*places, channels), r.at.first)


def _normalize(r: _Reader, m: Any) -> None:
    r.norm, r.awaits = m.kind, (nn.Conv2d,) if m.whole else (nn.Linear,)


def _own(r: _Reader, m: Any) -> None:
    _needs_back(r)
    r.add(m.layer, None)


# ---- layers ----------------------------------------------------------------------------------------


def _linear(r: _Reader, m: Any) -> None:
    one = len(r.at.shape) == 1
    _needs(one or r.at.first is None, "nn.Flatten before it, or features on the last axis")
    if getattr(r.last, "kind", "") == "flatten":  # ours flattens by itself
        r.items.pop()
    bias, places = m.bias is not None, len(r.at.shape) - 1
    r.add(_made("dense", m.out_features, norm=r.take_norm(), bias=bias, places=places), None)


def _conv(r: _Reader, m: Any) -> None:
    _needs_images(r)
    _needs(m.padding_mode == "zeros", "padding_mode='zeros'")
    _needs(_one(m, "dilation") == 1, "dilation=1")
    size = _one(m, "kernel_size")
    words = {"valid": 0, "same": size // 2}
    padding = words[m.padding] if isinstance(m.padding, str) else _one(m, "padding")
    same = size % 2 == 1 and padding == size // 2
    _needs(same or m.padding != "same", "an odd kernel_size for padding='same'")
    conv = _made(
        "conv",
        m.out_channels,
        kernel=size,
        stride=_one(m, "stride"),
        padding="same" if same else str(padding),
        groups=m.groups,
        norm=r.take_norm(),
        bias=m.bias is not None,
    )
    r.add(conv, conv.out_shape(r.at.shape))


def _one(m: Any, name: str) -> int:
    """A setting that torch has for each axis of an image."""
    value = getattr(m, name)
    low, high = value if isinstance(value, tuple) else (value, value)
    _needs(low == high, f"a {name} that is the same along both axes")
    return low


def _pool(r: _Reader, m: Any) -> None:
    _needs_images(r)
    _needs(_one(m, "padding") == 0 and not m.ceil_mode, "padding=0 and ceil_mode=False")
    plain = getattr(m, "dilation", 1) == 1 and not getattr(m, "return_indices", False)
    _needs(plain, "dilation=1 and return_indices=False")
    _needs(getattr(m, "divisor_override", None) is None, "divisor_override=None")
    size, stride = _one(m, "kernel_size"), _one(m, "stride")
    kind = "max_pool" if type(m) is nn.MaxPool2d else "avg_pool"
    pool = _made(kind, size, 0 if stride == size else stride)
    r.add(pool, pool.out_shape(r.at.shape))


def _adaptive_pool(r: _Reader, m: Any) -> None:
    _needs_images(r)
    (high, wide, _), size = r.at.shape, _one(m, "output_size")
    if size == 1:
        r.add(_made("avg_pool"), None)
        r.awaits = (nn.Flatten,)  # ours leaves no axes of length 1
        return
    _needs(size and high == wide and high % size == 0, "square images that divide into its patches")
    pool = _made("avg_pool", high // size)
    r.add(pool, pool.out_shape(r.at.shape))


def _activation(name: str, r: _Reader, m: Any) -> None:
    if getattr(r.last, "activation", "") == "identity" and not hasattr(r.last, "body"):
        r.items[-1] = replace(r.last, activation=name)
    else:
        r.add(_made("act", name), r.at.first)


def _gelu(r: _Reader, m: Any) -> None:
    _needs(m.approximate == "none", "approximate='none'")
    _activation("gelu", r, m)


def _hardtanh(r: _Reader, m: Any) -> None:
    _needs((m.min_val, m.max_val) == (0, 1), "min_val=0 and max_val=1")
    _activation("hardsigmoid", r, m)


def _dropout(r: _Reader, m: Any) -> None:
    r.add(_made("dropout", float(m.p)), r.at.first)


def _batch_norm(r: _Reader, m: Any) -> None:
    one = len(r.at.shape) == 1
    _needs(one or r.at.first == r.at.shape, "channels first")
    _needs(m.track_running_stats, "track_running_stats=True")
    if m.momentum != MOMENTUM:
        r.notes.append(f"{r.name}: momentum {m.momentum} there, {MOMENTUM} here, while training")
    r.add(_made("batch_norm", eps=m.eps, affine=m.affine), r.at.first)


def _layer_norm(r: _Reader, m: Any) -> None:
    if len(r.at.shape) > 1:
        _needs_back(r)
    kind = "layer_norm" if type(m) is nn.LayerNorm else "rms_norm"
    _needs(len(m.normalized_shape) == 1, "a normalized_shape of one axis")
    affine = m.elementwise_affine
    _needs(not affine or getattr(m, "bias", m) is not None, "a learned scale and shift, or neither")
    dtype = m.weight.dtype if affine else torch.get_default_dtype()
    eps = torch.finfo(dtype).eps if m.eps is None else m.eps
    r.add(_made(kind, eps=eps, affine=affine), r.at.first)


def _group_norm(r: _Reader, m: Any) -> None:
    one = len(r.at.shape) == 1
    _needs(r.at.first == (None if one else r.at.shape), "channels first, or one axis of features")
    r.add(_made("group_norm", eps=m.eps, affine=m.affine, groups=m.num_groups), r.at.first)


def _embedding(r: _Reader, m: Any) -> None:
    _needs_back(r)
    _needs(m.max_norm is None, "max_norm=None")
    if m.padding_idx is not None:
        r.notes.append(f"{r.name}: id {m.padding_idx} is trained like the others")
    r.add(_made("embed", m.num_embeddings, m.embedding_dim), None)


def _position(r: _Reader, m: Any) -> None:
    _needs_back(r)
    r.add(_made("position"), None)


def _attention(r: _Reader, m: Any) -> None:
    _needs_back(r)
    a = m.attention
    _needs(
        a.batch_first and a._qkv_same_embed_dim, "batch_first=True and one size for all of q, k, v"
    )
    _needs(a.bias_k is None and not a.add_zero_attn, "add_bias_kv=False and add_zero_attn=False")
    _needs(a.dropout == 0, "dropout=0; put nn.Dropout after it")
    r.add(_made("attention", a.num_heads, m.causal, a.in_proj_bias is not None), None)


def _recurrent(r: _Reader, m: Any) -> None:
    _needs_back(r)
    cell, kinds = m.cell, {nn.GRU: "gru", nn.LSTM: "lstm", nn.RNN: "rnn"}
    _needs(type(cell) in kinds, "an nn.RNN, nn.GRU or nn.LSTM")
    _needs(cell.batch_first and not cell.bidirectional, "batch_first=True, bidirectional=False")
    _needs(cell.proj_size == 0 and cell.dropout == 0, "proj_size=0 and dropout=0")
    more = {"activation": cell.nonlinearity} if type(cell) is nn.RNN else {}
    for part in range(cell.num_layers):
        last = m.last and part == cell.num_layers - 1
        r.add(_made(kinds[type(cell)], cell.hidden_size, last=last, **more), None)


READ: dict[type, Callable[[_Reader, Any], None]] = {
    Block: _block,
    MoveDim: _move_dim,
    Normalize: _normalize,
    Own: _own,
    Position: _position,
    Recurrent: _recurrent,
    Residual: _residual,
    SelfAttention: _attention,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AvgPool2d: _pool,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.Conv2d: _conv,
    nn.Dropout: _dropout,
    nn.Embedding: _embedding,
    nn.Flatten: _flatten,
    nn.GELU: _gelu,
    nn.GroupNorm: _group_norm,
    nn.Hardtanh: _hardtanh,
    nn.Identity: _identity,
    nn.LayerNorm: _layer_norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _pool,
    nn.RMSNorm: _layer_norm,
    nn.ReLU: partial(_activation, "relu"),
    nn.Sigmoid: partial(_activation, "sigmoid"),
    nn.Tanh: partial(_activation, "tanh"),
    nn.Unflatten: _unflatten,
}
_WRAPPED = "Its output is no tensor; put it into fflearn.torch.modules."
HINTS: dict[type, str] = {
    nn.GRU: f"{_WRAPPED}Recurrent(...).",
    nn.LSTM: f"{_WRAPPED}Recurrent(...).",
    nn.RNN: f"{_WRAPPED}Recurrent(...).",
    nn.MultiheadAttention: f"{_WRAPPED}SelfAttention(...).",
    nn.LogSoftmax: "Leave it out: the loss takes logits.",
    nn.Softmax: "Leave it out: the loss takes logits.",
}
