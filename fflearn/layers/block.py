"""Several layers as one unit of locality: exact calculus inside, nothing across."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fflearn.base import Env, Point, Trace
from fflearn.errors import SpecError
from fflearn.layers import Layer
from fflearn.layers.dense import Dense
from fflearn.topology import Node, Residual, Sequential, flatten, plus, shapes, spec_of

HEAD = "head"  # parameters of a head are called head.0.W


class Headed(NamedTuple):
    """What a trace holds inside once it went on through the head."""

    body: Trace
    head: Trace  # made from the body's output


@dataclass(frozen=True)
class Block(Layer):
    """Layers composed; a rule sees one layer, whose derivatives are exact inside.

    "Backprop inside a block is allowed, across blocks it is not" is thus a property of this
    type, visible in the spec string as ``block(...)``.

    Parameters
    ----------
    body : Sequential
        Layers and residual structure.
    head : Sequential, optional
        Layers that read the body's output and lead nowhere, written ``block(body; head)``.  In
        training a rule may go on through them (`LayerView.head`), to give the body an objective
        of its own.  Their parameters, ``head.0.W``, are none of the network's.

    Raises
    ------
    SpecError
        A head on a block inside of a block, where nothing would run it.
    """

    body: Sequential
    head: Sequential | None = None
    nodes: tuple[Node, ...] = field(init=False, repr=False, compare=False)
    leaves: tuple[Any, ...] = field(init=False, repr=False, compare=False)
    ahead: Any = field(init=False, repr=False, compare=False)  # the head as a Block, or None

    kind: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        nodes, layers = flatten(self.body)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "leaves", layers)
        object.__setattr__(self, "ahead", None if self.head is None else Block(self.head))
        for layer in layers:
            if getattr(layer, "head", None) is not None:
                raise SpecError(
                    f"nothing would run the head of {layer.spec()!r}, which is inside of another "
                    f"block. Leave the head out, or the outer block."
                )

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        chain = Sequential((Dense(5, "tanh"), Dense(3, "relu", "rms")))
        fork = Residual(Sequential((Dense(3, "tanh"),)), Sequential((Dense(3, bias=False),)))
        tail = Sequential((Dense(3, "tanh"), Residual(Sequential((Dense(3, "sigmoid"),))), fork))
        return [(cls(chain), (7,)), (cls(tail), (5,)), (cls(Sequential((fork, Dense(2)))), (3,))]

    @property
    def weights(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{i}.{n}" for i, layer in enumerate(self.leaves) for n in layer.weights)

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return any(layer.learns for layer in self.leaves)

    @property
    def slopes(self) -> bool:  # type: ignore[override]
        return all(layer.slopes for layer in self.leaves)

    @property
    def buffers(self) -> tuple[str, ...]:  # type: ignore[override]
        own = tuple(f"{i}.{n}" for i, layer in enumerate(self.leaves) for n in layer.buffers)
        return own if self.ahead is None else (*own, *(f"{HEAD}.{n}" for n in self.ahead.buffers))

    @property
    def activation(self) -> str:
        return getattr(self._top(), "activation", "identity")

    @property
    def couples_samples(self) -> bool:  # type: ignore[override]
        return any(layer.couples_samples for layer in self.leaves)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return any(layer.draws for layer in self.leaves)

    @property
    def linear(self) -> bool:
        return False

    def spec(self) -> str:
        head = "" if self.head is None else f"; {spec_of(self.head)}"
        return f"block({spec_of(self.body)}{head})"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return shapes(self.nodes, self.leaves, in_shape)[-1]

    def _inputs(self, in_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        at = shapes(self.nodes, self.leaves, in_shape)
        return [
            in_shape if n.sources[0] < 0 else at[n.sources[0]]
            for n in self.nodes
            if n.leaf is not None
        ]

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        p: dict[str, Any] = {}
        for i, (layer, shape) in enumerate(zip(self.leaves, self._inputs(in_shape), strict=True)):
            p |= _under(i, layer.init(key.fold(i), shape, dtype))
        if self.ahead is not None:
            p |= _under(HEAD, self.ahead.init(key.fold(HEAD), self.out_shape(in_shape), dtype))
        return p

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        return {
            f"{i}.{n}": s
            for i, (layer, shape) in enumerate(
                zip(self.leaves, self._inputs(in_shape), strict=True)
            )
            for n, s in layer.weight_std(shape).items()
        }

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        inner: dict[int, Trace] = {}
        env, value = _within(env), {-1: x}
        last = len(self.nodes) - 1
        for i, (leaf, sources) in enumerate(self.nodes):
            if leaf is None:
                value[i] = value[sources[0]] + value[sources[1]]
            else:
                extra = noise if i == last else None
                inner[i] = self.leaves[leaf].forward(
                    k, _own(p, leaf), value[sources[0]], env.inside(leaf), extra
                )
                value[i] = inner[i].y
        y = value[last]
        if last not in inner and noise is not None:  # a block that ends in a sum
            y = y + noise
        a = inner[last].a if last in inner else y
        return Trace(x, a, y, p, inner)

    def headed(self, k: Any, t: Trace, env: Env) -> tuple[Trace, int]:
        if self.ahead is None:
            return t, 0
        place = _within(env).inside(len(self.leaves))
        h = self.ahead.forward(k, _own(t.params, HEAD), t.y, place)
        return Trace(t.x, h.a, h.y, t.params, Headed(t, h)), sum(i.y.size for i in h.inner.values())

    def _top(self) -> Layer | None:
        leaf = self.nodes[-1].leaf
        return None if leaf is None else self.leaves[leaf]

    def act(self, k: Any, a: Any) -> Any:
        top = self._top()
        return a if top is None else top.act(k, a)

    def act_vjp(self, k: Any, t: Trace, dy: Any, into: Any = None) -> Any:
        if isinstance(t.inner, Headed):
            return self.ahead.act_vjp(k, t.inner.head, dy, into)
        top = self._top()
        return dy if top is None else top.act_vjp(k, t.inner[len(self.nodes) - 1], dy, into)

    def _sweep(self, k: Any, t: Trace, da: Any, message: bool = True) -> tuple[dict[str, Any], Any]:
        """Reverse sweep inside the block -> (parameter gradients, d loss/d x if asked for)."""
        if isinstance(t.inner, Headed):
            body, head = t.inner
            ahead, dy = self.ahead._sweep(k, head, da)
            grads, dx = self._sweep(k, body, self.act_vjp(k, body, dy), message)
            return grads | _under(HEAD, ahead), dx
        last, grads = len(self.nodes) - 1, {}
        down: dict[int, Any] = {last: da}
        for i in reversed(range(len(self.nodes))):
            leaf, sources = self.nodes[i]
            if leaf is None:
                for s in sources:
                    down[s] = plus(down.get(s), down[i])
                continue
            layer, ti = self.leaves[leaf], t.inner[i]
            own = down[i] if i == last else layer.act_vjp(k, ti, down[i])
            grads |= _under(leaf, layer.param_vjp(k, ti, own))
            if message or sources[0] >= 0:
                down[sources[0]] = plus(down.get(sources[0]), layer.input_vjp(k, ti, own))
        return grads, down.get(-1)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return self._sweep(k, t, da, message=False)[0]

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return self._sweep(k, self._with(t, t.params), da)[1]

    def _with(self, t: Trace, p: Mapping[str, Any]) -> Trace:
        """The trace with these parameters all the way inside."""
        if isinstance(t.inner, Headed):
            body, head = self._with(t.inner.body, p), self.ahead._with(t.inner.head, _own(p, HEAD))
            return t._replace(inner=Headed(body, head))
        inner = {i: ti._replace(params=_own(p, self.nodes[i].leaf)) for i, ti in t.inner.items()}
        return t._replace(inner=inner)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        if isinstance(t.inner, Headed):
            dy = self.jvp(k, t.inner.body, dx, dp)
            return self.ahead.jvp(k, t.inner.head, dy, _own(dp, HEAD))
        value: dict[int, Any] = {-1: dx}
        for i, (leaf, sources) in enumerate(self.nodes):
            value[i] = (
                plus(value[sources[0]], value[sources[1]])
                if leaf is None
                else self.leaves[leaf].push(k, t.inner[i], value[sources[0]], _own(dp, leaf))
            )
        end = value[len(self.nodes) - 1]
        return np.zeros_like(t.y) if end is None else end

    # -- points: the ends of the leaves that learn, in a block of blocks --------------------------
    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return self._onward(-1, in_shape)

    def points(self, in_shape: tuple[int, ...]) -> tuple[Point, ...]:
        # What moves one sample inside moves the others' outputs, too, where samples mix further on.
        if self.couples_samples or not any(isinstance(layer, Block) for layer in self.leaves):
            return super().points(in_shape)
        at = shapes(self.nodes, self.leaves, in_shape)
        return tuple(
            Point(f"{leaf}.a", at[i], *self._onward(i, in_shape))
            for i, (leaf, _) in enumerate(self.nodes)
            if leaf is not None and self.leaves[leaf].learns
        )

    def _onward(self, start: int, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        """`keeps_apart` of all that reads a node, up to the end."""
        at = {-1: in_shape} | dict(enumerate(shapes(self.nodes, self.leaves, in_shape)))
        reached, places, groups = {start}, True, at[start][-1]
        for i, (leaf, sources) in enumerate(self.nodes):
            if reached.isdisjoint(sources):
                continue
            reached.add(i)
            if leaf is not None:
                apart, parts = self.leaves[leaf].keeps_apart(at[sources[0]])
                places, groups = places and apart, math.gcd(groups, parts)
        return places, groups

    def points_vjp(self, k: Any, t: Trace, da: Mapping[str, Any]) -> dict[str, Any]:
        if "a" in da:
            return super().points_vjp(k, t, da)
        grads: dict[str, Any] = {}
        for i, (leaf, _) in enumerate(self.nodes):
            if leaf is not None and (own := da.get(f"{leaf}.a")) is not None:
                own = own * self._live(k, t, leaf, i)
                grads |= _under(leaf, self.leaves[leaf].param_vjp(k, t.inner[i], own))
        return grads

    def _live(self, k: Any, t: Trace, leaf: int, start: int) -> Any:
        """Which units of a leaf pass anything on, as far as what reads them is pointwise."""
        ti = t.inner[start]
        moved = {start: self.leaves[leaf].act_vjp(k, ti, np.ones_like(ti.y))}
        for i, (reader, sources) in enumerate(self.nodes):
            found = [moved[s] for s in sources if s in moved]
            if not found:
                continue
            if reader is None:
                moved[i] = reduce(plus, found)
            else:
                shape = found[0].shape[1:]
                if self.leaves[reader].keeps_apart(shape) != (True, shape[-1]):
                    return moved[start] != 0
                moved[i] = self.leaves[reader].jvp(k, t.inner[i], found[0], {})
        return moved[len(self.nodes) - 1] != 0

    def running(self, k: Any, t: Trace) -> dict[str, Any]:
        if isinstance(t.inner, Headed):
            body, head = t.inner
            return self.running(k, body) | _under(HEAD, self.ahead.running(k, head))
        moved: dict[str, Any] = {}
        for i, ti in t.inner.items():
            leaf = self.nodes[i].leaf
            moved |= _under(leaf, self.leaves[leaf].running(k, ti))
        return moved


def _within(env: Env) -> Env:
    """For the layers inside, which send messages to each other."""
    return env._replace(keeps=env.keeps | {"x"})


def _own(p: Mapping[str, Any], place: int | str | None) -> dict[str, Any]:
    """Of parameters by path those at a place, by name: a leaf's number, or `HEAD`."""
    start = f"{place}."
    return {n[len(start) :]: a for n, a in p.items() if n.startswith(start)}


def _under(place: int | str, p: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_own`."""
    return {f"{place}.{n}": a for n, a in p.items()}
