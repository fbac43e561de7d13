"""Comparing rules: records, what a rerun does, tuning, and the table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from core_runs import RULE, blobs, contents, unmeasured

from fflearn import comparison, experiment, registry, tuning
from fflearn.base import Channel
from fflearn.comparison import compare, default_folder, table
from fflearn.data import load
from fflearn.errors import (
    DataError,
    DivergenceError,
    FFLearnError,
    LocalityError,
    ShapeError,
    SpecError,
)
from fflearn.experiment import Experiment
from fflearn.run_files import FINAL
from fflearn.training import restored, train

NET = "dense 8 relu | dense 3"
SMALL = {"data": "blobs.csv", "net": NET, "epochs": 2, "batch_size": 16, "seeds": (0, 1)}
SMALL |= {"rules": ("backprop", "ff", "dfa[scale=2]")}
FIELDS = """rule label kind seed data data_sha256 data_notes net net_as_trained epochs samples_seen
test_n measures test_accuracy accuracies metrics train_seconds joules compile_seconds peak_learning_bytes
optimizer_bytes
channels_declared floats_per_sample gradient_angles contended forward_passes weight_transport optimizer trials spec versions
fingerprint curves"""


def refuse_to_train(monkeypatch):
    def fit(*args, **named):
        raise AssertionError("it trained")

    monkeypatch.setattr(comparison, "fit", fit)


# ---- the default comparison ---------------------------------------------------------------------


def test_compare_without_an_argument_runs_every_rule_with_three_seeds(here, say, monkeypatch):
    short = comparison.fit  # the same, but for one epoch on a small network

    def fit(engine, data, **named):
        return short(engine, data, **{**named, "epochs": 1})

    monkeypatch.setattr(comparison, "fit", fit)
    monkeypatch.setitem(experiment.NETS, "digits", "mlp width=12 depth=1")
    said = say("compare")
    assert (said.code, said.err) == (0, "")
    folder = default_folder(Experiment())
    assert said.out.splitlines()[-1] == f"records: {folder / 'records'}"
    rules = experiment.available_rules()
    head, _, *rows = said.out.split("\n\n")[0].splitlines()
    assert head.split("  ")[0] == "rule"
    assert [row.split()[0] for row in rows] == rules
    records = [json.loads(p.read_text()) for p in (folder / "records").iterdir()]
    assert {(r["rule"], r["seed"]) for r in records} == {(r, s) for r in rules for s in range(3)}
    assert Experiment.load(folder / "experiment.toml") == Experiment().resolved(10)


def test_the_default_folder_is_named_after_day_and_experiment():
    name = default_folder(Experiment(name="mine")).as_posix()
    assert name.startswith("runs/2") and name.endswith("-mine") and len(name) == 20


# ---- records ------------------------------------------------------------------------------------


def test_a_record_says_what_was_done_and_found(here):
    records = compare(out="out", **SMALL)
    data = load("blobs.csv")
    assert [(r["label"], r["seed"]) for r in records] == [
        (label, seed)
        for label in ("backprop", "forward_forward", "dfa[scale=2]")
        for seed in (0, 1)
    ]
    on_disk = [json.loads(p.read_text()) for p in Path("out/records").iterdir()]
    for r in records:
        assert set(r) == set(FIELDS.split())
        assert json.loads(json.dumps(r)) in on_disk
        assert (r["data"], r["data_sha256"]) == ("blobs", data.sha256)
        assert (r["epochs"], r["samples_seen"], r["test_n"]) == (2, 2 * 72, 18)
        first = next(iter(r["metrics"].values()))
        assert set(first) == {"accuracy", "balanced_accuracy", "f1"}
        assert r["test_accuracy"] == next(iter(r["accuracies"].values())) == first["accuracy"] > 0
        assert r["measures"] == ["accuracy"]
        assert r["train_seconds"] == r["curves"]["seconds"][-1] > 0
        assert r["compile_seconds"] >= 0
        assert r["peak_learning_bytes"] > 0 and r["optimizer_bytes"] > 0
        assert set(r["channels_declared"]) <= {c.value for c in Channel}
        assert set(r["floats_per_sample"]) <= {"activity", *r["channels_declared"]}
        assert {len(c) for c in r["curves"].values()} == {2}
        assert r["fingerprint"]["threads"] == 1 and r["versions"]["fflearn"]
    bp, ff, dfa = records[::2]
    assert bp["floats_per_sample"] == {"activity": 8, "transpose": 8}
    assert dfa["floats_per_sample"] == {"activity": 8, "error": 3}
    assert [r["weight_transport"] for r in (bp, ff, dfa)] == ["yes", "no", "no"]
    assert [r["forward_passes"] for r in (bp, dfa)] == [1, 1]
    assert [r["net_as_trained"] == r["net"] for r in (bp, ff, dfa)] == [True, False, True]
    assert (dfa["rule"], dfa["label"], dfa["spec"]["rule"]) == (
        "dfa",
        "dfa[scale=2]",
        "dfa[scale=2]",
    )
    # Adam's two moments of every parameter, in float32
    assert bp["optimizer_bytes"] == 2 * 4 * (4 * 8 + 8 + 8 * 3 + 3)


def test_the_resolved_experiment_is_kept_and_reloads(here):
    compare(out="out", **SMALL)
    kept = Experiment.load("out/experiment.toml")
    assert kept == Experiment.of("", SMALL).resolved(3)
    again = [r.slug(load("blobs.csv").sha256) for r in kept.runs()]
    assert sorted(again) == sorted(p.stem for p in Path("out/records").iterdir())


def test_a_rerun_takes_finished_records_and_trains_nothing(here, monkeypatch):
    first = compare(out="out", **SMALL)
    before = contents(here)
    refuse_to_train(monkeypatch)
    assert compare(out="out", **SMALL) == first
    assert contents(here) == before


def test_a_rerun_with_one_more_seed_trains_that_seed_alone(here, monkeypatch):
    first = compare(out="out", **SMALL)
    seeds, fit = [], comparison.fit
    monkeypatch.setattr(
        comparison, "fit", lambda *a, **named: (seeds.append(named["seed"]), fit(*a, **named))[1]
    )
    more = compare(out="out", **{**SMALL, "seeds": (0, 1, 2)})
    assert seeds == [2, 2, 2]
    assert [r for r in more if r["seed"] < 2] == first


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"spec": {}}', "\0"])
def test_a_damaged_record_is_made_anew(here, text):
    few = {**SMALL, "rules": ("dfa",), "seeds": (0,)}
    (first,) = compare(out="out", **few)
    (path,) = Path("out/records").iterdir()
    path.write_text(text)
    (again,) = compare(out="out", **few)
    assert unmeasured(again) == unmeasured(first) == unmeasured(json.loads(path.read_text()))


def test_without_a_folder_nothing_is_written_and_the_numbers_are_the_same(here):
    before = contents(here)
    plain = compare(**SMALL)
    assert contents(here) == before
    kept = compare(out="out", **SMALL)
    assert [unmeasured(json.loads(json.dumps(r))) for r in plain] == [
        unmeasured(json.loads(json.dumps(r))) for r in kept
    ]


@pytest.mark.slow
def test_two_jobs_give_the_records_of_one(here):
    few = {**SMALL, "rules": ("dfa", "my_rule.py[speed=2]"), "dtype": "float64"}
    one = compare(out="one", jobs=1, **few)
    two = compare(out="two", jobs=2, **few)
    assert [unmeasured(r) for r in two] == [unmeasured(r) for r in one]
    assert sorted(p.name for p in Path("two/records").iterdir()) == sorted(
        p.name for p in Path("one/records").iterdir()
    )


def test_backprop_runs_on_the_adapted_network(here):
    few = {**SMALL, "rules": ("ff",), "seeds": (0,)}
    ff, bp = compare(adapted=True, **few)
    assert (bp["label"], bp["rule"]) == ("backprop@forward_forward", "backprop")
    assert bp["net_as_trained"] == ff["net_as_trained"] != ff["net"] == bp["net"]
    assert bp["channels_declared"] == ["transpose"]


def test_early_stopping_looks_at_the_validation_part_alone(here, monkeypatch):
    data = load("blobs.csv")
    seen, fit = [], comparison.fit

    def spy(engine, given, **named):
        done = fit(engine, given, **named)
        seen.append(done)
        return done

    monkeypatch.setattr(comparison, "fit", spy)
    few = {**SMALL, "rules": ("dfa",), "seeds": (0,), "epochs": 30, "patience": 2, "lr": 0.01}
    (record,) = compare(**few)
    (done,) = seen
    held = data.split_validation()
    assert np.array_equal(done.data.x_test, held.x_test)
    assert record["samples_seen"] == record["epochs"] * len(held.x_train)
    assert record["epochs"] == done.best[1] + 2 < 30
    scores = done.engine.predict(done.state, data.x_test)
    assert record["test_accuracy"] == (scores.argmax(1) == data.y_test).mean()
    assert record["test_n"] == 18


# ---- rules from outside -------------------------------------------------------------------------


def test_a_rule_from_a_file_is_compared_with_its_parameters(here):
    few = {**SMALL, "rules": ("my_rule.py", "my_rule.py[speed=3]", "frozen"), "seeds": (0,)}
    mine, fast, frozen = compare(out="out", settings={"my_rule.py.lr": 0.01}, **few)
    assert (mine["rule"], mine["label"]) == ("my_rule.py", "my_rule.py")
    assert fast["label"] == "my_rule.py[speed=3]"
    assert mine["optimizer"]["lr"] == fast["optimizer"]["lr"] == 0.01
    assert mine["curves"]["loss"] != fast["curves"]["loss"] != frozen["curves"]["loss"]


def test_a_changed_rule_file_is_compared_anew(here):
    few = {**SMALL, "rules": ("my_rule.py",), "seeds": (0,), "optimizer": "sgd"}
    (before,) = compare(out="out", **few)
    Path("my_rule.py").write_text(RULE.replace("self.speed *", "3 * self.speed *"))
    (after,) = compare(out="out", **few)
    assert after["curves"]["loss"] != before["curves"]["loss"]
    assert len(list(Path("out/records").iterdir())) == 2


@pytest.fixture
def entry_point(here, monkeypatch):
    """The rule of my_rule.py as an installed package offers it, under the name "installed"."""
    caches = registry._entry_points, registry.short_names
    monkeypatch.syspath_prepend(here)
    offered = [EntryPoint("installed", "my_rule:Mine", "fflearn.rules")]
    monkeypatch.setattr(registry, "entry_points", lambda group: offered)
    for c in caches:
        c.cache_clear()
    yield
    monkeypatch.undo()
    for c in caches:
        c.cache_clear()


def test_a_rule_of_an_installed_package_is_listed_and_compared(entry_point, say):
    assert "installed" in experiment.available_rules()
    said = say("rules", "--json")
    assert "installed" in [r["name"] for r in json.loads(said.out)]
    few = {**SMALL, "rules": ("installed[speed=2]",), "seeds": (0,)}
    (record,) = compare(out="out", **few)
    assert (record["rule"], record["label"]) == ("installed", "installed[speed=2]")
    run = train(NET, "installed[speed=2]", "blobs.csv", epochs=1, out="run")
    engine, state = restored(f"run/{FINAL}")
    assert engine.rule == run.engine.rule and engine.rule.speed == 2
    x = run.data.x_test
    assert np.array_equal(engine.predict(state, x), run.engine.predict(run.state, x))
    assert train(NET, "installed[speed=2]", "blobs.csv", epochs=1, out="run").finished


# ---- tuning -------------------------------------------------------------------------------------


def test_every_rule_tries_the_same_learning_rates_on_the_validation_part(here, monkeypatch):
    data = load("blobs.csv")
    tried, fit = [], comparison.fit

    def spy(engine, given, **named):
        tried.append((engine.rule.__class__.__name__, given, named, engine.optimizer.lr))
        return fit(engine, given, **named)

    monkeypatch.setattr(comparison, "fit", spy)
    records = compare(tune=3, search="grid", **{**SMALL, "seeds": (4,)})
    trials = [t for t in tried if t[1].name == "blobs-validation"]
    assert len(trials) == 3 * 3 and len(tried) == len(trials) + 3
    for _, given, named, _ in trials:
        assert len(given.x_train) + len(given.x_test) == len(data.x_train)
        test = {row.tobytes() for row in data.x_test}
        assert not test & {row.tobytes() for row in (*given.x_train, *given.x_test)}
        assert (named["epochs"], named["batch_size"], named["seed"]) == (2, 16, 4)
    for r in records:
        assert [t["factor"] for t in r["trials"]] == list(tuning.GRID[:3])
        best = max(t["accuracy"] for t in r["trials"])
        first = next(t for t in r["trials"] if t["accuracy"] == best)
        assert r["optimizer"]["lr"] == first["lr"]
        rule = registry.rule(r["label"])
        lrs = [f * rule.optimizer["lr"] for f in tuning.GRID[:3]]
        assert [t["lr"] for t in r["trials"]] == lrs


def test_tuning_does_not_see_the_test_part(here):
    x, y = blobs(60)
    few = {**SMALL, "rules": ("dfa",), "seeds": (0,), "tune": 4, "search": "grid"}
    found = []
    for sign in (1, -1):
        np.savez("d.npz", x_train=x[:48], y_train=y[:48], x_test=sign * x[48:], y_test=y[48:])
        found += compare(data="d.npz", **{n: v for n, v in few.items() if n != "data"})
    plus, minus = found
    assert plus["data_sha256"] != minus["data_sha256"]
    assert plus["test_accuracy"] != minus["test_accuracy"]
    assert plus["trials"] == minus["trials"] and plus["optimizer"] == minus["optimizer"]


@pytest.mark.parametrize("tune", [0, 1])
def test_without_tuning_the_given_rate_stays_and_no_trial_is_made(here, tune):
    (record,) = compare(tune=tune, **{**SMALL, "rules": ("dfa",), "seeds": (0,)})
    assert record["trials"] == []
    assert record["optimizer"]["lr"] == registry.rule("dfa").optimizer["lr"]


def test_a_learning_rate_that_diverges_loses(here, monkeypatch):
    monkeypatch.setattr(tuning, "GRID", (1.0, 1e38))
    few = {**SMALL, "rules": ("backprop",), "seeds": (0,), "optimizer": "sgd", "lr": 0.1}
    (record,) = compare(tune=2, search="grid", **few)
    assert record["trials"][0]["accuracy"] > 0 and record["trials"][1]["accuracy"] is None
    assert record["optimizer"]["lr"] == 0.1


# ---- against PyTorch ----------------------------------------------------------------------------


@pytest.mark.torch
def test_the_reference_starts_from_the_same_weights_and_sees_the_same_batches():
    ours, theirs = compare(
        rules=["backprop", "torch"],
        seeds=[3],
        epochs=1,
        dtype="float64",
        net="dense 128 tanh | dense 10",
    )
    assert ours["test_accuracy"] == theirs["test_accuracy"] > 0.7
    assert math.isclose(*(r["curves"]["loss"][0] for r in (ours, theirs)), abs_tol=1e-9)
    assert (theirs["kind"], theirs["rule"], ours["kind"]) == ("reference", "torch", "rule")
    for name in ("channels_declared", "floats_per_sample", "forward_passes", "weight_transport"):
        assert ours[name] == theirs[name]


# ---- what is refused ----------------------------------------------------------------------------

MISTAKES = {
    "outputs": ({"net": "dense 8 relu | dense 4"}, ShapeError),
    "one of the rules": ({"rules": ("backprop", "ff[norm=foo]")}, SpecError),
    "hidden layer": ({"net": "dense 3"}, SpecError),
    "batch": ({"batch_size": 73}, DataError),
    "batch of the validation part": ({"batch_size": 70, "patience": 1}, DataError),
    "batch of the tuning": ({"batch_size": 70, "tune": 2, "search": "grid"}, DataError),
    "more than the grid": ({"tune": 10, "search": "grid"}, SpecError),
    "data": ({"data": "missing.csv"}, DataError),
    "field": ({"colour": 3}, SpecError),
    "jobs": ({"jobs": 0}, SpecError),
    "backend": ({"backend": "cuda"}, RuntimeError),
    "dtype": ({"dtype": "float16"}, SpecError),
    "objective": ({"objective": "goodness"}, SpecError),
    "setting": ({"settings": {"dfa.lr": -1}}, SpecError),
    "folder": ({"out": "my_rule.py"}, ValueError),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_show_before_training_and_change_no_file(here, monkeypatch, name):
    compare(out="out", **{**SMALL, "rules": ("dfa",), "seeds": (0,)})
    before = contents(here)
    refuse_to_train(monkeypatch)
    changes, kind = MISTAKES[name]
    with pytest.raises(kind) as caught:
        compare(**{**SMALL, "out": "out", **changes})
    assert isinstance(caught.value, FFLearnError)
    assert contents(here) == before


def test_a_rule_that_breaks_its_word_is_refused_before_another_is_trained(here, monkeypatch):
    text = RULE.replace("bus.update(top", "bus.update(error=out.error, top")
    Path("my_rule.py").write_text(text)  # it declares no channel, and uses one
    refuse_to_train(monkeypatch)
    with pytest.raises(LocalityError, match="error"):
        compare(out="out", **{**SMALL, "rules": ("dfa", "my_rule.py")})
    assert not Path("out").exists()
    with pytest.raises(LocalityError, match="error"):
        train(NET, "my_rule.py", "blobs.csv", out="out")
    assert not Path("out").exists()


def test_a_run_that_diverges_is_named_and_finished_ones_stay(here):
    few = {**SMALL, "rules": ("dfa", "backprop"), "optimizer": "sgd"}
    with pytest.raises(DivergenceError, match="backprop seed 0: "):
        compare(out="out", settings={"backprop.lr": 1e38}, **few)
    assert [json.loads(p.read_text())["rule"] for p in Path("out/records").iterdir()] == ["dfa"] * 2


# ---- the table ----------------------------------------------------------------------------------


def made_up(label, seed, accuracy, **changes):
    record = {
        "label": label,
        "seed": seed,
        "data": "digits",
        "test_n": 359,
        "net": NET,
        "net_as_trained": NET,
        "metrics": {"logits": {"accuracy": accuracy}},
        "train_seconds": 1.25 + seed,
        "peak_learning_bytes": 207_872,
        "floats_per_sample": {"activity": 8.0, "error": 3.0},
        "forward_passes": 1.0,
        "weight_transport": "no",
        "optimizer": {"lr": 0.003},
        "trials": [],
        "fingerprint": {"threads": 2},
    }
    return {**record, **changes}


def test_the_table_is_as_documented():
    adapted = "dense 8 relu norm=rms | dense 3"
    ff = {
        "net_as_trained": adapted,
        "metrics": {"goodness": {"accuracy": 0.9}, "softmax": {"accuracy": 0.95}},
        "floats_per_sample": {"phase": 4.0, "activity": 1280.5},
        "forward_passes": 2.9166666,
        "peak_learning_bytes": 10_529_000,
        "trials": [{"factor": 1.0, "lr": 0.01, "accuracy": 0.9}],
        "optimizer": {"lr": 0.01},
    }
    none = {"floats_per_sample": {}, "weight_transport": "sign"}
    records = [
        made_up("dfa[scale=2]", 0, 0.9, gradient_angles={"0": 60.0, "1": 30.0}),
        made_up("dfa[scale=2]", 1, 0.92, gradient_angles={"0": 50.0, "1": 43.0}),
        made_up("forward_forward", 0, 0.9, **ff),
        made_up("forward_forward", 1, 0.9, **ff | {"peak_learning_bytes": 11_000_000}),
        made_up("x", 0, 1.0, **none),
    ]
    rows = {
        "rule               test accuracy  train s  peak MB  floats across layers / sample": (
            "  forward  angle  transport"
        ),
        "---------------  ---------------  -------  -------  -----------------------------": (
            "  -------  -----  ---------"
        ),
        "dfa[scale=2]     0.9100 ± 0.0141     1.75    0.208  8 activity + 3 error         ": (
            "        1    46°  no"
        ),
        "forward_forward  0.9000 ± 0.0000     1.75   11.000  1280.5 activity + 4 phase    ": (
            "     2.92      -  no"
        ),
        "x                         1.0000     1.25    0.208  none                         ": (
            "        1      -  sign"
        ),
    }
    legend = (
        "digits, 359 test samples, seeds 0, 1. ±: standard deviation over seeds. Train s: training "
        "steps alone, 2 thread(s). Peak MB: arrays kept alive for learning. Angle: mean "
        "over hidden layers between what they learn and the gradient, after training."
    )
    assert table(records).splitlines() == [
        *(left + right for left, right in rows.items()),
        "",
        legend,
        "net: dense 8 relu | dense 3",
        "net as trained by forward_forward: dense 8 relu norm=rms | dense 3",
        "forward_forward, predicting by goodness: 0.9000 ± 0.0000",
        "forward_forward, predicting by softmax: 0.9500 ± 0.0000",
        "forward_forward: learning rate chosen on the validation set: 0.01, 0.01",
    ]


def test_a_table_of_one_seed_has_no_spread():
    lines = table([made_up("dfa", 7, 0.5)]).splitlines()
    assert lines[2].split()[:3] == ["dfa", "0.5000", "8.25"]
    assert lines[4].startswith("digits, 359 test samples, seeds 7. Train s")


def test_times_of_runs_side_by_side_are_no_part_of_the_table():
    alone, beside = made_up("dfa", 0, 0.5), made_up("dfa", 1, 0.5, contended=True)
    assert table([alone, beside]).splitlines()[2].split()[4] == "1.25"
    assert table([beside]).splitlines()[2].split()[2] == "-"


def test_a_table_of_nothing_is_refused():
    with pytest.raises(SpecError, match="no records"):
        table([])


def test_the_table_reads_records_from_their_files(here):
    records = compare(out="out", **SMALL)
    e = replace(Experiment.load("out/experiment.toml"), name="other")
    again = compare(e, out="out")
    assert table(again) == table(records)


# ---- several data sets and networks --------------------------------------------------------------


def test_each_cell_has_its_own_runs_and_table(tmp_path):
    nets = ["dense 8 relu | dense 10", "dense 4 tanh | dense 10"]
    options = {"rules": ["dfa"], "seeds": [0], "epochs": 1}
    records = compare(datasets=["digits"], nets=nets, out=tmp_path, **options)
    assert [r["net"] for r in records] == nets
    for net, record in zip(nets, records, strict=True):
        (alone,) = compare(net=net, **options)
        assert unmeasured(record) == unmeasured(alone)
    tables = table(records).split("\n\nrule")
    assert len(tables) == 2 and nets[0] in tables[0] and nets[1] in tables[1]
    e = Experiment.load(tmp_path / "experiment.toml")
    assert e.nets == tuple(nets) and e.datasets == ("digits",)
    assert compare(e, out=tmp_path) == records  # found, not made again


def test_a_mistake_in_the_last_cell_shows_before_the_first_is_trained(tmp_path):
    with pytest.raises(ShapeError):
        compare(nets=["dense 10", "dense 8 | dense 3"], rules=["dfa"], out=tmp_path)
    assert not list(tmp_path.glob("records/*.json"))


def test_records_say_what_a_budget_left(here):
    (record,) = compare(
        **{**SMALL, "rules": ["dfa"], "seeds": [0], "epochs": 9, "budget_samples": 100}
    )
    assert record["spec"]["budget_samples"] == 100
    assert 100 <= record["samples_seen"] < 100 + record["spec"]["batch_size"]
    assert record["curves"]["epoch"][-1] == record["epochs"] < 9


def test_seconds_are_no_budget_for_runs_side_by_side(here):
    with pytest.raises(SpecError, match="needs the machine to itself"):
        compare(**SMALL, budget_seconds=1.0, jobs=2)
