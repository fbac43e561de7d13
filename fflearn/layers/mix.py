"""A linear map over places that all channels share: the one of a mixer in which places meet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.reference import Product
from fflearn.layers import Layer
from fflearn.layers.dense import CHOICES, Dense


@dataclass(frozen=True)
class Mix(Layer):
    """``a_qc = sum over places p of x_pc W_pq + b_q``, ``y = act(a)``: the shape of x is kept.

    Samples are (*places, C) with P places, as images; W (P, P) and b (P,) are the same for every
    channel c.

    Parameters
    ----------
    activation : str
        relu, tanh, sigmoid, hardsigmoid, gelu or identity.
    bias, draw
        As of `dense`, with P inputs and P units.

    References
    ----------
    Tolstikhin et al. (2021), "MLP-Mixer: an all-MLP architecture for vision", arXiv:2105.01601,
    eq. 1, with one matrix for two.
    """

    activation: str = "identity"
    bias: bool = True
    draw: str = "kaiming"

    kind: ClassVar[str] = "mix"
    weights: ClassVar[tuple[str, ...]] = ("W",)
    words: ClassVar[tuple[str, ...]] = ("activation",)

    def __post_init__(self) -> None:
        for name in ("activation", "draw"):
            if getattr(self, name) not in CHOICES[name]:
                raise SpecError(
                    f"mix needs {name} to be one of {', '.join(CHOICES[name])}; "
                    f"got {getattr(self, name)!r}."
                )

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls("tanh"), (3, 2, 4)), (cls(bias=False, draw="xavier"), (5, 3))]

    @property
    def linear(self) -> bool:
        return True

    def _over(self, places: int) -> Dense:
        """The same map as a dense layer, of one channel."""
        return Dense(places, self.activation, bias=self.bias, draw=self.draw)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) < 2:
            raise ShapeError(
                f"{self.spec()!r} needs places with channels each; its input has the shape "
                f"{in_shape}. Put it behind conv, embed, or a dense layer with places."
            )
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return False, in_shape[-1]

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        places = math.prod(in_shape[:-1])
        return self._over(places).init(key, (places,), dtype)

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        places = math.prod(in_shape[:-1])
        return self._over(places).weight_std((places,))

    def _rows(self, x: Any) -> Any:
        """(B, *places, C) -> (B C, P): a row per channel."""
        channels = x.shape[-1]
        return x.reshape(len(x), -1, channels).swapaxes(1, 2).reshape(len(x) * channels, -1)

    def _shaped(self, rows: Any, shape: tuple[int, ...]) -> Any:
        """The inverse of `_rows`."""
        return rows.reshape(shape[0], shape[-1], -1).swapaxes(1, 2).reshape(shape)

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        rows = self._rows(x)
        mixed = k.matmul(rows, p["W"])
        if self.bias:
            mixed = mixed + p["b"]
        a = self._shaped(mixed, x.shape)
        if noise is not None:
            a = a + noise
        return self._fired(k, p, x, a, env, rows)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        rows, n = self._rows(da), len(da)
        g = {"W": Product(t.inner, rows, n)}
        return {**g, "b": k.colmean(rows, n)} if self.bias else g

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return self._shaped(k.matmul_nt(self._rows(da), t.params["W"]), t.x.shape)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        da = np.zeros_like(t.inner)
        if "W" in dp:
            da = da + k.matmul(t.inner, dp["W"])
        if "b" in dp:
            da = da + dp["b"]
        if dx is not None:
            da = da + k.matmul(self._rows(dx), t.params["W"])
        # The activation is pointwise: its jvp is its vjp.
        return k.act_vjp(self._shaped(da, t.y.shape), t.a, t.y, self.activation)
