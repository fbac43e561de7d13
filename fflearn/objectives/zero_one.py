"""Counted errors: a loss without a slope, for rules that need none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Readout
from fflearn.objectives import Objective, over_places


@dataclass(frozen=True)
class ZeroOne(Objective):
    """``loss = 1`` where the largest output is not the label's, else 0; ``error = 0``.

    The mean loss is the share of wrong answers.  Its derivative is 0 wherever there is one.
    """

    kind: ClassVar[str] = "zero_one"
    slopes: ClassVar[bool] = False

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        def wrong(y: Any, t: Any) -> tuple[Any, Any]:
            return (y.argmax(-1) != t.argmax(-1)).astype(y.dtype), np.zeros_like(y)

        return over_places(k, wrong, y, target)

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(), "one-hot")]
