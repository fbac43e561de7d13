"""The command line: what each command prints, and one line for every mistake."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from core_runs import ROOT, contents, spawn

from fflearn import __version__, cli, comparison, registry, training
from fflearn.experiment import Experiment
from fflearn.run_files import CHECKPOINT, FINAL
from fflearn.state import load as load_state
from fflearn.zoo import NETWORKS

NET = ("--net", "dense 8 relu | dense 3")
SMALL = ("--data", "blobs.csv", *NET, "--epochs", 2, "--batch-size", 16, "--quiet")


def compare(*words):
    return ("compare", *SMALL, "--seeds", 2, "--rules", "dfa,backprop", "--out", "out", *words)


def train(*words):
    return ("train", *SMALL, "--rule", "dfa", "--out", "run", *words)


# ---- compare ------------------------------------------------------------------------------------


def test_compare_prints_a_table_and_the_path_of_its_records(here, say):
    said = say(*compare())
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert re.split(r"  +", lines[0]) == ["rule", "test accuracy", *comparison.COLUMNS]
    assert [line.split()[0] for line in lines[2:4]] == ["dfa", "backprop"]
    assert lines[-1] == "records: out/records"
    assert len(list(Path("out/records").glob("*.json"))) == 4


def test_the_same_command_again_prints_the_same_and_trains_nothing(here, say, monkeypatch):
    first = say(*compare())
    before = contents(here)
    monkeypatch.setattr(comparison, "fit", lambda *a, **k: pytest.fail("it trained"))
    assert say(*compare()) == first
    assert contents(here) == before


def test_every_option_reaches_the_experiment(here, say):
    said = say(
        *("compare", "--name", "mine", "--data", "blobs.csv", *NET, "--rules", "dfa,ff[peer=0.1]"),
        *("--epochs", 1, "--batch-size", 16, "--seeds", "3,1", "--lr", 0.01),
        *("--optimizer", "sgd", "--momentum", 0.5, "--weight-decay", "0.01,0.001"),
        *("--schedule", "cosine", "--objective", "mse", "--patience", 2, "--evaluate-every", 2),
        *("--task", "classification"),
        *(
            "--tune",
            2,
            "--search",
            "grid",
            "--adapted",
            "--backend",
            "reference",
            "--dtype",
            "float64",
        ),
        *("--threads", 2, "--set", "dfa.scale=2", "--set", "ff.lr=0.001", "--out", "o/p"),
    )
    assert (said.code, said.err) == (0, "")
    assert Experiment.load("o/p/experiment.toml") == Experiment(
        name="mine",
        data="blobs.csv",
        rules=("dfa", "ff[peer=0.1]"),
        net=NET[1],
        epochs=1,
        seeds=(3, 1),
        batch_size=16,
        objective="mse",
        task="classification",
        lr=0.01,
        momentum=0.5,
        weight_decay=(0.01, 0.001),
        optimizer="sgd",
        schedule="cosine",
        settings={"dfa.scale": 2, "ff.lr": 0.001},
        tune=2,
        search="grid",
        adapted=True,
        patience=2,
        evaluate_every=2,
        backend="reference",
        dtype="float64",
        threads=2,
    )
    records = [json.loads(p.read_text()) for p in Path("o/p/records").iterdir()]
    assert {r["label"] for r in records} == {
        "dfa",
        "forward_forward[peer=0.1]",
        "backprop@forward_forward[peer=0.1]",
    }
    dfa = next(r for r in records if r["rule"] == "dfa")
    assert dfa["spec"]["rule"] == "dfa[scale=2]"


def test_a_recipe_is_the_experiment_and_options_replace_its_fields(here, say):
    Path("r.toml").write_text(
        'data = "blobs.csv"\nnet = "dense 3"\nrules = ["dfa"]\nepochs = 9\nseeds = [1]\n'
        'batch_size = 16\n[settings]\n"dfa.lr" = 0.5\n"dfa.scale" = 2.0\n'
    )
    said = say("compare", "r.toml", "--epochs", 1, "--set", "dfa.lr=0.25", "--out", "out")
    assert (said.code, said.err) == (0, "")
    kept = Experiment.load("out/experiment.toml")
    assert (kept.name, kept.net, kept.epochs, kept.seeds) == ("r", "dense 3", 1, (1,))
    assert kept.settings == {"dfa.lr": 0.25, "dfa.scale": 2.0}
    again = say("compare", "out/experiment.toml", "--name", "r", "--out", "out")
    assert again.out == said.out and len(list(Path("out/records").iterdir())) == 1


def test_a_setting_of_a_variant_can_be_typed(here, say):
    rules = ("--rules", "dfa[scale=2],dfa", "--set", "dfa[scale=2].lr=0.5")
    assert say(*compare(*rules)).code == 0
    records = [json.loads(p.read_text()) for p in Path("out/records").iterdir()]
    assert {(r["label"], r["optimizer"]["lr"]) for r in records} == {
        ("dfa[scale=2]", 0.5),
        ("dfa", registry.rule("dfa").optimizer["lr"]),
    }


def test_none_can_be_typed_and_goes_through_the_file(here, say):
    words = ("--rules", "ff", "--seeds", 1, "--set", "ff.theta=none")
    assert say(*compare(*words)).code == 0
    (record,) = (json.loads(p.read_text()) for p in Path("out/records").iterdir())
    assert record["spec"]["rule"] == "forward_forward[theta=none]"
    assert Experiment.load("out/experiment.toml").settings == {"ff.theta": "none"}


def test_the_default_folder_is_printed(here, say):
    said = say("compare", *SMALL, "--seeds", 1, "--rules", "frozen", "--name", "mine")
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-mine")
    assert said.out.splitlines()[-1] == f"records: runs/{folder.name}/records"


def test_stopping_says_how_to_go_on(here, say, monkeypatch):
    def stop(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "fit", stop)
    said = say(*compare())
    assert (said.code, said.out) == (130, "")
    assert said.err == "fflearn: stopped; the same command with --out out goes on\n"
    monkeypatch.setattr(cli, "_rules", stop)
    assert say("rules") == (130, "", "fflearn: stopped\n")


def test_divergence_is_one_line_and_exit_code_1(here, say):
    said = say(*compare("--optimizer", "sgd", "--lr", "1e38", "--rules", "backprop"))
    assert said.code == 1 and said.out == ""
    assert re.fullmatch(r"fflearn: backprop seed 0: .* is not finite at step \d+.*\n", said.err)


def test_too_little_memory_is_one_line(here, say):
    said = say(*compare("--net", "dense 99999999999999 | dense 3"))
    assert said.code == 2 and said.err.startswith("fflearn: not enough memory: ")
    assert said.err.count("\n") == 1 and not Path("out").exists()


# ---- train and predict --------------------------------------------------------------------------


def test_train_writes_its_two_files_and_says_how_well_it_did(here, say):
    said = say(*train("--seed", 3))
    assert (said.code, said.err) == (0, "")
    assert sorted(p.name for p in Path("run").iterdir()) == [CHECKPOINT, FINAL]
    assert load_state(f"run/{FINAL}").seed == 3
    first, second = said.out.splitlines()
    assert first == f"finished: run/{FINAL}"
    assert re.fullmatch(r"dfa on blobs, 2 epochs, test accuracy by logits [01]\.\d{4}", second)


def test_train_again_reports_that_it_is_finished(here, say):
    first = say(*train())
    before = contents(here)
    again = say(*train())
    assert again.out == f"already {first.out}" and again.code == 0
    assert contents(here) == before


def test_train_goes_on_where_it_stopped(here, say, monkeypatch):
    say(*train("--out", "whole"))
    evaluate = training._evaluate

    def stop(run, force):
        if run.epoch == 2:
            raise KeyboardInterrupt
        evaluate(run, force)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_evaluate", stop)
        said = say(*train())
    assert (said.code, said.err) == (
        130,
        "fflearn: stopped; the same command with --out run goes on\n",
    )
    assert [p.name for p in Path("run").iterdir()] == [CHECKPOINT]
    assert say(*train()).out.startswith("finished")
    a, b = (load_state(f"{folder}/{FINAL}").arrays() for folder in ("whole", "run"))
    assert all(np.array_equal(a[n], b[n]) for n in a)


def test_train_without_a_folder_makes_one_of_its_own(here, say):
    words = ("train", *SMALL, "--rule", "ff[negatives=wrong]", "--seed", 2)
    said = say(*words)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("blobs-forward_forward_negatives=wrong-seed2-")
    assert said.out.splitlines()[0] == f"finished: runs/{folder.name}/{FINAL}"
    assert say(*words).out.startswith("already finished")


def test_train_takes_the_options_of_compare(here, say):
    options = ("--optimizer", "sgd", "--lr", 0.5, "--momentum", 0.5, "--set", "dfa.scale=2")
    more = ("--patience", 1, "--epochs", 30, "--dtype", "float64", "--objective", "mse")
    assert say(*train(*options, *more)).code == 0
    run = load_state(f"run/{FINAL}").meta["run"]
    assert run["params"]["scale"] == 2 and run["dtype"] == "float64" and run["patience"] == 1
    assert (run["optimizer"]["name"], run["optimizer"]["momentum"]) == ("sgd", 0.5)


def test_predict_writes_labels_and_scores(here, say):
    say(*train("--rule", "ff"))
    said = say("predict", f"run/{FINAL}", "blobs.csv")
    assert (said.code, said.err) == (0, "")
    head, *rows = csv.reader(said.out.splitlines())
    assert head == ["label", "score_a", "score_b", "score_c"] and len(rows) == 90
    for label, *scores in rows:
        assert label == "abc"[np.argmax([float(s) for s in scores])]
    written = say("predict", f"run/{FINAL}", "blobs.csv", "--out", "sub/scores.csv")
    assert written.out == "written: sub/scores.csv\n"
    assert Path("sub/scores.csv").read_text() == said.out
    other = say("predict", f"run/{FINAL}", "blobs.csv", "--by", "softmax")
    assert other.code == 0 and other.out != said.out


def test_a_rule_from_a_file_goes_all_the_way(here, say):
    rule = "./my_rule.py[speed=2]"
    assert say(*compare("--rules", f"{rule},dfa", "--set", "./my_rule.py.lr=0.1")).code == 0
    assert say(*train("--rule", rule)).code == 0
    (Path("run") / FINAL).unlink()
    assert say(*train("--rule", rule)).out.startswith("finished")
    os.chdir("out")
    said = say("predict", f"../run/{FINAL}", "../blobs.csv")
    assert said.code == 0 and len(said.out.splitlines()) == 91
    other = spawn("predict", f"../run/{FINAL}", "../blobs.csv")
    assert (other.code, other.out) == (0, said.out)


# ---- rules, check, doctor -----------------------------------------------------------------------


def test_rules_lists_every_rule_and_the_reference(say):
    found = json.loads(say("rules", "--json").out)
    assert [r["name"] for r in found] == [*registry.names(), "torch"]
    keys = {"name", "kind", "summary", "short", "channels", "weight_transport", "citation"}
    keys |= {"parameters", "variants", "optimizer"}
    assert all(set(r) == keys for r in found)
    assert [r["name"] for r in found if r["kind"] == "reference"] == ["torch"]
    backprop = next(r for r in found if r["name"] == "backprop")
    assert (backprop["channels"], backprop["weight_transport"]) == (["transpose"], "yes")
    text = say("rules").out
    for r in found:
        assert f"\n{r['name']} " in f"\n{text}" and r["citation"] in text


def test_networks_are_listed_and_spelled_out(say):
    said = say("networks")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(NETWORKS)
    assert "options: width=64, depth=1, last=true" in said.out
    one = say("networks", "gcn width=8", "--classes", 7)
    assert one == (0, "graph_conv 8 relu | graph_conv 7\n", "")
    assert say("networks", "vgg9").err.startswith("fflearn: layer 0 is of the unknown kind 'vgg9'")


def test_short_names_are_accepted_and_full_ones_shown(here, say):
    said = say(*compare("--rules", "bp,ff,direct_feedback_alignment", "--seeds", 1))
    rows = said.out.splitlines()[2:5]
    assert [r.split()[0] for r in rows] == ["backprop", "forward_forward", "dfa"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("dfaa", "dfa"), ("back_prop", "backprop"), ("forwardforward", "forward_forward")],
)
def test_an_unknown_rule_is_answered_with_the_nearest(here, say, typed, meant):
    said = say(*compare("--rules", typed))
    assert said.code == 2 and re.search(rf"Did you mean .*\b{meant}\b", said.err)


def test_check_puts_a_rule_through_the_shared_tests(say, monkeypatch):
    from fflearn import locality

    monkeypatch.setattr(locality, "check", lambda rule: [("a", "ok"), ("b", "too fast")])
    said = say("check", "dfa")
    assert said == (1, "ok    a\nFAIL  b: too fast\n1 of 2 checks passed\n", "")
    monkeypatch.setattr(locality, "check", lambda rule: [("a", "ok")])
    assert say("check", "dfa").code == 0


def test_doctor_speaks_both_ways(say):
    found = json.loads(say("doctor", "--json").out)
    assert found["backends"]["numba"] == "ok"
    said = say("doctor")
    assert said.code == 0 and "backend    numba: ok" in said.out.splitlines()


def test_help_and_version(say):
    for words in (["--help"], ["compare", "--help"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            say(*words)
        assert stopped.value.code == 0


def test_version_and_module(here):
    assert spawn("--version") == (0, f"fflearn {__version__}\n", "")


@pytest.mark.parametrize("words", [["rules"], ["rules", "--json"]], ids=" ".join)
def test_a_reader_that_went_away_is_no_mistake(here, words):
    """As in ``fflearn rules | head``, whether or not the output fills Python's buffer."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fflearn", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=100,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- mistakes -----------------------------------------------------------------------------------


