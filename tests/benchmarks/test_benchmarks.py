"""The benchmarks run, say what they should in JSON, and the page of results follows the records."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import (
    autograd,
    bare,
    cpu,
    first_step,
    memory,
    performance,
    replay,
    results,
    rules,
    sparse,
    timing,
)
from benchmarks.cases import Case, engine_turn
from benchmarks.machine import sentence
from benchmarks.results import Recipe
from fflearn.errors import SpecError
from fflearn.experiment import Experiment
from fflearn.kernels import micro

# ---- time ------------------------------------------------------------


@pytest.mark.parametrize("rule", bare.STEPS)
def test_bare_loop_computes_what_the_engine_does(rule):
    case = Case("dense 12 relu | dense 9 relu | dense 4", (7,), 5, "adam")
    through, loop = (case.engine(rule) for _ in range(2))
    for engine in (through, loop):
        engine.optimizer = replace(engine.optimizer, lr=0.01)
    batch = case.data()
    a, b = through.init(3), loop.init(3)
    step = bare.STEPS[rule](loop, b, batch)
    for _ in range(4):
        info, _ = through.step(a, batch)
        with loop.kernels.running(1):
            loss = step()
        assert float(loss) == float(info["loss"])
    assert a.step == b.step
    for path, array in a.arrays().items():
        np.testing.assert_array_equal(array, b.arrays()[path], path)


@pytest.mark.torch
def test_autograd_step_is_backprop_on_the_same_weights():
    case = Case("dense 12 relu | dense 9 tanh | dense 4", (7,), 5, "adam")
    engine = case.engine("backprop")
    engine.optimizer = replace(engine.optimizer, lr=0.01)
    batch = case.data()
    state = engine.init(3)
    step, model = autograd.autograd_step(engine, state, batch)
    for _ in range(5):
        loss = step().item()
        info, _ = engine.step(state, batch)
        assert loss == pytest.approx(float(info["loss"]), rel=1e-4)
    theirs = [p.detach().numpy().T for p in model.parameters()]
    ours = [p[name] for p in state.params for name in ("W", "b")]
    for mine, other in zip(ours, theirs, strict=True):
        # 5 Adam steps of 0.01: an entry whose gradient is near 0 may go a little elsewhere
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_autograd_needs_a_chain_of_plain_dense_layers():
    case = Case("dense 7 relu norm=rms | dense 4", (7,), 5, "adam")
    assert not autograd.chain(case.engine("backprop"))


def test_rules_quick(tmp_path, capsys):
    path = tmp_path / "rules.json"
    options = ["--quick", "--rules", "backprop,dfa[scale=2]", "--threads", "1"]
    assert rules.main([*options, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert {"processor", "cores", "memory_gib", "system", "threads", "dtype"} <= set(
        found["machine"]
    )
    assert {"numpy", "numba", "fflearn"} <= set(found["versions"])
    assert [s["name"] for s in found["sizes"]] == ["wide", "small"]
    assert all({"net", "inputs", "batch"} <= set(s) for s in found["sizes"])
    keys = {"size", "name", "against", "ratio", "ratio_spread", "median_ms", "spread", "rounds"}
    assert all(keys <= set(row) for row in found["rows"])
    named = [row["name"] for row in found["rows"] if row["size"] == "wide"]
    assert named[-2:] == ["backprop", "dfa[scale=2]"]
    assert "ratio" in capsys.readouterr().out


def test_rules_without_torch_leave_the_ratio_open(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(autograd, "available", lambda: False)
    path = tmp_path / "rules.json"
    options = ["--quick", "--rules", "dfa", "--net", "dense 8 relu | dense 3", "--inputs", "6"]
    assert rules.main([*options, "--batch", "4", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert row["ratio"] is None and row["median_ms"] > 0
    assert autograd.MISSING in found["notes"]
    assert autograd.MISSING in capsys.readouterr().out


def test_round_robin_takes_turns():
    said = []
    turns = {name: lambda n, name=name: said.append((name, n)) for name in "ab"}
    times = timing.round_robin(turns, 3, 1e-5)
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
    assert re.fullmatch("(aabb){3}", "".join(name for name, _ in said[-12:]))


def test_spread_is_the_interquartile_range():
    assert timing.spread([1, 2, 3, 4, 5]) == 2
    assert timing.spread([7.0]) == 0
    assert timing.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


# ---- memory ------------------------------------------------------------


@pytest.mark.slow
def test_memory_quick(tmp_path, capsys):
    path = tmp_path / "memory.json"
    assert memory.main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    by_name = {row["name"]: row for row in found["rows"]}
    assert set(by_name) == set(memory.RULES)
    assert by_name["backprop"]["ratio"] == 1
    assert all(set(row["peak_bytes"]) == {"4", "8"} for row in by_name.values())
    assert [row["name"] for row in found["process"]] == list(memory.IN_PROCESS)
    assert "kB/layer" in capsys.readouterr().out


def test_forward_forward_holds_one_layer_at_any_depth():
    rows = memory.over_depth(
        ("backprop", "forward_forward[head=false,negatives=wrong]"), (4, 8, 16), 32, 16
    )
    assert rows[0]["bytes_per_layer"] == 32 * 16 * 4  # the activity of every layer
    assert rows[1]["ratio"] < 0.01


# ---- results ------------------------------------------------------------

MACHINE = {"processor": "Z80", "cores": 1, "memory_gib": 0.1, "threads": 1, "dtype": "float32"}


def made_up(
    recipe: Recipe, accuracies: dict[tuple[str, int], float | dict[str, float]]
) -> list[dict]:
    """Records of the recipe's runs with these accuracies, as they would be read from files."""
    records = []
    for run in recipe.experiment.resolved(10).runs():
        found = accuracies.get((run.label, run.seed))
        if found is None:
            continue
        by = found if isinstance(found, dict) else {"logits": found}
        records.append(
            {
                "label": run.label,
                "seed": run.seed,
                "spec": run.spec(),
                "epochs": recipe.experiment.epochs,
                "metrics": {name: {"accuracy": a} for name, a in by.items()},
                "train_seconds": 10.0 + run.seed,
                "peak_learning_bytes": 1_500_000,
                "floats_per_sample": {"error": 20.0, "activity": 1024.0},
                "weight_transport": "no",
                "fingerprint": MACHINE,
            }
        )
    return json.loads(json.dumps(records))


