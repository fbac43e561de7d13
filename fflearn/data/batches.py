"""The order in which samples are learned from: a function of the seed and the step."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from fflearn.base import Batch
from fflearn.data.augment import Augment
from fflearn.errors import DataError
from fflearn.random import Key

if TYPE_CHECKING:
    from fflearn.data.dataset import DataSet

__all__ = ["Batches"]


class Batches:
    """Mini-batches of the training part, each sample once per epoch.

    Nothing is consumed: any step can be asked for at any time and gives the same samples, so a
    run resumes from its step number alone.

    Parameters
    ----------
    data : DataSet
        Whose training part to use.
    batch_size : int
        Samples per step, 1 .. N.  The last batch of an epoch may be shorter.
    seed : int
        Root of the order.

    Raises
    ------
    DataError
        A batch size that is no integer in 1 .. N.

    Examples
    --------
    >>> from fflearn.data.dataset import DataSet
    >>> x, y = np.zeros((10, 3)), np.arange(10) % 2
    >>> batches = Batches(DataSet("toy", x, y, x, y, 2), batch_size=4, seed=0)
    >>> batches.steps_per_epoch
    3
    >>> [len(batches.batch(step).x) for step in range(4)]
    [4, 4, 2, 4]
    """

    def __init__(self, data: DataSet, batch_size: int, seed: int) -> None:
        n = len(data.x_train)
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__"):
            raise DataError(f"Batches needs an integer batch_size; got {batch_size!r}. Type 64.")
        if not 1 <= batch_size <= n:
            raise DataError(
                f"Batches needs a batch_size in 1 .. {n}, the training samples of {data.name}; "
                f"got {batch_size}. Type {min(max(int(batch_size), 1), n)}."
            )
        self.data = data
        self.batch_size = operator.index(batch_size)
        self.steps_per_epoch = -(-n // self.batch_size)
        self._one_hot = None
        if data.task == "classification":
            self._one_hot = np.eye(data.n_classes, dtype=np.float32)
        self._key = Key(seed).fold("order")
        self._augment = Augment(data.augment, seed, n) if data.augment else None
        self._cached: tuple[int, np.ndarray] | None = None
        self._placed: Placed | None = None

    def on(self, k: Any) -> Batches:
        """Self, whose samples now lie where kernels ``k`` have their arrays, if there is room.

        Batches are then gathered there: an epoch moves its order alone.  Augmented samples are
        made on the host, and stay there.
        """
        x, y = self.data.x_train, self.data.y_train
        if not k.on_host and self._augment is None and k.fits(x.nbytes + y.nbytes):
            self._placed = Placed(k, x, y, self._one_hot)
        return self

    def order(self, epoch: int) -> np.ndarray:
        """Sample indices of an epoch in the order of use, int64 (N,)."""
        if self._cached is None or self._cached[0] != epoch:
            order = self._key.at(epoch).permutation(len(self.data.x_train))
            order.flags.writeable = False  # the cache is handed out
            self._cached = (epoch, order)
        return self._cached[1]

    def batch(self, step: int) -> Batch:
        """What a step learns from, counted from 0 over all epochs.

        Returns
        -------
        Batch
            ``x`` float32 (B, *in), ``y`` float32 (B, C), one-hot or the numbers to predict.
        """
        if step < 0:
            raise DataError(f"Batches.batch needs a step of 0 or more; got {step}. Type 0.")
        epoch, i = divmod(step, self.steps_per_epoch)
        part = slice(i * self.batch_size, (i + 1) * self.batch_size)
        if self._placed is not None:
            return self._placed.batch(epoch, self.order(epoch), part)
        chosen = self.order(epoch)[part]
        x = self.data.x_train[chosen]
        if self._augment is not None:
            x = self._augment(x, epoch, chosen)
        y = self.data.y_train[chosen]
        return Batch(x, y if self._one_hot is None else self._one_hot[y])


class Placed:
    """Samples and targets on a device, and the order of an epoch."""

    def __init__(self, k: Any, x: np.ndarray, y: np.ndarray, one_hot: np.ndarray | None) -> None:
        self._k, self._epoch = k, -1
        self._x, self._y = k.asarray(x), k.asarray(y)
        self._one_hot = None if one_hot is None else k.asarray(one_hot)
        self._order: Any = None

    def batch(self, epoch: int, order: np.ndarray, part: slice) -> Batch:
        """As `Batches.batch`, of the same samples."""
        with self._k.running(1):
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._k.asarray(order)
            chosen = self._order[part]
            x, y = self._x[chosen], self._y[chosen]
            return Batch(x, y if self._one_hot is None else self._one_hot[y])
