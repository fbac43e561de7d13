"""Units of locality: where a network is cut, copies of parts, a head on several, whose turn it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from fflearn.base import LayerSpec, LayerView, Message
from fflearn.errors import SpecError
from fflearn.layers.block import Block
from fflearn.networks import Network, network
from fflearn.topology import Residual, Sequential, flatten

Run = tuple[Any, ...]  # layers and structure, one after the other


def one_unit(spec: str) -> Block:
    """The layers of a spec string as one block."""
    return Block(network(spec).body)


def in_units(net: Network) -> Network:
    """The network as a chain of blocks, each a unit of locality.

    A layer with a weight matrix, a residual or a block begins a unit, and takes what follows it
    without weights: norms, activations, pooling.  The last unit has the network's last layers
    besides layers of its own.  What is one block already stays one, and is not joined with others.

    Raises
    ------
    SpecError
        A block with a head, and something after it that belongs to its unit.

    Examples
    --------
    >>> in_units(network("dense 8 | act relu | residual(dense 8) | dense 3")).spec()
    'block(dense 8 | act relu) | block(residual(dense 8) | dense 3)'
    """
    *runs, last = cut(net.body)
    if runs and not _is_block(last):
        last = (*runs.pop(), *last)
    return Network(Sequential(tuple(_joined(run) for run in (*runs, last))))


def cut(body: Sequential) -> list[Run]:
    """Runs of items, each with one that has weight matrices and what follows it without.

    Items before the first weight matrix go with it.
    """
    runs: list[Run] = [()]
    for item in _items(body):
        if _has_weights(item) and any(map(_has_weights, runs[-1])):
            runs.append(())
        runs[-1] = (*runs[-1], item)
    return runs


def copies(parts: list[tuple[Run, tuple[int, ...]]], have: tuple[int, ...]) -> Sequential:
    """Copies of runs, one after the other, on samples of the shape ``have``.

    Each run comes with the shape that it reads in its network.  Where that is a vector and there
    are places, their mean comes first.  Where the images are larger than that, the run's first
    convolution gets stride 2, and a run that begins otherwise reads means of patches.  A residual
    whose sum no longer fits gets a projection.  Heads are left out.

    Raises
    ------
    ShapeError
        A layer that cannot read what is there.
    """
    found: list[Any] = []
    for run, want in parts:
        body, larger = Sequential(run), 1
        first = next(layer for layer in _layers(body) if layer.weights)
        if len(have) > len(want) == 1:
            found += network("avg_pool").body.items
            have = have[-1:]
        elif len(have) == len(want) == 3:
            larger = min(have[0] // want[0], have[1] // want[1])
        if larger > 1 and not _is_conv(first):
            found += network(f"avg_pool {larger}").body.items
            have = found[-1].out_shape(have)
        copy, have = _fitted(body, have, larger > 1)
        found.append(copy.items[0] if len(copy.items) == 1 else Block(copy))
    return Sequential(tuple(found))


def learning_units(net: Network) -> list[Sequential]:
    """The network but for its last layer, cut before each item that has parameters.

    What stands before the first of these belongs to its unit; what stands behind one, as pooling,
    to that one's.  Where nothing has parameters, there is no unit.

    Examples
    --------
    >>> [Network(u).spec() for u in learning_units(network("conv 4 | max_pool | dense 8 | dense 3"))]
    ['conv 4 | max_pool', 'dense 8']
    """
    units: list[Run] = [()]
    for item in net.body.items[:-1]:
        if _learns(item) and any(map(_learns, units[-1])):
            units.append(())
        units[-1] = (*units[-1], item)
    return [Sequential(unit) for unit in units if any(map(_learns, unit))]


def with_head(units: list[Sequential], head: Any, first: int) -> Network:
    """Units one after the other, and a linear head on what those from ``first`` on end in.

    Each of these feeds the next unit and a piece of the head: the pieces' outputs are added up,
    so only one of them has a bias.
    """
    piece = Sequential((replace(head, bias=False),))
    tail = Sequential((*units[-1].items, head))
    for i, unit in reversed(list(enumerate(units[:-1]))):
        behind = tail.items if i < first else (Residual(tail, piece),)
        tail = Sequential((*unit.items, *behind))
    return Network(tail)


# ---- layer by layer ---------------------------------------------------------------------------


def turn(progress: float, layers: tuple[LayerSpec, ...], readout: bool = True) -> int:
    """Which layer learns at ``progress`` in [0, 1] where one does after the other, bottom first.

    Each hidden layer that learns has an equal part of the run.  Output layers, if they are a
    ``readout`` of these, come last and together, as ``len(layers)``.  For `Rule.variant`.
    """
    stages = [s.index for s in layers if s.learns and not (readout and s.is_output)]
    stages += [len(layers)] * readout
    return stages[min(int(progress * len(stages)), len(stages) - 1)]


def waits(v: LayerView) -> bool:
    """Whether a layer's turn is still to come."""
    return v.variant is not None and v.index > v.variant


