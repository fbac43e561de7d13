"""What layers hold: how well a linear read-out does on them, and how alike two are."""

from __future__ import annotations

import numpy as np

from fflearn.base import Array
from fflearn.emergence import activities
from fflearn.engine import Engine
from fflearn.errors import ShapeError
from fflearn.state import State

RIDGE = 1e-3  # of the mean square of a unit


def linear_probe(train: Array, y_train: Array, test: Array, y_test: Array) -> float:
    """Test accuracy of a ridge regression from activity to one-hot labels.

    Alain & Bengio (2016), "Understanding intermediate layers using linear classifier probes",
    arXiv:1610.01644; with squared error, so that there is one answer and nothing to tune.

    Parameters
    ----------
    train, test : array, shape (N, ...) and (M, ...)
        Activity of a layer, all axes but the first taken as units.
    y_train, y_test : array of int
    """
    x, z = (_units(a) for a in (train, test))
    mean, classes = x.mean(axis=0), np.unique(y_train)
    x, z = x - mean, z - mean
    hot = (y_train[:, None] == classes).astype(float)
    scale = RIDGE * max(float((x * x).mean()), np.finfo(float).tiny) * len(x)
    w = np.linalg.solve(x.T @ x + scale * np.eye(x.shape[1]), x.T @ (hot - hot.mean(axis=0)))
    found = classes[(z @ w + hot.mean(axis=0)).argmax(axis=1)]
    return float((found == y_test).mean())


def cka(a: Array, b: Array) -> float:
    """Linear centred kernel alignment of two layers' activity on the same samples, 0 to 1.

    It ignores rotations and one common scale of the units, and nothing else.  Kornblith et al.
    (2019), "Similarity of neural network representations revisited", arXiv:1905.00414, eq. 3.

    Parameters
    ----------
    a, b : array, shape (N, ...)
        Rows of the same samples.

    Raises
    ------
    ShapeError
        The numbers of samples differ.
    """
    if len(a) != len(b):
        raise ShapeError(f"cka needs the same samples in both; got {len(a)} and {len(b)} rows.")
    x, y = (u - u.mean(axis=0) for u in (_units(a), _units(b)))
    between = np.linalg.norm(x.T @ y) ** 2
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(between / own) if own else 0.0


def similarity(
    one: Engine, mine: State, other: Engine, theirs: State, x: Array, y: Array
) -> tuple[Array, list[int], list[int]]:
    """CKA of every learning layer of one network with every one of another.

    Parameters
    ----------
    one, mine, other, theirs
        Two trained networks, of two rules for instance.
    x, y : array
        Samples (N, *in) and their labels, one-hot, as `fflearn.emergence.activities` takes them.

    Returns
    -------
    array, list of int, list of int
        (layers, layers) numbers, and the indices of the layers of the two.
    """
    a, b = activities(one, mine, x, y), activities(other, theirs, x, y)
    return np.array([[cka(p, q) for q in b.values()] for p in a.values()]), list(a), list(b)


def _units(a: Array) -> Array:
    return np.asarray(a, float).reshape(len(a), -1)
