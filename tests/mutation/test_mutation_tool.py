"""The mutation check itself, on a toy package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.mutation import command, entries, laboratory, operators

CALC = '''"""Toy."""


def clip(x: int | float, top: int = 3) -> float:
    """The smaller one, doubled."""
    if x < 0:
        raise ValueError(f"needs x >= 0; got {x + 1}")
    if x > top:
        return 2 * top
    return 2 * x
'''
TESTS = """import pytest

from toy.calc import clip


def test_values():
    assert [clip(x) for x in (0, 1, 2, 3, 4, 5)] == [0, 2, 4, 6, 6, 6]


def test_negative():
    with pytest.raises(ValueError):
        clip(-1)


@pytest.mark.slow
def test_slow():
    assert clip(9, top=7) == 14
"""
PLAN = """sample = 4
threshold = 90

[[target]]
files = "toy/*.py"
tests = ["tests/absent.py tests/test_{stem}.py", "tests/absent.py", "tests"]
"""
HAND = """[[mutant]]
file = "toy/calc.py"
find = "x > top"
replace = "x < top"
why = "clips from below"
"""
# max(x, top) and x > top -> x >= top are the same function: both give 2 * top at x = top.
EQUIVALENT = """[[equivalent]]
file = "toy/calc.py"
where = "clip"
before = "if x > top:"
after = "if x >= top:"
why = "at x = top both branches give 2 * top"
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    files = {
        "setup.cfg": "[tool:pytest]\npythonpath = .\nmarkers =\n    slow: slow\n",
        "toy/calc.py": CALC,
        "tests/test_calc.py": TESTS,
        "tests/mutation/plan.toml": PLAN,
        "tests/mutation/hand.toml": HAND,
        "tests/mutation/equivalent.toml": EQUIVALENT,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def check(toy: Path, *arguments: str) -> int:
    return command.main(["--root", str(toy), "--jobs", "1", *arguments])


def add(toy: Path, **entry: str) -> None:
    """One more entry by hand."""
    values = {"file": "toy/calc.py", "find": "x > top", "replace": "x < top", "why": "w"} | entry
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    with (toy / "tests/mutation/hand.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n[[mutant]]\n{text}\n")


def sample(toy: Path, count: int) -> list[entries.Mutant]:
    pytest.importorskip("cosmic_ray")
    return operators.mechanical(toy, entries.read_plan(toy), count, [])


# ---- by hand ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_and_a_surviving_mutant(toy, capsys):
    assert check(toy, "--kind", "hand") == 0
    out = capsys.readouterr().out
    assert "killed" in out and "1 of    1" in out
    add(toy, find="top: int = 3", replace="top: int = 4 - 1", why="the same default")
    assert check(toy, "--kind", "hand") == 1
    out = capsys.readouterr().out
    assert "1 of    2" in out and 'where = "clip"' in out
    assert (toy / "toy/calc.py").read_text(encoding="utf-8") == CALC


def test_a_piece_of_the_mutants(toy, capsys):
    add(toy, find="top: int = 3", replace="top: int = 4 - 1", why="the same default")
    assert check(toy, "--kind", "hand", "--only", "clips from*") == 0
    assert "same default" not in capsys.readouterr().out
    assert check(toy, "--kind", "hand", "--only", "nothing") == 2


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"find": "2 *"}, "it occurs 2 times"),
        ({"find": "absent"}, "it occurs 0 times"),
        ({"replace": "x > top"}, "the same"),
        ({"replace": "x > >"}, "no Python"),
        ({"file": "toy/absent.py"}, "there is no toy/absent.py"),
        ({"extra": "1"}, "needs file, find, replace, why"),
        ({"tests": ["tests/absent.py"]}, "there is no tests/absent.py"),
    ],
)
def test_a_wrong_entry_is_told(toy, capsys, entry, complaint):
    add(toy, **entry)
    assert check(toy, "--kind", "hand", "--list") == 2
    error = capsys.readouterr().err
    assert "hand.toml, entry 2" in error and complaint in error


def test_tests_that_fail_without_a_fault_stop_the_check(toy, capsys):
    (toy / "tests/test_calc.py").write_text("def test_no(): assert 0\n", encoding="utf-8")
    assert check(toy, "--kind", "hand") == 2
    assert "fails without any fault" in capsys.readouterr().err


