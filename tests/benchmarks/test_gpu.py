"""The benchmark of the GPU, as far as it goes without one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import gpu
from fflearn import kernels, registry
from fflearn.errors import BackendUnavailable


def test_without_a_gpu_it_says_what_is_missing(monkeypatch, capsys, tmp_path):
    def missing(name):
        raise BackendUnavailable(f"no GPU for {name}.")

    monkeypatch.setattr(kernels, "load", missing)
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr()
    assert said.err == "benchmarks.gpu: no GPU for cuda.\n" and not said.out
    assert not list(tmp_path.iterdir())


def test_differences():
    a = np.array([1.0, -20.0])
    assert gpu.difference(a, a) == 0
    assert gpu.difference(a + [0, 2], a) == pytest.approx(0.1)
    assert gpu.difference(a / 100 + [0.5, 0], a / 100) == pytest.approx(0.5)
    assert gpu.difference(a.astype(np.float32), a) == gpu.difference(a[:1], a) == np.inf
    assert gpu.worst({"a": a + 1, "b": a}, {"a": a, "b": a}) == pytest.approx(0.05)


def test_a_comparison_can_fail():
    batch = gpu.batch_of((4,), 3, 5)
    same = gpu.compared("x", "reference", "dfa", "dense 6 tanh | dense 3", batch, "float64", 0.0, 2)
    assert same["ok"] and same["off"] == 0
    other = registry.rule("dfa", scale=2.0)
    rules = iter([registry.rule("dfa"), other])
    off = gpu.compared(
        "x", "reference", lambda: next(rules), "dense 6 tanh | dense 3", batch, "float64", 1e-9
    )
    assert not off["ok"] and off["off"] > 1e-9


def test_what_a_rule_refuses_is_no_failure():
    batch = gpu.batch_of((4,), 3, 5)
    row = gpu.compared("x", "reference", "dfa", "dense 6 tanh | dense 7", batch, "float64", 0.0)
    assert row["ok"] and "7" in row["refused"]


def test_rules_that_sample_are_compared_for_one_step_alone():
    given = "dense 6 tanh | dense 3", gpu.batch_of((4,), 3, 5)
    for rule, want in {
        "dfa": False,
        "sign_symmetry": True,
        "forward_forward": True,
        "equilibrium_propagation": True,
    }.items():
        assert gpu.draws_or_signs(registry.rule(rule), *given) == want


def test_a_step_is_timed_with_its_device_at_rest():
    done, waits = [], []
    found = gpu.timed(lambda: done.append(0), 3, 0.0, lambda: waits.append(len(done)))
    assert len(found) == 3 and waits == [5, 6, 7, 8, 9]
    assert all(t > 0 for t in found)


def test_the_report_names_what_is_off_and_what_was_left_out():
    row = {"what": "rule x", "dtype": "float64", "off": 1.0, "limit": 1e-10, "ok": False}
    fine = row | {"what": "rule y", "ok": True}
    result = {"numbers": [row, fine], "times": [], "rows": [{"what": "mlp", "ratio": 0.5}]}
    result |= {"left_out": ["z"]}
    text = gpu.told(result)
    assert "2 comparisons with the CPU, 1 beyond" in text and "rule x" in text
    assert "rule y" not in text and "left out: z" in text and "mlp" in text


def test_what_takes_too_long_is_left_out(monkeypatch):
    class Device:
        def title(self):
            return "a GPU"

    class K:
        device = Device()

    monkeypatch.setattr(kernels, "load", lambda name: K())
    for name in ("of_kernels", "of_layers", "of_rules", "of_replay", "memory"):
        rows = [{"what": f"{name} {i}", "ok": True} for i in range(2)]
        monkeypatch.setattr(gpu, name, lambda backend, rows=rows: iter(rows))
    monkeypatch.setattr(gpu, "bandwidth", lambda *a: {"what": "bandwidth"})
    monkeypatch.setattr(gpu, "race", lambda case, *a: {"what": case[0]})
    whole = gpu.measured("cuda", 1, 0.1, 1e9)
    assert len(whole["numbers"]) == 8 and len(whole["times"]) == 3
    assert [r["what"] for r in whole["rows"]] == [case[0] for case in gpu.RACES]
    assert whole["machine"]["gpu"] == "a GPU"
    assert not whole["left_out"] and json.loads(json.dumps(whole)) == whole
    short = gpu.measured("cuda", 1, 0.1, -1)
    assert len(short["numbers"]) == 4 and "layers after of_layers 0" in short["left_out"]
