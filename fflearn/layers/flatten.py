"""A sample of any shape as one row of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.layers import Layer


@dataclass(frozen=True)
class Flatten(Layer):
    """``y = x`` as (B, n_in).  `Dense` flattens by itself; other readers of rows may not."""

    kind: ClassVar[str] = "flatten"
    learns: ClassVar[bool] = False

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(), (2, 3, 4)), (cls(), (5,))]

    @property
    def linear(self) -> bool:
        return True

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(in_shape),)

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        a = x.reshape(len(x), -1)
        a = a if noise is None else a + noise
        return Trace(x, a, a, p)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return da.reshape(t.x.shape)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        return np.zeros_like(t.y) if dx is None else dx.reshape(t.y.shape)
