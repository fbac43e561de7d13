"""How far two rules agree: the angle between what they would learn, layer by layer."""

from __future__ import annotations

import numpy as np

from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.state import State


def alignment(engine: Engine, other: Engine, state: State, batch: Batch) -> dict[int, float]:
    """Angle in degrees between the gradients that two rules give each layer for the same weights.

    0 is the same direction; 90 what unrelated random directions have; above 90 the one undoes
    what the other learns.  Nothing is changed.  Call it on a fixed batch from time to time, for
    instance in a callback of `fflearn.train`.

    Parameters
    ----------
    engine : Engine
    other : Engine
        For the same network, with another rule: mostly backprop.  Arrays that this rule owns are
        as it draws them from the state's seed.
    state : State
        Of ``engine``.
    batch : Batch

    Returns
    -------
    dict of int to float
        By layer index; layers that one of the two gives no gradient, or 0, are left out.

    Examples
    --------
    >>> import numpy as np, fflearn
    >>> dfa, bp = (fflearn.Engine("dense 8 tanh | dense 3", fflearn.rule(r), (4,), 3) for r in ("dfa", "backprop"))
    >>> batch = fflearn.Batch(np.ones((2, 4)), np.eye(3)[:2])
    >>> angles = alignment(dfa, bp, dfa.init(0), batch)
    >>> round(angles[1], 1)
    0.0
    """
    twin = other.init(state.seed)
    twin.step = state.step
    for mine, theirs in zip(twin.params, state.params, strict=True):
        for name in mine:
            mine[name] = theirs[name]
    pairs = zip(engine.updates(state, batch), other.updates(twin, batch), strict=True)
    found = {}
    for layer, (one, two) in enumerate(pairs):
        inner = np.zeros(3)  # a.a, b.b, a.b
        for n in sorted(one.grads.keys() & two.grads.keys()):
            a, b = (np.ravel(engine.kernels.formed(u.grads[n])).astype(float) for u in (one, two))
            inner += a @ a, b @ b, a @ b
        if inner[0] * inner[1]:
            cosine = inner[2] / np.sqrt(inner[0] * inner[1])
            found[layer] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return found
