"""GraphSAGE with the mean aggregator: a node's own features and its neighbours' mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.kernels.reference import Product
from fflearn.layers import Layer
from fflearn.layers.graph_conv import (
    as_dense,
    checked,
    normalized,
    normalized_jvp,
    normalized_vjp,
    operator,
    some_operator,
    spread,
)


@dataclass(frozen=True)
class Sage(Layer):
    """``a = n(x) W_self + M n(x) W_neigh + b``, ``y = act(a)``; the rows of x are nodes.

    M (N, N) is ``side["neighbours"]``: row i has 1 / degree at each neighbour of node i, and is
    zero where there is none (`fflearn.data.graphs.operators` makes it).  The two products are
    one with the matrix [W_self; W_neigh] on [x, M x], and are drawn as that.

    Parameters
    ----------
    units : int
        Number of outputs per node.
    activation, norm, bias
        As of `dense`; n acts on a node's own features.  The paper's normalisation of the output
        is the next layer's ``norm=unit``.
    draw : str
        As of `dense`, with twice the inputs.

    Raises
    ------
    DataError, ShapeError
        In a step: no neighbours came with the samples, or of another size.

    References
    ----------
    Hamilton, Ying, Leskovec (2017), "Inductive representation learning on large graphs",
    arXiv:1706.02216, algorithm 1 with the mean aggregator; all neighbours, no sampling.
    """

    units: int
    activation: str = "identity"
    norm: str = "none"
    bias: bool = True
    draw: str = "xavier"

    kind: ClassVar[str] = "sage"
    weights: ClassVar[tuple[str, ...]] = ("W_self", "W_neigh")
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
        return rng.normal(size=(rows, *in_shape)), {"neighbours": some_operator(rng, rows)}

    @property
    def linear(self) -> bool:
        return self.norm == "none"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.units,)

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        n_in = math.prod(in_shape)
        p = as_dense(self).init(key, (2 * n_in,), dtype)
        both = p.pop("W")
        return {"W_self": both[:n_in], "W_neigh": both[n_in:], **p}

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        std = as_dense(self).weight_std((2 * math.prod(in_shape),))["W"]
        return {"W_self": std, "W_neigh": std}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        mix = operator(self, "neighbours", env, x)
        n = normalized(self, k, x)
        a = k.matmul(n, p["W_self"]) + spread(mix, k.matmul(n, p["W_neigh"]))
        if self.bias:
            a = a + p["b"]
        if noise is not None:
            a = a + noise
        return self._fired(k, p, x, a, env, (n, mix))

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        n, mix = t.inner
        g = {
            "W_self": Product(n, da, len(da)),
            "W_neigh": Product(n, spread(mix.T, da), len(da)),
        }
        return {**g, "b": k.colmean(da, len(da))} if self.bias else g

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        n, mix = t.inner
        dn = k.matmul_nt(da, t.params["W_self"])
        dn = dn + k.matmul_nt(spread(mix.T, da), t.params["W_neigh"])
        return normalized_vjp(self, k, t.x, n, dn)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        n, mix = t.inner
        own, around = np.zeros_like(t.y), np.zeros_like(t.y)
        if "W_self" in dp:
            own = own + k.matmul(n, dp["W_self"])
        if "W_neigh" in dp:
            around = around + k.matmul(n, dp["W_neigh"])
        if dx is not None:
            dn = normalized_jvp(self, k, t.x, n, dx)
            own = own + k.matmul(dn, t.params["W_self"])
            around = around + k.matmul(dn, t.params["W_neigh"])
        da = own + spread(mix, around)
        if "b" in dp:
            da = da + dp["b"]
        return k.act_vjp(da, t.a, t.y, self.activation)
