"""Graph convolution: every node's features are mixed with its neighbours', then mapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import DataError, ShapeError, SpecError
from fflearn.kernels.reference import Product
from fflearn.layers import Layer
from fflearn.layers.dense import Dense


@dataclass(frozen=True)
class GraphConv(Layer):
    """``a = A n(x) W + b``, ``y = act(a)``; the rows of x are the nodes of one graph.

    A (N, N) is ``side["adjacency"]``: as published, D^-1/2 (adjacency + I) D^-1/2 with D the
    degrees, self-loops counted (`fflearn.data.graphs.operators` makes it).  Rows that stack
    several versions of the graph, N each, are mixed within their own version.

    Parameters
    ----------
    units : int
        Number of outputs per node.
    activation, norm, bias
        As of `dense`; n acts on a node's own features.
    draw : str
        As of `dense`; "xavier" is the paper's.

    Raises
    ------
    DataError, ShapeError
        In a step: no adjacency came with the samples, or one of another size.

    References
    ----------
    Kipf, Welling (2017), "Semi-supervised classification with graph convolutional networks",
    arXiv:1609.02907, eq. 2.
    """

    units: int
    activation: str = "identity"
    norm: str = "none"
    bias: bool = True
    draw: str = "xavier"

    kind: ClassVar[str] = "graph_conv"
    weights: ClassVar[tuple[str, ...]] = ("W",)
    words: ClassVar[tuple[str, ...]] = ("units", "activation")
    couples_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked(self)

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        norms = [(cls(4, "tanh", norm), (6,)) for norm in ("none", "rms", "unit")]
        return [*norms, (cls(5, "relu", bias=False), (3,)), (cls(2), (2, 3))]

    def example_batch(
        self, rng: Any, rows: int, in_shape: tuple[int, ...]
    ) -> tuple[Any, dict[str, Any]]:
        return rng.normal(size=(rows, *in_shape)), {"adjacency": some_operator(rng, rows)}

    @property
    def linear(self) -> bool:
        return self.norm == "none"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.units,)

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return as_dense(self).init(key, in_shape, dtype)

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        return as_dense(self).weight_std(in_shape)

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        mix = operator(self, "adjacency", env, x)
        n = normalized(self, k, x)
        # A (n W), not (A n) W: the same number, and the wide features are never mixed.
        a = spread(mix, k.matmul(n, p["W"]))
        if self.bias:
            a = a + p["b"]
        if noise is not None:
            a = a + noise
        return self._fired(k, p, x, a, env, (n, mix))

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        n, mix = t.inner
        g = {"W": Product(n, spread(mix.T, da), len(da))}
        return {**g, "b": k.colmean(da, len(da))} if self.bias else g

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        n, mix = t.inner
        dn = k.matmul_nt(spread(mix.T, da), t.params["W"])
        return normalized_vjp(self, k, t.x, n, dn)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        n, mix = t.inner
        mixed = np.zeros_like(t.y)
        if "W" in dp:
            mixed = mixed + k.matmul(n, dp["W"])
        if dx is not None:
            mixed = mixed + k.matmul(normalized_jvp(self, k, t.x, n, dx), t.params["W"])
        da = spread(mix, mixed)
        if "b" in dp:
            da = da + dp["b"]
        return k.act_vjp(da, t.a, t.y, self.activation)


# ---- what layers on graphs share -----------------------------------------------------------------


def checked(layer: Any) -> None:
    """The settings that a layer has in common with `dense`, checked there."""
    try:
        as_dense(layer)
    except SpecError as e:
        raise SpecError(str(e).replace("dense", layer.kind, 1)) from None


def as_dense(layer: Any) -> Dense:
    """The dense layer with the same weights, without the graph."""
    return Dense(layer.units, layer.activation, layer.norm, layer.bias, layer.draw)


def operator(layer: Layer, name: str, env: Env, x: Any) -> Any:
    """The matrix (N, N) that mixes rows, from the side data, in the precision of x."""
    mix = env.side.get(name)
    if mix is None:
        raise DataError(
            f"{layer.spec()!r} needs the graph as side[{name!r}]; got {sorted(env.side) or 'none'}."
            f" Train on a graph such as data='cora', and give engine.predict(..., side=...)."
        )
    if len(mix.shape) != 2 or mix.shape[0] != mix.shape[1] or len(x) % mix.shape[0]:
        raise ShapeError(
            f"{layer.spec()!r} needs side[{name!r}] with one row and one column per node; got "
            f"{mix.shape} for {len(x)} nodes. Give the whole graph in one batch."
        )
    return mix.astype(x.dtype, copy=False)


def spread(mix: Any, rows: Any) -> Any:
    """mix @ rows, for each stacked version of the nodes by itself: (r N, F) -> (r N, F)."""
    n = mix.shape[0]
    parts = [mix @ rows[i : i + n] for i in range(0, len(rows), n)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def normalized(layer: Any, k: Any, x: Any) -> Any:
    """n(x), flattened: (N, *in) -> (N, n_in)."""
    flat = x.reshape(len(x), -1)
    return flat if layer.norm == "none" else k.normalize(flat, layer.norm)


def normalized_vjp(layer: Any, k: Any, x: Any, n: Any, dn: Any) -> Any:
    """d loss/d n (N, n_in) -> d loss/d x (N, *in)."""
    if layer.norm != "none":
        dn = k.normalize_vjp(dn, x.reshape(len(x), -1), n, layer.norm)
    return dn.reshape(x.shape)


def normalized_jvp(layer: Any, k: Any, x: Any, n: Any, dx: Any) -> Any:
    """A tangent of x (N, *in) -> the tangent of n (N, n_in)."""
    flat = dx.reshape(len(x), -1)
    if layer.norm == "none":
        return flat
    return k.normalize_jvp(flat, x.reshape(len(x), -1), n, layer.norm)


def some_operator(rng: Any, rows: int) -> Any:
    """A sparse matrix (rows, rows) for the shared tests; unlike a graph's, not symmetric."""
    from scipy.sparse import csr_array

    kept = rng.uniform(size=(rows, rows)) < 0.5
    return csr_array(np.eye(rows) + kept * rng.normal(size=(rows, rows)))
