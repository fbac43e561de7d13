"""What a few seeds can say: intervals, paired differences, ranks, and what it took to get there.

Below `MANY` seeds there are Student-t intervals and no p-values; from there on bootstrap
intervals and an exact test.  No function here draws a random number that its arguments do not fix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import stdtrit

from fflearn.errors import SpecError
from fflearn.random import Key

MANY = 10
EXACT = 20  # seeds up to which every way to flip the signs is tried
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies at 95 % confidence.

    Attributes
    ----------
    mean, low, high : float
        ``low`` and ``high`` are nan where one value tells nothing of the spread.
    kind : str
        "t", "bootstrap", or "none".
    """

    mean: float
    low: float
    high: float
    kind: str


def interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean: Student's t below `MANY` values, bias-corrected bootstrap above.

    Student (1908), Biometrika 6(1).  Efron (1987), J. Am. Stat. Assoc. 82, BCa.
    """
    x = np.asarray(values, float)
    if not len(x):
        raise SpecError("an interval needs at least one value.")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, "none")
    if np.ptp(x) == 0:  # neither method is defined without a spread
        return Interval(mean, mean, mean, "bootstrap" if len(x) >= MANY else "t")
    if len(x) < MANY:
        half = stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / math.sqrt(len(x))
        return Interval(mean, mean - half, mean + half, "t")
    from scipy import stats  # half a second to import

    found = stats.bootstrap((x,), np.mean, n_resamples=RESAMPLES, rng=0).confidence_interval
    return Interval(mean, float(found.low), float(found.high), "bootstrap")


@dataclass(frozen=True)
class Paired:
    """One rule against another on the same seeds.

    Attributes
    ----------
    differences : tuple of float
        By seed, one minus other.
    interval : Interval
        Of their mean.
    p : float
        Two-sided, of the sign-flip test; nan below `MANY` seeds.
    smallest_p : float
        The smallest that so many seeds can give: 2 / 2^n.
    """

    differences: tuple[float, ...]
    interval: Interval
    p: float
    smallest_p: float


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Paired | None:
    """Differences on the seeds that both have; None where they share none."""
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    d = tuple(one[s] - other[s] for s in seeds)
    p = sign_flip(d) if len(d) >= MANY else math.nan
    return Paired(d, interval(d), p, 2.0 ** (1 - len(d)))


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p: how often flipped signs give a mean as far from 0 as the one found.

    If rules were exchangeable, each difference could as well have the other sign.  All 2^n ways
    are tried up to `EXACT` differences, 2^`EXACT` random ones above.  Fisher (1935), "The design
    of experiments", sec. 21.
    """
    d = np.asarray(differences, float)
    if len(d) <= EXACT:
        sums = np.zeros(1)
        for x in d:
            sums = np.concatenate([sums + x, sums - x])
    else:
        up = Key(0).fold("sign_flip").uniform((2**EXACT, len(d)), np.float32) < 0.5
        sums = np.where(up, d, -d).sum(axis=1)
    slack = 1e-12 * np.abs(d).sum()  # the order of summing must not decide
    extreme = int((np.abs(sums) >= abs(d.sum()) - slack).sum())
    return extreme / len(sums) if len(d) <= EXACT else (extreme + 1) / (len(sums) + 1)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number; nan stay nan.  Holm (1979), Scand. J. Stat. 6(2)."""
    known = sorted((n for n in p if not math.isnan(p[n])), key=lambda n: p[n])
    adjusted, largest = dict(p), 0.0
    for i, name in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - i) * p[name]))
        adjusted[name] = largest
    return adjusted


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half.

    Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice".
    """
    x, cut = np.sort(np.asarray(values, float)), len(values) // 4
    return float(x[cut : len(x) - cut].mean())


def mean_ranks(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean rank over data sets, 1 the best, of the rules that every data set has.

    Parameters
    ----------
    scores : sequence of mapping
        Of each data set: rule to score, the higher the better; ties share their ranks.
    """
    common = [n for n in scores[0] if all(n in s for s in scores)] if scores else []
    if not common:
        return {}
    table = np.array([[s[n] for n in common] for s in scores])
    better = (table[:, None, :] > table[:, :, None]).sum(axis=2)
    equal = (table[:, None, :] == table[:, :, None]).sum(axis=2)
    ranks = better + (equal + 1) / 2
    return dict(zip(common, ranks.mean(axis=0).tolist(), strict=True))


def to_target(cost: Sequence[float], score: Sequence[float | None], target: float) -> float:
    """What had been spent where a curve first reached the target; inf where it never did."""
    reached = (c for c, s in zip(cost, score, strict=True) if s is not None and s >= target)
    return next(reached, math.inf)


def performance_profile(
    costs: Sequence[Mapping[str, float]], factors: Sequence[float]
) -> dict[str, list[float]]:
    """For each rule, on what part of the tasks it cost at most so many times the cheapest.

    Dolan & More (2002), "Benchmarking optimization software with performance profiles".

    Parameters
    ----------
    costs : sequence of mapping
        Of each task: rule to cost (inf: never reached).
    factors : sequence of float
        From 1 on.
    """
    names = list(dict.fromkeys(n for c in costs for n in c))
    found = {n: [0.0] * len(factors) for n in names}
    for (i, factor), cost in product(enumerate(factors), costs):
        best = min(cost.values(), default=math.inf)
        for n in names:
            c = cost.get(n, math.inf)
            found[n][i] += (math.isfinite(c) and c <= factor * best) / len(costs)
    return found


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the (cost, score) points that no other point beats in both, cheapest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front
