"""From the data to the table: numbers to predict, and what suits text, graphs and sequences."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from core_runs import contents

from fflearn import comparison, tuning
from fflearn.comparison import compare, table
from fflearn.data import AddingTask, load
from fflearn.data.graphs import GraphData
from fflearn.data.text import from_text
from fflearn.errors import CheckpointError, SpecError
from fflearn.experiment import Experiment, available_rules
from fflearn.optim import SGD
from fflearn.registry import REFERENCE
from fflearn.registry import rule as rule_by_name
from fflearn.run_files import FINAL
from fflearn.training import restored, train

NET = "dense 12 tanh | dense 1"
SMALL = {"net": NET, "epochs": 2, "batch_size": 16, "seeds": (0, 1), "rules": ("dfa", "backprop")}


@pytest.fixture
def house(here):
    """house.csv: three features and a linear target, 96 rows to train on and 24 for the test."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))
    y = x @ [1.0, -2.0, 0.5] + 10
    rows = [",".join(f"{v:.6f}" for v in (*r, t)) for r, t in zip(x, y, strict=True)]
    Path("house.csv").write_text("\n".join(["a,b,c,target", *rows]))
    return x, y


# ---- numbers --------------------------------------------------------------------------------------


def test_a_record_of_numbers_has_their_scores(house):
    records = compare(data="house.csv", out="out", **SMALL)
    data = load("house.csv")
    for r in records:
        (found,) = r["metrics"].values()
        assert r["measures"] == ["r2", "rmse", "mae"] == list(found)
        assert r["test_r2"] == found["r2"] and "test_accuracy" not in r and r["accuracies"] == {}
        assert len(r["curves"]["r2"]) == 2 and r["spec"]["objective"] == "mse"
        assert r["test_n"] == 24 and r["data_sha256"] == data.sha256
    run = train(NET, "dfa", "house.csv", epochs=2, batch_size=16)
    predicted = run.engine.predict(run.state, data.x_test)
    rmse = float(np.sqrt(((predicted - data.y_test) ** 2).mean()))
    assert records[0]["metrics"]["logits"]["rmse"] == pytest.approx(rmse)
    assert run.curves["r2"][-1] == records[0]["test_r2"]
    kept = Experiment.load("out/experiment.toml")
    assert (kept.objective, kept.net) == ("mse", NET)


def test_the_table_shows_all_scores_of_numbers(house):
    lines = table(compare(data="house.csv", **SMALL)).splitlines()
    assert lines[0].split("  ")[0] == "rule"
    assert " test r2 " in lines[0] and " test rmse " in lines[0] and " test mae " in lines[0]
    assert lines[2].startswith("dfa") and lines[2].count("±") == 3


def test_early_stopping_and_tuning_go_by_r_squared(house, monkeypatch):
    # Targets far from 0: R squared starts below -1, and must still be a best so far.
    run = train(NET, "backprop", "house.csv", epochs=40, patience=3, optimizer=SGD(1e-4))
    curve = run.curves["r2"]
    assert curve[0] < -1 and run.best[0] == max(curve) > curve[0] and run.epoch > 4
    monkeypatch.setattr(tuning, "GRID", (1.0, 30.0, 1e38))
    few = {**SMALL, "rules": ("backprop",), "seeds": (0,), "optimizer": "sgd", "lr": 1e-4}
    (record,) = compare(data="house.csv", tune=3, search="grid", **few)
    slow, fast, diverged = record["trials"]
    assert slow["r2"] < fast["r2"] and diverged["r2"] is None
    assert record["optimizer"]["lr"] == fast["lr"]


def test_every_rule_that_needs_classes_is_left_out_of_a_default_comparison(house, say):
    with pytest.warns(UserWarning) as caught:
        records = compare(data="house.csv", net=NET, epochs=1, seeds=[0], optimizer="adam")
    rules = [r for r in available_rules() if r != REFERENCE]
    refusing = {r for r in rules if rule_by_name(r).needs_classes}
    told = {str(w.message).split(" ")[0] for w in caught if "is left out" in str(w.message)}
    assert {"forward_forward", "single_forward"} <= refusing <= told
    assert {r["rule"] for r in records} == set(available_rules()) - told
    assert {"backprop", "dfa", "fa", "frozen", "sign_symmetry"} <= {r["rule"] for r in records}


def test_a_rule_that_was_named_is_never_left_out(house):
    with pytest.raises(SpecError, match="ForwardForward learns from classes"):
        compare(data="house.csv", **{**SMALL, "rules": ("dfa", "ff")})
    with pytest.raises(SpecError, match="softmax_cross_entropy compares with classes"):
        compare(data="house.csv", objective="softmax_cross_entropy", **SMALL)


def test_where_no_rule_fits_the_first_says_why(here, monkeypatch):
    monkeypatch.setattr(comparison, "fit", lambda *a, **k: pytest.fail("it trained"))
    before = contents(here)
    with pytest.raises(ValueError, match="Backprop needs a network that ends in one output per"):
        compare(data="blobs.csv", net="dense 4", out="out")
    assert contents(here) == before


