"""A comparison on the workers of a Dask cluster, here on one machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from core_runs import contents, unmeasured

from fflearn import cluster, comparison, report
from fflearn.comparison import compare
from fflearn.errors import DivergenceError, MissingExtra, SpecError

NET = "dense 8 relu | dense 3"
SMALL = {"data": "blobs.csv", "net": NET, "epochs": 2, "batch_size": 16, "seeds": (0, 1)}
SMALL |= {"rules": ("dfa",), "backend": "reference"}
SMALL |= {"tune": 2, "search": "grid", "probes": ("gradient_angle", "dead_units")}

needs_dask = pytest.mark.skipif(
    not cluster.installed("distributed"), reason='needs dask: pip install "fflearn[sweep]"'
)


def refuse_to_run(monkeypatch):
    def record_of(*args, **named):
        raise AssertionError("it ran")  # pytest.fail would end a worker's thread, not its task

    monkeypatch.setattr(comparison, "record_of", record_of)


@pytest.fixture(scope="module")
def scheduler():
    """The address of a cluster of two processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as made:
        yield made.scheduler_address


@needs_dask
@pytest.mark.slow
def test_a_cluster_gives_the_records_of_a_serial_run(here, scheduler):
    distributed = pytest.importorskip("distributed")
    pids = here.with_name(f"{here.name}-pids")  # who has read the rule
    note = f"with open({str(pids)!r}, 'a') as f:\n    f.write(f'{{os.getpid()}} ')\n"
    text = Path("my_rule.py").read_text()
    text = text.replace("from dataclasses", f"import os\n{note}\nfrom dataclasses", 1)
    Path("my_rule.py").write_text(text)
    rules = ("dfa", f"{Path('my_rule.py').absolute()}[speed=2]")  # they did not start here
    how = {**SMALL, "rules": rules}
    serial = compare(out="serial", **how)
    assert set(pids.read_text().split()) == {str(os.getpid())}
    spread = compare(out="spread", cluster=scheduler, **how)
    with distributed.Client(scheduler) as client:
        workers = set(map(str, client.run(os.getpid).values()))
    others = set(pids.read_text().split()) - {str(os.getpid())}
    assert others and others <= workers
    assert [unmeasured(r) for r in spread] == [unmeasured(r) for r in serial]
    assert [r["contended"] for r in (*serial, *spread)] == [False] * 4 + [True] * 4
    for folder in ("records", "trials"):
        names = [sorted(p.name for p in Path(o, folder).iterdir()) for o in ("serial", "spread")]
        assert names[0] == names[1] and len(names[0]) == 4
    before = contents(here)
    again = compare(out="spread", cluster=scheduler, **how)  # found, by the workers
    assert again == json.loads(json.dumps(spread))
    assert contents(here) == before
    nowhere = compare(cluster=scheduler, **how)
    assert [unmeasured(r) for r in nowhere] == [unmeasured(r) for r in serial]
    assert contents(here) == before


@needs_dask
@pytest.mark.slow
def test_what_the_workers_do_not_see_is_named_before_training(here, scheduler, monkeypatch):
    refuse_to_run(monkeypatch)
    with pytest.raises(SpecError, match=r"does not see my_rule\.py\. Use paths that"):
        compare(out="out", cluster=scheduler, **{**SMALL, "rules": ("dfa", "my_rule.py")})
    with pytest.raises(SpecError, match="leave jobs at 1"):
        compare(out="out", cluster=scheduler, jobs=2, **SMALL)


@needs_dask
@pytest.mark.slow
def test_from_the_command_line_on_this_machine(here, say, monkeypatch):
    monkeypatch.setattr(report, "can_draw", lambda: False)  # audits and figures have their tests
    words = ("--data", "blobs.csv", "--net", NET, "--epochs", 1, "--rules", "dfa", "--seeds", 2)
    words += ("--backend", "reference")
    said = say("compare", *words, "--cluster", "local", "--out", "out", "--quiet")
    assert said.code == 0 and len(list(Path("out/records").iterdir())) == 2
    assert said.out.splitlines()[2].split()[0] == "dfa"


@needs_dask
@pytest.mark.slow
def test_a_run_that_diverges_is_named(here, scheduler):
    with pytest.raises(DivergenceError, match="dfa seed 0: "):
        compare(cluster=scheduler, optimizer="sgd", lr=1e38, **{**SMALL, "seeds": (0,), "tune": 0})


@needs_dask
@pytest.mark.parametrize("workers", [0, 1])
def test_workers_need_to_be_there_and_to_run_one_thing_at_a_time(here, workers):
    distributed = pytest.importorskip("distributed")
    how = {"processes": False, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    refused = pytest.raises(SpecError, match="each with one thread.*--nthreads 1")
    with distributed.LocalCluster(n_workers=workers, **how) as made, refused:
        compare(cluster=made.scheduler_address, **SMALL)


@needs_dask
def test_an_address_where_nothing_answers_is_told(here, monkeypatch, say):
    monkeypatch.setattr(cluster, "SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        said = say(
            "compare", "--data", "blobs.csv", "--net", NET, "--rules", "dfa", "--cluster", address
        )
        assert said.code == 2 and "no Dask scheduler answers at " + address in said.err


def test_without_dask_the_extra_is_named(here, monkeypatch):
    monkeypatch.setattr(cluster, "installed", lambda module: False)
    refuse_to_run(monkeypatch)
    with pytest.raises(MissingExtra, match=r'pip install "fflearn\[sweep\]"'):
        compare(cluster="local", **SMALL)


def test_seconds_are_no_budget_for_runs_on_a_cluster(here):
    with pytest.raises(SpecError, match="needs the machine to itself"):
        compare(cluster="local", budget_seconds=1.0, **SMALL)