def broken_data():
    """Files that are no data, and what is wrong with them."""
    good = Path("blobs.csv").read_text()
    line = good.splitlines()[5]
    cells = line.split(",")
    for name, row in {
        "nan": ["nan", *cells[1:]],
        "inf": ["-inf", *cells[1:]],
        "string": ["far", *cells[1:]],
        "gap": ["", *cells[1:]],
        "nolabel": [*cells[:-1], ""],
        "ragged": cells[:-1],
        "huge": ["1e39", *cells[1:]],
    }.items():
        Path(f"{name}.csv").write_text(good.replace(line, ",".join(row)))
    Path("empty.csv").write_text("")
    Path("header.csv").write_text(good.splitlines()[0])
    Path("one.csv").write_text("p,label\n" + "1,0\n" * 9)
    Path("tiny.csv").write_text("p,label\n1,0\n2,1\n")
    Path("fraction.csv").write_text("p,label\n1,0.5\n2,0.25\n")
    Path("binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    zeros = np.zeros
    for name, arrays in {
        "norows": {"x": zeros((0, 4)), "y": zeros(0)},
        "short": {"x": zeros((5, 4)), "y": zeros(4)},
        "flat": {"x": zeros(5), "y": np.arange(5)},
        "twodim": {"x": zeros((5, 4)), "y": zeros((5, 3))},
        "names": {"a": zeros((5, 4)), "b": zeros(5)},
        "words": {"x": np.full((5, 4), "far"), "y": zeros(5)},
        "oneclass": {"x": np.ones((9, 4)), "y": np.ones(9)},
        "complex": {"x": zeros((5, 4), complex), "y": np.arange(5) % 2},
    }.items():
        np.savez(f"{name}.npz", **arrays)
    whole = Path("names.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    Path("noise.npz").write_bytes(bytes(range(256)))
    np.savez("pickle.npz", x=np.array([print], object), y=zeros(1))


NO_TABLE = ["nan", "inf", "string", "gap", "nolabel", "ragged", "huge", "empty", "header", "one"]
NO_TABLE += ["tiny", "fraction", "binary", "missing"]
NO_ARRAYS = ["norows", "short", "flat", "twodim", "names", "words", "oneclass", "complex", "cut"]
NO_ARRAYS += ["noise", "pickle", "missing"]
NO_DATA = [*(f"{n}.csv" for n in NO_TABLE), *(f"{n}.npz" for n in NO_ARRAYS)]
NO_DATA += ["blobs.txt", "digit", "", ".", "my_rule.py"]

OPTIONS = {
    "--net": ["dense", "dense 0", "dense -5 | dense 3", "dens 3", "dense 3 |", "| dense 3"]
    + ["dense 8 rulu | dense 3", "residual(dense 3", "dense 4", "dense 3.5", "dense 3 speed=2"],
    "--epochs": ["0", "-1", "x", "1.5", "nan", ""],
    "--batch-size": ["0", "-3", "73", "x"],
    "--objective": ["mes", "goodness"],
    "--task": ["regress", "regression"],  # the labels of blobs.csv are text
    "--lr": ["nan", "inf", "-1", "x", ""],
    "--optimizer": ["sgdd", "SGD", ""],
    "--momentum": ["x", "0.9"],
    "--weight-decay": ["nan", "-1", "inf", "x", "0.1,x", "", ","],
    "--schedule": ["cosin", "step:1", "step:a:b", "warmup:x+cosine", "cosine:3", ""],
    "--patience": ["-1", "x"],
    "--evaluate-every": ["0", "x"],
    "--backend": ["gpu", "cuda", ""],
    "--dtype": ["float16", "int8", ""],
    "--threads": ["0", "-2", "x"],
    "--set": ["lr", "dfa.lr", "dfa.lr=x", "dfa.lr=-1", "dfa.speed=1", "fa.lr=1", "foo.lr=1"]
    + ["dfa.momentum=x", "dfa.schedule=3", "dfa.optimizer=3", "=", ".", "dfa.shared=3"],
    "--out": ["my_rule.py", "my_rule.py/below", "/dev/null", "/proc/none"],
}
OF_COMPARE = {
    "--seeds": ["", "0", "-1", "0,0", "x", "1.5", "0,-1", "20261121"],
    "--rules": ["", ",", "foo", "dfaa", "dfa,dfa", "dfa,direct_feedback_alignment", "dfa["]
    + ["dfa[scale]", "dfa[scal=2]", "dfa[scale=x]", "dfa[scale=1", "none.py", "torch[x=1]"]
    + ["@dfa", "backprop@foo", "empty_rule.py", "broken_rule.py", "ff[norm=foo]", "blobs.csv"],
    "--tune": ["-1", "x", "1.5"],
    "--search": ["", "random"],
    "--jobs": ["0", "-1", "x"],
    "--name": ["a/b", " ", "a b"],
}
OF_TRAIN = {"--rule": ["foo", "", "dfa,fa", "none.py"], "--seed": ["-1", "x", "1.5", "0,1"]}

RECIPES = {
    "epochs = [": "not TOML",
    "epochz = 3": "epochs",
    "epochs = '3'": "whole number",
    "epochs = true": "whole number",
    "lr = nan": "lr",
    "seeds = []": "seed",
    "seeds = [0, 0]": "seed",
    "rules = 'dfa'": "list",
    "rules = ['dfa', 'dfa']": "twice",
    "weight_decay = []": "weight_decay",
    "data = ['x']": "data",
    "settings = 3": "settings",
    "[settings]\n'dfa.lr' = 'x'": "dfa.lr",
    "name = 'a/b'": "name",
    "net = 'dense 4'": "one output per class",
}


def one_line(said):
    """Whether this is how a mistake ends."""
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("fflearn: ") and said.err.endswith("\n")
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    return said.err


@pytest.fixture
def mistaken(here, say, monkeypatch):
    """Run a wrong command: one line, and every file as before."""
    broken_data()
    Path("empty_rule.py").write_text("x = 1\n")
    Path("broken_rule.py").write_text("import no_such_module\n")
    monkeypatch.setattr(training, "_epoch", lambda *a: pytest.fail("it trained"))

    def run(*words):
        before = contents(here)
        line = one_line(say(*words))
        assert contents(here) == before
        return line

    return run


@pytest.mark.parametrize("option", [*OPTIONS, *OF_COMPARE])
def test_a_wrong_option_of_compare_is_one_line(mistaken, option):
    for value in {**OPTIONS, **OF_COMPARE}[option]:
        mistaken(*compare(f"{option}={value}"))


@pytest.mark.parametrize("option", [*OPTIONS, *OF_TRAIN])
def test_a_wrong_option_of_train_is_one_line(mistaken, option):
    for value in {**OPTIONS, **OF_TRAIN}[option]:
        mistaken(*train(f"{option}={value}"))


@pytest.mark.parametrize("data", NO_DATA)
def test_data_that_cannot_be_learned_from_is_one_line(mistaken, data):
    mistaken(*compare("--data", data))
    mistaken(*train("--data", data))


@pytest.mark.parametrize("text", RECIPES)
def test_a_wrong_recipe_is_one_line(mistaken, text):
    Path("r.toml").write_text(text)
    assert RECIPES[text] in mistaken("compare", "r.toml", "--out", "out")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["foo"],
        ["compare", "--foo"],
        ["compare", "a.toml", "b.toml"],
        ["compare", "."],
        ["compare", "missing.toml"],
        ["train"],
        ["train", "--rule"],
        ["predict"],
        ["predict", "run"],
        ["rules", "dfa"],
        ["check"],
        ["check", "foo"],
        ["check", "none.py"],
        ["doctor", "--foo"],
    ],
    ids=" ".join,
)
def test_a_command_that_does_not_parse_is_one_line(mistaken, words):
    mistaken(*words)