@pytest.mark.filterwarnings("always::UserWarning")
def test_what_is_left_out_is_a_line_on_stderr(house, say):
    said = say(
        "compare", "--data", "house.csv", "--net", NET, "--epochs", 1, "--seeds", 1, "--lr", "1e-3"
    )
    lines = said.err.splitlines()
    assert said.code == 0 and all(line.startswith("fflearn: ") for line in lines)
    assert any(line.startswith("fflearn: single_forward is left out: ") for line in lines)
    assert "test r2" in said.out.splitlines()[0]


def test_numbers_are_predicted_into_a_file(house, say):
    x, y = house
    words = ("--data", "house.csv", "--net", NET, "--epochs", 30, "--out", "run", "--quiet")
    said = say("train", *words, "--rule", "backprop", "--lr", "0.03")
    assert said.code == 0 and "test r2 by logits 0.9" in said.out
    head, *rows = csv.reader(say("predict", f"run/{FINAL}", "house.csv").out.splitlines())
    predicted = np.array(rows, float)
    assert head == ["prediction_0"] and predicted.shape == (120, 1)
    engine, state = restored(f"run/{FINAL}")
    assert (engine.task, engine.n_classes) == ("regression", 1)
    np.testing.assert_allclose(predicted, engine.predict(state, np.round(x, 6)), rtol=1e-6)
    assert np.abs(predicted[:, 0] - y).mean() < 1
    # The same table as classes is another run.
    with pytest.raises(CheckpointError, match="another .*task"):
        whole = (x, np.arange(120) % 2)
        train("dense 12 tanh | dense 2", "backprop", whole, epochs=30, out="run")


def test_whole_numbers_are_predicted_where_told(here, say):
    x = np.arange(60.0).reshape(30, 2)
    rows = [f"{a},{b},{int(a + b)}" for a, b in x]
    Path("ages.csv").write_text("\n".join(["u,v,age", *rows]))
    words = ("--data", "ages.csv", "--rules", "backprop", "--seeds", 1, "--epochs", 1)
    words += ("--batch-size", 8)
    assert "type task=regression" in say("compare", *words).err
    said = say("compare", *words, "--task", "regression", "--out", "out")
    assert (said.code, said.err) == (0, "")
    assert Experiment.load("out/experiment.toml").task == "regression"
    assert "test r2" in said.out


# ---- what suits the data --------------------------------------------------------------------------


def a_graph():
    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    return GraphData(
        name="toy",
        x=rng.normal(size=(30, 4)) + np.eye(3, 4)[y],
        y=y,
        edges=rng.integers(0, 30, (60, 2)),
        n_classes=3,
        train=np.arange(15),
        validation=np.arange(15, 20),
        test=np.arange(20, 30),
    )


STORY = from_text("story", "to be or not to be, that is the question. " * 20, length=8)


@pytest.mark.parametrize(
    ("data", "net", "measures"),
    [
        ("digits", "dense 256 relu | dense 256 relu | dense 10", ("accuracy",)),
        ("copy", "lstm 64 last=false | dense 9 places=1", ("accuracy", "sequence_accuracy")),
        ("adding:5", "lstm 64 | dense 1", ("r2", "rmse", "mae")),
        ("row-digits", "lstm 64 | dense 10", ("accuracy",)),
        (a_graph(), "graph_conv 16 relu | graph_conv 3", ("accuracy",)),
        (STORY, "embed 15 64 | position | block(residual(layer_norm", ("accuracy", "perplexity")),
    ],
)
def test_the_network_is_that_of_the_kind_of_data(data, net, measures):
    loaded = load(data)
    e = Experiment(rules=("dfa",)).resolved(loaded.n_classes, loaded.net, loaded.task)
    assert e.net.startswith(net) and loaded.measures == measures


@pytest.mark.parametrize(("data", "net"), [(a_graph(), "gcn width=5"), (STORY, STORY.net)])
def test_a_named_network_takes_its_outputs_from_the_data(data, net):
    for rule in ("dfa", "backprop@dfa"):
        run = train(net, rule, data, epochs=1, batch_size=8)
        assert run.engine.out_shape[-1] == data.n_classes
        assert math.isfinite(run.curves["accuracy"][-1])


def test_text_is_compared_with_what_suits_it_at_a_length(here, say):
    Path("story.txt").write_text("to be or not to be, that is the question. " * 8)
    words = ("--data", "story.txt:8", "--rules", "dfa,frozen", "--epochs", 1, "--seeds", 1)
    said = say("compare", *words, "--net", "gpt-nano width=8 depth=1 heads=2", "--out", "out")
    assert (said.code, said.err) == (0, "")
    assert "test perplexity" in said.out and "story:8, " in said.out
    kept = json.loads(next(Path("out/records").iterdir()).read_text())
    assert kept["data"] == "story:8" and kept["net"].startswith("embed 15 8 | position | block(")


@pytest.mark.slow
def test_an_lstm_adds():
    data = AddingTask(length=10, n_train=8192)
    run = train("lstm", "backprop", data, epochs=6, batch_size=32)
    assert run.curves["r2"][-1] > 0.9
