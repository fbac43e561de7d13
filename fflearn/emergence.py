"""What categories look like in a layer's activity: how sparse it is, and which units they share.

Tosato, Basile, Ballarin, de Alteriis, Cazzaniga & Ansuini (2023), "Emergent representations in
networks trained with the Forward-Forward algorithm", arXiv:2305.18353, sec. 3.
"""

from __future__ import annotations

import numpy as np

from fflearn.base import Array, Batch, LayerView, Update
from fflearn.engine import Engine
from fflearn.state import State


def hoyer(y: Array) -> Array:
    """Hoyer's sparsity of each row: (sqrt(n) - |y|_1 / |y|_2) / (sqrt(n) - 1).

    0 where all entries are equally large, 1 where all but one are 0; nan where all are.

    Parameters
    ----------
    y : array, shape (B, n), n > 1

    Returns
    -------
    array, shape (B,)

    References
    ----------
    Hoyer (2004), "Non-negative matrix factorization with sparseness constraints", JMLR 5, sec. 3.1.

    Examples
    --------
    >>> hoyer(np.array([[0.0, 7.0, 0.0, 0.0], [2.0, 2.0, -2.0, 2.0]])).tolist()
    [1.0, 0.0]
    """
    root, size = np.sqrt(y.shape[1]), np.sqrt((y * y).sum(axis=1))
    ratio = np.divide(np.abs(y).sum(axis=1), size, out=np.full_like(size, np.nan), where=size > 0)
    return (root - ratio) / (root - 1)


def ensembles(y: Array, labels: Array, n_classes: int, excess: float = 1.0) -> Array:
    """Which units make up the ensemble of each category.

    Those whose mean activity on it exceeds their mean over the other categories (each counted
    alike) by more than ``excess`` times that mean.  A silent unit belongs to none; a category
    without samples has no units and is no other category.

    Parameters
    ----------
    y : array, shape (B, n)
        Activity of rectified units: none of it below 0.
    labels : array of int, shape (B,)

    Returns
    -------
    array of bool, shape (n_classes, n)
    """
    there = np.flatnonzero(np.bincount(labels, minlength=n_classes))
    mean = np.stack([y[labels == c].mean(axis=0, dtype=np.float64) for c in there])
    others = (mean.sum(axis=0) - mean) / max(1, len(there) - 1)
    members = np.zeros((n_classes, y.shape[1]), bool)
    members[there] = mean - others > excess * others
    return members


def sharing(members: Array) -> Array:
    """Units that two ensembles have in common, and on the diagonal their sizes: (C, C) int."""
    count = members.astype(np.int64)
    return count @ count.T


def activities(engine: Engine, state: State, x: Array, y: Array) -> dict[int, Array]:
    """Activity (B, n) of each layer that learns, on samples shown as in training.

    Rules that write labels into the input show the right one.  Pass "x", rows of the samples
    themselves; a layer that does not learn now, or has no pass "x", is left out.

    Parameters
    ----------
    x : array, shape (B, *in)
    y : array, shape (B, C)
        One-hot labels.
    """
    parts: dict[int, list[Array]] = {}
    for i in range(0, len(x), 1000):
        batch = Batch(x[i : i + 1000], y[i : i + 1000])

        def observe(v: LayerView, u: Update, n: int = len(batch.x)) -> None:
            if v.learns and "x" in v.traces:
                parts.setdefault(v.index, []).append(v.traces["x"].y[:n].reshape(n, -1))

        engine.observed(state, batch, observe)
    return {layer: np.concatenate(parts[layer]) for layer in sorted(parts)}
