"""What the machine can run, and what a result was made with."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
from pathlib import Path

import pytest

from fflearn import __version__, doctor, fingerprint, kernels, registry

CONFIG = Path(__file__).resolve().parents[2] / "setup.cfg"


def test_the_examination_is_whole_and_goes_through_json():
    found = doctor.examine()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {
        *("machine", "versions", "backends", "threading_layer", "op_by_op", "extras", "data"),
    }
    assert set(found["backends"]) == set(kernels.names())
    assert found["backends"]["reference"] == found["backends"]["numba"] == "ok"
    assert found["threading_layer"] in ("omp", "tbb", "workqueue")
    assert found["machine"]["cores"] >= 1 and found["machine"]["processor"]


def test_what_is_missing_comes_with_what_to_type(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda module: module == "pytest")
    extras = doctor.examine()["extras"]
    assert extras["test"] == "installed"
    assert extras["torch"].startswith('pip install "fflearn[torch]"')


def test_rules_that_run_op_by_op_come_with_why(monkeypatch):
    assert "dfa" not in doctor.examine()["op_by_op"]
    monkeypatch.setattr(registry.rule_class("dfa"), "op_by_op", "it looks at a clock")
    found = doctor.examine()
    assert found["op_by_op"]["dfa"] == "it looks at a clock"
    assert "op by op   dfa: it looks at a clock" in doctor.shown(found)


def test_every_extra_it_names_exists():
    text = CONFIG.read_text()
    for extra in doctor.EXTRAS:
        assert f"\n{extra} =\n" in text


def test_a_folder_of_data_that_is_none_is_told_not_raised(monkeypatch, tmp_path):
    monkeypatch.setenv("FFLEARN_DATA", str(tmp_path))
    assert doctor.examine()["data"]["FFLEARN_DATA"] == str(tmp_path)
    monkeypatch.setenv("FFLEARN_DATA", str(tmp_path / "missing"))
    assert "needs to be a folder" in doctor.examine()["data"]["FFLEARN_DATA"]
    monkeypatch.setenv("FFLEARN_CACHE", str(tmp_path))
    assert doctor.examine()["data"]["cache"] == str(tmp_path)


def test_the_lines_say_all_of_it():
    found = doctor.examine()
    text = doctor.shown(found)
    for part in (*found["backends"], *found["extras"], *found["versions"], "numba's layer"):
        assert part in text
    assert found["data"]["cache"] in text and found["machine"]["processor"] in text
    assert all(line == line.rstrip() for line in text.splitlines())


# ---- the fingerprint ----------------------------------------------------------------------------


def test_versions_are_those_installed(monkeypatch):
    versions = fingerprint.versions()
    assert versions["fflearn"] == __version__
    assert versions["numpy"] == importlib.metadata.version("numpy")
    monkeypatch.setattr(fingerprint, "PACKAGES", ("numpy", "no-such-package"))
    assert set(fingerprint.versions.__wrapped__()) == {"python", "fflearn", "numpy"}


def test_a_fingerprint_names_no_person_and_no_address():
    found = fingerprint.fingerprint("numba", "float32", 2)
    kept = {"backend", "dtype", "threads", "processor", "cores", "memory_gib", "system"}
    assert set(found) == kept
    assert (found["backend"], found["dtype"], found["threads"]) == ("numba", "float32", 2)


def test_the_machine_is_described_where_linux_files_are_missing(monkeypatch):
    def refuse(*args, **named):
        raise OSError

    monkeypatch.setattr(builtins, "open", refuse)
    assert isinstance(fingerprint._processor(), str)
    monkeypatch.setattr(fingerprint.os, "sysconf_names", {})
    assert fingerprint._memory_gib() is None


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_a_module_that_cannot_be_looked_for_is_not_installed(monkeypatch, error):
    def refuse(name):
        raise error

    assert fingerprint.installed("numpy") and not fingerprint.installed("no_such_module")
    monkeypatch.setattr(fingerprint, "find_spec", refuse)
    assert not fingerprint.installed("numpy")


def test_a_work_queue_is_named_with_what_to_type(monkeypatch):
    found = doctor.examine()
    for layer, advised in (("omp", False), ("workqueue", True)):
        assert ("pip install tbb" in doctor.shown(found | {"threading_layer": layer})) == advised
