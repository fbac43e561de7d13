"""The table of which rule to use, from records made up by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks import results, which_rule
from benchmarks.results import Recipe
from fflearn.experiment import Experiment


def recipe(name: str = "task", **changes) -> Recipe:
    fields = {"name": name, "rules": ("backprop", "dfa", "frozen"), "seeds": (0, 1, 2)}
    return Recipe(Experiment(net="dense 8 relu | dense 10", **{**fields, **changes}))


def records(recipe: Recipe, accuracy: dict[tuple[str, int], float], memory: dict[str, int]) -> list:
    found = [
        {
            "label": run.label,
            "seed": run.seed,
            "spec": run.spec(),
            "metrics": {"logits": {"accuracy": accuracy[run.label, run.seed]}},
            "peak_learning_bytes": memory.get(run.label, 100),
            "floats_per_sample": {
                "activity": 10.0,
                **({"transpose": 10.0} if run.label == "backprop" else {}),
            },
            "weight_transport": "no",
        }
        for run in recipe.experiment.resolved(10).runs()
        if (run.label, run.seed) in accuracy
    ]
    return json.loads(json.dumps(found))


def made(recipe: Recipe, dfa: float) -> list:
    accuracy = {("backprop", s): 0.90 + s / 100 for s in range(3)}
    accuracy |= {("dfa", s): 0.90 + s / 100 + dfa for s in range(3)}
    return records(recipe, accuracy | {("frozen", 0): 0.5}, {"backprop": 200})


def test_differences_are_from_backprop_on_the_same_seeds():
    r = recipe()
    dfa, frozen = which_rule.compared(r, made(r, -0.02))
    assert (dfa.label, dfa.memory, dfa.floats) == ("dfa", 0.5, 0.5)
    assert dfa.difference.differences == pytest.approx((-0.02,) * 3)
    assert frozen.difference.differences == pytest.approx((-0.4,))


def test_without_backprop_there_is_nothing_to_compare():
    r = recipe()
    assert which_rule.compared(r, [x for x in made(r, 0) if x["label"] != "backprop"]) == []


def test_the_page_has_medians_over_tasks_best_first():
    one, two = recipe("one"), recipe("two", epochs=7)
    found = which_rule.compared(one, made(one, -0.02)) + which_rule.compared(two, made(two, 0.03))
    text = which_rule.page(found)
    assert "| dfa | 2 | 1 | +0.50 (-2.00 to +3.00) | 0.50 (0.50 to 0.50) |" in text
    assert "| frozen | 2 | 0 | -40.00 (-40.00 to -40.00) |" in text
    assert text.index("| dfa |") < text.index("| frozen |")
    assert "### one" in text and "| dfa | -2.00 | -2.00 to -2.00 | 3 | 0.50 | 0.50 |" in text
    assert "| frozen | -40.00 | one seed | 1 |" in text


def test_the_page_is_that_of_the_records(tmp_path):
    text = which_rule.write(tmp_path / "page.md")
    assert results.PAGE.with_name("which-rule.md").read_text(encoding="utf-8") == text
