"""Several layers as one unit of locality: exact calculus inside, nothing across."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fflearn.base import Env, Trace
from fflearn.layers import Layer
from fflearn.layers.dense import Dense
from fflearn.topology import Node, Residual, Sequential, flatten, plus, shapes, spec_of


@dataclass(frozen=True)
class Block(Layer):
    """Layers composed; a rule sees one layer, whose derivatives are exact inside.

    "Backprop inside a block is allowed, across blocks it is not" is thus a property of this
    type, visible in the spec string as ``block(...)``.

    Parameters
    ----------
    body : Sequential
        Layers and residual structure.
    """

    body: Sequential
    nodes: tuple[Node, ...] = field(init=False, repr=False, compare=False)
    leaves: tuple[Any, ...] = field(init=False, repr=False, compare=False)

    kind: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        nodes, layers = flatten(self.body)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "leaves", layers)

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
    def buffers(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{i}.{n}" for i, layer in enumerate(self.leaves) for n in layer.buffers)

    @property
    def activation(self) -> str:
        return getattr(self._top(), "activation", "identity")

    @property
    def couples_samples(self) -> bool:  # type: ignore[override]
        return any(layer.couples_samples for layer in self.leaves)

    @property
    def linear(self) -> bool:
        return False

    def spec(self) -> str:
        return f"block({spec_of(self.body)})"

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
        return {
            f"{i}.{n}": a
            for i, (layer, shape) in enumerate(
                zip(self.leaves, self._inputs(in_shape), strict=True)
            )
            for n, a in layer.init(key.fold(i), shape, dtype).items()
        }

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
        value = {-1: x}
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

    def _top(self) -> Layer | None:
        leaf = self.nodes[-1].leaf
        return None if leaf is None else self.leaves[leaf]

    def act(self, k: Any, a: Any) -> Any:
        top = self._top()
        return a if top is None else top.act(k, a)

    def act_vjp(self, k: Any, t: Trace, dy: Any) -> Any:
        top = self._top()
        return dy if top is None else top.act_vjp(k, t.inner[len(self.nodes) - 1], dy)

    def _sweep(self, k: Any, t: Trace, da: Any) -> tuple[dict[str, Any], Any]:
        """Reverse sweep inside the block -> (parameter gradients, d loss/d x)."""
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
            grads.update({f"{leaf}.{n}": g for n, g in layer.param_vjp(k, ti, own).items()})
            down[sources[0]] = plus(down.get(sources[0]), layer.input_vjp(k, ti, own))
        return grads, down[-1]

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return self._sweep(k, t, da)[0]

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        full = {
            i: ti._replace(params=_own(t.params, self.nodes[i].leaf)) for i, ti in t.inner.items()
        }
        return self._sweep(k, t._replace(inner=full), da)[1]

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        value: dict[int, Any] = {-1: dx}
        for i, (leaf, sources) in enumerate(self.nodes):
            value[i] = (
                plus(value[sources[0]], value[sources[1]])
                if leaf is None
                else self.leaves[leaf].jvp(k, t.inner[i], value[sources[0]], _own(dp, leaf))
            )
        return value[len(self.nodes) - 1]

    def running(self, k: Any, t: Trace) -> dict[str, Any]:
        own = [(self.nodes[i].leaf, ti) for i, ti in t.inner.items()]
        found = [(leaf, self.leaves[leaf].running(k, ti)) for leaf, ti in own]
        return {f"{leaf}.{n}": a for leaf, moved in found for n, a in moved.items()}


def _own(p: Mapping[str, Any], leaf: int | None) -> dict[str, Any]:
    start = f"{leaf}."
    return {n[len(start) :]: a for n, a in p.items() if n.startswith(start)}
