"""Sequences: images read row by row, and the copy task, which asks for a memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from fflearn.base import Batch
from fflearn.data import digits, idx
from fflearn.data.dataset import DataSet
from fflearn.errors import DataError
from fflearn.random import Key

__all__ = ["CopyBatches", "CopyTask", "load_row_digits", "load_row_mnist"]


def load_row_digits(download: bool = True) -> DataSet:
    """The digits as sequences of 8 rows of 8 pixels: x (N, 8, 8)."""
    return _by_rows(digits.load())


def load_row_mnist(download: bool = True) -> DataSet:
    """MNIST as sequences of 28 rows of 28 pixels: x (N, 28, 28)."""
    return _by_rows(idx.load("mnist", download))


def _by_rows(data: DataSet) -> DataSet:
    return replace(
        data, name=f"row-{data.name}", x_train=data.x_train[..., 0], x_test=data.x_test[..., 0]
    )


@dataclass(frozen=True)
class CopyTask:
    """Symbols, then blanks, then a signal to repeat the symbols; a class at every step.

        input    s_1 .. s_n   blank .. blank   go  blank ..  blank
        target   blank .....................   s_1  s_2 ..   s_n

    Samples are drawn as they are needed: a training batch is a function of the seed and the
    step, the test samples are always the same.

    Parameters
    ----------
    symbols : int
        How many there are; the blank is one class more, and "go" an input of its own.
    length : int
        n, symbols to remember.
    delay : int
        Blanks between the last symbol and "go".
    n_train, test_n : int
        Samples that one epoch draws, and test samples.
    part : str
        Names the draw of the test samples.

    Attributes
    ----------
    in_shape : tuple of int
        (2 length + delay, symbols + 2), one-hot inputs.
    n_classes : int
        symbols + 1, the blank last.

    Raises
    ------
    DataError
        Sizes below 1 (delay: below 0), or fewer than 2 symbols.

    References
    ----------
    Hochreiter, Schmidhuber (1997), "Long short-term memory", Neural Computation 9; in this form
    Arjovsky, Shah, Bengio (2016), "Unitary evolution recurrent neural networks",
    arXiv:1511.06464, sec. 5.1 (there 8 symbols, length 10, delays of 100 and more).
    """

    name: str = "copy"
    symbols: int = 8
    length: int = 5
    delay: int = 10
    n_train: int = 2048
    test_n: int = 512
    part: str = "test"
    notes: tuple[str, ...] = ("drawn anew in every step",)

    def __post_init__(self) -> None:
        least = {"symbols": 2, "length": 1, "delay": 0, "n_train": 1, "test_n": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise DataError(
                    f"the copy task needs {name} of {smallest} or more; "
                    f"got {getattr(self, name)}. Type {smallest}."
                )

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input: steps, and the one-hot alphabet."""
        return (2 * self.length + self.delay, self.symbols + 2)

    @property
    def n_classes(self) -> int:
        """Symbols and the blank."""
        return self.symbols + 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return (*map(str, range(self.symbols)), "blank")

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the settings and the test samples."""
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode())
        digest.update(self._test[1].astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def _test(self) -> tuple[np.ndarray, np.ndarray]:
        return self.drawn(Key(0).fold("copy", self.part), self.test_n)

    def drawn(self, key: Key, n: int) -> tuple[np.ndarray, np.ndarray]:
        """``n`` samples: x float32 (n, *in_shape), one-hot, and class ids y int64 (n, steps)."""
        steps, width = self.in_shape
        blank, go, asked = self.symbols, self.symbols + 1, steps - self.length
        shown = key.integers(self.symbols, (n, self.length))
        ids, y = np.full((n, steps), blank), np.full((n, steps), blank, np.int64)
        ids[:, : self.length], y[:, asked:] = shown, shown
        ids[:, asked] = go
        return np.eye(width, dtype=np.float32)[ids], y

    def batches(self, batch_size: int, seed: int) -> CopyBatches:
        """Training samples without end, as a function of the seed and the step."""
        return CopyBatches(self, batch_size, seed)

    def split_validation(self) -> CopyTask:
        """The same task with other test samples."""
        note = f"test part: other samples than those of {self.name}"
        part = f"{self.part}-validation"
        return replace(self, name=f"{self.name}-validation", part=part, notes=(*self.notes, note))

    def score(self, predict: Callable[..., np.ndarray]) -> dict[str, float]:
        """How well ``predict(x) -> scores (N, steps, C)`` remembers.

        Returns
        -------
        dict
            "accuracy": share of the asked symbols that are right; a guess has 1 / symbols.
            "sequence_accuracy": share of samples with all of them right.
        """
        x, y = self._test
        right = (predict(x).argmax(axis=-1) == y)[:, -self.length :]
        return {
            "accuracy": float(right.mean()),
            "sequence_accuracy": float(right.all(axis=1).mean()),
        }


class CopyBatches:
    """Batches of the copy task; any step can be asked for at any time."""

    def __init__(self, data: CopyTask, batch_size: int, seed: int) -> None:
        if isinstance(batch_size, bool) or not 1 <= batch_size <= data.n_train:
            raise DataError(
                f"the copy task needs a batch_size in 1 .. {data.n_train}; got {batch_size!r}. "
                f"Type 32."
            )
        self.data, self.batch_size = data, int(batch_size)
        self.steps_per_epoch = data.n_train // self.batch_size
        self._key = Key(seed).fold("copy", "train")

    def batch(self, step: int) -> Batch:
        """``x`` (B, *in_shape) and class ids ``y`` (B, steps) of a step."""
        if step < 0:
            raise DataError(f"a batch needs a step of 0 or more; got {step}. Type 0.")
        return Batch(*self.data.drawn(self._key.at(step), self.batch_size))
