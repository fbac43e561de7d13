"""Softmax cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.base import Readout
from fflearn.objectives import Objective, over_places


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Objective):
    """``loss = -sum_c t_c log softmax(y)_c``, ``error = softmax(y) - t`` for targets of sum 1."""

    kind: ClassVar[str] = "softmax_cross_entropy"

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        return over_places(k, k.softmax_ce, y, target)

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(), "one-hot")]
