"""Learning rates to try before a run: which ones, and what became of each.

They are factors of the rate that the rule was given.  Every rule gets as many, from the same range
and the same draws, and the given rate itself is the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from fflearn.errors import MissingExtra, SpecError
from fflearn.fingerprint import installed
from fflearn.state import write_atomically

SPAN = (0.01, 100.0)
GRID = (1.0, 3.0, 0.3, 10.0, 0.1, 30.0, 0.03, 100.0, 0.01)  # outward: few trials stay near 1

Trial = dict[str, Any]  # "factor", "lr", and the score under its name; None: it diverged
Proposals = Generator[float, float | None, None]


def by_grid(n: int, seed: int) -> Proposals:
    """The first of `GRID`."""
    for factor in GRID[:n]:  # noqa: UP028 - a tuple's own iterator takes no scores
        yield factor


def by_optuna(n: int, seed: int) -> Proposals:
    """Log-uniform in `SPAN`, from Optuna's tenth trial on near those that did well.

    Watanabe (2023), "Tree-structured Parzen estimator", arXiv:2304.11127; the sampler is a function
    of the seed and of the scores that it is sent.
    """
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), direction="maximize")
    optuna.logging.set_verbosity(before)
    study.enqueue_trial({"factor": 1.0})
    for _ in range(n):
        trial = study.ask()
        score = yield trial.suggest_float("factor", *SPAN, log=True)
        if score is None:  # worse than any score, whatever the scale of scores is
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, score)


SEARCHES: dict[str, Callable[[int, int], Proposals]] = {"optuna": by_optuna, "grid": by_grid}


def check(search: str, n: int) -> None:
    """SpecError where there is no such search, or the grid has fewer than ``n`` rates."""
    if search not in SEARCHES:
        raise SpecError(f"search needs one of {', '.join(SEARCHES)}; got {search!r}.")
    if SEARCHES[search] is by_grid and n > len(GRID):
        raise SpecError(
            f"the grid has {len(GRID)} learning rates; got tune={n}. Type search=optuna"
        )


def require(search: str) -> None:
    """MissingExtra where the package that searches is not there; says what needs none."""
    if SEARCHES[search] is by_optuna and not installed("optuna"):
        raise MissingExtra(
            'tuning by search=optuna needs optuna. Type: pip install "fflearn[sweep]", or take '
            "the fixed rates of search=grid"
        )


def tried(
    search: str,
    n: int,
    seed: int,
    trial: Callable[[float], Trial],
    measure: str,
    path: Path | None = None,
) -> list[Trial]:
    """Try ``n`` factors and return what came of each, in order.

    Parameters
    ----------
    search : str
        Of `SEARCHES`.
    trial : callable
        Trains with a factor; its ``measure`` (None: diverged) steers what is tried next.
    path : Path, optional
        Where trials are kept, each as soon as it is done.  Those found there are not made again,
        if they are of the factor that is due: the search then goes on as if it had not stopped.
    """
    kept, found = _kept(path), list[Trial]()
    proposals, score = SEARCHES[search](n, seed), None
    for i in range(n):
        factor = proposals.send(score)
        old = kept[i] if i < len(kept) else {}
        again = old.get("factor") == factor and measure in old
        found.append(old if again else trial(factor))
        score = found[-1][measure]
        if path is not None and not again:
            write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    return found


def best(trials: list[Trial], measure: str) -> Trial:
    """The trial with the highest score, the first of equals."""
    return max(trials, key=lambda t: -math.inf if t[measure] is None else t[measure])


def _kept(path: Path | None) -> list[Trial]:
    """Trials of a tuning that was interrupted; a file that is not whole counts for nothing."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path is not None else []
    except (OSError, ValueError):
        return []
    whole = isinstance(kept, list) and all(isinstance(t, dict) for t in kept)
    return kept if whole else []