@pytest.fixture
def recipe() -> Recipe:
    experiment = Experiment(
        name="made-up",
        rules=("dfa", "forward_forward"),
        net="dense 8 relu | dense 10",
        epochs=10,
        seeds=(0, 1, 2),
        lr=0.01,
        weight_decay=(0.1, 0.01),
        settings={"forward_forward.negatives": "hard"},
    )
    published = {
        "title": "A made-up table",
        "source": "Nobody (1999)",
        "epochs": 20,
        "rows": {
            "dfa": {"accuracy": 92.0, "epochs": 10, "note": "the seed was unlucky."},
            "forward_forward": {"accuracy": [89.0, 95.0]},
            "forward_forward, softmax": {"accuracy": 80.0},
        },
    }
    return Recipe(experiment, published)


@pytest.fixture
def records(recipe) -> list[dict]:
    found = {("dfa", 0): 0.90, ("dfa", 1): 0.92, ("dfa", 2): 0.91}
    ways = {"goodness": 0.85, "softmax": 0.87}
    return made_up(recipe, {**found, ("forward_forward", 0): ways})


def test_rows_hold_the_numbers(recipe, records):
    dfa, goodness, softmax = results.rows_of(recipe, records)
    assert dfa.cells() == [
        "dfa", "91.00 ± 0.58", "92.00 (Nobody (1999))", "10 of 10", "3", "11", "1.5",
        "1024 activity + 20 error", "no",
    ]  # fmt: skip
    assert goodness.cells()[:5] == [
        "forward_forward, goodness", "85.00", "89.00 to 95.00 (Nobody (1999))",
        "10 of 20, not run at full length", "1 of 3",
    ]  # fmt: skip
    assert softmax.cells()[:3] == [
        "forward_forward, softmax", "87.00", "80.00 (Nobody (1999))",
    ]  # fmt: skip


