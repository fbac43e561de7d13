"""Positions: a vector for each place of a sequence, added to what stands there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.layers import Layer

TABLES = ("learned", "sinusoidal")


@dataclass(frozen=True)
class Position(Layer):
    """``y_t = x_t + P_t``: (B, T, D) -> (B, T, D).

    Parameters
    ----------
    table : str
        "learned": P (T, D) is a parameter, initially N(0, std^2).
        "sinusoidal": P[t, 2i] = sin(t / 10000^(2i/D)), P[t, 2i+1] = cos of the same, no parameter.
    std : float
        Of a learned P at the start; what is much smaller than x is not seen through a norm.

    References
    ----------
    Vaswani et al. (2017), "Attention is all you need", arXiv:1706.03762, section 3.5.
    """

    table: str = "learned"
    std: float = 1.0

    kind: ClassVar[str] = "position"
    words: ClassVar[tuple[str, ...]] = ("table",)

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise SpecError(
                f"position needs one of {', '.join(TABLES)}; got {self.table!r}. Type position"
            )
        if not self.std > 0:
            raise SpecError(f"position needs a std above 0; got {self.std!r}. Leave std out.")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(std=0.02), (4, 3)), (cls("sinusoidal"), (3, 5))]

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return self.table == "learned"

    @property
    def linear(self) -> bool:
        return True  # as of a bias

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 2:
            raise ShapeError(
                f"{self.spec()!r} needs a sequence (T, D); its input has the shape {in_shape}. "
                f"Put it after embed."
            )
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return True, in_shape[-1]

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        if self.table != "learned":
            return {}
        drawn = key.fold("P").normal(in_shape, dtype) * self.std
        return {"P": drawn.astype(dtype, copy=False)}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        a = x + (p["P"] if "P" in p else k.constant(sinusoids(*x.shape[1:]).astype(x.dtype)))
        if noise is not None:
            a += noise
        return Trace(x, a, a, p)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {"P": da.mean(axis=0)} if "P" in t.params else {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return da

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        moved = np.zeros_like(t.y) if dx is None else dx
        return moved + dp["P"] if "P" in dp else moved


def sinusoids(places: int, units: int) -> Any:
    """Vaswani's table (places, units), float64; sines in the even columns, cosines in the odd."""
    column = np.arange(units)
    angle = np.arange(places)[:, None] / 10000.0 ** ((column - column % 2) / units)
    return np.where(column % 2, np.cos(angle), np.sin(angle))
