"""Squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.base import Readout
from fflearn.objectives import Objective


@dataclass(frozen=True)
class MSE(Objective):
    """``loss = 1/2 |y - t|^2`` (with the 1/2, summed over outputs), ``error = y - t``."""

    kind: ClassVar[str] = "mse"

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        return Readout(*k.mse(y, target))

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(), "real")]
