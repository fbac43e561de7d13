"""What training, comparison and the command line ask of data of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fflearn.errors import DataError

__all__ = ["TASKS", "Data", "checked_task"]

TASKS = ("classification", "regression")


class Data:
    """Base of every kind of data.

    Attributes
    ----------
    name, notes, sha256
        What a record says of the data.
    in_shape, n_classes, classes
        Shape of a sample; how many classes, or numbers to predict; their names, or nothing.
    n_train, test_n
        What one epoch learns from, and what a score looks at.
    task : str
        What the targets are: classes ("classification") or numbers ("regression").
    measures : tuple of str
        Scores that a table shows.  The first is better the higher it is: by it runs are stopped
        early and learning rates chosen.
    net : str
        The network where the user names none.
    """

    task: str = "classification"
    measures: tuple[str, ...] = ("accuracy",)
    net: str = "mlp"

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def notes(self) -> tuple[str, ...]: ...
        @property
        def sha256(self) -> str: ...
        @property
        def in_shape(self) -> tuple[int, ...]: ...
        @property
        def n_classes(self) -> int: ...
        @property
        def classes(self) -> tuple[str, ...]: ...
        @property
        def n_train(self) -> int: ...
        @property
        def test_n(self) -> int: ...

    def batches(self, batch_size: int, seed: int) -> Any:
        """The training part: ``batch(step)``, ``batch_size``, ``steps_per_epoch``, ``on(kernels)``.

        The last returns batches whose arrays lie where a device's kernels have theirs.
        """
        raise NotImplementedError

    def split_validation(self) -> Data:
        """The same data, tested on a part that is held out of training."""
        raise NotImplementedError

    def score(self, predict: Callable[..., np.ndarray]) -> dict[str, float]:
        """How well ``predict(x, side=...)`` does on the test part; the `measures`, and others."""
        raise NotImplementedError


def checked_task(task: str) -> str:
    """The task; DataError lists those there are."""
    if task not in TASKS:
        raise DataError(f"a task needs to be one of {', '.join(TASKS)}; got {task!r}.")
    return task
