"""Times of several steps against each other: in turns, so that load disturbs all alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

Turn = Callable[[int], None]  # makes that many steps


def round_robin(turns: Mapping[str, Turn], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per step of each, once a round.

    Parameters
    ----------
    turns : mapping of name to callable
        ``turn(n)`` makes n steps.
    rounds : int
    seconds : float
        How long one turn takes, about.

    Returns
    -------
    dict of name to list of float
        Element r of every list was measured in round r: ratios are taken within a round.
    """
    counts = {name: _steps_in(turn, seconds) for name, turn in turns.items()}
    times: dict[str, list[float]] = {name: [] for name in turns}
    with _no_garbage_collection():
        for _ in range(rounds):
            for name, turn in turns.items():
                turn(1)  # not timed: caches and sleeping threads are this one's again
                times[name].append(_timed(turn, counts[name]))
    return times


def _steps_in(turn: Turn, seconds: float) -> int:
    """How many steps fill a turn; the warm-up on the way, compilation included."""
    turn(3)
    n = 1
    while (taken := _timed(turn, n)) * n < seconds / 4:
        n *= 2
    return max(1, round(seconds / taken))


def _timed(turn: Turn, n: int) -> float:
    start = time.perf_counter()
    turn(n)
    return (time.perf_counter() - start) / n


@contextmanager
def watched(notes: list[str], limit: float = 0.05) -> Iterator[None]:
    """Append a note if other processes took more than ``limit`` of the processor time (Linux)."""
    start, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
    yield
    if busy is None:
        return
    others = _busy_seconds() - busy - (time.process_time() - own)
    share = others / (time.perf_counter() - start) / (os.cpu_count() or 1)
    if share > limit:
        notes.append(
            f"Other processes took {share:.0%} of the processor time meanwhile: these times do "
            f"not count. Repeat on a quiet machine."
        )


def _busy_seconds() -> float | None:
    """Processor time used so far on this machine, by everything."""
    try:
        with open("/proc/stat", encoding="ascii") as f:
            user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def ratios(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(times, base, strict=True)]


def spread(values: Sequence[float]) -> float:
    """The interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
