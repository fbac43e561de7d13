"""Citation graphs: one graph is the whole data set, and some of its nodes have known labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.data import scores
from fflearn.data.dataset import checked_features, stratified
from fflearn.data.kind import Data
from fflearn.errors import DataError

__all__ = ["GraphData", "WholeGraph", "operators"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, repr=False)
class GraphData(Data):
    """Nodes with features and class labels, and the edges between them.

    Every step learns from the whole graph.  Labels of nodes outside the training part are never
    in a batch: their rows of ``y`` are zero, and so are their sample weights.

    Parameters
    ----------
    name : str
    x : array, shape (N, F)
        Features of the nodes, kept as float32.
    y : array of whole numbers, shape (N,)
        Labels in [0, n_classes); -1 where a node has none.
    edges : array of whole numbers, shape (M, 2)
        Pairs of nodes.  Directions, repetitions and self-loops do not count.
    train, validation, test : arrays of whole numbers
        Nodes of each part, disjoint and labelled; validation may be empty.
    n_classes : int
    notes, classes : tuple of str
        As of `DataSet`.

    Attributes
    ----------
    side : dict
        The graph as layers read it: see `operators`.
    sha256 : str
        Digest of features, labels, edges and parts.

    Raises
    ------
    DataError
        Features that are no finite numbers; nodes, labels or parts that do not fit together.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    edges: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    n_classes: int
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    net = "gcn"

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", checked_features(self.x, f"x of {self.name}"))
        for name in ("y", "edges", *PARTS):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.int64))
        n = len(self.x)
        if self.y.shape != (n,) or self.y.max() >= self.n_classes:
            raise self._wrong(
                f"one label below {self.n_classes} per node", f"labels of shape {self.y.shape} "
                f"up to {self.y.max()} for {n} nodes"
            )  # fmt: skip
        if self.edges.ndim != 2 or self.edges.shape[1] != 2 or not _inside(self.edges, n):
            raise self._wrong(f"edges as pairs of nodes 0 .. {n - 1}", str(self.edges.shape))
        used = np.concatenate([getattr(self, part) for part in PARTS])
        if not _inside(used, n) or len(set(used.tolist())) < len(used):
            raise self._wrong(f"disjoint parts of the nodes 0 .. {n - 1}", "others")
        if not len(self.train) or not len(self.test) or (self.y[used] < 0).any():
            raise self._wrong("a training and a test part of labelled nodes", "others")

    def _wrong(self, what: str, got: str) -> DataError:
        return DataError(f"the graph {self.name} needs {what}; got {got}. Check its arrays.")

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(getattr(self, part))} {part}" for part in PARTS)
        return f"GraphData({self.name!r}, {len(self.x)} nodes: {parts}, in_shape={self.in_shape})"

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one node's features."""
        return self.x.shape[1:]

    @property
    def n_train(self) -> int:
        """Nodes with a label to learn from."""
        return len(self.train)

    @property
    def test_n(self) -> int:
        """Nodes that the first figure of `score` looks at."""
        return len(self.test)

    @cached_property
    def side(self) -> dict[str, Any]:
        """The graph's matrices, by name."""
        return operators(self.edges, len(self.x))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of dtype, shape and bytes of the arrays, in the order of the fields."""
        digest = hashlib.sha256()
        for name in ("x", "y", "edges", *PARTS):
            array = getattr(self, name)
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def batches(self, batch_size: int, seed: int) -> WholeGraph:
        """Every step is one batch, the whole graph; both arguments are passed over."""
        return WholeGraph(self)

    def split_validation(self) -> GraphData:
        """The same graph and training part, tested on its validation part.

        Where there is none (any more), a stratified tenth of the training part is set aside.
        """
        train, held = self.train, self.validation
        note = f"test part: the validation part of {self.name}"
        if not len(held):
            keep, cut = stratified(self.y[train], 0.1, "validation")
            train, held = train[keep], train[cut]
            note = f"test part: a tenth of the training part of {self.name}"
        return replace(
            self,
            name=f"{self.name}-validation",
            train=train,
            validation=held[:0],
            test=held,
            notes=(*self.notes, note),
        )

    def score(self, predict: Callable[..., np.ndarray]) -> dict[str, float]:
        """How well ``predict(x, side=...) -> scores (N, C)`` does.

        Returns
        -------
        dict
            "accuracy", "balanced_accuracy" and "f1" on the test part, as of `DataSet.score`, and
            "validation_accuracy" where there is such a part.
        """
        called, at = predict(self.x, side=self.side).argmax(axis=1), self.test
        found = scores.of_classes(self.y[at], called[at], self.n_classes)
        if len(self.validation):
            right = called[self.validation] == self.y[self.validation]
            found["validation_accuracy"] = float(right.mean())
        return found


class WholeGraph:
    """The one batch of a graph, again in every step: no order, no seed, no batch size.

    Attributes
    ----------
    batch_size : int
        Nodes of the graph, whatever was asked for.
    steps_per_epoch : int
        1.
    """

    steps_per_epoch = 1

    def __init__(self, data: GraphData) -> None:
        self.batch_size = len(data.x)
        y = np.zeros((len(data.x), data.n_classes), np.float32)
        y[data.train, data.y[data.train]] = 1
        weight = np.zeros(len(data.x))
        weight[data.train] = 1
        self._batch = Batch(data.x, y, data.side, weight)

    def on(self, k: Any) -> WholeGraph:
        """Self, whose nodes now lie where kernels ``k`` have their arrays."""
        x, y = self._batch.x, self._batch.y
        if not k.on_host:
            self._batch = self._batch._replace(x=k.asarray(x), y=k.asarray(y))
        return self

    def batch(self, step: int) -> Batch:
        """``x`` (N, F), ``y`` (N, C) and ``weight`` (N,), zero outside the training part."""
        if step < 0:
            raise DataError(f"a batch needs a step of 0 or more; got {step}. Type 0.")
        return self._batch


def operators(edges: np.ndarray, n: int) -> dict[str, Any]:
    """The matrices of an undirected graph that layers mix the nodes with.

    Parameters
    ----------
    edges : array of whole numbers, shape (M, 2)
        Pairs of nodes, in one direction or both; repetitions and self-loops do not count.
    n : int
        How many nodes there are.

    Returns
    -------
    dict of SciPy CSR arrays, float64, shape (n, n)
        "adjacency": D^-1/2 (A + I) D^-1/2 with D the row sums of A + I, for `graph_conv`;
        "neighbours": A with each row divided by its sum, for `sage`.

    Examples
    --------
    >>> operators(np.array([[0, 1]]), 2)["adjacency"].toarray()
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    from scipy.sparse import csr_array, diags_array, eye_array  # a tenth of a second to import

    i, j = edges[edges[:, 0] != edges[:, 1]].T
    pairs = np.unique(np.concatenate([i * n + j, j * n + i]))
    a = csr_array((np.ones(len(pairs)), (pairs // n, pairs % n)), shape=(n, n))
    degree = a.sum(axis=1)
    root = diags_array(1 / np.sqrt(degree + 1))
    mean = diags_array(1 / np.maximum(degree, 1))
    return {
        "adjacency": csr_array(root @ (a + eye_array(n)) @ root),
        "neighbours": csr_array(mean @ a),
    }


def _inside(nodes: np.ndarray, n: int) -> bool:
    return not nodes.size or (nodes.min() >= 0 and nodes.max() < n)
