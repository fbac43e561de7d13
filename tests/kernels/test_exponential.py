"""exp of float32 numbers up to 0, in vectors."""

import numpy as np
import pytest

from fflearn.kernels.exponential import exp
from fflearn.kernels.jit import kernel


@kernel
def in_place(x):
    exp(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_within_a_unit_in_the_last_place_down_to_denormal_numbers(dtype):
    x = np.concatenate([-np.linspace(0, 104, 500_000), -np.logspace(-45, 2, 100_000)]).astype(dtype)
    found, want = x.copy(), np.exp(x.astype(np.longdouble))
    in_place(found)
    unit = np.spacing(want.astype(dtype)).astype(np.longdouble)
    assert np.abs(found - want).max() > 0 and (np.abs(found - want) / unit).max() <= 1


def test_at_the_ends():
    x = np.array([0, -0.0, -104, -105, -1e30, -np.inf, np.nan], np.float32)
    in_place(x)
    np.testing.assert_array_equal(x, np.array([1, 1, 0, 0, 0, 0, np.nan], np.float32))


@pytest.mark.parametrize("n", [1, 2, 7, 15, 16, 17, 31, 33, 100])
def test_a_number_does_not_depend_on_its_place(n):
    x = np.random.default_rng(0).uniform(-100, 0, n).astype(np.float32)
    alone, together = [x[i : i + 1].copy() for i in range(n)], x.copy()
    in_place(together)
    for one in alone:
        in_place(one)
    assert np.concatenate(alone).tobytes() == together.tobytes()
