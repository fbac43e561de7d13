"""The largest pixel of each patch, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels import patches
from fflearn.layers import Layer


@dataclass(frozen=True)
class MaxPool(Layer):
    """``y_ij = max over a patch of x``; images (B, H, W, C).

    Which pixel was the largest, the first of several, stays in the trace: all derivatives of a
    forward use the choice of that forward.

    Parameters
    ----------
    size : int
        A patch is size x size pixels; one that does not fit is left out.
    stride : int
        Pixels from one patch to the next; 0 is ``size``, patches side by side.
    """

    size: int = 2
    stride: int = 0

    kind: ClassVar[str] = "max_pool"
    learns: ClassVar[bool] = False
    words: ClassVar[tuple[str, ...]] = ("size",)

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("stride", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SpecError(f"max_pool needs {name} to be {least} or more; got {value!r}.")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(), (4, 6, 3)), (cls(3, 2), (7, 6, 2)), (cls(3, 1), (4, 3, 2))]

    @property
    def linear(self) -> bool:
        return False

    @property
    def _step(self) -> int:
        return self.stride or self.size

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 3 or min(in_shape[:2]) < self.size:
            raise ShapeError(
                f"{self.spec()!r} needs images (height, width, channels) of at least {self.size} x "
                f"{self.size} pixels; its input has the shape {in_shape}. Use a smaller size."
            )
        high, wide = (patches.out_size(n, self.size, self._step) for n in in_shape[:2])
        return (high, wide, in_shape[2])

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        a, tap = k.max_pool(x, self.size, self._step)
        a = a if noise is None else a + noise
        return Trace(x, a, a, p, tap)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return k.put(da, t.inner, t.x.shape[1:], self.size, self._step)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        if dx is None:
            return np.zeros_like(t.y)
        return k.pick(dx, t.inner, self.size, self._step)
