"""The data of one experiment: a training part, a test part, and a digest that identifies them."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fflearn.data import scores
from fflearn.data.augment import AUGMENTATIONS
from fflearn.data.batches import Batches
from fflearn.data.kind import Data, checked_task
from fflearn.errors import DataError
from fflearn.random import Key

__all__ = ["DataSet", "checked_features", "held_out", "is_whole", "pixels_to_unit", "stratified"]

# Every split is drawn from this constant, never from the seed of a run: all rules and all runs
# see the same test samples, so their figures can be paired.
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False, repr=False)
class DataSet(Data):
    """Samples with class labels or numbers to predict, split once into training and test part.

    Parameters
    ----------
    name : str
        What the record and the error messages call it.
    x_train, x_test : array, shapes (N, *in) and (M, *in)
        Samples, kept as C-ordered float32.  Images are (N, H, W, C) in [0, 1].
    y_train, y_test : array of whole numbers, shapes (N,) and (M,)
        Labels in [0, n_classes), kept as int64.  For regression: numbers of shapes (N,) or
        (N, K), kept as float32 (N, K).
    n_classes : int
        How many classes there are, at least 2; for regression K, at least 1.
    notes : tuple of str
        What a reader of the record should know about the data's origin.
    classes : tuple of str
        Name of each class (for regression: of each number), or empty.
    augment : str
        How batches move the training images about, "crop" or "flip_crop" (see
        `fflearn.data.augment`); empty leaves them as they are.  `score` never does it.
    task : str
        "classification", or "regression": y holds numbers to predict, none of them rescaled.

    Attributes
    ----------
    sha256 : str
        Digest of the four arrays (dtype, shape, bytes), computed on first use.

    Raises
    ------
    DataError
        Not numbers, NaN or infinity, empty, shapes that do not fit, a label out of range, a
        training part with one class only, or (regression) with one number only.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    n_classes: int
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    augment: str = ""
    task: str = "classification"

    def __post_init__(self) -> None:
        kept = _targets if checked_task(self.task) == "regression" else _labels
        for part in ("train", "test"):
            x = checked_features(getattr(self, f"x_{part}"), f"x_{part} of {self.name}")
            y = kept(getattr(self, f"y_{part}"), f"y_{part} of {self.name}")
            if len(x) != len(y):
                raise DataError(
                    f"DataSet needs one label per sample; got {len(x)} samples and {len(y)} "
                    f"labels in x_{part}, y_{part} of {self.name}. Drop the surplus rows."
                )
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        self._check_together()

    def _check_together(self) -> None:
        if self.augment and (self.augment not in AUGMENTATIONS or len(self.in_shape) != 3):
            raise DataError(
                f"augment needs images (N, height, width, channels) and one of "
                f"{', '.join(AUGMENTATIONS)}; got {self.augment!r} and samples of shape "
                f"{self.in_shape} in {self.name}. Leave it out."
            )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DataError(
                f"DataSet needs training and test samples of one shape; got "
                f"{self.x_train.shape[1:]} and {self.x_test.shape[1:]} in {self.name}. "
                "Bring x_test to the shape of x_train."
            )
        n = operator.index(self.n_classes)
        if self.classes and len(self.classes) != n:
            raise DataError(
                f"DataSet needs {n} class names; got {len(self.classes)} in classes of "
                f"{self.name}. Leave classes empty or name every class."
            )
        if self.task == "regression":
            self._check_numbers(n)
        else:
            self._check_labels(n)

    def _check_labels(self, n: int) -> None:
        for part, y in (("y_train", self.y_train), ("y_test", self.y_test)):
            if y.min() < 0 or y.max() >= n:
                wrong = int(y[(y < 0) | (y >= n)][0])
                raise DataError(
                    f"DataSet needs labels in 0 .. {n - 1}; got {wrong} in {part} of {self.name}. "
                    "Number the classes from 0, or raise n_classes."
                )
        if self.y_train.min() == self.y_train.max():
            raise DataError(
                f"DataSet needs at least two classes to learn from; got only class "
                f"{self.y_train[0]} in y_train of {self.name}. Add samples of another class."
            )

    def _check_numbers(self, n: int) -> None:
        for part, y in (("y_train", self.y_train), ("y_test", self.y_test)):
            if y.shape[1] != n:
                raise DataError(
                    f"DataSet needs n_classes = {n} numbers per sample; got {y.shape[1]} in {part} "
                    f"of {self.name}. Give y_train and y_test as many columns as n_classes says."
                )
        if (self.y_train == self.y_train[0]).all():
            raise DataError(
                f"DataSet needs numbers that differ to learn from; got only {self.y_train[0]} in "
                f"y_train of {self.name}. Add samples with other numbers."
            )

    @property
    def measures(self) -> tuple[str, ...]:  # type: ignore[override]
        """Scores that a table shows."""
        return ("r2", "rmse", "mae") if self.task == "regression" else ("accuracy",)

    @property
    def net(self) -> str:  # type: ignore[override]
        """The network where the user names none: samples (T, D) are sequences."""
        return "lstm" if len(self.in_shape) == 2 else "mlp"

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.x_train.shape[1:]

    @property
    def n_train(self) -> int:
        """Samples that one epoch learns from."""
        return len(self.x_train)

    @property
    def test_n(self) -> int:
        """Samples that `score` looks at."""
        return len(self.x_test)

    def batches(self, batch_size: int, seed: int) -> Batches:
        """The training part in batches, in an order given by the seed."""
        return Batches(self, batch_size, seed)

    def score(self, predict: Callable[..., np.ndarray]) -> dict[str, float]:
        """How well ``predict(x) -> scores (N, C)`` does on the test part.

        Returns
        -------
        dict
            "accuracy"; "balanced_accuracy", the mean over classes; "f1", the mean over classes.
            For regression "r2", "rmse" and "mae", see `fflearn.data.scores.of_numbers`.
        """
        found = predict(self.x_test)
        if self.task == "regression":
            return scores.of_numbers(self.y_test, found)
        return scores.of_classes(self.y_test, found.argmax(axis=1), self.n_classes)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of dtype, shape and bytes of the four arrays, in the order of the fields."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            # Little-endian whatever the machine, or the same data would have two names.
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{array.dtype.str} {array.shape} ".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def split_validation(self) -> DataSet:
        """Set a tenth of the training part aside to choose settings by.

        Returns
        -------
        DataSet
            Trains on nine tenths of the training part and tests on the other tenth, which is
            stratified by class and always the same.  The test part of `self` is not in it.

        Raises
        ------
        DataError
            No class has two training samples.
        """
        keep, held = held_out(self.y_train, 0.1, "validation")
        return replace(
            self,
            name=f"{self.name}-validation",
            x_train=self.x_train[keep],
            y_train=self.y_train[keep],
            x_test=self.x_train[held],
            y_test=self.y_train[held],
            notes=(*self.notes, f"test part: a tenth of the training part of {self.name}"),
        )

    def __repr__(self) -> str:
        task = "" if self.task == "classification" else f", task={self.task!r}"
        return (
            f"DataSet({self.name!r}, {len(self.x_train)} train, {len(self.x_test)} test, "
            f"in_shape={self.in_shape}, n_classes={self.n_classes}{task})"
        )


