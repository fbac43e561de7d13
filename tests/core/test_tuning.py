"""Settings tried before a run: by a grid or by Optuna, interrupted or not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fflearn import comparison, tuning
from fflearn.comparison import compare
from fflearn.errors import MissingExtra, SpecError
from fflearn.experiment import Experiment

SMALL = {"data": "blobs.csv", "net": "dense 8 relu | dense 3", "epochs": 2, "batch_size": 16}
SMALL |= {"rules": ("dfa", "backprop"), "seeds": (0,), "backend": "reference"}
BEST = 20.0  # of what follows


def peak(factor: float) -> dict[str, float | None]:
    """A trial whose score has its peak at `BEST`, and that diverges above 50."""
    return {"factor": factor, "score": -abs(math.log(factor / BEST)) if factor < 50 else None}


def tried(how="optuna", n=25, seed=3, trial=peak, path=None):
    return tuning.tried(how, n, seed, trial, "score", path)


def with_optuna(name):
    return pytest.param(
        name, marks=pytest.mark.skipif(not tuning.installed("optuna"), reason="needs optuna")
    )


BOTH = ["grid", with_optuna("optuna")]


@pytest.mark.parametrize("how", BOTH)
def test_the_given_rate_comes_first_and_all_lie_in_the_range(how):
    factors = [t["factor"] for t in tried(how, 9)]
    assert factors[0] == 1.0 and len(set(factors)) == 9
    low, high = tuning.SPAN
    assert all(low <= f <= high for f in factors)
    assert min(factors) < 0.3 and max(factors) > 3  # log-uniform: both directions are looked at


@pytest.mark.parametrize("how", BOTH)
def test_a_tuning_is_a_function_of_its_seed(how):
    assert tried(how, 9) == tried(how, 9)
    others = [t["factor"] for t in tried(how, 9, seed=4)]
    assert (others == [t["factor"] for t in tried(how, 9)]) == (how == "grid")


def test_optuna_learns_from_scores_and_from_what_diverged():
    pytest.importorskip("optuna")
    trials = tried(n=40)
    early, late = trials[:10], trials[-10:]

    def near(some):
        return sum(5 < t["factor"] < 50 for t in some)

    assert near(late) >= near(early) + 3
    assert abs(math.log(tuning.best(trials, "score")["factor"] / BEST)) < 0.1
    lost = tried(n=40, trial=lambda f: {"factor": f, "score": None if f > 0.1 else f})
    # Three quarters of the range diverge; it must be avoided, not merely left out of what is learned.
    assert sum(t["score"] is None for t in lost[10:]) < 0.65 * 30


def test_optuna_stays_as_it_was(capfd):
    optuna = pytest.importorskip("optuna")
    before = optuna.logging.get_verbosity()
    tried(n=3)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("done", [1, 4, 8])
def test_an_interrupted_tuning_goes_on_where_it_was(tmp_path, how, done):
    n = 9 if how == "grid" else 25
    path, made = tmp_path / "trials" / "x.json", []

    def stopping(factor):
        if len(made) == done:
            raise KeyboardInterrupt
        made.append(factor)
        return peak(factor)

    with pytest.raises(KeyboardInterrupt):
        tried(how, n, trial=stopping, path=path)
    assert len(json.loads(path.read_text())) == done

    def counted(factor):
        made.append(factor)
        return peak(factor)

    whole = tried(how, n)
    assert tried(how, n, trial=counted, path=path) == whole == json.loads(path.read_text())
    assert made == [t["factor"] for t in whole]  # each once
    assert tried(how, n, trial=counted, path=path) == whole and len(made) == n


@pytest.mark.parametrize(
    "text", ["", "{", "3", "[3]", '[{"factor": 1.0}]', '[{"factor": 7.0, "score": 9.0}]']
)
def test_trials_that_are_damaged_or_of_another_rate_are_made_again(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert tried("grid", 3, path=path) == tried("grid", 3) == json.loads(path.read_text())


def test_the_best_is_the_first_of_equals_and_never_one_that_diverged():
    trials = [{"factor": f, "r2": r} for f, r in ((1, None), (2, -7.0), (3, -5.0), (4, -5.0))]
    assert tuning.best(trials, "r2")["factor"] == 3
    assert tuning.best(trials[:1], "r2")["factor"] == 1


# ---- in a comparison -----------------------------------------------------------------------------


def test_without_optuna_the_message_says_what_to_type_before_training(here, monkeypatch):
    monkeypatch.setattr(tuning, "installed", lambda module: False)
    monkeypatch.setattr(comparison, "fit", None)
    with pytest.raises(MissingExtra, match=r'pip install "fflearn\[sweep\]".* search=grid'):
        compare(out="out", tune=3, **SMALL)
    assert not Path("out").exists()


def test_unknown_searches_and_more_rates_than_the_grid_has_are_refused():
    with pytest.raises(SpecError, match="search needs one of optuna, grid; got 'random'"):
        Experiment(search="random")
    with pytest.raises(SpecError, match="the grid has 9 learning rates; got tune=10"):
        Experiment(search="grid", tune=10)
    assert Experiment(tune=50).search == "optuna"


def test_records_of_before_are_found_and_those_of_another_search_are_not():
    runs = {s: Experiment(rules=("dfa",), tune=3, search=s).runs()[0] for s in tuning.SEARCHES}
    assert "search" not in runs["grid"].spec() and runs["optuna"].spec()["search"] == "optuna"
    plain = Experiment(rules=("dfa",), tune=1).runs()[0]
    assert "search" not in plain.spec()


def test_every_rule_gets_the_same_draws_and_the_test_part_is_not_looked_at(here, monkeypatch):
    pytest.importorskip("optuna")
    scored, score = [], comparison.fit

    def spy(engine, data, **named):
        scored.append((data.name, named["epochs"], named["budget"].samples))
        return score(engine, data, **named)

    monkeypatch.setattr(comparison, "fit", spy)
    records = compare(out="out", tune=4, budget_samples=90, **SMALL)
    assert [name for name, *_ in scored] == ([*["blobs-validation"] * 4, "blobs"]) * 2
    assert {rest for _, *rest in map(tuple, scored) for rest in [tuple(rest)]} == {(2, 90)}
    dfa, bp = ([t["factor"] for t in r["trials"]] for r in records)
    assert dfa == bp and len(set(dfa)) == 4
    for r in records:
        best = max(r["trials"], key=lambda t: t["accuracy"])
        assert r["optimizer"]["lr"] == best["lr"]
        assert r["spec"]["search"] == "optuna" and r["versions"]["optuna"]
    kept = {p.stem: json.loads(p.read_text()) for p in Path("out/trials").iterdir()}
    slugs = {p.stem: json.loads(p.read_text())["trials"] for p in Path("out/records").iterdir()}
    assert kept == slugs
