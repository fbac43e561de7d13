"""A run that was interrupted, however often and wherever, ends as if it never had been.

One process (`KILLED`) imports everything once and forks a child per run; the child trains through
the command line and kills itself, without a chance to tidy up, where the test says.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from core_runs import ROOT, spawn, unmeasured

from fflearn import registry, report, tuning
from fflearn.comparison import compare
from fflearn.experiment import Experiment
from fflearn.optim import SGD, Adam
from fflearn.random import Key
from fflearn.run_files import CHECKPOINT, FINAL
from fflearn.state import load
from fflearn.training import train

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

NET = "dense 8 relu | dense 3"  # 72 samples in batches of 16: five steps, the last one short
SMALL = ("--data", "blobs.csv", "--net", NET, "--batch-size", "16", "--epochs", "4", "--quiet")
ADAM = ("--optimizer", "adam", "--lr", "0.01", "--weight-decay", "0.1,0.01")
MOMENTUM = ("--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.9", "--schedule", "cosine")

KILLED = """
import importlib.util, json, os, signal, sys, time

from fflearn import cli, comparison, predict, reference, state, training
import fflearn.kernels.cpu, safetensors.numpy, tqdm

if importlib.util.find_spec("optuna"):
    import optuna, optuna.samplers
if importlib.util.find_spec("torch"):
    import torch  # once, with the parts that its first step imports

    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()


def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)


