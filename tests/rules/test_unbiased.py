"""The harness of the estimator rules' tests: it passes the right estimator and no wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from unbiased import (
    SEEDS,
    bias,
    by_tensor,
    check_unbiased,
    estimates,
    exact,
    flat,
    repeated,
    spread,
    tail,
)

from fflearn.checks import bench
from fflearn.random import Key
from fflearn.registry import rule

G = np.array([3.0, -2.0, 0.5, 0.0, 1.0, 1.0, -0.25, 2.0])
TERM = np.where(np.arange(len(G)) < 2, 0.0, G)  # a layer's part: all but the first two
N = 4000


def forward_gradients(seed, n=N):
    """(g.v) v, v standard normal: unbiased, tr Cov = (d + 1) |g|^2."""
    v = Key(seed).fold("v").normal((n, len(G)), np.float64)
    return (v @ G)[:, None] * v


def test_it_passes_the_right_estimator():
    check_unbiased(forward_gradients, G, [TERM])


WRONG = {
    "twice": lambda e: 2 * e,
    "half": lambda e: e / 2,
    "sign": lambda e: -e,
    "a quarter more": lambda e: 1.25 * e,
    "shifted by a term": lambda e: e - TERM,
    "without a term": lambda e: e * (TERM == 0),
    "reversed": lambda e: e[:, ::-1],
    "one coordinate": lambda e: e + 0.7 * np.eye(len(G))[3],  # where g is 0
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_it_passes_no_wrong_one(wrong, seed):
    assert bias(wrong(forward_gradients(seed)), G, [TERM])


def test_it_refuses_estimates_that_could_not_tell():
    few = forward_gradients(0, 300)
    assert "cannot tell" in bias(few, G)
    small = np.where(np.arange(len(G)) == 6, G, 0.0)
    assert "cannot tell" in bias(forward_gradients(0), G, [small])


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.9, 0.05, 0.05), (0.1,) * 10])
def test_the_bound_on_the_aggregate_holds_and_is_not_far_off(weights):
    """Of the law itself, drawn: no less than what is left beyond a quantile, and not much more."""
    w = np.array(weights)
    q = (Key(3).fold(len(w)).normal((400_000, len(w)), np.float64) ** 2) @ w
    for p in (1e-2, 1e-4):
        high, low = np.quantile(q, [1 - p, p])
        assert p / 1.5 < tail(high, w) < 60 * p
        assert p / 1.5 < tail(low, w) < 60 * p
    assert tail(1.0, w) == 1.0


def test_few_directions_of_noise_raise_no_false_alarm():
    """Where one number carries it all, N |mean - g|^2 / tr Cov is often below 0.3 and above 2."""
    g, far = np.array([1.0, -1.0, 0.5]), 0
    for seed in range(200):
        noise = Key(seed).fold("few").normal((2000, 1), np.float64)
        rows = g + noise * np.array([3.0, 0.01, 0.01])
        ratio = 2000 * ((rows.mean(axis=0) - g) ** 2).sum() / rows.var(axis=0, ddof=1).sum()
        far += not 0.3 <= ratio <= 2
        assert "tr Cov" not in bias(rows, g)
    assert far > 60
    np.testing.assert_allclose(spread(rows), [0, 0, 1], atol=1e-12)


def test_the_aggregate_sees_what_no_coordinate_shows():
    """A shift of 2 errors in each of 200 numbers: N |mean - g|^2 / tr Cov is 5."""
    n, d = 2000, 200
    g = np.full(d, 10.0)
    rows = g + Key(1).fold("many").normal((n, d), np.float64)
    assert bias(rows, g) == ""
    signs = np.where(np.arange(d) % 2, 1, -1)  # nothing along g
    assert "tr Cov" in bias(rows + 2 / np.sqrt(n) * signs, g)


def test_it_refuses_estimates_that_are_nearer_than_chance():
    antithetic = forward_gradients(0)
    mirrored = np.concatenate([antithetic, 2 * G - antithetic])
    assert "tr Cov" in bias(mirrored, G)


def test_an_exact_rule_has_no_noise_and_the_harness_says_so_in_numbers():
    engine, state, batch = bench(lambda: rule("backprop"))
    g = exact(engine, state, batch)
    np.testing.assert_array_equal(flat(engine, state, batch), g)
    np.testing.assert_allclose(flat(engine, state, repeated(batch, 3)), g, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(sum(by_tensor(engine, state, batch)), g)
    rows = estimates(engine, state, batch, 2)(1)
    np.testing.assert_array_equal(rows, [g, g])


def test_the_exact_gradient_is_that_of_the_state_at_hand():
    engine, state, batch = bench(lambda: rule("frozen"))
    before = exact(engine, state, batch)
    state.params[0]["W"] = 2 * state.params[0]["W"]
    assert not np.allclose(exact(engine, state, batch), before)
    assert len(by_tensor(engine, state, batch)) == 8
