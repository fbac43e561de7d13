"""Weights to and from the equivalent `torch.nn.Module`.

PyTorch's images are (B, C, H, W), ours (B, H, W, C), and a dense layer that reads a flattened
image has its weights in the order of the image.  What is converted here is in PyTorch's order at
PyTorch's end, inputs and outputs included: only samples with three axes differ.  docs/interop.md
has examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fflearn.errors import ShapeError
from fflearn.layers.block import HEAD
from fflearn.networks import Network, network
from fflearn.state import State
from fflearn.torch import required

Params = State | Sequence[Any]  # a state, or the arrays by name of each layer


class Row(NamedTuple):
    """One array on both sides."""

    ours: str  # as in a State, e.g. "params/0/W"
    theirs: str  # as in the module's state_dict, e.g. "0.weight"
    shape: tuple[int, ...]  # ours


@dataclass(frozen=True)
class Report:
    """What was converted.

    Attributes
    ----------
    rows : tuple of Row
        Every array; nothing is left over at either end.
    notes : tuple of str
        What is not quite the same: in training, or a tensor without effect on the output.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{r.ours:16} <-> {r.theirs:24} {r.shape}" for r in self.rows]
        return "\n".join([*lines, *self.notes])


def to_torch(net: Network | str, params: Params, in_shape: tuple[int, ...]) -> tuple[Any, Report]:
    """The network as a module of torch.nn, with its weights.

    Parameters
    ----------
    net : Network or str
    params : State, or sequence of mapping
        Its weights: a state, or the arrays by name of each layer.
    in_shape : tuple of int
        Shape of one sample, as ours: (H, W, C) for images.

    Returns
    -------
    module : torch.nn.Module
        In evaluation mode, of the weights' precision, on the CPU.  It takes images as
        (B, C, H, W), ids as integers, and all else as `Engine.predict` does; a graph is given by
        name, ``module(x, adjacency=A)``.  Its output is the network's; that of a rule which reads
        a prediction elsewhere, such as "goodness", is not.
    report : Report

    Raises
    ------
    MissingExtra
        PyTorch is not installed.
    SpecError, ShapeError
        A layer or an array that has no place in the module, by name.
    """
    required("fflearn.interop")
    from fflearn.torch.build import build
    from fflearn.torch.exchange import pairs

    own, heads = _by_path(params)
    dtype = np.result_type(*own.values()).name if own else "float32"
    module, ties, notes = build(network(net), tuple(in_shape), dtype)
    names = {id(part): f"{name}." if name else "" for name, part in module.named_modules()}
    found = [(tie, pair) for tie in ties for pair in pairs(tie)]
    _check({pair.ours: pair.shape for _, pair in found}, own)
    rows = []
    for tie, pair in found:
        pair.place[...] = own[pair.ours].reshape(pair.place.shape)
        theirs = f"{names[id(tie.module)]}{pair.theirs}"
        rows.append(Row(pair.ours, theirs, pair.shape))
    return module, Report(tuple(rows), (*notes, *heads))


def from_torch(
    module: Any, in_shape: tuple[int, ...]
) -> tuple[Network, list[dict[str, np.ndarray]], Report]:
    """The network that computes what a module computes, and its weights.

    Parameters
    ----------
    module : torch.nn.Module
        nn.Sequential, nested or not, of torch.nn's layers and of those in
        `fflearn.torch.modules`, such as `Recurrent` around an nn.LSTM; or what `to_torch` made.
    in_shape : tuple of int
        Shape of one sample, as ours: (H, W, C) for images.

    Returns
    -------
    net : Network
        An activation belongs to the layer before it, and so does an nn.Flatten to the dense layer
        after it.
    params : list of dict
        The arrays by name of each layer, in the module's precision.  For those of a `State`, see
        `load_torch`.
    report : Report

    Raises
    ------
    MissingExtra
        PyTorch is not installed.
    SpecError, ShapeError
        The module, setting or tensor that has no counterpart, by name.
    """
    required("fflearn.interop")
    from fflearn.torch.read import network_of

    net, notes = network_of(module, tuple(in_shape))
    found, rows, more = _read(net, tuple(in_shape), module, None)
    params: list[dict[str, np.ndarray]] = [{} for _ in net.leaves]
    for path, a in found.items():
        _, leaf, name = path.split("/")
        params[int(leaf)][name] = a
    return net, params, Report(rows, (*notes, *more))


def load_torch(
    net: Network | str, params: Params, in_shape: tuple[int, ...], module: Any, x: Any
) -> Report:
    """Put the weights of a module into those of a network; all of them, or none.

    The network's layers take those of the module in the order of its definition.

    Parameters
    ----------
    net : Network or str
    params : State, or sequence of dict
        What is written; an optimizer's arrays in a state stay as they are.
    in_shape : tuple of int
        Shape of one sample, as ours: (H, W, C) for images.
    module : torch.nn.Module
        Any, if its layers with weights are torch.nn's.
    x : Tensor or None
        A batch as the module takes it.  Its output must be the network's with the same weights;
        None compares nothing, and trusts the order and everything that is not a weight.

    Raises
    ------
    MissingExtra
        PyTorch is not installed.
    SpecError, ShapeError
        A layer or tensor that does not fit or is left over, by name; or outputs that differ.
    """
    required("fflearn.interop")
    own, heads = _by_path(params)
    found, rows, notes = _read(network(net), tuple(in_shape), module, x)
    _check({path: a.shape for path, a in found.items()}, own)
    for path, a in found.items():
        _, leaf, name = path.split("/")
        if a.dtype.itemsize > own[path].itemsize:
            notes.append(f"{path}: rounded from {a.dtype} to {own[path].dtype}")
        _layers(params)[int(leaf)][name] = a.astype(own[path].dtype)
    return Report(rows, (*notes, *heads))


def _read(
    net: Network, in_shape: tuple[int, ...], module: Any, x: Any
) -> tuple[dict[str, np.ndarray], tuple[Row, ...], list[str]]:
    """A module's weights by our paths, the rows of a report, and notes."""
    from fflearn.torch.build import build
    from fflearn.torch.exchange import compared, filled, pairs, precision_of

    twin, ties, _ = build(net, in_shape, precision_of(module))
    names, notes = filled(ties, module)
    if x is not None:
        notes.append(compared(module, twin, x))
    found = [pair for tie in ties for pair in pairs(tie)]
    rows = [Row(p.ours, name, p.shape) for p, name in zip(found, names, strict=True)]
    arrays = {p.ours: np.ascontiguousarray(p.place.reshape(p.shape)) for p in found}
    return arrays, tuple(rows), notes


def _layers(params: Params) -> Sequence[Any]:
    return params.params if isinstance(params, State) else params


def _by_path(params: Params) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays by path, and a note for each that is left alone."""
    found, notes = {}, []
    for i, own in enumerate(_layers(params)):
        for name, a in own.items():
            path = f"params/{i}/{name}"
            if name.startswith(f"{HEAD}."):
                notes.append(f"{path}: of a head, which is run in training alone: left out")
            else:
                found[path] = np.asarray(a)
    return found, notes


def _check(wanted: dict[str, tuple[int, ...]], given: dict[str, np.ndarray]) -> None:
    """The arrays of a network are those that were given."""
    for path in sorted({*wanted, *given}):
        wants = wanted.get(path, "nothing")
        has = given[path].shape if path in given else "nothing"
        if wants != has:
            raise ShapeError(
                f"the network has {wants} at {path}, and the weights {has}. Give a network, "
                f"weights and in_shape that belong together, such as engine.net, a state and "
                f"engine.in_shape."
            )