def held_out(y: np.ndarray, share: float, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide labels (N,) as `stratified` does; of numbers (N, K) take any of the samples."""
    return stratified(y if y.ndim == 1 else np.zeros(len(y), np.int64), share, tag)


def stratified(y: np.ndarray, share: float, tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples so that every class gives the same share of its members.

    Parameters
    ----------
    y : ndarray of int64, shape (N,)
        Labels.
    share : float
        Part of each class to hold out, in (0, 1); rounded, but at least one member is held and
        at least one is kept.  A class with a single member is kept.
    tag : str
        Names the draw; the same tag, labels and share always give the same split.

    Returns
    -------
    keep, held : ndarray of int64
        Ascending indices, disjoint, together 0 .. N - 1.

    Raises
    ------
    DataError
        No class has two members.
    """
    order = Key(_SPLIT_SEED).fold("split", tag).permutation(len(y))
    shuffled = y[order]
    is_held = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = order[shuffled == label]
        quota = min(max(int(len(members) * share + 0.5), 1), len(members) - 1)
        is_held[members[:quota]] = True
    if not is_held.any():
        raise DataError(
            f"the {tag} split needs a class with at least two samples; got {len(y)} samples of "
            f"{len(y)} classes in y. Add samples; or, to predict numbers, type task=regression."
        )
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def pixels_to_unit(pixels: np.ndarray) -> np.ndarray:
    """Bytes in 0 .. 255 as float32 in [0, 1]: p / 255, rounded once."""
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def _numbers(value: object, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        # NumPy's message speaks of "inhomogeneous shape", and names neither array nor remedy.
        raise DataError(
            f"DataSet needs a full array; got rows of different lengths in {where}. "
            "Pad or cut them to one length."
        ) from None
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"DataSet needs numbers; got dtype {array.dtype} in {where}. "
            "Encode text as numbers first; for string labels use fflearn.data.load((x, y))."
        )
    if array.size == 0:
        raise DataError(
            f"DataSet needs at least one sample; got shape {array.shape} in {where}. "
            "Check the file or the filter that produced it."
        )
    return array


def checked_features(value: object, where: str) -> np.ndarray:
    array = _numbers(value, where)
    if array.ndim < 2:
        raise DataError(
            f"DataSet needs samples by features; got shape {array.shape} in {where}. "
            "For a single feature, type x.reshape(-1, 1)."
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 turns to inf: reported below
        x = np.ascontiguousarray(array, np.float32)
    # The extremes carry any NaN or infinity, and need no second array of the size of x.
    if not (np.isfinite(x.min()) and np.isfinite(x.max())):
        what, remedy = "finite float32 numbers", "Drop or fill such samples"
        raise _wrong_value(array, ~np.isfinite(x), what, remedy, where)
    return x


def _labels(value: object, where: str) -> np.ndarray:
    array = _numbers(value, where)
    if array.ndim != 1:
        hint = "y.argmax(axis=1)" if array.ndim == 2 and array.shape[1] > 1 else "y.ravel()"
        raise DataError(
            f"DataSet needs one label per sample, shape (N,); got shape {array.shape} in {where}. "
            f"Type {hint}."
        )
    wrong = ~is_whole(array)
    if wrong.any():
        what, remedy = "whole numbers as labels", "Bin the values into classes"
        raise _wrong_value(array, wrong, what, remedy, where)
    return np.ascontiguousarray(array, np.int64)


def _targets(value: object, where: str) -> np.ndarray:
    """Numbers to predict, (N,) or (N, K), as float32 (N, K)."""
    array = _numbers(value, where)
    if array.ndim > 2:
        raise DataError(
            f"DataSet needs targets of shape (N,) or (N, K); got shape {array.shape} in {where}. "
            "Type y.reshape(len(y), -1)."
        )
    with np.errstate(over="ignore"):  # as of features
        y = np.ascontiguousarray(array.reshape(len(array), -1), np.float32)
    if not np.isfinite(y).all():
        what, remedy = "finite float32 numbers as targets", "Drop such samples"
        raise _wrong_value(array, ~np.isfinite(y).reshape(array.shape), what, remedy, where)
    return y


def is_whole(y: np.ndarray) -> np.ndarray:
    """Which numbers are whole and survive a float64 unchanged: bool, shape of y."""
    return np.isfinite(y) & (np.abs(y) <= 2**53) & (y == np.round(y))


def _wrong_value(
    array: np.ndarray, wrong: np.ndarray, what: str, remedy: str, where: str
) -> DataError:
    at = tuple(map(int, np.argwhere(wrong)[0]))
    return DataError(
        f"DataSet needs {what}; got {array[at]} at {at} in {where} ({wrong.sum()} such values). "
        f"{remedy}."
    )
