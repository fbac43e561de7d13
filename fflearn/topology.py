"""Series-parallel structure: what the Bus sweeps through.  Leaves are the units of locality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fflearn.errors import ShapeError, SpecError


@dataclass(frozen=True)
class Sequential:
    """Items one after the other; each a layer, a Residual or a Sequential."""

    items: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise SpecError("a network needs at least one layer. Type for instance: dense 10")


@dataclass(frozen=True)
class Residual:
    """``body(x) + skip(x)``; without a skip, ``body(x) + x``.

    Structure only: a downward message is copied at the sum and added up at the fork.
    """

    body: Sequential
    skip: Sequential | None = None


class Node(NamedTuple):
    """One place in the flattened network: a leaf, or (leaf None) the sum of two sources."""

    leaf: int | None
    sources: tuple[int, ...]  # nodes; -1 is the input


def flatten(item: Any) -> tuple[tuple[Node, ...], tuple[Any, ...]]:
    """Structure -> nodes and leaves, both in topological order."""
    nodes: list[Node] = []
    layers: list[Any] = []

    def visit(item: Any, source: int) -> int:
        if isinstance(item, Sequential):
            for part in item.items:
                source = visit(part, source)
            return source
        if isinstance(item, Residual):
            end = visit(item.body, source)
            other = source if item.skip is None else visit(item.skip, source)
            nodes.append(Node(None, (end, other)))
        else:
            layers.append(item)
            nodes.append(Node(len(layers) - 1, (source,)))
        return len(nodes) - 1

    visit(item, -1)
    return tuple(nodes), tuple(layers)


def shapes(
    nodes: tuple[Node, ...], layers: tuple[Any, ...], in_shape: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Per-sample output shape of every node; raises ShapeError naming the layer at fault."""
    at: list[tuple[int, ...]] = []
    for node in nodes:
        got = [in_shape if s < 0 else at[s] for s in node.sources]
        if node.leaf is not None:
            at.append(layers[node.leaf].out_shape(got[0]))
        elif got[0] != got[1]:
            ends = " and ".join(_name(nodes, layers, s) for s in node.sources)
            raise ShapeError(
                f"residual(...) adds {ends}, whose shapes {got[0]} and {got[1]} differ. Give the "
                f"skip a layer of the same size: residual(body; dense {got[0][-1]})"
            )
        else:
            at.append(got[0])
    return at


def _name(nodes: tuple[Node, ...], layers: tuple[Any, ...], i: int) -> str:
    if i < 0:
        return "the input"
    leaf = nodes[i].leaf
    return "a sum" if leaf is None else f"layer {leaf} ({layers[leaf].spec()!r})"


def leaves_of(nodes: tuple[Node, ...], i: int) -> list[int]:
    """Leaves whose outputs a node's value is the sum of; none for the input."""
    if i < 0:
        return []
    node = nodes[i]
    if node.leaf is not None:
        return [node.leaf]
    return [leaf for s in node.sources for leaf in leaves_of(nodes, s)]


def map_leaves(item: Any, change: Any) -> Any:
    """The same structure with ``change(layer)`` at every leaf, called in the leaves' order."""
    if isinstance(item, Sequential):
        return Sequential(tuple(map_leaves(i, change) for i in item.items))
    if isinstance(item, Residual):
        body = map_leaves(item.body, change)
        return Residual(body, None if item.skip is None else map_leaves(item.skip, change))
    return change(item)


def spec_of(item: Any) -> str:
    """The structure as a string that `fflearn.network` reads back."""
    if isinstance(item, Sequential):
        return " | ".join(spec_of(i) for i in item.items)
    if isinstance(item, Residual):
        skip = "" if item.skip is None else f"; {spec_of(item.skip)}"
        return f"residual({spec_of(item.body)}{skip})"
    return item.spec()


def plus(a: Any, b: Any) -> Any:
    """Sum of two messages, either of which may be absent."""
    return b if a is None else a if b is None else a + b
