"""An activation as a layer of its own: for after a sum, or after a layer without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import SpecError
from fflearn.kernels.reference import ACTIVATIONS
from fflearn.layers import Layer


@dataclass(frozen=True)
class Act(Layer):
    """``a = x``, ``y = act(x)``, for samples of any shape.

    Parameters
    ----------
    activation : str
        relu, tanh, sigmoid, hardsigmoid, gelu or identity.
    """

    activation: str

    kind: ClassVar[str] = "act"
    learns: ClassVar[bool] = False
    words: ClassVar[tuple[str, ...]] = ("activation",)

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise SpecError(
                f"act needs one of {', '.join(ACTIVATIONS)}; got {self.activation!r}. "
                f"Type for instance: act relu"
            )

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(act), (3, 2)) for act in ACTIVATIONS]

    @property
    def linear(self) -> bool:
        return True

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return True, in_shape[-1]

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        a = x if noise is None else x + noise
        return self._fired(k, p, x, a, env)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return da

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        return np.zeros_like(t.y) if dx is None else k.act_vjp(dx, t.a, t.y, self.activation)
