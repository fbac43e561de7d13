"""The user's own table: a CSV file with one sample per row."""

import csv
import math
from pathlib import Path

import numpy as np

from fflearn.data import arrays
from fflearn.data.dataset import DataSet
from fflearn.errors import DataError

__all__ = ["load", "load_samples"]

# Names a label column may have, the surest first: "y" may also be a coordinate.
_LABEL_NAMES = ("label", "target", "class", "y")

Row = tuple[int, list[str]]  # line number in the file, cells


def load(path: Path, task: str = "") -> DataSet:
    """Load a comma-separated file, UTF-8, with or without a header.

    The label is the column called label, target, class or y, or else the last one; it holds
    whole numbers or text.  All other columns are features and hold numbers, which are not
    rescaled.  A stratified fifth of the rows is the test part, always the same.

    Parameters
    ----------
    task : str
        "regression": the label column holds numbers to predict; "classification": it does not.
        By default it does where it has one of the names above and not all numbers are whole.

    Raises
    ------
    DataError
        Empty file, rows of different lengths, a feature that is no finite number (the message
        names its row and column), labels that are missing, or fractional in a column without
        one of those names.
    """
    rows = _rows(path)
    if len(rows[0][1]) < 2:
        remedy = "Separate the cells by commas"
        raise _wrong("a feature and a label column", "one column", path, remedy)
    header = _header(rows, path)
    label = next((header.index(n) for n in _LABEL_NAMES if n in header), len(rows[0][1]) - 1)
    samples = rows[1:] if header else rows
    if not samples:
        raise _wrong("at least one row of data", "a header only", path, "Add the data")
    x = np.stack([_features(row, label, header, path) for row in samples])
    known = bool(set(_LABEL_NAMES) & set(header))
    y = _labels([(line, cells[label]) for line, cells in samples], path, task, known)
    return arrays.from_arrays((x, y), path.stem, task)


def load_samples(path: Path, n_features: int) -> np.ndarray:
    """Features alone, (N, n_features) float32, from a table with or without a label column.

    Raises
    ------
    DataError
        As `load`, or a table of another width.
    """
    rows = _rows(path)
    header = _header(rows, path)
    width = len(rows[0][1])
    label = width  # past the last column: none
    if width == n_features + 1:
        label = next((header.index(n) for n in _LABEL_NAMES if n in header), width - 1)
    elif width != n_features:
        remedy = "Give the columns of the training data, in their order"
        raise _wrong(f"{n_features} feature columns", str(width), path, remedy)
    samples = rows[1:] if header else rows
    if not samples:
        raise _wrong("at least one row of data", "a header only", path, "Add the data")
    return np.stack([_features(row, label, header, path) for row in samples])


def _rows(path: Path) -> list[Row]:
    try:
        # "utf-8-sig": spreadsheets put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, strict=True)
            rows = [(reader.line_num, [c.strip() for c in cells]) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        remedy = "Save it as CSV in UTF-8"
        raise _wrong("comma-separated text", str(error), path, remedy) from error
    if not rows:
        raise _wrong("at least one row", "an empty file", path, "Add the data")
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            where = f"row {line} of {path}"
            raise _wrong(f"{width} cells", str(len(cells)), where, "Complete the row")
    return rows


def _header(rows: list[Row], path: Path) -> list[str]:
    """Lower-case column names, or an empty list if the first row is data.

    It is a header if none of its cells is a number, or if one is a label name that does not
    come again in its column (labels may well be "y" and "n").
    """
    first = [cell.lower() for cell in rows[0][1]]
    if any(map(math.isfinite, map(_number, first))):
        named = [i for i, cell in enumerate(first) if cell in _LABEL_NAMES]
        if not any(all(c[i].lower() != first[i] for _, c in rows[1:]) for i in named):
            return []
    if "" in first:
        where = f"column {first.index('') + 1} of {path}"
        remedy = "Name it; if it is an index that pandas added, save with index=False"
        raise _wrong("a name for every column", "none", where, remedy)
    return first


def _number(cell: str) -> float:
    try:
        # float() reads "2020_01" as Python would: 202001.
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _features(row: Row, label: int, header: list[str], path: Path) -> np.ndarray:
    line, cells = row
    values = [_number(cell) for i, cell in enumerate(cells) if i != label]
    with np.errstate(over="ignore"):
        x = np.array(values, np.float32)
    if not np.isfinite(x).all():
        column = int(np.argmin(np.isfinite(x)))
        column += column >= label
        where = f"row {line}, column {column + 1}"
        where += f" ({header[column]}) of {path}" if header else f" of {path}"
        remedy = "Fill the cell, or encode text as numbers"
        raise _wrong("finite numbers as features", repr(cells[column]), where, remedy)
    return x


def _labels(cells: list[tuple[int, str]], path: Path, task: str, known: bool) -> np.ndarray:
    """The label column; ``known``: by its name, and not only by being the last one."""
    for line, cell in cells:
        if cell.lower() in ("", "nan"):
            raise _wrong("a label in every row", "none", f"row {line} of {path}", "Fill it in")
    values = [_number(cell) for _, cell in cells]
    text = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if text is not None:
        line, cell = cells[text]
        if task == "regression":
            remedy = "Encode the text as numbers, or type task=classification"
            raise _wrong("finite numbers as targets", repr(cell), f"row {line} of {path}", remedy)
        return np.array([cell for _, cell in cells])
    if task == "classification" or not (task or known):
        for (line, cell), value in zip(cells, values, strict=True):
            if value != round(value):
                remedy = "To predict these numbers, type task=regression (--task regression); "
                remedy += (
                    "if they are no labels, name the label column 'label' or move it to the end"
                )
                what = "whole numbers or text as labels"
                raise _wrong(what, cell, f"row {line} of {path}", remedy)
    return np.array(values)


def _wrong(what: str, got: str, where: object, remedy: str) -> DataError:
    return DataError(f"a CSV data set needs {what}; got {got} in {where}. {remedy}.")
