"""Sequences: images read row by row, and two tasks that ask for a memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from fflearn.base import Batch
from fflearn.data import digits, idx, scores
from fflearn.data.dataset import DataSet
from fflearn.data.kind import Data
from fflearn.errors import DataError
from fflearn.random import Key

__all__ = ["AddingTask", "CopyTask", "Drawn", "DrawnBatches", "load_row_digits", "load_row_mnist"]


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
class Drawn(Data):
    """Base of tasks whose samples are drawn as they are needed.

    A training batch is a function of the seed and the step, the test samples are always the same.

    Parameters
    ----------
    n_train, test_n : int
        Samples that one epoch draws, and test samples.
    part : str
        Names the draw of the test samples.
    """

    name: str = ""
    n_train: int = 2048
    test_n: int = 512
    part: str = "test"
    notes: tuple[str, ...] = ("drawn anew in every step",)

    kind: ClassVar[str]
    least: ClassVar[Mapping[str, int]]  # the smallest value of each size

    def __post_init__(self) -> None:
        for name, smallest in {**self.least, "n_train": 1, "test_n": 1}.items():
            if getattr(self, name) < smallest:
                raise DataError(
                    f"the {self.kind} task needs {name} of {smallest} or more; "
                    f"got {getattr(self, name)}. Type {smallest}."
                )

    def drawn(self, key: Key, n: int) -> tuple[np.ndarray, np.ndarray]:
        """``n`` samples x float32 (n, *in_shape), and their targets."""
        raise NotImplementedError

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the settings and the targets of the test samples."""
        digest, y = hashlib.sha256(repr(sorted(asdict(self).items())).encode()), self._test[1]
        digest.update(y.astype(y.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    @cached_property
    def _test(self) -> tuple[np.ndarray, np.ndarray]:
        return self.drawn(Key(0).fold(self.kind, self.part), self.test_n)

    def batches(self, batch_size: int, seed: int) -> DrawnBatches:
        """Training samples without end, as a function of the seed and the step."""
        return DrawnBatches(self, batch_size, seed)

    def split_validation(self) -> Self:
        """The same task with other test samples."""
        note = f"test part: other samples than those of {self.name}"
        part = f"{self.part}-validation"
        return replace(self, name=f"{self.name}-validation", part=part, notes=(*self.notes, note))


class DrawnBatches:
    """Batches of a drawn task; any step can be asked for at any time."""

    def __init__(self, data: Drawn, batch_size: int, seed: int) -> None:
        if isinstance(batch_size, bool) or not 1 <= batch_size <= data.n_train:
            raise DataError(
                f"the {data.kind} task needs a batch_size in 1 .. {data.n_train}; "
                f"got {batch_size!r}. Type 32."
            )
        self.data, self.batch_size = data, int(batch_size)
        self.steps_per_epoch = data.n_train // self.batch_size
        self._key = Key(seed).fold(data.kind, "train")

    def on(self, k: Any) -> DrawnBatches:
        """Self: samples are drawn on the host, for each step anew."""
        return self

    def batch(self, step: int) -> Batch:
        """``x`` (B, *in_shape) and the targets ``y`` of a step."""
        if step < 0:
            raise DataError(f"a batch needs a step of 0 or more; got {step}. Type 0.")
        return Batch(*self.data.drawn(self._key.at(step), self.batch_size))


@dataclass(frozen=True)
class CopyTask(Drawn):
    """Symbols, then blanks, then a signal to repeat the symbols; a class at every step.

        input    s_1 .. s_n   blank .. blank   go  blank ..  blank
        target   blank .....................   s_1  s_2 ..   s_n

    Parameters
    ----------
    symbols : int
        How many there are; the blank is one class more, and "go" an input of its own.
    length : int
        n, symbols to remember.
    delay : int
        Blanks between the last symbol and "go".
    n_train, test_n, part
        As of `Drawn`.

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

    kind: ClassVar[str] = "copy"
    least: ClassVar[Mapping[str, int]] = MappingProxyType({"symbols": 2, "length": 1, "delay": 0})
    measures = ("accuracy", "sequence_accuracy")
    net = "lstm last=false"

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

    def drawn(self, key: Key, n: int) -> tuple[np.ndarray, np.ndarray]:
        """``n`` samples: x float32 (n, *in_shape), one-hot, and class ids y int64 (n, steps)."""
        steps, width = self.in_shape
        blank, go, asked = self.symbols, self.symbols + 1, steps - self.length
        shown = key.integers(self.symbols, (n, self.length))
        ids, y = np.full((n, steps), blank), np.full((n, steps), blank, np.int64)
        ids[:, : self.length], y[:, asked:] = shown, shown
        ids[:, asked] = go
        return np.eye(width, dtype=np.float32)[ids], y

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


@dataclass(frozen=True)
class AddingTask(Drawn):
    """Numbers in a row, two of them marked: what is their sum?  One number to predict.

        input    (v_t, m_t),  v_t uniform in [0, 1),  m_t = 1 at one step of each half, else 0
        target   sum of m_t v_t

    Predicting 1, the mean, has the mean squared error 1/6 (rmse 0.408) and an R squared of 0.

    Parameters
    ----------
    length : int
        T, numbers in a row; the marks lie far apart where it is large.
    n_train, test_n, part
        As of `Drawn`.

    Attributes
    ----------
    in_shape : tuple of int
        (length, 2).
    n_classes : int
        1, how many numbers to predict.

    Raises
    ------
    DataError
        A length below 2, or no samples.

    References
    ----------
    Hochreiter, Schmidhuber (1997), "Long short-term memory", Neural Computation 9, sec. 5.4; in
    this form Le, Jaitly, Hinton (2015), arXiv:1504.00941, sec. 4.1, and Arjovsky, Shah, Bengio
    (2016), arXiv:1511.06464, sec. 5.2.  There values lie in [-1, 1], the marks among the first
    steps, and the sum is scaled to [0, 1].
    """

    name: str = "adding"
    length: int = 50

    kind: ClassVar[str] = "adding"
    least: ClassVar[Mapping[str, int]] = MappingProxyType({"length": 2})
    task = "regression"
    measures = ("r2", "rmse", "mae")
    net = "lstm"
    n_classes = 1
    classes = ("sum",)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input: steps, and a number with its mark."""
        return (self.length, 2)

    def drawn(self, key: Key, n: int) -> tuple[np.ndarray, np.ndarray]:
        """``n`` samples: x float32 (n, length, 2) and y float32 (n, 1)."""
        half, rows = self.length // 2, np.arange(n)
        x = np.zeros((n, self.length, 2), np.float32)
        x[..., 0] = key.fold("values").uniform((n, self.length))
        x[rows, key.fold("first").integers(half, (n,)), 1] = 1
        x[rows, half + key.fold("second").integers(self.length - half, (n,)), 1] = 1
        return x, (x[..., 0] * x[..., 1]).sum(axis=1, keepdims=True)

    def score(self, predict: Callable[..., np.ndarray]) -> dict[str, float]:
        """How well ``predict(x) -> (N, 1)`` adds: "r2", "rmse" and "mae"."""
        x, y = self._test
        return scores.of_numbers(y, predict(x))
