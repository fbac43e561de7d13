"""The user's own arrays, in memory or in an .npz file."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fflearn.data.dataset import DataSet, checked_features, held_out, is_whole, pixels_to_unit
from fflearn.data.kind import checked_task
from fflearn.errors import DataError

__all__ = ["from_arrays", "load"]

_WHOLE = ("x", "y")
_SPLIT = ("x_train", "y_train", "x_test", "y_test")
# What np.load raises: a pickle is a ValueError; a bare .npy array has no "with": a TypeError; an
# encrypted zip file or an odd compression is a RuntimeError.
_DAMAGED = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(TypeError, ValueError, RuntimeError),
)


def load(path: Path, task: str = "") -> DataSet:
    """Load an .npz file with the arrays x, y or x_train, y_train, x_test, y_test.

    ``task`` is as of `from_arrays`.

    Raises
    ------
    DataError
        Not an .npz file, other names in it, or pickled objects, which could run code.
    """
    found, present = _read(path, _WHOLE + _SPLIT)
    for names in (_SPLIT, _WHOLE):
        if set(names) <= set(found):
            return from_arrays([found[name] for name in names], path.stem, task)
    raise _lacks(path, f"{', '.join(_WHOLE)} or {', '.join(_SPLIT)}", present)


def load_samples(path: Path) -> np.ndarray:
    """The array x of an .npz file, as `from_arrays` prepares it for learning.

    Raises
    ------
    DataError
        As `load`.
    """
    found, present = _read(path, ("x",))
    if "x" not in found:
        raise _lacks(path, "x", present)
    x, _ = _in_unit([found["x"]])
    return checked_features(x[0], f"x of {path}")


def _read(path: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of these names that an archive holds, and the names of all it holds."""
    try:
        # Opened here: np.load leaves a damaged zip file open.
        with path.open("rb") as f, np.load(f, allow_pickle=False) as archive:
            present = list(archive)
            return {name: archive[name] for name in present if name in names}, present
    except _DAMAGED as error:
        raise DataError(
            f"an .npz data set needs a zip file of plain arrays; got {error} in {path}. "
            "Save it with numpy.savez(path, x=x, y=y), x and y of a numeric dtype."
        ) from error


def _lacks(path: Path, needed: str, present: list[str]) -> DataError:
    return DataError(
        f"an .npz data set needs the arrays {needed}; got {', '.join(present) or 'none'} in "
        f"{path}. Save it with numpy.savez(path, x=x, y=y)."
    )


def _in_unit(xs: list[np.ndarray]) -> tuple[list[np.ndarray], bool]:
    """Images as bytes to [0, 1] and channels last, and whether they were such."""
    if not all(getattr(x, "dtype", None) == np.uint8 and x.ndim >= 3 for x in xs):
        return xs, False
    return [pixels_to_unit(x[..., None] if x.ndim == 3 else x) for x in xs], True


def from_arrays(arrays: Sequence, name: str = "arrays", task: str = "") -> DataSet:
    """Make a data set of (x, y) or (x_train, y_train, x_test, y_test).

    Images as bytes (dtype uint8, three axes or more) are brought to [0, 1] and to channels
    last; other x stay as they are.  Labels may be any whole numbers or strings: they are
    numbered in ascending order, and `DataSet.classes` keeps the originals.  With only x and y,
    a stratified fifth becomes the test part, always the same.

    Parameters
    ----------
    task : str
        "classification" or "regression".  By default, as scikit-learn's ``type_of_target``
        tells them apart: regression where y holds floats that are no whole numbers.

    Raises
    ------
    DataError
        As `DataSet`, or another number of arrays.
    """
    if len(arrays) not in (len(_WHOLE), len(_SPLIT)):
        raise DataError(
            f"load needs (x, y) or (x_train, y_train, x_test, y_test); got {len(arrays)} arrays "
            f"in {name}. Type load((x, y))."
        )
    xs, ys = list(arrays[0::2]), [_as_labels(y) for y in arrays[1::2]]
    xs, were_bytes = _in_unit(xs)
    notes = ("x: bytes divided by 255",) if were_bytes else ()
    task = checked_task(task or ("regression" if any(map(is_real, ys)) else "classification"))
    classes: tuple[str, ...] = ()
    n_classes = ys[0].shape[1] if ys[0].ndim == 2 else 1
    if task == "classification":
        ys, classes = _encode(ys, name)
        n_classes = len(classes)

    def made(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> DataSet:
        return DataSet(name, x, y, x_test, y_test, n_classes, notes, classes, task=task)

    if len(xs) == 2:
        return made(xs[0], ys[0], xs[1], ys[1])
    # Checked as a whole before it is split: an index in a message is then one the user knows.
    whole = made(xs[0], ys[0], xs[0], ys[0])
    x, y = whole.x_train, whole.y_train
    keep, held = held_out(y, 0.2, "test")
    fifth = "a stratified fifth" if task == "classification" else "a fifth"
    notes = (*notes, f"test part: {fifth}, drawn from a constant")
    return made(x[keep], y[keep], x[held], y[held])


def is_real(y: np.ndarray) -> bool:
    """Whether floats say by themselves that they are no labels: one is not whole."""
    return y.dtype.kind == "f" and bool((np.isfinite(y) & (y != np.round(y))).any())


def _as_labels(y) -> np.ndarray:
    array = np.asarray(y)
    # A pandas column of strings comes as objects.
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        array = array.astype(str)
    return array


def _encode(ys: list[np.ndarray], name: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Number the labels 0 .. C - 1; arrays that are no labels are left for DataSet to refuse."""
    text = all(y.dtype.kind == "U" for y in ys)
    if any(y.ndim != 1 or y.size == 0 for y in ys):
        return ys, ()
    if not text:
        if not all(y.dtype.kind in "biuf" and is_whole(y).all() for y in ys):
            return ys, ()
        ys = [y.astype(np.int64) for y in ys]
    values, codes = np.unique(np.concatenate(ys), return_inverse=True)
    cuts = np.cumsum([len(y) for y in ys])[:-1]
    return np.split(codes.astype(np.int64), cuts), tuple(map(str, values.tolist()))
