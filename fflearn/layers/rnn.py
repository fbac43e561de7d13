"""The plain recurrent layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.errors import SpecError
from fflearn.layers import Layer
from fflearn.recurrence import Recurrent


@dataclass(frozen=True)
class RNN(Recurrent):
    """``h_t = act(x_t Wx + h_{t-1} Wh + b)``, with h_0 = 0.

    Wx (D, H), Wh (H, H), b (H,); entries of Wx are N(0, 1/D), of Wh N(0, 1/H) at first.

    Parameters
    ----------
    units, last, credit
        As of `fflearn.recurrence.Recurrent`.  A unit's own path ("eprop") is its self-connection:
        d h_t / d h_{t-1} is act'(a_t) times the diagonal of Wh.
    activation : str
        "tanh" or "relu".

    References
    ----------
    Elman (1990), "Finding structure in time", Cognitive Science 14.  The diagonal alone:
    Menick et al. (2021), "Practical real time recurrent learning with a sparse approximation",
    ICLR 2021, arXiv:2006.07232 (SnAp-1).
    """

    activation: str = "tanh"

    kind: ClassVar[str] = "rnn"
    words: ClassVar[tuple[str, ...]] = ("units", "activation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ("tanh", "relu"):
            raise SpecError(f"rnn needs activation tanh or relu; got {self.activation!r}.")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [*super().examples(), (cls(4, activation="relu"), (3, 2))]

    def cell(self, k: Any, zx: Any, zh: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
        z = zx + zh
        h = k.act(z, self.activation)
        return (h,), (z, h)

    def cell_vjp(self, k: Any, kept: Any, dstate: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        dz = k.act_vjp(dstate[0], *kept, self.activation)
        return dz, dz, (np.zeros_like(dz),)

    def cell_jvp(self, k: Any, kept: Any, dzx: Any, dzh: Any, dstate: Any) -> tuple[Any, ...]:
        return (k.act_vjp(dzx + dzh, *kept, self.activation),)

    def own_path(self, down: Any, dzh: Any, wh: Any) -> Any:
        return (dzh * np.diagonal(wh),)
