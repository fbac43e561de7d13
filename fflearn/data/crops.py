"""Pieces of a text to learn from: a function of the seed and the step."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np

from fflearn.base import Batch
from fflearn.errors import DataError
from fflearn.random import Key

if TYPE_CHECKING:
    from fflearn.data.text import TextData

__all__ = ["Crops"]


class Crops:
    """Pieces of the training part that begin anywhere, as a function of seed and step.

    Parameters
    ----------
    data : TextData
    batch_size : int
        Pieces per step, 1 or more.
    seed : int
        Root of the draw.

    Attributes
    ----------
    steps_per_epoch : int
        Steps that read as many characters as the training part has.
    """

    def __init__(self, data: TextData, batch_size: int, seed: int) -> None:
        whole = hasattr(batch_size, "__index__") and not isinstance(batch_size, bool)
        if not whole or batch_size < 1:
            raise DataError(
                f"Crops needs a whole batch_size of 1 or more; got {batch_size!r}. Type 16."
            )
        self.data, self.batch_size = data, operator.index(batch_size)
        self.steps_per_epoch = -(-len(data.ids_train) // (data.length * self.batch_size))
        self._key = Key(seed).fold("crops")

    def batch(self, step: int) -> Batch:
        """x float32 (B, T), and y int64 (B, T), the character after each."""
        if step < 0:
            raise DataError(f"Crops.batch needs a step of 0 or more; got {step}. Type 0.")
        ids, length = self.data.ids_train, self.data.length
        start = self._key.at(step).integers(len(ids) - length, (self.batch_size,))
        at = start[:, None] + np.arange(length)
        return Batch(ids[at].astype(np.float32), ids[at + 1])
