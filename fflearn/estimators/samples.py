"""What an estimator learns from: each distinct sample once, with its weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from fflearn.base import Batch
from fflearn.random import Key

ROWS = 1000  # how many samples are made dense at a time


def dense(x: Any) -> np.ndarray:
    """Rows of an array or of a sparse matrix, as an array."""
    return x.toarray() if hasattr(x, "toarray") else x


def parts(x: Any) -> Iterator[np.ndarray]:
    """Samples (N, n), a thousand dense rows at a time."""
    for start in range(0, x.shape[0], ROWS):
        yield dense(x[start : start + ROWS])


@dataclass(frozen=True)
class Samples:
    """Weighted samples with their classes or numbers.

    Parameters
    ----------
    x : array or CSR matrix, shape (N, n)
    y : array, shape (N,) of classes 0 .. C - 1, or (N, K) of numbers
    weight : array, shape (N,)
        Above 0.
    shape : tuple of int
        Of one sample, as the network reads it.
    n_classes : int
        Classes C, or numbers K.
    """

    x: Any
    y: np.ndarray
    weight: np.ndarray
    shape: tuple[int, ...]
    n_classes: int

    @property
    def total(self) -> float:
        """All weights together."""
        return float(self.weight.sum())

    def part(self, at: np.ndarray) -> Samples:
        """Some of the samples, by index."""
        return replace(self, x=self.x[at], y=self.y[at], weight=self.weight[at])

    def merged(self, keep_order: bool) -> Samples:
        """Each distinct pair of sample and target once; the weights of equal ones added up.

        So a weight is a number of repetitions to every rule, those included that treat each row of
        a batch by itself (by noise of its own, by its neighbour in the batch).  The order is that
        of digests of the samples: what is learned depends on what was given and not on its order,
        unless ``keep_order``, where it is that of the first occurrences.
        """
        ys = self.y.reshape(len(self.y), -1)
        digests, start = [], 0
        for x in parts(self.x):
            both = np.concatenate([x, ys[start : start + len(x)]], axis=1, dtype=np.float64)
            rows = np.ascontiguousarray(both)
            rows += 0.0  # -0.0 becomes 0.0: equal numbers, equal bytes
            digests += [blake2b(row.data, digest_size=16).digest() for row in rows]
            start += len(x)
        # Void, not bytes: NumPy drops zeros at the end of the latter.
        kinds = np.frombuffer(b"".join(digests), "V16")
        _, first, same = np.unique(kinds, return_index=True, return_inverse=True)
        weight = np.bincount(same, weights=self.weight)
        if keep_order:
            order = np.argsort(first)
            first, weight = first[order], weight[order]
        return replace(self.part(first), weight=weight)

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return -(-len(self.weight) // batch_size)

    def batches(self, batch_size: int, key: Key | None) -> Iterator[tuple[Batch, float]]:
        """The batches of an epoch, in the order that the key gives, with their total weights.

        Where weights differ, an epoch is a line of samples each as long as its weight, cut into
        batches of equal length: every sample has its weight in full, in one batch or in several,
        and every batch counts the same.  (Batches of equally many samples would not do: their
        mean gives a sample in the company of heavy ones less than its weight.)
        """
        n = len(self.weight)
        order = np.arange(n) if key is None else key.permutation(n)
        if (self.weight == self.weight[0]).all():
            for start in range(0, n, batch_size):
                at = order[start : start + batch_size]
                yield self._batch(at, None), float(self.weight[0] * len(at))
            return
        steps = self.steps(batch_size)
        ends = np.cumsum(self.weight[order])
        starts = np.concatenate([[0.0], ends[:-1]])
        for low, high in pairwise(ends[-1] * np.arange(steps + 1) / steps):
            inside = slice(
                np.searchsorted(ends, low, "right"), np.searchsorted(ends, high, "left") + 1
            )
            weight = np.minimum(ends[inside], high) - np.maximum(starts[inside], low)
            yield self._batch(order[inside], weight), float(weight.sum())

    def _batch(self, at: np.ndarray, weight: np.ndarray | None) -> Batch:
        x = dense(self.x[at]).reshape(len(at), *self.shape)
        y = self.y[at]
        return Batch(x, np.eye(self.n_classes)[y] if y.ndim == 1 else y, weight=weight)
