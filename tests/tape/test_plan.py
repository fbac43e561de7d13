"""Where buffers lie: never two in one place at one time, and no more memory than it takes."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.tape.passes import LINE, Row, plan
from fflearn.tape.traced import Buffer, Ref


def row(*buffers: Buffer) -> Row:
    return Row(None, tuple(Ref(b, "array", 0, (b.nbytes,)) for b in buffers))


def spans(seed: int, n: int, sizes: list[int]) -> tuple[list[Buffer], np.ndarray]:
    """Buffers, and the first and the last part that each is in."""
    rng = np.random.default_rng(seed)
    buffers = [Buffer(i, int(rng.choice(sizes))) for i in range(n)]
    return buffers, np.sort(rng.integers(0, 12, (n, 2)), axis=1)


def parts_of(buffers: list[Buffer], times: np.ndarray) -> list[Row]:
    return [
        row(*(b for b, (lo, hi) in zip(buffers, times, strict=True) if i in (lo, hi)))
        for i in range(12)
    ]


def most_at_once(buffers: list[Buffer], times: np.ndarray) -> int:
    size = [-(-b.nbytes // LINE) * LINE for b in buffers]
    return max(
        sum(n for n, (lo, hi) in zip(size, times, strict=True) if lo <= i <= hi) for i in range(12)
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_two_that_are_in_use_together_overlap(seed):
    buffers, times = spans(seed, 30, [1, 64, 65, 200, 4096, 10_000])
    size, at = plan(parts_of(buffers, times), {})
    assert most_at_once(buffers, times) <= size <= 2 * most_at_once(buffers, times)
    for i, (a, (lo, hi)) in enumerate(zip(buffers, times, strict=True)):
        assert at[a] % LINE == 0 and at[a] + a.nbytes <= size
        for b, (first, last) in zip(buffers[:i], times[:i], strict=True):
            if lo <= last and first <= hi:
                assert at[a] + a.nbytes <= at[b] or at[b] + b.nbytes <= at[a]


@pytest.mark.parametrize("seed", range(20))
def test_buffers_of_one_size_take_what_is_in_use_at_once(seed):
    buffers, times = spans(seed, 30, [640])
    assert plan(parts_of(buffers, times), {})[0] == most_at_once(buffers, times)


def test_what_is_given_is_there_from_the_start_and_what_is_told_stays():
    x, y, z = Buffer(0, 64, "batch.x"), Buffer(1, 64), Buffer(2, 64)
    v, w = Buffer(3, 64), Buffer(4, 64, "params/0/W")
    told = {"loss": Ref(y, "array", 0, (64,))}
    size, at = plan([row(y, v, w), row(x), row(z)], told, {"batch.x"})
    assert size == 3 * LINE and set(at) == {v, x, y, z}
    assert len({at[v], at[x], at[y]}) == 3 and at[z] in (at[v], at[x])
