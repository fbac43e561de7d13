"""The one parallel loop: every call made once, in its place, whoever makes it."""

import numba
import numpy as np
import pytest

from fflearn import kernels
from fflearn.kernels import team
from fflearn.kernels.jit import inner, kernel
from fflearn.kernels.team import spread


@inner
def _count(t, seen, by, start, twice):
    seen[t] += by + start * t
    if twice:
        seen[t] *= 2


@kernel
def count(seen, n, by, start, small):
    spread(_count, n, small, (seen, by, start, False))


@kernel
def in_turn(seen, n):
    """Two loops after one another, with a literal number each, inside a third."""
    for _ in range(2):
        spread(_count, n, False, (seen, 1.0, 2, True))
        spread(_count, n, True, (seen, 0.5, 0, False))


@inner
def _who(t, seen):
    seen[t] = numba.get_thread_id()


@kernel
def by_whom(seen, small):
    spread(_who, seen.size, small, (seen,))


@pytest.fixture(params=["alone", "together"])
def who(request):
    with kernels.load("numba").running(2):  # whose first use gathers the threads
        address = team._team[0]
        assert address
        if request.param == "alone":
            team._team[0] = 0
        yield request.param
        team._team[0] = address


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="there is one thread")
@pytest.mark.parametrize("small", [False, True])
def test_calls_are_shared_out_where_there_is_enough_to_do(who, small):
    seen = np.full(100, -1)
    by_whom(seen, small)
    assert len(set(seen.tolist())) == (2 if who == "together" and not small else 1)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 1000])
def test_every_call_is_made_once_and_knows_its_number(who, n, small):
    seen = np.zeros(n + 1)
    count(seen, n, 0.25, 3, small)
    assert seen.tolist() == [0.25 + 3 * t for t in range(n)] + [0]


def test_loops_follow_one_another(who):
    seen, want = np.zeros(100), np.zeros(100)
    in_turn(seen, 100)
    for _ in range(2):
        want = (want + 1 + 2 * np.arange(100)) * 2 + 0.5
    assert seen.tolist() == want.tolist()
