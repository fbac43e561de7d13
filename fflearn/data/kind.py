"""What training, comparison and the command line ask of data of every kind."""

from __future__ import annotations

from fflearn.errors import DataError

__all__ = ["TASKS", "Data", "checked_task"]

TASKS = ("classification", "regression")


class Data:
    """Base of every kind of data.

    A kind of data has a ``name``, ``notes``, a ``sha256``, an ``in_shape``, ``n_classes`` (for
    regression: how many numbers to predict) and ``classes``, their names or nothing; it counts
    what an epoch learns from, ``n_train``, and what a score looks at, ``test_n``.  It gives
    ``batches(batch_size, seed)``, ``split_validation()`` and ``score(predict)``.

    Attributes
    ----------
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


def checked_task(task: str) -> str:
    """The task; DataError lists those there are."""
    if task not in TASKS:
        raise DataError(f"a task needs to be one of {', '.join(TASKS)}; got {task!r}.")
    return task
