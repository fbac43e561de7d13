"""Networks from Python objects or from a spec string, with shapes and parameter counts."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fflearn import layers, zoo
from fflearn.errors import ShapeError, SpecError
from fflearn.layers.block import HEAD, Block
from fflearn.topology import Node, Residual, Sequential, flatten, map_leaves, shapes, spec_of

STRUCTURE = ("residual", "block")


@dataclass(frozen=True)
class Network:
    """A series-parallel arrangement of layers.

    Parameters
    ----------
    body : Sequential
        Layers, `Residual` and `Sequential`.

    Examples
    --------
    >>> net = network("dense 32 relu | residual(dense 32 relu) | dense 10")
    >>> net.n_params((64,))
    3466
    """

    body: Sequential
    nodes: tuple[Node, ...] = field(init=False, repr=False, compare=False)  # topological order
    leaves: tuple[Any, ...] = field(init=False, repr=False, compare=False)  # the layers, likewise

    def __post_init__(self) -> None:
        nodes, leaves = flatten(self.body)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "leaves", leaves)

    def spec(self) -> str:
        """The spec string; ``network(net.spec()) == net``."""
        return spec_of(self.body)

    def map(self, change: Callable[[Any], Any]) -> Network:
        """The same structure with ``change(layer)`` at every leaf."""
        return Network(map_leaves(self.body, change))

    def shapes(self, in_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Per-sample output shape of every node; ShapeError names the layer at fault."""
        if not in_shape or any(not isinstance(n, int) or n < 1 for n in in_shape):
            raise ShapeError(
                f"a network needs samples of positive sizes; got the shape {in_shape}. "
                f"Give one row per sample, e.g. an array of shape (n_samples, n_features)."
            )
        return shapes(self.nodes, self.leaves, in_shape)

    def input_shapes(self, in_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Per-sample input shape of every leaf."""
        at = self.shapes(in_shape)
        first = [n.sources[0] for n in self.nodes if n.leaf is not None]
        return [in_shape if s < 0 else at[s] for s in first]

    def n_params(self, in_shape: tuple[int, ...]) -> int:
        """Number of parameters for samples of this shape; neither running statistics nor heads."""
        import numpy as np

        from fflearn.random import Key

        drawn = (
            (layer.buffers, layer.init(Key(0), shape, np.float32))
            for layer, shape in zip(self.leaves, self.input_shapes(in_shape), strict=True)
        )
        return sum(
            math.prod(a.shape)
            for buffers, p in drawn
            for n, a in p.items()
            if n not in buffers and not n.startswith(f"{HEAD}.")
        )


def network(spec: str | Network | Sequential | list[Any], n_classes: int = 10) -> Network:
    """A network from its spec string, or from layers.

    ``|`` joins layers; ``residual(body)`` adds its input, ``residual(body; skip)`` the skip's
    output; ``block(...)`` makes one unit of locality of its layers, ``block(body; head)`` one with
    a head that is run in training alone.  The name of a network in
    `fflearn.zoo` stands for its layers; a number after it is its number of classes, and its other
    options are written as name=value.  A name that a layer has too, as lstm, means the network
    where it stands alone and without a number.

    Parameters
    ----------
    spec : str, Network, Sequential or list of layers
    n_classes : int
        Classes (outputs) of a network given by name, where no number follows the name.

    Raises
    ------
    SpecError
        What is wrong, at which layer, and what to type instead.

    Examples
    --------
    >>> network("dense 512 relu norm=rms | dense 10").spec()
    'dense 512 relu norm=rms | dense 10'
    >>> network("resnet20 100").n_params((32, 32, 3))
    278324
    >>> network("gcn width=32", n_classes=7).spec()
    'graph_conv 32 relu | graph_conv 7'
    """
    if isinstance(spec, Network):
        return spec
    if isinstance(spec, Sequential):
        return Network(spec)
    if isinstance(spec, (list, tuple)):
        return Network(Sequential(tuple(spec)))
    if not isinstance(spec, str):
        raise SpecError(
            f"a network needs a spec string or layers; got {type(spec).__name__}. "
            f'Type for instance: "dense 64 relu | dense 10"'
        )
    tokens = re.findall(r"[|;()]|[^\s|;()]+", spec)
    reader = _Reader(spec, tokens, n_classes)
    body = reader.chain()
    if reader.tokens:
        raise SpecError(f"{spec!r} has {reader.tokens[0]!r} where '|' or the end should be.")
    return Network(body)


class _Reader:
    """Recursive descent over the tokens of a spec string."""

    def __init__(self, spec: str, tokens: list[str], n_classes: int):
        self.spec, self.tokens, self.count, self.n_classes = spec, tokens, 0, n_classes
        self.total = len(tokens)

    def _take(self, token: str) -> None:
        if not self.tokens or self.tokens[0] != token:
            got = self.tokens[0] if self.tokens else "the end"
            raise SpecError(f"{self.spec!r} needs {token!r} where it has {got!r}.")
        self.tokens.pop(0)

    def chain(self) -> Sequential:
        items = list(self.items())
        while self.tokens and self.tokens[0] == "|":
            self.tokens.pop(0)
            items += self.items()
        return Sequential(tuple(items))

    def items(self) -> tuple[Any, ...]:
        """One layer or structure; the layers of a network given by name."""
        if not self.tokens or self.tokens[0] in "|;()":
            raise SpecError(
                f"{self.spec!r} has no layer at position {self.count}. "
                f'Type for instance: "dense 64 relu | dense 10"'
            )
        word = self.tokens.pop(0)
        if word in STRUCTURE:
            return (self.structure(word),)
        words = []
        while self.tokens and self.tokens[0] not in "|;()":
            words.append(self.tokens.pop(0))
        position, self.count = self.count, self.count + 1
        known = [k for k in layers.names() if k not in STRUCTURE]
        alone = len(words) + 1 == self.total
        named = word in zoo.NETWORKS and (word not in known or (alone and not _has_units(words)))
        if not named and word not in known:
            near = difflib.get_close_matches(word, [*known, *STRUCTURE, *zoo.NETWORKS], 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise SpecError(f"layer {position} is of the unknown kind {word!r}. {hint}")
        try:
            return self.named(word, words) if named else (layers.from_words(word, words),)
        except SpecError as e:
            raise SpecError(f"layer {position} ({' '.join([word, *words])!r}): {e}") from None

    def named(self, word: str, words: list[str]) -> tuple[Any, ...]:
        """The layers of a network given by name."""
        types = {name: p.annotation for name, p in zoo.options(word).items()}
        first = next(iter(types))
        given = layers.options(word, words, (first,), types)
        return network(zoo.NETWORKS[word](**{first: self.n_classes, **given})).body.items

    def structure(self, word: str) -> Any:
        self._take("(")
        body = self.chain()
        second = None
        if self.tokens and self.tokens[0] == ";":
            self.tokens.pop(0)
            second = self.chain()
        self._take(")")
        return Residual(body, second) if word == "residual" else Block(body, second)


def _has_units(words: list[str]) -> bool:
    """Whether words that follow a kind make it a layer: a plain number, or units=."""
    return any("=" not in w or w.startswith("units=") for w in words)
