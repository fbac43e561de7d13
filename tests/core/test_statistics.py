"""Intervals, paired tests and profiles, against hand calculations and simulated coverage."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from fflearn.errors import SpecError
from fflearn.statistics import (
    EXACT,
    MANY,
    holm,
    interquartile_mean,
    interval,
    mean_ranks,
    paired,
    pareto,
    performance_profile,
    sign_flip,
    to_target,
)


def test_student_by_hand():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt(3).
    i = interval([1, 2, 3])
    assert (i.mean, i.kind) == (2, "t")
    assert i.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert i.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(("n", "kind"), [(3, "t"), (MANY - 1, "t"), (MANY, "bootstrap")])
def test_an_interval_covers_the_mean_as_often_as_it_says(n, kind):
    draws = np.random.default_rng(n).standard_normal((150 if n == MANY else 400, n)) + 5
    found = [interval(x) for x in draws]
    assert {i.kind for i in found} == {kind}
    inside = np.mean([i.low <= 5 <= i.high for i in found])
    # 95 % within 4 standard errors; the bootstrap of ten values is known to fall a little short.
    assert (0.85 if kind == "bootstrap" else 0.906) < inside <= 1


def test_what_has_no_spread_has_no_width():
    one = interval([0.5])
    assert one.kind == "none" and math.isnan(one.low) and math.isnan(one.high)
    assert interval([0.5] * 3).high == 0.5 and interval([0.5] * MANY).low == 0.5
    with pytest.raises(SpecError):
        interval([])


def test_the_same_values_give_the_same_interval():
    x = np.random.default_rng(0).random(30)
    assert interval(x) == interval(x)


def test_pairs_are_by_seed():
    found = paired({0: 0.5, 1: 0.9, 7: 1.0}, {1: 0.8, 0: 0.1, 3: 0.0})
    assert found is not None and found.differences == pytest.approx((0.4, 0.1))
    assert math.isnan(found.p) and found.smallest_p == 0.5
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_sign_flip_is_exact():
    rng = np.random.default_rng(3)
    d = rng.standard_normal(MANY) + 0.3
    means = [abs(np.dot(s, d)) for s in product((-1, 1), repeat=len(d))]
    by_hand = np.mean(np.asarray(means) >= abs(d.sum()) - 1e-9)
    assert sign_flip(d) == by_hand
    assert sign_flip(-d) == by_hand
    assert sign_flip(np.ones(MANY)) == 2 / 2**MANY  # the smallest there is
    assert sign_flip(np.zeros(MANY)) == 1


def test_sign_flip_rejects_true_nulls_at_its_level():
    d = np.random.default_rng(1).standard_normal((600, MANY))
    below = np.mean([sign_flip(x) <= 0.05 for x in d])
    assert abs(below - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 600)


def test_many_seeds_are_sampled_and_agree_with_the_normal_law():
    d = np.random.default_rng(2).standard_normal(EXACT + 5) + 0.35
    z = abs(d.sum()) / math.sqrt((d**2).sum())
    assert sign_flip(d) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.1)
    assert sign_flip(d) == sign_flip(d)


def test_ten_seeds_have_a_p_and_nine_have_none():
    one = {s: 0.9 + s / 1000 for s in range(MANY)}
    other = {s: 0.8 for s in range(MANY)}
    found = paired(one, other)
    assert found is not None and found.p == found.smallest_p == 2 / 2**MANY
    del one[0]
    found = paired(one, other)
    assert found is not None and math.isnan(found.p)


def test_holm_by_hand():
    # Sorted .01 .02 .03 times 3, 2, 1 is .03 .04 .03; never below the one before.
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.03, "c": 0.04}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    found = holm({"a": math.nan, "b": 0.02})
    assert found["b"] == 0.02 and math.isnan(found["a"])


def test_the_interquartile_mean_leaves_a_quarter_off_each_end():
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -100]) == 3.5
    assert interquartile_mean([1, 2]) == 1.5


def test_ranks_are_means_over_data_sets_and_ties_share():
    scores = [{"a": 0.9, "b": 0.8, "c": 0.8}, {"a": 0.5, "b": 0.6, "c": 0.4, "d": 1.0}]
    assert mean_ranks(scores) == {"a": 1.5, "b": 1.75, "c": 2.75}
    assert mean_ranks([]) == {} == mean_ranks([{"a": 1.0}, {"b": 1.0}])


def test_the_target_is_reached_where_a_curve_first_gets_there():
    assert to_target([1, 2, 3, 4], [0.1, None, 0.8, 0.7], 0.7) == 3
    assert to_target([1, 2, 3], [0.1, 0.7, 0.8], 0.7) == 2  # met is reached
    assert to_target([1, 2], [0.1, 0.2], 0.3) == math.inf


def test_profiles_count_tasks_within_a_factor_of_the_cheapest():
    costs = [{"a": 1.0, "b": 2.0}, {"a": 6.0, "b": 2.0}, {"a": math.inf, "b": math.inf}]
    found = performance_profile(costs, [1, 2, 3])
    assert found == {
        "a": pytest.approx([1 / 3, 1 / 3, 2 / 3]),
        "b": pytest.approx([1 / 3, 2 / 3, 2 / 3]),
    }


def test_the_front_holds_what_nothing_beats_in_both():
    points = {"slow": (3, 0.9), "fast": (1, 0.7), "beaten": (2, 0.6), "same": (3, 0.8)}
    assert pareto(points) == ["fast", "slow"]
    assert pareto({"a": (1, 0.5), "b": (1, 0.6)}) == ["b"]
