"""The dense layer, with length normalisation as part of the layer that reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import SpecError
from fflearn.kernels.reference import ACTIVATIONS, Product
from fflearn.layers import Layer
from fflearn.topology import plus

CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "norm": ("none", "rms", "unit"),
    "draw": ("kaiming", "xavier", "lecun", "zeros"),
}


@dataclass(frozen=True)
class Dense(Layer):
    """``a = n(x) W + b``, ``y = act(a)``; x is flattened per sample.

    Parameters
    ----------
    units : int
        Number of outputs.
    activation : str
        relu, tanh, sigmoid, hardsigmoid, gelu or identity.
    norm : str
        n: "none"; "rms", x / sqrt(mean x^2) per sample; "unit", x / |x| per sample.
    bias : bool
        Whether there is a b (units,), starting at 0.
    draw : str
        Initial W (n_in, units): "kaiming", N(0, g^2/n_in) with g^2 = 2 for relu and gelu, else 1
        (He et al., 2015); "xavier", U(+-sqrt(6/(n_in+units))) (Glorot & Bengio, 2010);
        "lecun", N(0, 1/n_in); "zeros".
    """

    units: int
    activation: str = "identity"
    norm: str = "none"
    bias: bool = True
    draw: str = "kaiming"

    kind: ClassVar[str] = "dense"
    weights: ClassVar[tuple[str, ...]] = ("W",)
    words: ClassVar[tuple[str, ...]] = ("units", "activation")

    def __post_init__(self) -> None:
        if isinstance(self.units, bool) or not isinstance(self.units, int) or self.units < 1:
            raise SpecError(f"dense needs a positive number of units; got {self.units!r}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise SpecError(
                    f"dense needs {name} to be one of {', '.join(known)}; "
                    f"got {getattr(self, name)!r}."
                )

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        kinds = [(cls(5, act), (7,)) for act in CHOICES["activation"]]
        norms = [(cls(5, "tanh", norm), (3, 2)) for norm in CHOICES["norm"]]
        return [*kinds, *norms, (cls(3, "relu", bias=False, draw="xavier"), (2,))]

    @property
    def linear(self) -> bool:
        return self.norm == "none"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.units,)

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        shape, std = (math.prod(in_shape), self.units), self.weight_std(in_shape)["W"]
        if self.draw == "xavier":
            # Drawn in float64, as normal draws are, so that both precisions start alike.
            w = (2 * key.fold("W").uniform(shape, np.float64) - 1) * (math.sqrt(3) * std)
        else:
            w = key.fold("W").normal(shape, dtype) * std
        p = {"W": w.astype(dtype, copy=False)}
        return {**p, "b": np.zeros(self.units, dtype)} if self.bias else p

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        n_in = math.prod(in_shape)
        if self.draw == "zeros":
            return {"W": 0.0}
        if self.draw == "xavier":
            return {"W": math.sqrt(2 / (n_in + self.units))}
        gain = 2 if self.draw == "kaiming" and self.activation in ("relu", "gelu") else 1
        return {"W": math.sqrt(gain / n_in)}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        n = flat = x.reshape(len(x), -1)
        if self.norm != "none":
            n = k.normalize(flat, self.norm)
        a, y = k.dense(n, p["W"], p.get("b"), self.activation, noise)
        return Trace(x, a, y, p, n)

    def act(self, k: Any, a: Any) -> Any:
        return k.act(a, self.activation)

    def act_vjp(self, k: Any, t: Trace, dy: Any) -> Any:
        return k.act_vjp(dy, t.a, t.y, self.activation)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        g = {"W": Product(t.inner, da, len(da))}
        return {**g, "b": k.colmean(da, len(da))} if self.bias else g

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        dx = k.matmul_nt(da, t.params["W"])
        if self.norm != "none":
            dx = k.normalize_vjp(dx, t.x.reshape(len(t.x), -1), t.inner, self.norm)
        return dx.reshape(t.x.shape)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        da = k.matmul(t.inner, dp["W"]) if "W" in dp else None
        if dx is not None:
            dn = dx.reshape(len(dx), -1)
            if self.norm != "none":
                dn = k.normalize_jvp(dn, t.x.reshape(dn.shape), t.inner, self.norm)
            da = plus(da, k.matmul(dn, t.params["W"]))
        if da is None:
            da = np.zeros_like(t.a)
        if "b" in dp:
            da = da + dp["b"]
        return k.act_vjp(da, t.a, t.y, self.activation)  # pointwise: the jvp is the vjp
