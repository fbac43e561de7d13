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
from fflearn.data.kind import Data, checked_task
from fflearn.data.sequences import AddingTask, CopyTask
from fflearn.data.text import TextData
from fflearn.errors import DataError

__all__ = [
    "AddingTask",
    "Batches",
    "CopyTask",
    "Data",
    "DataSet",
    "GraphData",
    "TextData",
    "load",
    "load_data",
    "load_samples",
    "names",
]

_NAMED: dict[str, Callable[[bool], Data]] = {
    "digits": lambda download: digits.load(),
    "mnist": functools.partial(idx.load, "mnist"),
    "fashion-mnist": functools.partial(idx.load, "fashion-mnist"),
    "kmnist": functools.partial(idx.load, "kmnist"),
    "cifar10": cifar.load,
    "shakespeare": text.load_shakespeare,
    **{name: functools.partial(planetoid.load, name) for name in planetoid.NAMES},
    "adding": lambda download: AddingTask(),
    "copy": lambda download: CopyTask(),
    "row-digits": sequences.load_row_digits,
    "row-mnist": sequences.load_row_mnist,
}
# Sequences as long as a number after a colon says: "shakespeare:64".
_OF_LENGTH: dict[str, Callable[[bool, int], Data]] = {
    "shakespeare": text.load_shakespeare,
    "adding": lambda download, n: AddingTask(length=n),
    "copy": lambda download, n: CopyTask(delay=n),
}
_TABLES: dict[str, Callable[[Path, str], DataSet]] = {".csv": tables.load, ".npz": arrays.load}


def names() -> tuple[str, ...]:
    """Names `load` knows."""
    return tuple(_NAMED)


def load(spec: str | os.PathLike | tuple | Data, *, download: bool = True, task: str = "") -> Any:
    """Load a data set.

    Parameters
    ----------
    spec : str, path, tuple of arrays, or Data
        One of `names`: "digits", "mnist", "cora", "shakespeare", ...  Images may be moved about:
        "cifar10+flip_crop", "mnist+crop".  Sequences may have another length: "shakespeare:64"
        characters a sample, "adding:100" numbers, "copy:100" blanks.  Or the path of a .csv or
        .npz file, or of a .txt file to learn to write like ("book.txt", "book.txt:64"); or (x, y)
        or (x_train, y_train, x_test, y_test); or Data, returned as it is.
    download : bool, default True
        Whether the official files may be downloaded.  Before that they are looked for in the
        folder that the environment variable FFLEARN_DATA names, then among earlier downloads.
    task : str
        "classification", or "regression" to predict the numbers of a table or of arrays.  By
        default, as in scikit-learn, regression where a target is no whole number.

    Returns
    -------
    DataSet; TextData, GraphData, CopyTask or AddingTask where the name is of one

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
    >>> load(([[0.0], [0.1], [0.9], [1.0]], [2, 3, 11, 12]), task="regression").task
    'regression'
    """
    if task:
        checked_task(task)
    data = _load(spec, download, task)
    if task not in ("", data.task):
        raise DataError(
            f"{data.name} is data for {data.task}; got task={task!r}. Leave the task out."
        )
    return data


def _load(spec: Any, download: bool, task: str) -> Any:
    if isinstance(spec, Data):
        return spec
    if isinstance(spec, tuple):
        return arrays.from_arrays(spec, task=task)
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
    name, colon, number = str(spec).rpartition(":")
    if colon and number.isdecimal():
        return _of_length(name, int(number), download)
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".txt":
        return text.load(_existing(path))
    if path.suffix.lower() not in _TABLES:
        raise _unknown(str(spec))
    return _TABLES[path.suffix.lower()](_existing(path), task)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"load needs an existing file; got {str(path)!r}, which is not there (looked in "
            f"{path.absolute().parent}). Check the path."
        )
    return path


def _of_length(name: str, length: int, download: bool) -> Data:
    path = Path(name).expanduser()
    if path.suffix.lower() == ".txt":
        data: Any = text.load(_existing(path), length)
    elif name in _OF_LENGTH:
        data = _OF_LENGTH[name](download, length)
    else:
        raise DataError(
            f"only {', '.join(_OF_LENGTH)} and .txt files take a length after a colon; got "
            f"{name!r} with {length}. Type {name}"
        )
    return dataclasses.replace(data, name=f"{data.name}:{length}")


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
        f"load needs one of {', '.join(_NAMED)} (images also as mnist+crop or cifar10+flip_crop, "
        f"sequences as shakespeare:64), or the path of a .csv or .npz file, or of a .txt file of "
        f"text; got {spec!r} in spec. {hint}."
    )


# The name under which the top level of the package offers it.
load_data = load