def test_a_folder_of_data_that_is_none_is_one_line(mistaken, monkeypatch):
    monkeypatch.setenv("FFLEARN_DATA", "nowhere")
    assert "FFLEARN_DATA" in mistaken("compare", "--data", "mnist")


@pytest.mark.parametrize(
    "words",
    [
        ["--rule", "fa"],
        ["--rule", "dfa[scale=2]"],
        ["--epochs", 3],
        ["--seed", 1],
        ["--lr", 0.5],
        ["--optimizer", "sgd"],
        ["--dtype", "float64"],
        ["--net", "dense 9 relu | dense 3"],
        ["--patience", 1],
        ["--data", "other.csv"],
    ],
    ids=str,
)
def test_a_folder_of_another_run_is_left_as_it_is(here, say, words):
    Path("other.csv").write_text(Path("blobs.csv").read_text().replace(",a", ",z"))
    say(*train())
    before = contents(here)
    assert "belongs to a run with another" in one_line(say(*train(*words)))
    assert contents(here) == before


@pytest.mark.parametrize("keep", [CHECKPOINT, FINAL])
@pytest.mark.parametrize("damage", ["empty", "half", "noise", "flip", "folder"])
def test_a_damaged_checkpoint_is_one_line(here, say, keep, damage):
    say(*train())
    for path in Path("run").iterdir():
        if path.name != keep:
            path.unlink()
    path = Path("run") / keep
    blob = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        flipped = blob[:20] + bytes([blob[20] ^ 255]) + blob[21:]
        made = {"empty": b"", "half": blob[: len(blob) // 2], "noise": bytes(99), "flip": flipped}
        path.write_bytes(made[damage])
    before = contents(here)
    assert keep in one_line(say(*train()))
    assert keep in one_line(say("predict", path, "blobs.csv"))
    assert contents(here) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run/" + FINAL, "missing.csv"), "missing.csv"),
        (("run/" + FINAL, "wide.csv"), "4 feature columns; got 6"),
        (("run/" + FINAL, "narrow.csv"), "4 feature columns; got 3"),
        (("run/" + FINAL, "nan.csv"), "finite"),
        (("run/" + FINAL, "blobs.csv", "--by", "goodness"), "goodness"),
        (("run/" + FINAL, "blobs.csv", "--out", "my_rule.py/x.csv"), "could not be written"),
        (("missing", "blobs.csv"), "no checkpoint"),
        (("blobs.csv", "blobs.csv"), "damaged or no checkpoint"),
        (("foreign.safetensors", "blobs.csv"), "damaged or no checkpoint"),
    ],
)
def test_a_wrong_prediction_is_one_line(here, say, words, says):
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3)}, "foreign.safetensors")
    Path("wide.csv").write_text("1,2,3,4,5,6\n")
    Path("narrow.csv").write_text("1,2,3\n")
    Path("nan.csv").write_text("1,2,nan,4\n")
    say(*train())
    before = contents(here)
    assert says in one_line(say("predict", *words))
    assert contents(here) == before