def rests(v: LayerView, readout: bool = True) -> bool:
    """Whether it is another layer's turn."""
    return v.variant not in (None, v.depth if readout and v.is_output else v.index)


def silence(v: LayerView, m: Message) -> Message:
    """What a layer that waits passes up, without work: zeros."""
    nothing = np.zeros_like(m.x, shape=())
    return m._replace(x=np.broadcast_to(nothing, (len(m.x), *v.out_shape)))


# ---- inside ---------------------------------------------------------------------------------------


def _items(item: Any) -> Run:
    """The parts of a nest of Sequentials, in order."""
    if not isinstance(item, Sequential):
        return (item,)
    return tuple(part for nested in item.items for part in _items(nested))


def _layers(item: Any) -> Run:
    """The layers of a structure, and those inside of its blocks."""
    leaves = flatten(item.body if isinstance(item, Block) else item)[1]
    parts = [_layers(leaf) if isinstance(leaf, Block) else (leaf,) for leaf in leaves]
    return tuple(layer for part in parts for layer in part)


def _has_weights(item: Any) -> bool:
    return any(layer.weights for layer in _layers(item))


def _learns(item: Any) -> bool:
    return any(layer.learns for layer in flatten(item)[1])


def _is_block(run: Run) -> bool:
    return len(run) == 1 and isinstance(run[0], Block)


def _is_conv(layer: Any) -> bool:
    return bool(layer.weights) and hasattr(layer, "stride")


def _joined(run: Run) -> Block:
    """A run as one block; blocks in it are taken apart."""
    if _is_block(run):
        return run[0]
    parts: list[Any] = []
    for item in run:
        if isinstance(item, Block) and item.head is not None:
            raise SpecError(
                f"the head of {item.spec()!r} reads what the unit does not end with. Put what "
                f"follows the block inside, before the ';'."
            )
        parts += _items(item.body) if isinstance(item, Block) else [item]
    return Block(Sequential(tuple(parts)))


def _fitted(item: Any, have: tuple[int, ...], halve: bool) -> tuple[Any, tuple[int, ...]]:
    """An item so that it reads ``have`` -> it, and the shape of its output.

    With ``halve`` its first convolution, in each branch, has stride 2 or more.
    """
    if isinstance(item, Sequential):
        parts = []
        for part in item.items:
            fit, have = _fitted(part, have, halve)
            halve = halve and not _has_weights(part)
            parts.append(fit)
        return Sequential(tuple(parts)), have
    if isinstance(item, Block):
        body, out = _fitted(item.body, have, halve)
        return Block(body), out
    if isinstance(item, Residual):
        body, out = _fitted(item.body, have, halve)
        skip = None if item.skip is None else _fitted(item.skip, have, halve)[0]
        if skip is None and out != have:
            skip = _projection(body, have, out)
        return Residual(body, skip), Network(Sequential((Residual(body, skip),))).shapes(have)[-1]
    if halve and _is_conv(item):
        item = replace(item, stride=max(2, item.stride))
    return item, item.out_shape(have)


def _projection(body: Sequential, have: tuple[int, ...], out: tuple[int, ...]) -> Sequential:
    """A shortcut from ``have`` to ``out``: the body's last weights and their norm, linear.

    Of a convolution it is one of 1 x 1.
    """
    last, *after = cut(body)[-1]
    if _is_conv(last):
        last = replace(last, kernel=1, padding="same", groups=1, stride=math.ceil(have[0] / out[0]))
    kept = [last, *(layer for layer in after if layer.learns)]
    linear = {"activation": "identity"}
    return Sequential(tuple(replace(n, **linear) if hasattr(n, "activation") else n for n in kept))