def test_shortfalls_are_explained_and_only_they(recipe, records):
    dfa, goodness, softmax = results.rows_of(recipe, records)
    assert dfa.explanation() == (
        "dfa is 1.00 points below the published number: the seed was unlucky."
    )
    assert goodness.explanation() == (
        "forward_forward, goodness is 10.00 points below the published number: no explanation is "
        "known. It ran 10 of the 20 epochs."
    )
    assert softmax.explanation() == ""


@pytest.mark.parametrize(("mean", "short"), [(0.9171, False), (0.9169, True)])
def test_shortfall_allows_three_tenths_of_a_point_and_one_standard_error(recipe, mean, short):
    one = made_up(recipe, {("dfa", 0): mean})
    assert bool(results.rows_of(recipe, one)[0].shortfall) is short
    wide = made_up(recipe, {("dfa", 0): mean - 0.02, ("dfa", 1): mean + 0.02})
    assert not results.rows_of(recipe, wide)[0].shortfall


def test_a_loss_is_shown_where_the_data_is_scored_by_one(recipe, records):
    assert "test loss" not in results.section(recipe, records)
    for record in records:
        for found in record["metrics"].values():
            found["loss"] = 2.5 + 0.25 * record["seed"]
    assert results.rows_of(recipe, records)[0].cells()[-1] == "2.750"
    assert "| weight transport | test loss |" in results.section(recipe, records)


def test_records_of_other_settings_stay_out(recipe, records):
    records[0]["spec"]["epochs"] = 11
    assert [len(row.records) for row in results.rows_of(recipe, records)] == [2, 1, 1]


def test_recipe_without_rules_takes_those_of_the_records(recipe):
    open_one = Recipe(replace(recipe.experiment, rules=(), settings={}))
    named = replace(open_one.experiment, rules=("dfa", "frozen", "torch", "backprop"))
    found = {(rule, 0): 0.9 for rule in named.rules}
    records = made_up(Recipe(named), found)
    rows = results.rows_of(open_one, [*records, records[0] | {"label": "long_gone"}])
    assert [row.name for row in rows] == ["backprop", "torch", "frozen", "dfa"]
    assert rows[0].cells()[2] == "none"


def test_page_is_a_function_of_recipes_and_records(recipe, records):
    other = Recipe(replace(recipe.experiment, name="other"), {"title": "Another"})
    recipes, found = [recipe, other], {"made-up": records}
    text = results.page(recipes, found)
    assert text == results.page(recipes, {"made-up": list(reversed(records))})
    assert "## A made-up table" in text and "machine: Z80, 1 logical core" in text
    assert "`python -m benchmarks.replay made-up`" in text
    assert "lr = 0.01, weight_decay = (0.1, 0.01)" in text
    assert "Not run yet. Type `python -m benchmarks.replay other`." in text
    assert "| dfa | 91.00 ± 0.58 |" in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_each_network_has_its_table_and_probes_one_of_all(recipe):
    nets = ("dense 8 relu | dense 10", "dense 4 relu | dense 10")
    fields = {"rules": ("dfa",), "nets": nets, "probes": ("dead_units",), "seeds": (0,)}
    e = replace(recipe.experiment, settings={}, **fields)
    records = []
    for i, cell in enumerate(e.cells()):
        (record,) = made_up(Recipe(cell), {("dfa", 0): 0.9 + i / 100})
        curves = {"epoch": [1, 2], "dead_units/0": [None, 0.25 + i], "dead_units/1": [0.5, None]}
        records.append({**record, "curves": curves})
    text = results.section(Recipe(e), records)
    assert text.index(f"### digits: `{nets[0]}`") < text.index("| dfa | 90.00 |")
    assert text.index("| dfa | 90.00 |") < text.index(f"### digits: `{nets[1]}`")
    assert text.index(f"### digits: `{nets[1]}`") < text.index("| dfa | 91.00 |")
    assert "dead units by layer, seed 0:\n\n| network | rule | epoch | 0 |\n" in text
    shown = [net.replace("|", "\\|") for net in nets]
    assert f"| `{shown[0]}` | dfa | 2 | 0.25 |\n| `{shown[1]}` | dfa | 2 | 1.25 |" in text
    alone = replace(e.cells()[0], name="alone")
    text = results.section(Recipe(alone), records)
    assert "###" not in text and "| rule | epoch | 0 | 1 |\n" in text
    assert text.endswith("| dfa | 1 |  | 0.5 |\n| dfa | 2 | 0.25 |  |")


