"""What layers hold: how well a linear read-out does on them, and how alike two are."""

from __future__ import annotations

from typing import Any

import numpy as np

from fflearn.base import Array, Key
from fflearn.bus import Bus
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
    table, target = _products(x), hot - hot.mean(axis=0)
    of_samples = len(table) < x.shape[1]  # the same weights, from the smaller of the two tables
    w = np.linalg.solve(table + scale * np.eye(len(table)), target if of_samples else x.T @ target)
    w = x.T @ w if of_samples else w
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
    own = np.linalg.norm(_products(x)) * np.linalg.norm(_products(y))
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


class Listener(Bus):
    """A Bus that notes what layers send up: in each sweep, or where they relax, in the end."""

    def listen(self) -> None:
        """From now on."""
        self.fired: dict[int, list[Any]] = {}
        self.settled: dict[int, Any] = {}

    def _call(self, hook: str, v: Any, *args: Any) -> Any:
        out = super()._call(hook, v, *args)
        if hook == "forward":
            self.fired.setdefault(v.spec.index, []).append(out.x)
        elif hook == "relax":
            self.settled[v.spec.index] = v.state["s"]
        return out


def in_use(engine: Engine, state: State, x: Array) -> dict[int, Array]:
    """What each layer sends up (B, n) while the network predicts x (B, *in), by layer index.

    It predicts by the rule's last way (`Rule.predictors`), which looks at the output: where a rule
    writes labels into the input, it is the one with no label in it.  Where there is none without,
    the activities with each class's label stand side by side.
    """
    key = Key(state.seed).using(engine.kernels).fold("predict")
    bus = Listener(engine, state, None, key, False)
    bus.listen()
    x = np.ascontiguousarray(x, engine.dtype)
    with engine.kernels.running(engine.threads):
        engine.rule.predict(bus, x, engine.rule.predictors[-1])
    found = bus.fired | {layer: [settled] for layer, settled in bus.settled.items()}
    return {
        layer: np.concatenate([a.reshape(len(x), -1) for a in parts], axis=1)
        for layer, parts in found.items()
    }


def _products(x: Array) -> Array:
    """Of units with units (n, n), or of samples with samples (N, N), whichever is smaller."""
    return x @ x.T if len(x) < x.shape[1] else x.T @ x


def _units(a: Array) -> Array:
    return np.asarray(a, float).reshape(len(a), -1)
