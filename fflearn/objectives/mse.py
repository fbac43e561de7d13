"""Squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.base import Readout
from fflearn.objectives import Objective, over_places


@dataclass(frozen=True)
class MSE(Objective):
    """``loss = 1/2 |y - t|^2`` (with the 1/2, summed over outputs), ``error = y - t``.

    The objective for numbers to predict; one-hot labels are numbers to it, too.
    """

    kind: ClassVar[str] = "mse"
    classes: ClassVar[bool] = False

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        return over_places(k, k.mse, y, target)

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(), "real")]
