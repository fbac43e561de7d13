"""Sobol noise: each number alone is standard normal, together they are spread evenly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fflearn.random import Key, sobol_bits

KEY = Key(5).fold("sobol")


def below(e):
    """The standard normal distribution function."""
    return np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(e)


def test_every_interval_gets_one_point_in_every_dimension_and_row():
    u = below(KEY.sobol(16, 5, 7, np.float64))
    strata = np.sort((16 * u).astype(int), axis=0)
    assert (strata == np.arange(16)[:, None, None]).all()


def test_every_square_of_the_first_two_dimensions_gets_one_point():
    u = below(KEY.sobol(16, 5, 2, np.float64))
    for row in range(5):
        squares = (4 * u[:, row]).astype(int)
        assert len({tuple(s) for s in squares}) == 16


def test_each_point_alone_is_standard_normal_and_rows_are_independent():
    n = 20_000
    e = KEY.sobol(4, n, 2, np.float64)
    assert e.shape == (4, n, 2)
    for point in e.reshape(4, -1):
        assert abs(point.mean()) < 5 / math.sqrt(2 * n)
        assert abs(point.var() - 1) < 5 / math.sqrt(n)
        assert abs(np.sort(below(point)) - (np.arange(2 * n) + 0.5) / (2 * n)).max() < 0.01
    assert abs((e[:, 1:] * e[:, :-1]).mean()) < 5 / math.sqrt(n)
    assert (e[:, 0] != e[:, 1]).all()


def test_it_is_a_function_of_the_key():
    a, b = KEY.sobol(8, 3, 4, np.float64), KEY.sobol(8, 3, 4)
    assert b.dtype == np.float32 and (a.astype(np.float32) == b).all()
    assert (KEY.at(1).sobol(8, 3, 4) != b).all()


def test_dimensions_beyond_the_known_directions_have_shifts_of_their_own():
    bits = sobol_bits(2, 21203)
    assert bits.shape == (2, 21203) and (bits[:, 21201:] == bits[:, :2]).all()
    e = KEY.sobol(2, 1, 21203)
    assert np.isfinite(e).all() and (e[:, :, 21201:] != e[:, :, :2]).all()


@pytest.mark.parametrize("points", [0, 3, 12])
def test_other_numbers_of_points_are_told(points):
    with pytest.raises(ValueError, match=f"power of 2; got {points}"):
        KEY.sobol(points, 1, 2)
