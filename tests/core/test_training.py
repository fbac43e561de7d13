"""The training loop: curves, callbacks, early stopping, divergence, files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from core_runs import blobs, contents

import fflearn
from fflearn import registry, training
from fflearn.data import Batches, DataSet, load
from fflearn.engine import Engine
from fflearn.errors import (
    BackendUnavailable,
    CheckpointError,
    DataError,
    DivergenceError,
    FFLearnError,
    ShapeError,
    SpecError,
)
from fflearn.optim import SGD, Adam
from fflearn.run_files import CHECKPOINT, FINAL
from fflearn.state import load as load_state
from fflearn.training import restored, score, train

pytestmark = pytest.mark.usefixtures("unsynced")

NET = "dense 8 relu | dense 3"


@pytest.fixture(scope="module")
def data() -> DataSet:
    """72 training samples, 18 for the test."""
    return load(blobs())


def fit(data, rule="backprop", net=NET, epochs=3, **more):
    return train(net, rule, data, **{"epochs": epochs, "batch_size": 16, **more})


def same(a, b):
    """Whether two states hold the same bits."""
    ours, theirs = a.arrays(), b.arrays()
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours
    )


# ---- what a run leaves --------------------------------------------------------------------------


def test_a_run_is_the_engine_stepped_through_the_batches(data):
    run = fit(data, "dfa", seed=5)
    engine = Engine(NET, registry.rule("dfa"), (4,), 3, horizon=(5, 3))
    state, batches = engine.init(5), Batches(data, 16, 5)
    losses = []
    for step in range(15):
        losses.append(float(engine.step(state, batches.batch(step))[0]["loss"]))
    assert same(run.state, state) and run.state.step == state.step == 15
    assert np.allclose(run.curves["loss"], np.reshape(losses, (3, 5)).mean(1), rtol=1e-12)
    assert run.curves["accuracy"][-1] == score(engine, state, data)["accuracy"]
    assert run.finished and run.epoch == 3


def test_curves_have_one_point_per_epoch(data):
    run = fit(data, epochs=4)
    assert run.curves["epoch"] == [1, 2, 3, 4]
    assert {len(c) for c in run.curves.values()} == {4}
    seconds = run.curves["seconds"]
    assert 0 < seconds[0] and seconds == sorted(seconds) and run.train_seconds == seconds[-1]
    assert run.curves["loss"][-1] < run.curves["loss"][0]
    highest = max(run.curves["accuracy"])
    assert run.best == (highest, run.curves["accuracy"].index(highest) + 1)


def test_evaluation_can_be_rarer_and_never_misses_the_end(data):
    curve = fit(data, epochs=5, evaluate_every=2).curves["accuracy"]
    assert [a is None for a in curve] == [True, False, True, False, False]
    curve = fit(data, epochs=3, evaluate_every=99).curves["accuracy"]
    assert [a is None for a in curve] == [True, True, False]


def test_evaluating_changes_nothing(data):
    assert same(fit(data, "ff", epochs=4).state, fit(data, "ff", epochs=4, evaluate_every=9).state)


def test_the_ledger_is_that_of_a_full_batch(data):
    assert fit(data).ledger.batch == 16
    assert fit(data, batch_size=72).ledger.batch == 72


@pytest.mark.parametrize("rule", ["dfa", "dfa[scale=2]", "backprop@ff", "sf"])
def test_rules_are_given_as_the_command_line_writes_them(data, rule):
    run = fit(data, rule)
    variant = registry.parse(rule)
    assert registry.name_of(run.engine.rule) == variant.name
    adapted = "norm=rms" in run.engine.net.spec()
    assert adapted == bool(variant.network_of)
    if not adapted:
        assert same(run.state, fit(data, registry.rule(rule)).state)


@pytest.mark.torch
def test_the_reference_is_trained_by_name(data):
    ours, theirs = fit(data, dtype="float64"), fit(data, "torch", dtype="float64")
    assert type(theirs.engine).__name__ == "TorchEngine"
    assert np.allclose(ours.curves["loss"], theirs.curves["loss"], atol=1e-9, rtol=0)
    assert ours.curves["accuracy"] == theirs.curves["accuracy"]


# ---- callbacks and stopping ---------------------------------------------------------------------


def test_callbacks_see_every_epoch_in_order(data):
    seen = []
    callbacks = (lambda run, n=n: seen.append((n, run.epoch, run.state.step)) for n in "ab")
    fit(data, callbacks=callbacks)
    assert seen == [(n, e, 5 * e) for e in (1, 2, 3) for n in "ab"]


def test_a_callback_stops_the_run_and_the_others_are_still_asked(data, tmp_path):
    seen = []
    callbacks = [lambda run: run.epoch == 2, lambda run: seen.append(run.epoch)]
    run = fit(data, epochs=9, callbacks=callbacks, out=tmp_path)
    assert (run.epoch, run.finished, seen) == (2, True, [1, 2])
    again = fit(data, epochs=9, callbacks=[lambda run: pytest.fail("it trained")], out=tmp_path)
    assert same(again.state, run.state) and again.curves == run.curves


def test_what_a_callback_raises_comes_through(data):
    def broken(run):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(data, callbacks=[broken])


def test_patience_stops_by_the_validation_part(data):
    run = fit(data, epochs=50, patience=3, optimizer=SGD(0.1))
    held = data.split_validation()
    assert np.array_equal(run.data.x_test, held.x_test) and len(run.data.x_train) == 66
    curve = run.curves["accuracy"]
    best = curve.index(max(curve)) + 1
    assert run.best == (max(curve), best)
    assert run.epoch == best + 3 < 50


def test_patience_never_looks_at_the_test_part(data):
    blind = replace(data, x_test=-data.x_test, y_test=data.y_test[::-1])
    runs = [fit(d, epochs=20, patience=2) for d in (data, blind)]
    assert runs[0].curves["accuracy"] == runs[1].curves["accuracy"]
    assert same(runs[0].state, runs[1].state)


def test_without_improvement_patience_counts_from_the_first_epoch(data):
    run = fit(data, epochs=50, patience=4, optimizer=SGD(0.0))
    assert (run.epoch, run.best[1]) == (5, 1)


# ---- silence and progress -----------------------------------------------------------------------


def test_a_quiet_run_says_nothing(data, capfd):
    fit(data, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_is_not_quiet_draws_a_bar_on_a_terminal(data, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fit(data, "dfa", quiet=False)
    out, err = capsys.readouterr()
    assert out == "" and "dfa" in err and "15/15" in err


def test_without_a_terminal_there_is_no_bar(data, capfd):
    fit(data, quiet=False)
    assert capfd.readouterr() == ("", "")


# ---- divergence ---------------------------------------------------------------------------------

EVERY_RULE = [
    name + ("[" + ",".join(f"{n}={v}" for n, v in settings.items()) + "]" if settings else "")
    for name in registry.names()
    for settings in ({}, *registry.rule_class(name).variants.values())
] + [pytest.param("torch", marks=pytest.mark.torch)]


@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_million_times_the_learning_rate_diverges_or_stays_finite(data, rule):
    """A rule whose steps are bounded may stay finite; none may return a number that is not."""
    built = registry.build(registry.parse("backprop" if rule == "torch" else rule))
    lr = 1e6 * built.optimizer["lr"]
    for optimizer in (SGD(lr), Adam(lr)):
        try:
            run = fit(data, rule, optimizer=optimizer, epochs=2)
        except DivergenceError:
            continue
        assert run.state.first_bad() is None and np.isfinite(run.curves["loss"]).all()


@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_divergence_names_layer_and_step_and_keeps_the_last_epoch(data, rule, tmp_path):
    """Epoch 1 is sound; from epoch 2 on the steps are out of all bounds, small gradients or not."""
    seen = []
    optimizer = SGD(0.01, weight_decay=(0.0, 1e3), schedule="step:1:1e40")
    with pytest.raises(DivergenceError) as caught:
        fit(data, rule, optimizer=optimizer, out=tmp_path, callbacks=[seen.append], epochs=4)
    error = caught.value
    assert isinstance(error, ArithmeticError) and isinstance(error, FFLearnError)
    run = seen[0]
    assert error.layer in {"loss", *(spec.name for spec in run.engine.specs)}
    assert f"at step {error.step}" in str(error) and error.layer in str(error)
    assert 5 <= error.step < 20 and run.state.step == 5 * (error.step // 5)
    kept = load_state(tmp_path / CHECKPOINT)
    assert same(run.state, kept) and kept.step == run.state.step
    assert run.state.first_bad() is None and np.isfinite(run.curves["loss"]).all()
    assert not (tmp_path / FINAL).exists()
    engine, state = restored(tmp_path / CHECKPOINT)
    assert np.isfinite(engine.predict(state, data.x_test)).all()
    before = contents(tmp_path)
    with pytest.raises(DivergenceError) as again:  # the same run diverges at the same step
        fit(data, rule, optimizer=optimizer, out=tmp_path, epochs=4)
    assert (again.value.step, again.value.layer) == (error.step, error.layer)
    assert contents(tmp_path) == before


def test_parameters_that_overflow_in_the_last_step_are_found(data):
    """The loss of that step is finite: it was taken before."""
    with pytest.raises(DivergenceError, match="at step 0") as caught:
        fit(data, epochs=1, batch_size=72, optimizer=SGD(1e39))
    assert (caught.value.layer, caught.value.step) == ("0 dense 8 relu", 0)


# ---- files --------------------------------------------------------------------------------------


def test_a_checkpoint_every_epoch_and_a_final_file_at_the_end(data, tmp_path):
    found = []

    def look(run):
        files = {p.name: load_state(p).step for p in tmp_path.iterdir()}
        found.append(files)

    run = fit(data, "ff", out=tmp_path, callbacks=[look])
    assert found == [{}, {CHECKPOINT: 5}, {CHECKPOINT: 10}]
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, FINAL]
    for name in (CHECKPOINT, FINAL):
        assert same(load_state(tmp_path / name), run.state)
        assert load_state(tmp_path / name).step == 15


def test_a_finished_run_is_returned_and_its_files_stay(data, tmp_path):
    run = fit(data, "ff", out=tmp_path)
    before = contents(tmp_path)
    again = fit(data, "ff", out=tmp_path, callbacks=[lambda run: pytest.fail("it trained")])
    assert contents(tmp_path) == before
    assert same(run.state, again.state) and run.curves == again.curves and again.finished
    assert (run.best, run.ledger, run.epoch) == (again.best, again.ledger, again.epoch)
    assert run.compile_seconds == again.compile_seconds


def test_checkpoints_can_be_spaced_in_time(data, tmp_path):
    engine = Engine(NET, registry.rule("dfa"), (4,), 3)
    options = {"epochs": 3, "batch_size": 16, "seed": 0, "out": tmp_path}
    training.fit(engine, data, save_every_seconds=1e9, **options)
    assert [p.name for p in tmp_path.iterdir()] == [FINAL]


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "dfa"},
        {"rule": "ff[negatives=wrong]"},
        {"net": "dense 9 relu | dense 3"},
        {"epochs": 4},
        {"batch_size": 8},
        {"seed": 1},
        {"patience": 2},
        {"optimizer": SGD(0.5)},
        {"optimizer": Adam(weight_decay=(0.1, 0.2))},
        {"dtype": "float64"},
        {"objective": "mse"},
        {"backend": "reference"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kept", [CHECKPOINT, FINAL])
def test_another_run_is_not_continued_and_its_files_stay(data, tmp_path, changes, kept):
    fit(data, "ff", out=tmp_path)
    for path in set(tmp_path.iterdir()) - {tmp_path / kept}:
        path.unlink()
    before = contents(tmp_path)
    (name,) = changes
    word = {"rule": "rule|params"}.get(name, name)
    with pytest.raises(CheckpointError, match=f"belongs to a run with another .*({word})"):
        fit(data, **{"rule": "ff", "out": tmp_path, **changes})
    assert contents(tmp_path) == before


def test_other_data_is_another_run(data, tmp_path):
    fit(data, out=tmp_path)
    x, y = blobs()
    with pytest.raises(CheckpointError, match="data_sha256"):
        fit(load((x + 1, y)), out=tmp_path)


def test_a_changed_rule_file_is_another_run(here, data):
    fit(data, "my_rule.py", out="out")
    Path("my_rule.py").write_text(Path("my_rule.py").read_text() + "\n# changed\n")
    with pytest.raises(CheckpointError, match="rule_sha256"):
        fit(data, "my_rule.py", out="out")


def test_whole_numbers_of_numpy_are_whole_numbers(data, tmp_path):
    two, five = np.int64(2), np.int32(5)
    run = fit(data, epochs=two, batch_size=five, seed=two, out=tmp_path)
    assert same(fit(data, epochs=2, batch_size=5, seed=2, out=tmp_path).state, run.state)


def test_a_thread_more_is_the_same_run(data, tmp_path):
    run = fit(data, out=tmp_path)
    assert same(fit(data, out=tmp_path, threads=2).state, run.state)


@pytest.mark.parametrize("size", [0, 1, 8, 100, 0.5, 0.99])
@pytest.mark.parametrize("kept", [CHECKPOINT, FINAL])
def test_a_truncated_file_is_refused_and_stays(data, tmp_path, size, kept):
    fit(data, out=tmp_path)
    for path in set(tmp_path.iterdir()) - {tmp_path / kept}:
        path.unlink()
    blob = (tmp_path / kept).read_bytes()
    (tmp_path / kept).write_bytes(blob[: int(size * len(blob)) if size < 1 else size])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="damaged"):
        fit(data, out=tmp_path)
    with pytest.raises(CheckpointError):
        restored(tmp_path / kept)
    assert contents(tmp_path) == before


def resaved(path, change):
    """Write a state again after ``change`` of its description."""
    state = load_state(path)
    change(state.meta)
    state.save(path)


DAMAGE = {
    "no run": lambda m: m.pop("run"),
    "a run that is no table": lambda m: m.update(run=[1]),
    "no rule": lambda m: m["run"].pop("rule"),
    "params": lambda m: m["run"].update(params=3),
    "optimizer": lambda m: m["run"].update(optimizer={"lr": 1}),
    "an optimizer setting": lambda m: m["run"]["optimizer"].update(lr="x"),
    "net": lambda m: m["run"].update(net=3),
    "another net": lambda m: m["run"].update(net="dense 9 relu | dense 3"),
    "shape": lambda m: m["run"].update(in_shape=3),
    "classes": lambda m: m["run"].update(n_classes="3"),
    "names": lambda m: m["run"].update(classes=["a"]),
    "no names": lambda m: m["run"].pop("classes"),
    "dtype": lambda m: m["run"].update(dtype=[]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_description_that_makes_no_sense_is_refused(data, tmp_path, damage):
    fit(data, out=tmp_path)
    resaved(tmp_path / FINAL, DAMAGE[damage])
    with pytest.raises(FFLearnError):
        restored(tmp_path / FINAL)
    with pytest.raises(CheckpointError):
        fit(data, out=tmp_path)


@pytest.mark.parametrize("progress", [None, {}, {"curves": {}}, 3])
def test_a_checkpoint_without_progress_is_refused(data, tmp_path, progress):
    fit(data, out=tmp_path)
    resaved(
        tmp_path / FINAL,
        lambda m: m.pop("progress") if progress is None else m.update(progress=progress),
    )
    with pytest.raises(CheckpointError, match="damaged: its progress"):
        fit(data, out=tmp_path)


def test_a_second_process_is_kept_out_of_the_folder(data, tmp_path):
    pytest.importorskip("fcntl")

    def second(run):
        if run.epoch == 1:
            with pytest.raises(CheckpointError, match="another process trains into"):
                fit(data, out=tmp_path)

    run = fit(data, out=tmp_path, callbacks=[second])
    assert same(fit(data, out=tmp_path).state, run.state)  # and let in afterwards


def test_a_run_that_failed_lets_go_of_the_folder(data, tmp_path):
    def broken(run):
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fit(data, out=tmp_path, callbacks=[broken])
    assert fit(data, out=tmp_path).finished


def test_what_a_killed_process_left_half_written_is_removed(data, tmp_path):
    (tmp_path / f".{CHECKPOINT}.abc").write_bytes(b"half")
    (tmp_path / f".{FINAL}.abc").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("stays")
    fit(data, out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, FINAL, "mine.txt"]


# ---- what is refused ----------------------------------------------------------------------------

X, Y = blobs(30)
MISTAKES = [
    ({"epochs": 0}, SpecError),
    ({"epochs": 2.5}, SpecError),
    ({"epochs": True}, SpecError),
    ({"patience": -1}, SpecError),
    ({"evaluate_every": 0}, SpecError),
    ({"batch_size": 0}, DataError),
    ({"batch_size": 73}, DataError),
    ({"batch_size": 70, "patience": 1}, DataError),
    ({"seed": -1}, SpecError),
    ({"seed": 1.5}, SpecError),
    ({"threads": 0}, SpecError),
    ({"dtype": "float16"}, SpecError),
    ({"backend": "cuda"}, BackendUnavailable),
    ({"objective": "mes"}, SpecError),
    ({"rule": "dfaa"}, SpecError),
    ({"rule": "dfa[scale=x]"}, SpecError),
    ({"rule": "torch[x=1]"}, SpecError),
    ({"net": "dense 8 relu | dense 4"}, ShapeError),
    ({"net": "dens 8"}, SpecError),
    ({"rule": "ff", "net": "dense 3"}, SpecError),
    ({"data": "missing.csv"}, DataError),
    ({"data": (X * math.nan, Y)}, DataError),
    ({"data": (X + math.inf, Y)}, DataError),
    ({"data": (X[:0], Y[:0])}, DataError),
    ({"data": (X, Y[:-1])}, DataError),
    ({"data": (X, Y * 0)}, DataError),
    ({"data": (X, Y + 0.5)}, ShapeError),  # one number to predict, three outputs
    ({"data": (X, Y + 0.5), "objective": "softmax_cross_entropy"}, SpecError),
    ({"data": (X, Y + 0.5), "rule": "ff", "net": "dense 8 relu | dense 1"}, SpecError),
    ({"data": (X.astype(str), Y)}, DataError),
    ({"data": (X[:, 0], Y)}, DataError),
    ({"data": (X, X)}, ShapeError),
]


@pytest.mark.parametrize(("changes", "kind"), MISTAKES)
def test_mistakes_are_refused_before_a_file_is_made(data, tmp_path, changes, kind):
    with pytest.raises(kind) as caught:
        fit(**{"data": data, "out": tmp_path / "out", **changes})
    assert isinstance(caught.value, FFLearnError)
    assert isinstance(caught.value, (ValueError, RuntimeError))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(here, data, out):
    Path("file").write_text("mine")
    before = contents(here)
    with pytest.raises(CheckpointError, match="cannot be written"):
        fit(data, out=out, callbacks=[lambda run: pytest.fail("it trained")])
    assert contents(here) == before


def test_train_is_public():
    assert fflearn.train is train


# ---- budgets -----------------------------------------------------------------------------------------


def test_a_budget_of_samples_ends_the_run_within_an_epoch(data):
    steps, budget = data.batches(16, 0).steps_per_epoch, training.Budget(samples=16 * 7)
    run = fit(data, epochs=5, budget=budget)
    # 72 samples in an epoch of 4 1/2 batches: 104 after 7 steps, 120 after 8.
    assert run.state.step == 8 > steps and run.samples == 120 and run.finished
    assert run.curves["epoch"] == [1, 8 / steps]
    assert len(run.curves["accuracy"]) == 2 and run.curves["accuracy"][-1] is not None
    assert same(run.state, fit(data, epochs=5, budget=budget).state)


def test_a_budget_does_not_change_what_is_learned_before_it_ends(data):
    whole = fit(data, epochs=2)
    assert same(whole.state, fit(data, epochs=2, budget=training.Budget(samples=1e9)).state)


def test_a_budget_of_seconds_counts_training_alone(data, monkeypatch):
    now = iter(np.arange(1e5) / 4)  # a quarter of a second between any two looks at the clock
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(now)))
    run = fit(data, epochs=50, budget=training.Budget(seconds=1.6))
    assert run.state.step == 7 and run.train_seconds == pytest.approx(1.75)


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"samples": -1}, {"seconds": math.nan}])
def test_a_budget_of_nothing_is_refused(wrong):
    with pytest.raises(SpecError, match="a budget needs"):
        training.Budget(**wrong)


def test_another_budget_is_another_run(data, tmp_path):
    fit(data, epochs=3, out=tmp_path, budget=training.Budget(samples=40))
    with pytest.raises(CheckpointError, match="another budget"):
        fit(data, epochs=3, out=tmp_path, budget=training.Budget(samples=80))
