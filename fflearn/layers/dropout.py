"""Dropout: some of the numbers become 0 while training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import SpecError
from fflearn.layers import Layer


@dataclass(frozen=True)
class Dropout(Layer):
    """``y = m x / (1 - rate)`` in training, m 0 with probability ``rate``; ``y = x`` in use.

    The mask is drawn once, in the forward, from the layer's key (``env.key``), and kept in the
    trace: all derivatives of a forward use its mask.  The key is the step's, so all passes of one
    step, perturbed ones too, get one mask; two steps get two.

    Parameters
    ----------
    rate : float
        Part of the numbers that is dropped, in [0, 1).

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov (2014), "Dropout: a simple way to
    prevent neural networks from overfitting", JMLR 15, sec. 4 (scaled in training, sec. 10).
    """

    rate: float = 0.5

    kind: ClassVar[str] = "dropout"
    learns: ClassVar[bool] = False
    words: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not 0 <= self.rate < 1:
            raise SpecError(f"dropout needs a rate in [0, 1); got {self.rate!r}. Type: dropout 0.5")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(), (7,)), (cls(0.2), (3, 4, 2))]

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.rate > 0

    @property
    def linear(self) -> bool:
        return True

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return True, in_shape[-1]

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {}

    def mask(self, x: Any, env: Env) -> Any:
        """Which numbers stay, bool of the shape of x; None where all do."""
        if not env.train or not self.rate:
            return None
        if env.key is None:
            raise SpecError(
                "dropout needs a key to draw from while training. Pass Env(key=Key(seed)), or "
                "Env(train=False)."
            )
        return env.key.fold("dropout").uniform(x.shape, np.float32) >= np.float32(self.rate)

    def _kept(self, x: Any, mask: Any) -> Any:
        return x if mask is None else x * (mask * x.dtype.type(1 / (1 - self.rate)))

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        mask = self.mask(x, env)
        a = self._kept(x, mask)
        a = a if noise is None else a + noise
        return Trace(x, a, a, p, mask)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        return {}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return self._kept(da, t.inner)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        return np.zeros_like(t.y) if dx is None else self._kept(dx, t.inner)
