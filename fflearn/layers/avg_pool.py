"""The mean of each patch, or of the whole sample, channel by channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels import patches
from fflearn.layers import Layer


@dataclass(frozen=True)
class AvgPool(Layer):
    """``y_ij = mean over a patch of x``; images (B, H, W, C).

    Parameters
    ----------
    size : int
        A patch is size x size pixels, and one that does not fit is left out.  0: the mean over
        all places, (B, *places, C) -> (B, C), whatever their number of axes.
    stride : int
        Pixels from one patch to the next; 0 is ``size``, patches side by side.
    """

    size: int = 0
    stride: int = 0

    kind: ClassVar[str] = "avg_pool"
    learns: ClassVar[bool] = False
    words: ClassVar[tuple[str, ...]] = ("size",)

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SpecError(f"avg_pool needs {name} to be 0 or more; got {value!r}.")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        images = [(cls(2), (4, 6, 3)), (cls(3, 2), (7, 6, 2)), (cls(), (4, 3, 2))]
        return [*images, (cls(), (5, 3))]

    @property
    def linear(self) -> bool:
        return True

    @property
    def _step(self) -> int:
        return self.stride or self.size

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.size and len(in_shape) > 1:
            return in_shape[-1:]
        if len(in_shape) != 3 or min(in_shape[:2]) < self.size:
            raise ShapeError(
                f"{self.spec()!r} needs images (height, width, channels) of at least {self.size} x "
                f"{self.size} pixels; its input has the shape {in_shape}. Use a smaller size, or "
                f"none for the mean over all places."
            )
        high, wide = (patches.out_size(n, self.size, self._step) for n in in_shape[:2])
        return (high, wide, in_shape[2])

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {}

    def _pool(self, k: Any, x: Any) -> Any:
        if not self.size:
            return x.reshape(len(x), -1, x.shape[-1]).mean(1)
        return k.avg_pool(x, self.size, self._step)

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        a = self._pool(k, x)
        a = a if noise is None else a + noise
        return Trace(x, a, a, p)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        if self.size:
            return k.avg_pool_input(da, t.x.shape[1:], self.size, self._step)
        dx = np.zeros_like(t.x)
        places = math.prod(t.x.shape[1:-1])
        rows = dx.reshape(len(dx), places, -1)
        rows += (da / da.dtype.type(places))[:, None]
        return dx

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        return np.zeros_like(t.y) if dx is None else self._pool(k, dx)
