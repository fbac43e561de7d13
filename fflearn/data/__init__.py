"""Data sets by name, from the user's files or from arrays; and the order of their batches.

>>> data = load("digits")
>>> data
DataSet('digits', 1438 train, 359 test, in_shape=(8, 8, 1), n_classes=10)
"""

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fflearn.data import arrays, cifar, digits, idx, planetoid, sequences, tables, text
from fflearn.data.batches import Batches
from fflearn.data.dataset import DataSet
from fflearn.data.graphs import GraphData
from fflearn.data.sequences import CopyTask
from fflearn.data.text import TextData
from fflearn.errors import DataError

__all__ = [
    "Batches",
    "CopyTask",
    "DataSet",
    "GraphData",
    "TextData",
    "load",
    "load_data",
    "load_samples",
    "names",
]

_NAMED: dict[str, Callable[[bool], DataSet | TextData | GraphData | CopyTask]] = {
    "digits": lambda download: digits.load(),
    "mnist": functools.partial(idx.load, "mnist"),
    "fashion-mnist": functools.partial(idx.load, "fashion-mnist"),
    "kmnist": functools.partial(idx.load, "kmnist"),
    "cifar10": cifar.load,
    "shakespeare": text.load_shakespeare,
    **{name: functools.partial(planetoid.load, name) for name in planetoid.NAMES},
    "copy": lambda download: CopyTask(),
    "row-digits": sequences.load_row_digits,
    "row-mnist": sequences.load_row_mnist,
}
_FILES: dict[str, Callable[[Path], DataSet | TextData]] = {
    ".csv": tables.load,
    ".npz": arrays.load,
    ".txt": text.load,
}


def names() -> tuple[str, ...]:
    """Names `load` knows."""
    return tuple(_NAMED)


def load(
    spec: str | os.PathLike | tuple | DataSet | TextData | GraphData | CopyTask,
    *,
    download: bool = True,
) -> Any:
    """Load a data set.

    Parameters
    ----------
    spec : str, path, tuple of arrays, DataSet or TextData
        A name ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "shakespeare"), or
        one of images and how to move them about ("cifar10+flip_crop", "mnist+crop"), the path
        of a .csv or .npz file, or of a .txt file to learn to write like, (x, y) or (x_train,
        y_train, x_test, y_test), or a DataSet or TextData, returned as it is.
    download : bool, default True
        Whether the official files may be downloaded.  Before that they are looked for in the
        folder that the environment variable FFLEARN_DATA names, then among earlier downloads.

    Returns
    -------
    DataSet, or TextData for text

    Raises
    ------
    DataError
        An unknown name, a missing or damaged file, or data that cannot be learned from.
    MissingExtra
        Files must be downloaded and pooch is not installed.

    Examples
    --------
    >>> load(([[0.0], [0.1], [0.9], [1.0]], ["no", "no", "yes", "yes"])).classes
    ('no', 'yes')
    """
    if isinstance(spec, DataSet | TextData | GraphData | CopyTask):
        return spec
    if isinstance(spec, tuple):
        return arrays.from_arrays(spec)
    if not isinstance(spec, str | os.PathLike):
        raise DataError(
            f"load needs a name, a path or a tuple of arrays; got {type(spec).__name__} in spec. "
            'Type load("digits") or load((x, y)).'
        )
    if spec in _NAMED:
        return _NAMED[spec](download)
    name, plus, how = str(spec).partition("+")
    if plus and name in _NAMED:
        return _augmented(_NAMED[name](download), how)
    path = Path(spec).expanduser()
    reader = _FILES.get(path.suffix.lower())
    if reader is None:
        raise _unknown(str(spec))
    if not path.is_file():
        raise DataError(
            f"load needs an existing file; got {str(spec)!r}, which is not there (looked in "
            f"{path.absolute().parent}). Check the path."
        )
    return reader(path)


def load_samples(path: str | os.PathLike, n_features: int) -> np.ndarray:
    """Samples without labels, for prediction, from a .csv or .npz file.

    Parameters
    ----------
    n_features : int
        Columns that a table needs to have; a label column besides them is passed over.

    Returns
    -------
    ndarray of float32, shape (N, *in)

    Raises
    ------
    DataError
    """
    path = Path(path).expanduser()
    if not path.is_file() or path.suffix.lower() not in (".csv", ".npz"):
        raise DataError(
            f"prediction needs an existing .csv or .npz file; got {str(path)!r}. Check the path."
        )
    if path.suffix.lower() == ".csv":
        return tables.load_samples(path, n_features)
    return arrays.load_samples(path)


def _augmented(data: Any, how: str) -> DataSet:
    if not isinstance(data, DataSet):
        raise DataError(f"augment needs images; {data.name} has none. Type {data.name}.")
    return dataclasses.replace(data, name=f"{data.name}+{how}", augment=how or "nothing")


def _unknown(spec: str) -> DataError:
    close = difflib.get_close_matches(spec.lower(), _NAMED, n=1, cutoff=0.4)
    hint = f'Type "{close[0]}"' if close else 'Type "digits"'
    return DataError(
        f"load needs one of {', '.join(_NAMED)} or the path of a .csv or .npz file, or "
        f"of a .txt file of text; got {spec!r} in spec. {hint}."
    )


# The name under which the top level of the package offers it.
load_data = load
