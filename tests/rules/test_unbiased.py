"""The harness of the estimator rules' tests: it passes the right estimator and no wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from unbiased import SEEDS, bias, by_tensor, check_unbiased, estimates, exact, flat, repeated

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
