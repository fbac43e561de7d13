"""How far two rules agree: the angle between what they would learn, layer by layer."""

from __future__ import annotations

from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.probes import angle, with_weights_of
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
    mine = engine.updates(state, batch)
    theirs = other.updates(with_weights_of(state, other), batch)
    pairs = enumerate(zip(mine, theirs, strict=True))
    found = {layer: angle(engine.kernels, *pair) for layer, pair in pairs}
    return {layer: degrees for layer, degrees in found.items() if degrees is not None}
