"""Step units: on or off, a function without a slope, for rules that need none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import NO_A, Env, Trace
from fflearn.layers import Layer


@dataclass(frozen=True)
class Step(Layer):
    """``a = x``, ``y = 1`` where a > 0, else 0; for samples of any shape.

    Its derivative is 0 wherever there is one.  Noise is on a, before the step.

    References
    ----------
    McCulloch, Pitts (1943), "A logical calculus of the ideas immanent in nervous activity",
    Bull. Math. Biophys. 5.
    """

    kind: ClassVar[str] = "step"
    learns: ClassVar[bool] = False
    slopes: ClassVar[bool] = False

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(), (3, 2)), (cls(), (5,))]

    @property
    def linear(self) -> bool:
        return False

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return True, in_shape[-1]

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        a = x if noise is None else x + noise
        return Trace(x, a if "a" in env.keeps else NO_A, self.act(k, a), p)

    def act(self, k: Any, a: Any) -> Any:
        return (a > 0).astype(a.dtype)

    def act_vjp(self, k: Any, t: Trace, dy: Any, into: Any = None) -> Any:
        return np.zeros_like(dy)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return da

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        return np.zeros_like(t.y)
