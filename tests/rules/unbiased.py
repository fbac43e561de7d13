"""Is the mean of random estimates the gradient?  What the tests of every estimator rule share.

A test hands over ``draw(seed) -> (N, d)``, independent estimates of a gradient, and the exact
gradient g (d,).  With the standard errors that the estimates themselves show, `check_unbiased`
asks three times, with seeds that never change:

- every coordinate of the mean is within 5 standard errors of g's (10,000 coordinates: a false
  alarm in 170 draws, and a seed that passed once passes always);
- N |mean - g|^2 / tr Cov is between 0.3 and 2: it is about 1 where nothing but noise is left;
- along g, and along each term that could be forgotten, the mean is within 5 standard errors.

N has to be so large that twice g, or g without one of those terms, would lie 20 standard errors
away: a test that could not see a wrong estimator fails, too.

Rows may be means of several estimates, as the update of a batch is that holds every sample r
times where noise is drawn per sample (`repeated`); then r times fewer are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.probes import exact_engine, with_weights_of
from fflearn.state import State

Draw = Callable[[int], np.ndarray]

SEEDS = (0, 1, 2)
LIMIT, FAR = 5.0, 20.0  # standard errors: what passes, what a wrong estimator would show
AGGREGATE = (0.3, 2.0)


def check_unbiased(draw: Draw, g: np.ndarray, terms: Sequence[np.ndarray] = ()) -> None:
    """Raise AssertionError unless the estimates have the mean g.

    Parameters
    ----------
    draw : function from seed to (N, d)
    g : (d,)
        The exact gradient.
    terms : sequence of (d,)
        Parts of g that an estimator could forget; see `by_tensor`.
    """
    for seed in SEEDS:
        wrong = bias(draw(seed), g, terms)
        assert not wrong, f"seed {seed}: {wrong}"


def bias(estimates: np.ndarray, g: np.ndarray, terms: Sequence[np.ndarray] = ()) -> str:
    """What shows that the rows of (N, d) do not have the mean g; "" where nothing does."""
    n, mean, variance = len(estimates), estimates.mean(axis=0), estimates.var(axis=0, ddof=1)
    # A coordinate that never varies (an exact read-out) is off by rounding alone.
    error = np.sqrt(variance / n) + 1e-12 * np.abs(g).max()
    away = np.abs(mean - g) / error
    if away.max() > LIMIT:
        i = int(away.argmax())
        return f"coordinate {i}: mean {mean[i]:.5g}, gradient {g[i]:.5g}, {away[i]:.1f} errors away"
    ratio = n * ((mean - g) ** 2).sum() / variance.sum()
    if not AGGREGATE[0] <= ratio <= AGGREGATE[1]:
        return f"N |mean - g|^2 / tr Cov is {ratio:.3f}"
    for i, term in enumerate([g, *terms]):
        size = np.linalg.norm(term)
        along = estimates @ (term / size)
        error = along.std(ddof=1) / np.sqrt(n)
        if size < FAR * error:
            return (
                f"{n} estimates cannot tell: term {i} (0 is g) is {size / error:.1f} errors long, "
                f"which needs to be {FAR:.0f}. Draw {(FAR * error / size) ** 2:.1f} times as many"
            )
        if abs(along.mean() - g @ term / size) > LIMIT * error:
            return (
                f"along term {i} (0 is g) the mean is {along.mean() / (g @ term / size):.3f} of g"
            )
    return ""


# ---- estimates of a rule's gradient ---------------------------------------------------------------


def estimates(engine: Engine, state: State, batch: Batch, n: int) -> Draw:
    """``draw(seed)``: what the rule would learn from the batch in n different steps, (n, d).

    Only the step's key changes; nothing is learned.
    """

    def draw(seed: int) -> np.ndarray:
        at, rows = state.copy(), []
        for step in range(seed * n, (seed + 1) * n):
            at.step = step
            rows.append(flat(engine, at, batch))
        return np.stack(rows)

    return draw


def flat(engine: Engine, state: State, batch: Batch) -> np.ndarray:
    """What every layer would learn from a batch, one after the other: (d,)."""
    return np.concatenate([np.ravel(g) for g in _tensors(engine, state, batch)])


def exact(engine: Engine, state: State, batch: Batch) -> np.ndarray:
    """The gradient (d,) of the engine's loss by backprop, for the same weights."""
    return flat(*_backprop(engine, state), batch)


def by_tensor(engine: Engine, state: State, batch: Batch) -> list[np.ndarray]:
    """The exact gradient's tensors, each alone among zeros: terms that could be forgotten."""
    tensors = _tensors(*_backprop(engine, state), batch)
    return [
        np.concatenate([np.ravel(t if i == j else np.zeros_like(t)) for j, t in enumerate(tensors)])
        for i in range(len(tensors))
    ]


def repeated(batch: Batch, r: int) -> Batch:
    """The batch r times: the same gradient, with r draws of each sample's noise."""
    return Batch(*(np.concatenate([a] * r) for a in (batch.x, batch.y)), batch.side)


def _tensors(engine: Engine, state: State, batch: Batch) -> list[np.ndarray]:
    updates = engine.updates(state, batch)
    return [engine.kernels.formed(u.grads[n]) for u in updates for n in sorted(u.grads)]


def _backprop(engine: Engine, state: State) -> tuple[Engine, State]:
    """Backprop for the same network and weights."""
    backprop = exact_engine(engine)
    assert backprop is not None, "backprop cannot train this network"
    return backprop, with_weights_of(state, backprop)