def test_write_reads_files(tmp_path, recipe, records):
    recipes, found = tmp_path / "recipes", tmp_path / "results"
    recipes.mkdir()
    lines = [recipe.experiment.dump(), "[published.rows]", "dfa = { accuracy = 92.0 }"]
    (recipes / "made-up.toml").write_text("\n".join(lines))
    (found / "made-up" / "records").mkdir(parents=True)
    for i, record in enumerate(records):
        (found / "made-up" / "records" / f"{i}.json").write_text(json.dumps(record))
    text = results.write(tmp_path / "docs" / "results.md", recipes, found)
    assert (tmp_path / "docs" / "results.md").read_text(encoding="utf-8") == text
    assert "| dfa | 91.00 ± 0.58 | 92.00 |" in text


def test_the_results_page_follows_the_records(tmp_path):
    text = results.write(tmp_path / "results.md")
    assert results.PAGE.read_text(encoding="utf-8") == text
    found = json.loads((results.RESULTS / "emergence.json").read_text(encoding="utf-8"))
    assert text.endswith(results.representations(found) + "\n")
    assert f"sparser by {found['gap']:.2f}" in text


@pytest.mark.parametrize("path", sorted(results.RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_can_be_run(path):
    recipe = results.read_recipe(path)
    runs = [run for cell in recipe.experiment.cells() for run in cell.resolved(10).runs()]
    labels = {run.label for run in runs}
    assert {row.partition(", ")[0] for row in recipe.published.get("rows", {})} <= labels
    assert {"title", "about", "epochs"} <= set(recipe.published)


def test_replay_lists(capsys):
    assert replay.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(results.read_recipes())


def test_replay_names_what_it_does_not_know(capsys):
    assert replay.main(["mnst"]) == 2
    assert "there is no recipe 'mnst'" in capsys.readouterr().err


@pytest.mark.slow
def test_replay_quick(capsys, monkeypatch):
    recipe = replay.chosen(["digits"])[0]
    short = replace(recipe.experiment, rules=("frozen", "ff"), net="dense 16 relu | dense 10")
    monkeypatch.setattr(replay, "chosen", lambda names: [Recipe(short, recipe.published)])
    assert replay.main(["digits", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "| forward_forward, softmax |" in out
    assert "1 of 20, not run at full length" in out


def test_replay_writes_records_and_page(monkeypatch, tmp_path):
    short = Experiment(rules=("frozen",), net="dense 8 relu | dense 10", epochs=1, seeds=(0,))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "digits.toml").write_text(short.dump())
    for name, part in [("RECIPES", "recipes"), ("RESULTS", "results"), ("PAGE", "results.md")]:
        monkeypatch.setattr(results, name, tmp_path / part)
    assert replay.main([]) == 0
    (record,) = (tmp_path / "results" / "digits" / "records").glob("*.json")
    made = record.stat().st_mtime_ns
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| frozen |" in text
    assert replay.main([]) == 0
    assert record.stat().st_mtime_ns == made  # found finished, not run again
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text


def test_sentence():
    assert sentence(MACHINE) == "Z80, 1 logical core, 0.1 GiB of memory; 1 thread, float32"


def test_unknown_recipe_is_a_spec_error():
    with pytest.raises(SpecError, match="there is no recipe"):
        replay.chosen(["none"])


# ---- against PyTorch, row by row ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:pfa")  # it advises other settings than those that are timed
def test_cpu_rows_are_made_of_what_there_is():
    """Every row's rule trains its network; that takes no time on two samples."""
    for name, row in cpu.ROWS.items():
        if len(row.in_shape) == 1:
            small = replace(row, batch=4, net=row.net.replace("1024", "16"))
            for rule in [row.rule] if row.rule else cpu.BARE:
                engine_turn(small, rule, 1)(2)
        assert row.goal > 0, name


def test_cpu_quick(tmp_path, capsys):
    path = tmp_path / "cpu.json"
    rows = ["small32_dfa_sgd", "engine_small"]
    assert (
        cpu.main(["--quick", "--rows", ",".join(rows), "--threads", "1", "--json", str(path)]) == 0
    )
    found = json.loads(path.read_text())
    assert [r["name"] for r in found["rows"]] == rows
    assert all(r["median_ms"] > 0 and r["goal"] > 0 and r["rounds"] == 2 for r in found["rows"])
    assert found["rows"][1]["against"].startswith("kernels of ") and found["rows"][1]["ratio"] > 0
    assert "goal" in capsys.readouterr().out
    text = performance.cpu(found)
    for r in found["rows"]:
        told = "reached" if r["ratio"] and r["ratio"] <= r["goal"] else "missed"
        assert re.search(rf"`{r['name']}`.*({told}|not measured)", text)


@pytest.mark.parametrize(("ms", "told"), [(15.0, "reached"), (15.1, "missed")])
def test_a_goal_in_milliseconds_is_of_the_step_and_not_of_the_ratio(ms, told):
    row = {
        "name": "ff_mnist",
        "rule": "forward_forward",
        "batch": 100,
        "median_ms": ms,
        "goal": 15.0,
    }
    row |= {
        "of": "ms",
        "ratio": 0.1,
        "ratio_spread": 0.0,
        "against": "PyTorch",
        "against_ms": 150.0,
    }
    text = performance.cpu({"rows": [row | {"notes": []}], "machine": MACHINE, "notes": []})
    assert f"| 15 ms | {told} |" in text
    assert cpu.ROWS["ff_mnist"].of == "ms"


@pytest.mark.slow
def test_first_step_quick(tmp_path, capsys):
    path = tmp_path / "first_step.json"
    assert first_step.main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert row["cold"] > 2 * row["warm"] > 0  # compiling takes longer than reading what was
    assert f"| `{row['rule']}` | {row['cold']:.2f} s, " in performance.first_step(found)
    assert row["three_cold"] > row["cold"] and row["three_warm"] > row["warm"]
    times = {"cold": 5.01, "warm": 0.3, "three_cold": 7.0, "three_warm": 0.4}
    found["rows"] = [{"rule": "dfa", **times}]
    told = "| `dfa` | 5.01 s, missed | 0.30 s, reached | 7.00 s | 0.40 s |"
    assert told in performance.first_step(found)


@pytest.mark.slow
@pytest.mark.skipif(not micro.AVAILABLE, reason="needs AVX-512")
def test_sparse_quick(tmp_path, capsys):
    path = tmp_path / "sparse.json"
    assert sparse.main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [r["share"] for r in found["rows"]] == [0.05, 0.1]
    (layer,) = found["active"]
    assert 0 < layer <= 1


def test_what_is_told_of_silent_units_follows_from_the_figures():
    rows = [{"share": s, "ratio": 10 * s, "ratio_spread": 0.0} for s in (0.05, 0.1, 0.2)]
    found = {"data": "digits", "epochs": 3, "rows_of_product": 256, "units": 1024, "rows": rows}
    text = performance.sparse(found | {"active": [0.15, 0.06], "machine": MACHINE, "notes": []})
    assert "the shares are 0.15, 0.06" in text and "is 1.50, 0.60." in text.replace("\n", " ")


def test_cpu_says_which_rows_there_are(capsys):
    assert cpu.main(["--rows", "mlp"]) == 2
    assert "mlp128_dfa_sgd" in capsys.readouterr().err


def test_the_performance_page_follows_the_records():
    assert performance.PAGE.read_text(encoding="utf-8") == performance.page()
    assert "not measured" in performance.gpu(None).lower()
