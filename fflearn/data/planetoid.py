"""Cora and CiteSeer: the Planetoid files, or one .npz file with the same graph.

Two splits.  "cora" is the public one: 20 training nodes per class, 500 to validate, 1000 to
test.  "cora-64-16-20" is random and stratified in these per cents, drawn from a constant.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fflearn.data import fetch
from fflearn.data.dataset import stratified
from fflearn.data.graphs import GraphData
from fflearn.errors import DataError

__all__ = ["NAMES", "load"]

RANDOM = "-64-16-20"
NAMES = tuple(name + split for name in ("cora", "citeseer") for split in ("", RANDOM))
PIECES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
ARRAYS = ("x_data", "x_indices", "x_indptr", "x_shape", "y", "edges", "train", "val", "test")
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, UnicodeDecodeError, OverflowError),
)


def load(name: str, download: bool = True) -> GraphData:
    """Load one of `NAMES` from the user's files; nothing is downloaded.

    Returns
    -------
    GraphData
        Word counts of the papers, each row divided by its sum.

    Raises
    ------
    DataError
        No files, with a list of what is needed, or damaged ones.

    References
    ----------
    Yang, Cohen, Salakhutdinov (2016), "Revisiting semi-supervised learning with graph
    embeddings", arXiv:1603.08861 (files and public split); Sen et al. (2008), "Collective
    classification in network data", AI Magazine 29.
    """
    base = name.removesuffix(RANDOM)
    x, y, edges, (train, validation, test) = _read(base)
    total = x.sum(axis=1, keepdims=True)
    x = np.divide(x, total, out=np.zeros_like(x), where=total != 0)
    if name != base:
        train, validation, test = _random_parts(y)
    return GraphData(name, x, y, edges, train, validation, test, int(y.max()) + 1)


def _random_parts(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """64, 16 and 20 per cent of the labelled nodes; each class gives the same share."""
    labelled = np.flatnonzero(y >= 0)
    rest, test = stratified(y[labelled], 0.2, "test")
    train, validation = stratified(y[labelled[rest]], 0.2, "validation")
    return labelled[rest][train], labelled[rest][validation], labelled[test]


Graph = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]


def _read(base: str) -> Graph:
    """Features, labels, edges and the public parts, from the first folder that has them."""
    folders = [*fetch.user_folders(base), fetch.cache_folder() / base]
    for folder in folders:
        arrays = folder / f"{base}.npz"
        files = [folder / f"ind.{base}.{piece}" for piece in PIECES]
        try:
            if arrays.is_file():
                return _read_arrays(arrays)
            if all(f.is_file() for f in files):
                return _read_planetoid(files)
        except _DAMAGED as error:
            raise DataError(
                f"{base} needs whole files; got {type(error).__name__}: {error} in {folder}. "
                f"Replace them."
            ) from error
    needed = ", ".join(f"ind.{base}.{piece}" for piece in PIECES)
    raise DataError(
        f"{base} needs its files, and they are not downloaded. Put the Planetoid files into a "
        f"folder D/{base} and set FFLEARN_DATA=D: {needed}; or one {base}.npz with the arrays "
        f"{', '.join(ARRAYS)}."
    )


def _read_arrays(path: Path) -> Graph:
    from scipy.sparse import csr_array

    with np.load(path) as z:
        data, indices, indptr, shape, y, edges, *parts = (z[name] for name in ARRAYS)
    x = csr_array((data, indices, indptr), shape=tuple(map(int, shape)))
    return x.toarray().astype(np.float32), y.astype(np.int64), edges.astype(np.int64), tuple(parts)


def _read_planetoid(files: list[Path]) -> Graph:
    """The test nodes' rows are stored in the order of test.index; nodes left out have no words."""
    x, tx, allx, y, ty, ally, graph = (_unpickled(f) for f in files[:-1])
    at = np.array(files[-1].read_text(encoding="ascii").split(), np.int64)
    n = int(at.max()) + 1
    features, labels = np.zeros((n, allx.shape[1]), np.float32), np.zeros((n, y.shape[1]))
    features[: len(allx)], labels[: len(allx)] = allx, ally
    features[at], labels[at] = tx, ty
    ids = np.where(labels.any(axis=1), labels.argmax(axis=1), -1)
    edges = np.array([(i, j) for i, others in graph.items() for j in others], np.int64)
    train = np.arange(len(x))
    validation = np.arange(len(x), min(len(x) + 500, len(allx)))
    test = np.sort(at)
    return features, ids, edges, (train, validation, test[ids[test] >= 0])


# ---- pickles: arrays and nothing else --------------------------------------------------------------


class _Sparse:
    """Takes the place of SciPy's CSR matrix: its arrays by name."""

    def toarray(self) -> np.ndarray:
        from scipy.sparse import csr_array

        parts = self.__dict__
        shape = tuple(map(int, parts["_shape"] if "_shape" in parts else parts["shape"]))
        return csr_array((parts["data"], parts["indices"], parts["indptr"]), shape).toarray()


def _rebuilt(kind: type, base: type, state: Any) -> Any:
    """What Python 2's copy_reg._reconstructor does for a plain object."""
    if kind is not _Sparse:
        raise pickle.UnpicklingError(f"cannot rebuild a {kind.__name__}")
    return _Sparse()


_ARRAY, _SCALAR = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{c}.multiarray", "_reconstruct"): _ARRAY for c in ("core", "_core")},
    **{(f"numpy.{c}.multiarray", "scalar"): _SCALAR for c in ("core", "_core")},
    **{(f"scipy.sparse.{m}", "csr_matrix"): _Sparse for m in ("csr", "_csr")},
    ("collections", "defaultdict"): collections.defaultdict,
    **{(m, "list"): list for m in ("__builtin__", "builtins")},
    **{(m, "object"): object for m in ("__builtin__", "builtins")},
    ("copy_reg", "_reconstructor"): _rebuilt,
    ("_codecs", "encode"): lambda text, _="latin1": text.encode("latin1"),
}


class _Arrays(pickle.Unpickler):
    """Rebuilds NumPy arrays, sparse matrices and dictionaries of lists; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a data file")
        return _ALLOWED[module, name]


def _unpickled(path: Path) -> Any:
    """A dense array, or the dictionary of neighbours."""
    with path.open("rb") as f:
        found = _Arrays(f, encoding="latin1").load()
    return found.toarray() if isinstance(found, _Sparse) else found