@pytest.mark.slow
def test_an_endless_loop_is_killed(toy, monkeypatch, capsys):
    monkeypatch.setattr(laboratory, "SECONDS", 1)
    add(toy, find="if x > top:", replace="while x > top:\n        pass\n    if 0:", why="hangs")
    assert check(toy, "--kind", "hand", "--only", "hangs") == 0
    assert "1 by time" in capsys.readouterr().out


@pytest.mark.slow
def test_named_tests_are_run_slow_or_not(toy):
    add(toy, find="return 2 * top", replace="return 2 * min(top, 3)", why="tops at 3")
    assert check(toy, "--kind", "hand", "--only", "tops at 3") == 1
    assert check(toy, "--kind", "hand", "--only", "tops at 3", "--slow") == 0
    path = toy / "tests/mutation/hand.toml"
    text = path.read_text(encoding="utf-8") + 'tests = ["tests/test_calc.py::test_slow"]\n'
    path.write_text(text, encoding="utf-8")
    assert check(toy, "--kind", "hand", "--only", "tops at 3") == 0


# ---- mechanical -----------------------------------------------------------------------------------


def test_mechanical_mutants_change_what_is_run(toy):
    mutants = sample(toy, 1000)
    assert len({m.text for m in mutants}) == len(mutants) > 8
    assert "if x >= top:" in {m.after for m in mutants}
    # Neither the annotation int | float nor the message of the error is a fault.
    assert all("raise" not in m.before for m in mutants)
    assert all("|" in line for m in mutants for line in m.text.splitlines() if "def" in line)


def test_one_fault_is_counted_once(toy):
    after = {m.after for m in sample(toy, 1000)}
    assert len({"if x <= top:", "if not x > top:"} & after) == 1


def test_skipped_functions_are_left_alone(toy):
    text = PLAN.replace("threshold", 'skip = ["cl*"]\nthreshold')
    (toy / "tests/mutation/plan.toml").write_text(text, encoding="utf-8")
    assert sample(toy, 1000) == []


def test_the_sample_is_the_same_each_time_and_grows(toy):
    four = sample(toy, 4)
    assert sample(toy, 4) == four and len(four) == 4
    assert {m.text for m in four} < {m.text for m in sample(toy, 6)}


def test_an_edit_elsewhere_keeps_the_sample(toy):
    before = {(m.where, m.before, m.after) for m in sample(toy, 4)}
    (toy / "toy/calc.py").write_text("# more\n\n" + CALC, encoding="utf-8")
    assert {(m.where, m.before, m.after) for m in sample(toy, 4)} == before


def test_at_least_half_are_mechanical(toy, capsys):
    pytest.importorskip("cosmic_ray")
    for number in range(6):
        add(toy, why=f"again {number}")
    assert check(toy, "--list") == 0
    kinds = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert kinds.count("hand") == kinds.count("mechanical") == 7


def test_equivalents_are_left_out_and_must_exist(toy, capsys):
    pytest.importorskip("cosmic_ray")
    assert check(toy, "--kind", "mechanical", "--sample", "1000", "--list") == 0
    assert "if x >= top:" not in capsys.readouterr().out
    path = toy / "tests/mutation/equivalent.toml"
    path.write_text(EQUIVALENT.replace("x >= top", "x <= 7"), encoding="utf-8")
    assert check(toy, "--kind", "mechanical", "--list") == 2
    assert "Delete the entry" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_check(toy, capsys):
    pytest.importorskip("cosmic_ray")
    results = toy / "results.json"
    check(toy, "--jobs", "2", "--sample", "1000", "--json", str(results))
    out = capsys.readouterr().out
    rows = json.loads(results.read_text(encoding="utf-8"))["mutants"]
    outlived = [r["after"] for r in rows if r["status"] == "survived"]
    assert "at x = top both branches" in out
    assert len(rows) > 12 and outlived == []


def test_files_without_tests_are_told(toy, capsys):
    pytest.importorskip("cosmic_ray")
    plan = PLAN.replace(
        '["tests/absent.py tests/test_{stem}.py", "tests/absent.py", "tests"]', '["absent"]'
    )
    (toy / "tests/mutation/plan.toml").write_text(plan, encoding="utf-8")
    (toy / "tests/mutation/hand.toml").unlink()
    assert check(toy, "--kind", "mechanical") == 2
    assert "no tests guard toy/calc.py" in capsys.readouterr().err


# ---- this checkout --------------------------------------------------------------------------------


def test_the_entries_of_this_checkout_fit_its_sources():
    root = command.ROOT
    entries.by_hand(root, entries.read_plan(root))
