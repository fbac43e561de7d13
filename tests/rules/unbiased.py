"""Is the mean of random estimates the gradient?  What the tests of every estimator rule share.

A test hands over ``draw(seed) -> (N, d)``, independent estimates of a gradient, and the exact
gradient g (d,).  With the standard errors that the estimates themselves show, `check_unbiased`
asks three times, with seeds that never change:

- every coordinate of the mean is within 5 standard errors of g's (10,000 coordinates: a false
  alarm in 170 draws, and a seed that passed once passes always);
- N |mean - g|^2 / tr Cov is not improbable.  Where nothing but noise is left, its law for large N is
  that of sum_i w_i chi_i^2, chi_i standard normal and w_i the eigenvalues of Cov over their sum: of
  mean 1, and wide where few directions carry the noise.  By Chernoff's bound on that law, so large
  or so small a number has to be less likely than one in a million (`tail`);
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
ALARM = 1e-6  # probability of what the aggregate does not let pass


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
    if variance.any():
        ratio = n * ((mean - g) ** 2).sum() / variance.sum()
        p = tail(ratio, spread(estimates))
        if p < ALARM:
            return f"N |mean - g|^2 / tr Cov is {ratio:.3f}, of probability {p:.1e} at most"
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


def spread(estimates: np.ndarray) -> np.ndarray:
    """Eigenvalues over their sum of the covariance of the rows of (N, d), those above 0."""
    away = estimates - estimates.mean(axis=0)
    if len(away) < away.shape[1]:
        away = away.T
    found = np.clip(np.linalg.eigvalsh(away.T @ away), 0, None)
    return found / found.sum()


def tail(ratio: float, weights: np.ndarray) -> float:
    """At least the probability that sum_i w_i chi_i^2 is as far from its mean 1 as ``ratio``.

    Chernoff: P(Q >= q) <= E exp(t (Q - q)) = exp(-t q) prod (1 - 2 t w_i)^(-1/2) for every t in
    [0, 1 / (2 max w)), and P(Q <= q) likewise for every t <= 0.
    """
    up = (1 - np.geomspace(1e-9, 1, 500)) / (2 * weights.max())
    t = up if ratio > 1 else -np.geomspace(1e-3, 1e6, 500)
    log = -t * ratio - 0.5 * np.log1p(-2 * np.outer(t, weights)).sum(axis=1)
    return float(np.exp(min(0.0, log.min())))


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
