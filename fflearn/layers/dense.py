"""The dense layer, with length normalisation as part of the layer that reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import NO_A, NO_X, Env, Shown, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.reference import ACTIVATIONS, EPS, Product
from fflearn.layers import Layer

CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "norm": ("none", "rms", "unit"),
    "draw": ("kaiming", "xavier", "lecun", "uniform", "zeros"),
}
UNITS = 256  # whose errors are summed at a time over the rows that share a sample
UNIFORM = ("xavier", "uniform")  # draws that are uniform; the others are normal


@dataclass(frozen=True)
class Dense(Layer):
    """``a = n(x) W + b``, ``y = act(a)``; x is flattened per sample, or per place of a sample.

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
        "lecun", N(0, 1/n_in); "uniform", U(+-sqrt(1/n_in)), PyTorch's default; "zeros".
    places : int
        Leading axes of a sample that are kept: 1 for a sequence (T, n_in) -> (T, units), whose
        places share W and b; 0 flattens the whole sample.
    """

    units: int
    activation: str = "identity"
    norm: str = "none"
    bias: bool = True
    draw: str = "kaiming"
    places: int = 0

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
        tokens = [(cls(5, "tanh", norm, places=1), (3, 2)) for norm in ("none", "rms")]
        return [*kinds, *norms, *tokens, (cls(3, "relu", bias=False, draw="xavier"), (2,))]

    @property
    def linear(self) -> bool:
        return self.norm == "none"

    @property
    def shares(self) -> bool:  # type: ignore[override]
        return not self.places

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) <= self.places and self.places:
            raise ShapeError(
                f"{self.spec()!r} keeps {self.places} axes of a sample and needs features after "
                f"them; its input has the shape {in_shape}. Leave places out."
            )
        return (*in_shape[: self.places], self.units)

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return self.places == len(in_shape) - 1, 1

    def _n_in(self, in_shape: tuple[int, ...]) -> int:
        return math.prod(in_shape[self.places :])

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        shape, std = (self._n_in(in_shape), self.units), self.weight_std(in_shape)["W"]
        if self.draw in UNIFORM:
            # Drawn in float64, as normal draws are, so that both precisions start alike.
            w = (2 * key.fold("W").uniform(shape, np.float64) - 1) * (math.sqrt(3) * std)
        else:
            w = key.fold("W").normal(shape, dtype) * std
        p = {"W": w.astype(dtype, copy=False)}
        return {**p, "b": np.zeros(self.units, dtype)} if self.bias else p

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        n_in = self._n_in(in_shape)
        if self.draw == "zeros":
            return {"W": 0.0}
        if self.draw == "xavier":
            return {"W": math.sqrt(2 / (n_in + self.units))}
        if self.draw == "uniform":
            return {"W": math.sqrt(1 / (3 * n_in))}
        gain = 2 if self.draw == "kaiming" and self.activation in ("relu", "gelu") else 1
        return {"W": math.sqrt(gain / n_in)}

    def _rows(self, x: Any) -> Any:
        """(B, *places, *features) -> (rows, n_in): a row per place."""
        return x.reshape(math.prod(x.shape[: 1 + self.places]), -1)

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        if isinstance(x, Shown):
            return self._of_shown(k, p, x, env, noise)
        n, out, keep = self._rows(x), (*x.shape[: 1 + self.places], self.units), self._needs_a(env)
        if self.norm != "none":
            n = k.normalize(n, self.norm)
            x = x if "x" in env.keeps else NO_X
        extra = None if noise is None else noise.reshape(-1, self.units)
        a, y = k.dense(n, p["W"], p.get("b"), self.activation, extra, keep)
        return Trace(x, a.reshape(out) if keep else NO_A, y.reshape(out), p, n)

    def _of_shown(self, k: Any, p: Mapping[str, Any], x: Shown, env: Env, noise: Any) -> Trace:
        """As `forward`: the product with what rows share is taken once; ``inner`` scales rows.

        (x + E v) W = x W + v W[first:], with E the columns of the values, and the same of the
        squares that a norm adds up.
        """
        rows, last, scale = self._rows(x.x), x.first + x.values.shape[1], None
        both = k.matmul(rows, p["W"])
        a = k.matmul(x.values, p["W"][x.first : last]).reshape(-1, *both.shape)
        a += both
        if self.norm != "none":
            squares = k.goodness(x.values, "ssq").reshape(-1, len(rows)) + k.goodness(rows, "ssq")
            share = 1 / rows.shape[1] if self.norm == "rms" else 1.0
            scale = 1 / (np.sqrt(share * squares) + EPS)
            a *= scale[:, :, None]
        a = a.reshape(-1, self.units)
        for extra in (p.get("b"), noise):
            if extra is not None:
                a += extra
        return self._fired(k, p, x, a, env, scale, own=True)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        if isinstance(t.x, Shown):
            g = {"W": self._of_rows(k, t, da)}
            return {**g, "b": k.colmean(da, len(da))} if self.bias else g
        rows, n = da.reshape(len(t.inner), -1), len(da)  # a rule's da may have more columns
        g = {"W": Product(t.inner, rows, n)}
        return {**g, "b": k.colmean(rows, n)} if self.bias else g

    def _of_rows(self, k: Any, t: Trace, da: Any) -> Any:
        """x^T (sum of da over a sample's rows) + E (v^T da), where x is 0 in E's columns."""
        (x, values, first), scale, n = t.x, t.inner, len(da)
        if scale is not None:
            values = values * scale.reshape(-1, 1)
        blocks, parts = da.reshape(-1, len(x), da.shape[1]), []
        for i in range(0, da.shape[1], UNITS):
            some = blocks[:, :, i : i + UNITS]
            total = np.zeros_like(da, shape=some.shape[1:])
            for r, block in enumerate(some):
                total += block if scale is None else block * scale[r][:, None]
            parts.append(k.formed(Product(self._rows(x), total, n)))
            del total
        g = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        shown = g[first : first + values.shape[1]]
        shown += k.formed(Product(values, da, n))
        return g

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        dx = k.matmul_nt(da.reshape(len(t.inner), -1), t.params["W"])
        if self.norm != "none":
            dx = k.normalize_vjp(dx, self._rows(t.x), t.inner, self.norm)
        return dx.reshape(t.x.shape)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        da = np.zeros_like(t.y, shape=(len(t.inner), self.units))
        if "W" in dp:
            da = da + k.matmul(t.inner, dp["W"])
        if "b" in dp:
            da = da + dp["b"]
        if dx is not None:
            dn = self._rows(dx)
            if self.norm != "none":
                dn = k.normalize_jvp(dn, self._rows(t.x), t.inner, self.norm)
            da = da + k.matmul(dn, t.params["W"])
        # The activation is pointwise: its jvp is its vjp.
        return k.act_vjp(da.reshape(t.y.shape), t.a, t.y, self.activation)
