"""The arrays of a network and the tensors of a module, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fflearn.errors import ShapeError, SpecError
from fflearn.torch.build import Shape, Tie
from fflearn.torch.modules import Own
from fflearn.torch.weights import Tensors, merged, places

HOLDERS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Conv2d, nn.Embedding, nn.GRU),
    *(nn.GroupNorm, nn.LSTM, nn.LayerNorm, nn.Linear, nn.MultiheadAttention, nn.RMSNorm, nn.RNN),
    Own,
)


class Pair(NamedTuple):
    """One of our arrays, and where its numbers lie in a module."""

    ours: str  # its path in a State
    shape: Shape
    theirs: str  # name of the tensor in the module that holds it
    place: np.ndarray  # a view of that tensor, to be reshaped from or to `shape`


class Part(NamedTuple):
    """A layer with weights in a module of any make."""

    name: str
    module: nn.Module
    tensors: Tensors
    names: dict[str, str]  # of the tensors, in the whole module


def pairs(tie: Tie) -> list[Pair]:
    """The arrays of a layer in its module."""
    found, axes = [], tie.flat or ()
    for ours, (theirs, place) in places(tie.layer, tensors_of(tie.module), tie.flat).items():
        shape = place.shape
        if axes and place.ndim >= len(axes):  # not the bias of a dense layer
            shape = (math.prod(axes), *shape[len(axes) :])
        found.append(Pair(f"{tie.where}{ours}", shape, theirs, place))
    return found


def tensors_of(module: nn.Module) -> Tensors:
    """Parameters and buffers by name; those on the CPU share the module's memory."""
    cpu = {n: t.detach().cpu() for n, t in module.state_dict().items()}
    return {n: (t.float() if t.dtype is torch.bfloat16 else t).numpy() for n, t in cpu.items()}


def precision_of(module: nn.Module) -> str:
    """float64 if a tensor of the module is that, else float32."""
    wide = any(t.dtype is torch.float64 for t in module.state_dict().values())
    return "float64" if wide else "float32"


def filled(ties: Sequence[Tie], module: nn.Module) -> tuple[list[str], list[str]]:
    """Copy the weights of a module of any make into the modules of a network, layer by layer.

    Returns
    -------
    names : list of str
        Where each of the `pairs` of the ties came from.
    notes : list of str

    Raises
    ------
    SpecError, ShapeError
        The first layer or tensor that is left over or does not fit, by name.
    """
    names, notes, parts = [], [], _parts_of(module)
    for tie, part in zip_longest(ties, parts):
        if tie is None or part is None or _kind(tie.module) != _kind(part.module):
            raise SpecError(_mismatch(tie, part))
        try:
            tensors, told = merged(tie.layer, part.tensors)
            _copy(tensors, tie)
        except (SpecError, ShapeError) as e:
            raise type(e)(f"{part.name!r} does not fit {_told(tie)}: {e}") from e
        names += [part.names.get(pair.theirs, "") for pair in pairs(tie)]
        notes += [f"{part.name}: {note}" for note in told]
    return names, notes + _shared(module)


def _copy(tensors: Tensors, tie: Tie) -> None:
    mine = tensors_of(tie.module)
    wanted = {pair.theirs for pair in pairs(tie)}
    if wanted != tensors.keys():
        less, more = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise SpecError(
            f"the module lacks {less or 'nothing'}, and has {more or 'nothing'} besides."
        )
    for name, a in tensors.items():
        if a.shape != mine[name].shape:
            raise ShapeError(f"{name!r} has the shape {a.shape} in place of {mine[name].shape}.")
        mine[name][...] = a


def _parts_of(module: nn.Module) -> list[Part]:
    """The layers with weights, in the order of their definition."""
    named = module.named_modules(remove_duplicate=False)
    found = [part for name, m in named if type(m) in HOLDERS for part in _layers_of(name, m)]
    known = {name for part in found for name in part.names.values()}
    strange = [name for name in module.state_dict() if name not in known]
    if strange:
        raise SpecError(
            f"the module holds {', '.join(map(repr, strange))}, for which fflearn has no layer. "
            f"It takes the weights of {', '.join(kind.__name__ for kind in HOLDERS)}."
        )
    return [part for part in found if part.tensors]


def _layers_of(name: str, module: nn.Module) -> list[Part]:
    """A module as one layer; an RNN, GRU or LSTM as the layers it stacks."""
    tensors, start = tensors_of(module), f"{name}." if name else ""
    if not isinstance(module, nn.RNNBase):
        return [Part(name, module, tensors, {n: f"{start}{n}" for n in tensors})]
    parts = []
    for i in range(module.num_layers):
        own = {n.replace(f"_l{i}", "_l0"): n for n in tensors if n.endswith(f"_l{i}")}
        arrays = {n: tensors[theirs] for n, theirs in own.items()}
        parts.append(Part(name, module, arrays, {n: f"{start}{t}" for n, t in own.items()}))
    return parts


def _kind(module: nn.Module) -> tuple[Any, ...]:
    return type(module), getattr(getattr(module, "layer", None), "kind", None)


def _told(tie: Tie) -> str:
    return f"{tie.where[:-1]} {tie.layer.spec()!r}"


def _mismatch(tie: Tie | None, part: Part | None) -> str:
    has = f"{part.name!r}, a {type(part.module).__name__}" if part else "nothing more"
    if tie is None:
        return f"the network has no layer left for the weights of {has}."
    wants = type(tie.module).__name__
    return f"{_told(tie)} takes the weights of a {wants}; what comes next in the module is {has}."


def _shared(module: nn.Module) -> list[str]:
    """Tensors that are one in torch; no array of ours belongs to two layers."""
    owner: dict[int, str] = {}
    named = [(name, t.data_ptr()) for name, t in module.state_dict().items()]
    firsts = [(name, owner.setdefault(at, name)) for name, at in named]
    return [f"{n}: one tensor with {f} there, two arrays here" for n, f in firsts if n != f]


def compared(theirs: nn.Module, ours: nn.Module, x: torch.Tensor) -> str:
    """Note how far the outputs of two modules are apart, in evaluation mode.

    Raises
    ------
    SpecError
        Farther than half of the digits; or not even arrays of one shape.
    """
    training = [(m, m.training) for m in theirs.modules()]
    theirs.eval()
    try:
        with torch.no_grad():
            y = theirs(x)
    finally:
        for m, mode in training:
            m.training = mode
    inputs = x.detach().cpu()
    if inputs.is_floating_point():
        inputs = inputs.to(getattr(torch, precision_of(ours)))
    with torch.no_grad():
        z = ours(inputs)
    if not isinstance(y, torch.Tensor) or y.shape != z.shape:
        got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        raise SpecError(
            f"the module's output is {got}, the network's {tuple(z.shape)}. Give a module whose "
            f"output is the network's, or x=None to compare nothing."
        )
    far, largest = float((y.cpu() - z).abs().max()), float(z.abs().max())
    if not far <= math.sqrt(torch.finfo(y.dtype).eps) * largest:
        raise SpecError(
            f"with the same weights, the outputs of the module and the network differ by up to "
            f"{far:.1e}; the largest is {largest:.1e}. They do not compute the same, or the module "
            f"defines its layers in another order than it uses them."
        )
    return f"the outputs for x differ by up to {far:.1e}; the largest is {largest:.1e}"
