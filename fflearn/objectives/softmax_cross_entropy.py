"""Softmax cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Readout
from fflearn.objectives import Objective


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Objective):
    """``loss = -sum_c t_c log softmax(y)_c``, ``error = softmax(y) - t`` for targets of sum 1.

    Outputs (B, *places, C) may come with class ids (B, *places) instead of one-hot targets.  The
    loss of a sample is the mean over its places, so its error carries 1 / places.
    """

    kind: ClassVar[str] = "softmax_cross_entropy"

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        if target.shape != y.shape:
            target = np.eye(y.shape[-1], dtype=y.dtype)[target]
        flat = y.reshape(-1, y.shape[-1])
        loss, error = k.softmax_ce(flat, target.reshape(flat.shape))
        places = len(flat) // len(y)
        if places > 1:
            loss, error = loss.reshape(len(y), places).mean(axis=1), error / places
        return Readout(loss, error.reshape(y.shape))

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(), "one-hot")]