def dying(owner, name, n, how):
    # The n-th call of owner.name dies before it starts, half-way, or when it is done.
    calls, real = [], getattr(owner, name)

    def counted(*args, **named):
        calls.append(1)
        if len(calls) == n and how == "before":
            die()
        if len(calls) == n and how == "half":
            os.write(args[0], args[1][: len(args[1]) // 2])
            die()
        result = real(*args, **named)
        if len(calls) == n:
            die()
        return result

    setattr(owner, name, counted)


class Half:
    # A file of which the n-th opened one takes half of what it is given.
    def __init__(self, n):
        self.left, self.real = n, os.fdopen

    def __call__(self, *args, **named):
        self.left -= 1
        f = self.real(*args, **named)
        if self.left:
            return f
        return Broken(f)


class Broken:
    def __init__(self, f):
        self.f = f

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.f.close()

    def write(self, blob):
        self.f.write(blob[: len(blob) // 2])
        self.f.flush()
        die()


def arm(kill):
    what, n = kill
    if what == "step":
        for engine in (training.Engine, reference.TorchEngine):
            dying(engine, "step", n, "before")
    elif what == "write":
        os.fdopen = Half(n)
    elif what == "sync":
        dying(os, "fsync", n, "after")
    elif what == "rename":
        dying(os, "replace", n, "before")
    elif what == "renamed":
        dying(os, "replace", n, "after")


for line in sys.stdin:
    kill, words = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        if kill:
            arm(kill)
        os._exit(cli.main(words))
    if kill and kill[0] == "after":
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """Runs commands in forks of one process that has imported everything."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", KILLED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __call__(self, *words, kill=None):
        """The exit code; -9 for a child that was killed."""
        self.process.stdin.write(json.dumps([kill, list(map(str, words))]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.process.stdin.close()
    assert killer.process.wait(60) == 0
    killer.process.stdout.close()


def read(path):
    """Arrays, step, and what of the curves a clock did not measure."""
    state = load(path)
    progress = state.meta["progress"]
    curves = {n: c for n, c in progress["curves"].items() if n not in ("seconds", "joules")}
    return state.arrays(), state.step, curves, progress["best"], state.meta["run"]


def assert_same_run(one, other):
    (a, *told), (b, *also) = read(one), read(other)
    assert told == also
    assert a.keys() == b.keys() and len(a) > 3
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def command(rule, optimizer, out, *more):
    data = Path("blobs.csv").absolute()
    words = [w if w != "blobs.csv" else data for w in SMALL]
    return ("train", *words, "--rule", rule, *optimizer, "--out", Path(out).absolute(), *more)


# Each interrupts the run that the ones before it left.  Two steps compile; then an epoch is five.
# A checkpoint is one write, two syncs (file and folder) and one rename.
KILLS = [
    ("step", 6),  # in epoch 1: nothing is kept
    ("write", 1),  # half a checkpoint, and it is the first
    ("rename", 1),  # a whole one, not yet in its place
    ("renamed", 1),  # epoch 1 is kept
    ("step", 7),  # at the last, short batch of epoch 2
    ("sync", 2),  # epoch 2 is kept
    ("write", 2),  # epoch 3 is kept, half of 4 is not
    ("renamed", 1),  # the last epoch is kept, the final file is not begun
    ("write", 1),  # half a final file
    ("renamed", 1),  # the final file is there
]


@posix
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM], ids=["adam", "sgd"])
@pytest.mark.parametrize("rule", ["backprop", "ff", pytest.param("torch", marks=pytest.mark.torch)])
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(here, killer, rule, optimizer):
    # The plain kernels start in a tenth of the time, and files do not depend on them.
    more = ("--backend", "reference")
    assert killer(*command(rule, optimizer, "whole", *more)) == 0
    for kill in KILLS:
        assert killer(*command(rule, optimizer, "run", *more), kill=kill) == -signal.SIGKILL, kill
        found = [p for n in (CHECKPOINT, FINAL) if (p := Path("run") / n).exists()]
        for path in found:  # whatever is there is whole
            assert read(path)[1] == 5 * len(read(path)[2]["epoch"])
    assert found == [Path("run") / CHECKPOINT, Path("run") / FINAL]
    assert killer(*command(rule, optimizer, "run", *more)) == 0
    assert_same_run(f"whole/{FINAL}", f"run/{FINAL}")
    assert_same_run(f"whole/{CHECKPOINT}", f"run/{CHECKPOINT}")
    assert sorted(p.name for p in Path("run").iterdir()) == [CHECKPOINT, FINAL]  # no leftovers


@posix
@pytest.mark.slow
def test_random_moments_of_the_compiled_run(here, killer, rule="ff"):
    assert killer(*command(rule, MOMENTUM, "whole")) == 0
    # Two steps compile, then one to nine are done: at most one epoch further each time.
    for n in 4 + np.floor(Key(7).fold(rule).uniform(3) * 9).astype(int):
        assert killer(*command(rule, MOMENTUM, "run"), kill=("step", int(n))) == -signal.SIGKILL
    assert killer(*command(rule, MOMENTUM, "run")) == 0
    assert_same_run(f"whole/{FINAL}", f"run/{FINAL}")


@posix
@pytest.mark.slow
def test_a_process_killed_from_outside_goes_on(here):
    """Nothing is arranged: the signal comes while the process trains, wherever that is."""
    words = [str(w) for w in command("dfa", ADAM, "run", "--epochs", "100")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "fflearn", *words], env=env)
    while process.poll() is None and not (Path("run") / CHECKPOINT).exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < load(Path("run") / CHECKPOINT).step < 500 and not (Path("run") / FINAL).exists()
    assert spawn(*words).code == 0
    assert spawn(*words, "--out", "whole").code == 0
    assert_same_run(f"whole/{FINAL}", f"run/{FINAL}")


@posix
@pytest.mark.slow
def test_a_comparison_killed_midway_ends_with_the_same_records(here, killer):
    data = Path("blobs.csv").absolute()
    words = ["compare", "--data", data, "--net", NET, "--epochs", 3, "--batch-size", 16, "--quiet"]
    words += ["--seeds", 2, "--rules", "backprop,ff,dfa", "--backend", "reference"]
    words += ["--tune", 2, "--search", "grid"]
    assert killer(*words, "--out", Path("whole").absolute()) == 0

    # A first start writes experiment.toml; then each run is two files, its network and its record.
    def kept(folder):
        return {p.name: json.loads(p.read_text()) for p in Path(folder, "records").glob("*.json")}

    counts = []
    for kill in [("rename", 1), ("renamed", 3), ("write", 3), ("step", 20), ("rename", 5)]:
        code = killer(*words, "--out", Path("out").absolute(), kill=kill)
        assert code == -signal.SIGKILL, kill
        counts.append(len(kept("out")))
    assert counts[0] == 0 < counts[-1] < 6 and counts == sorted(counts)
    assert killer(*words, "--out", Path("out").absolute()) == 0
    whole, out = kept("whole"), kept("out")
    assert whole.keys() == out.keys() and len(out) == 6
    for name in whole:
        for record in (whole[name], out[name]):
            assert record.pop("train_seconds") > 0
            record.pop("compile_seconds")
            record["curves"].pop("seconds")
            assert record.pop("joules") is record["curves"].pop("joules")[-1]
        assert whole[name] == out[name]
    assert Path("whole/experiment.toml").read_text() == Path("out/experiment.toml").read_text()


def plain_report(folder):
    """What a comparison's page says, times left out: they are not the same in two runs."""
    layout = importlib.import_module("fflearn.report.page")  # it needs matplotlib
    found = [{**unmeasured(r), "contended": True} for r in report.read(folder)]
    curves = {"seconds": [0.0] * 12, "joules": [None] * 12}
    told = {"train_seconds": 0.0, "joules": None, "compile_seconds": 0.0}
    found = [{**r, **told, "curves": {**r["curves"], **curves}} for r in found]
    return layout.page(found, audits=report.read_audits(folder))[0]


@posix
@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_records_and_report(here, killer):
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    given = {"data": str(Path("blobs.csv").absolute()), "net": NET, "epochs": 12, "batch_size": 16}
    given |= {"rules": ("dfa", "backprop"), "seeds": (0, 1), "backend": "reference"}
    given |= {"tune": 4, "search": "optuna" if tuning.installed("optuna") else "grid"}
    given |= {"probes": ("gradient_angle", "linear_probe"), "name": "killed"}
    Path("recipe.toml").write_text(Experiment(**given).dump())
    words = ["compare", Path("recipe.toml").absolute(), "--quiet", "--out"]

    assert killer(*words, Path("whole").absolute()) == 0
    if tuning.installed("optuna"):
        importlib.import_module("optuna")  # is no part of the time that the runs take
    start = time.perf_counter()
    again = compare("recipe.toml")  # the same once more, without a folder
    seconds, key = time.perf_counter() - start, Key(11).fold("kill")

    done = [0]
    while len(done) < 5 or done[-1] < 8:  # trials and records, four of each
        delay = seconds * (0.1 + 0.1 * len(done) * float(key.fold(len(done)).uniform(())))
        code = killer(*words, Path("out").absolute(), kill=("after", delay))
        done.append(sum(len(list(Path("out").glob(f"{n}/*.json"))) for n in ("trials", "records")))
        assert code == -signal.SIGKILL or done[-1] == 8
    assert done == sorted(done) and len(set(done)) > 2  # it got further, bit by bit
    assert killer(*words, Path("out").absolute()) == 0

    def kept(folder):
        return {
            p.name: unmeasured(json.loads(p.read_text()))
            for p in Path(folder, "records").glob("*.json")
        }

    assert kept("whole") == kept("out") and len(kept("out")) == 4
    plain = [unmeasured(json.loads(json.dumps(r))) for r in again]
    in_order = sorted(kept("whole").values(), key=lambda r: (r["label"] == "backprop", r["seed"]))
    assert plain == in_order
    assert plain_report("whole") == plain_report("out")
    for name in ("experiment.toml", *(f"trials/{Path(n).name}" for n in kept("out"))):
        assert Path("whole", name).read_text() == Path("out", name).read_text()
    text = Path("out/report.html").read_text(encoding="utf-8")
    assert text.endswith("</html>\n") and "How learning rates were found" in text


# ---- every rule, from every epoch ---------------------------------------------------------------


class Gone(Exception):
    """The process, as a test has it."""


def gone_after(epoch):
    def callback(run):
        if run.epoch == epoch:
            raise Gone

    return callback


EVERY_RULE = [
    name + ("[" + ",".join(f"{n}={v}" for n, v in settings.items()) + "]" if settings else "")
    for name in registry.names()
    for settings in ({}, *registry.rule_class(name).variants.values())
]
EVERY_RULE += ["ff[order=greedy,negatives=wrong]", "backprop@ff", "my_rule.py[speed=2]"]
EVERY_RULE += [pytest.param("torch", marks=pytest.mark.torch)]


@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_every_rule_goes_on_from_every_epoch(here, rule):
    for optimizer in (
        Adam(0.01, (0.1, 0.01), "step:2:0.5"),
        SGD(0.05, schedule="cosine", momentum=0.9),
    ):
        how = {"epochs": 4, "batch_size": 16, "optimizer": optimizer, "seed": 3}
        name = optimizer.name
        whole = train(NET, rule, "blobs.csv", out=f"{name}-whole", **how)
        for epoch in (2, 4):  # one less is kept
            out = f"{name}-{epoch}"
            with pytest.raises(Gone):
                train(NET, rule, "blobs.csv", out=out, callbacks=[gone_after(epoch)], **how)
            assert load(f"{out}/{CHECKPOINT}").step == 5 * (epoch - 1)
            again = train(NET, rule, "blobs.csv", out=out, **how)
            assert_same_run(f"{name}-whole/{FINAL}", f"{out}/{FINAL}")
            assert again.ledger == whole.ledger


def test_early_stopping_goes_on_where_it_was(here):
    how = {"epochs": 60, "batch_size": 16, "patience": 4, "optimizer": SGD(0.1)}
    whole = train(NET, "backprop", "blobs.csv", out="whole", **how)
    assert 5 < whole.epoch < 60
    for epoch in (2, whole.best[1] + 1, whole.epoch):
        out = f"out{epoch}"
        with pytest.raises(Gone):
            train(NET, "backprop", "blobs.csv", out=out, callbacks=[gone_after(epoch)], **how)
        train(NET, "backprop", "blobs.csv", out=out, **how)
        assert_same_run(f"whole/{FINAL}", f"{out}/{FINAL}")


def test_a_run_that_was_stopped_stays_stopped_if_its_final_file_is_lost(here):
    how = {"epochs": 9, "batch_size": 16, "out": "run"}
    run = train(NET, "dfa", "blobs.csv", callbacks=[lambda run: run.epoch == 2], **how)
    blob = Path(f"run/{FINAL}").read_bytes()
    Path(f"run/{FINAL}").unlink()
    again = train(NET, "dfa", "blobs.csv", callbacks=[lambda run: pytest.fail("it trained")], **how)
    assert (again.epoch, again.curves, again.ledger) == (2, run.curves, run.ledger)
    assert Path(f"run/{FINAL}").read_bytes() == blob


# ---- the same seed, the same bits ---------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_in_every_process(here):
    words = command("ff", ADAM, "here")
    assert spawn(*words).code == 0
    for out, threads, hashing in [("a", 1, "0"), ("b", 2, "1")]:
        said = spawn(*words, "--out", out, "--threads", threads, PYTHONHASHSEED=hashing)
        assert said.code == 0
        assert_same_run(f"here/{FINAL}", f"{out}/{FINAL}")


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_the_seed_decides_the_bits(here, rule):
    def bits(**more):
        how = {"epochs": 1, "batch_size": 16, **more}
        arrays = train(NET, rule, "blobs.csv", **how).state.arrays()
        return {n: a.tobytes() for n, a in arrays.items()}

    first = bits(seed=0)
    assert bits(seed=0) == bits(seed=0, threads=2) == first
    other = bits(seed=1)
    assert other.keys() == first.keys()
    assert all(other[n] != first[n] for n in first if n.endswith("W") and n.startswith("params"))