@pytest.mark.parametrize(
    "words",
    [
        compare("--net", "dense 4"),
        compare("--rules", "dfaa"),
        train("--out", "/dev/null"),
        ("predict", "missing", "blobs.csv"),
    ],
    ids=["outputs", "rule", "folder", "checkpoint"],
)
def test_a_mistake_is_one_line_in_a_process_of_its_own(here, words):
    one_line(spawn(*words))


# ---- without the optional packages --------------------------------------------------------------

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "pooch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCK
from fflearn import cli

small = "--net|dense 8 relu , dense 3|--data|blobs.csv|--epochs|1|--out".replace(",", "\\x00")
small = [w.replace("\\x00", "|") for w in small.split("|")]
print(cli.main(["compare", *small, "out", "--seeds", "1"]))
print(cli.main(["train", *small, "run", "--rule", "ff"]))
print(cli.main(["predict", "run/final.safetensors", "blobs.csv", "--out", "scores.csv"]))
print(cli.main(["rules"]), cli.main(["doctor"]))
print(cli.main(["compare", *small, "out", "--rules", "torch"]))
print(cli.main(["train", *small, "other", "--rule", "torch"]))
print(cli.main(["compare", "--data", "mnist"]))
assert not {"torch", "pooch"} & {n for n, m in sys.modules.items() if m is not None}
"""


@pytest.mark.parametrize(
    "block",
    ["sys.meta_path.insert(0, Blocker())", "sys.modules['torch'] = sys.modules['pooch'] = None"],
    ids=["no package", "blocked"],
)
def test_everything_works_without_torch_and_pooch(here, block):
    said = spawn(
        code=BLOCKED.replace("BLOCK\n", f"{block}\n"),
        FFLEARN_CACHE=str(here / "none"),
        NUMBA_CACHE_DIR=str(Path("~/.cache/fflearn").expanduser()),
    )
    assert said.code == 0, said.err
    codes = [line for line in said.out.splitlines() if re.fullmatch("[0-9]( [0-9])?", line)]
    assert codes == ["0", "0", "0", "0 0", "2", "2", "2"]
    lines = said.err.splitlines()
    assert [line.startswith("fflearn: ") for line in lines] == [True] * 3
    assert all('pip install "fflearn[torch]"' in line for line in lines[:2])
    assert 'pip install "fflearn[data]"' in lines[2]
    assert "torch" not in {p.name.split("-")[0] for p in Path("out/records").iterdir()}
    assert not Path("other").exists()
