"""Binary cross-entropy with logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.base import Readout
from fflearn.objectives import Objective, over_places


@dataclass(frozen=True)
class BinaryCrossEntropy(Objective):
    """``loss = sum_c softplus(y_c) - t_c y_c`` over independent outputs, ``error = sigmoid(y) - t``."""

    kind: ClassVar[str] = "binary_cross_entropy"

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        return over_places(k, k.bce, y, target)

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(), "one-hot")]
