"""docs/which-rule.md from the recorded results: ``python -m benchmarks.which_rule``; nothing is trained.

Every recipe with a run of backprop is a task.  A rule is compared with backprop on the tasks where
both were run, seed by seed where they share seeds; numbers alone, no opinion.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.results import Recipe, Record, belonging
from fflearn.report.summary import BASELINE, Group
from fflearn.statistics import Paired, paired

NEAR = 0.01  # of a score of 1: what the second column counts
INTRO = """# Which rule should I use?

Written by `python -m benchmarks.which_rule` from the records in `benchmarks/results`. Do not edit it.

Each rule against backprop, on the tasks of [results.md](results.md) where both were run with the same network, data order and
epochs. Difference: test accuracy minus backprop's, in points. Memory: arrays kept alive for learning, over backprop's. Floats: what
crosses layer boundaries per sample, over backprop's. Medians over tasks, with the smallest and the largest in brackets; a rule with
few tasks was tried on few. `frozen` is the control: its hidden layers never learn, so a rule that is no better there has
learned nothing there."""


@dataclass(frozen=True)
class Against:
    """One rule against backprop on one task."""

    task: str
    label: str
    difference: Paired
    memory: float
    floats: float
    transport: str


def compared(recipe: Recipe, records: Iterable[Record]) -> list[Against]:
    """Every rule of a recipe against its backprop; empty where that was not run."""
    found: list[Against] = []
    records = list(records)
    for cell in recipe.experiment.cells():
        groups = [
            Group(label, own)
            for label, own in belonging(Recipe(cell, recipe.published), records).items()
        ]
        base = next((g for g in groups if g.label == BASELINE), None)
        for g in groups:
            pairs = paired(g.scores, base.scores) if base is not None else None
            if base is None or g is base or pairs is None or g.label == "torch":
                continue
            found.append(
                Against(
                    recipe.name,
                    g.label,
                    pairs,
                    g.peak_bytes / base.peak_bytes,
                    g.floats / base.floats,
                    g.first["weight_transport"],
                )
            )
    return found


def page(found: Sequence[Against]) -> str:
    """The Markdown of docs/which-rule.md."""
    rules: dict[str, list[Against]] = {}
    for one in found:
        rules.setdefault(one.label, []).append(one)
    order = sorted(rules, key=lambda n: (-_median(rules[n]), n))
    head = [
        "rule",
        "tasks",
        "within a point",
        "difference, points",
        "memory",
        "floats",
        "transport",
    ]
    rows = [
        [
            name,
            str(len(own := rules[name])),
            f"{sum(a.difference.interval.mean >= -NEAR for a in own)}",
            _range([100 * a.difference.interval.mean for a in own], "+.2f"),
            _range([a.memory for a in own], ".2f"),
            _range([a.floats for a in own], ".2f"),
            own[0].transport,
        ]
        for name in order
    ]
    parts = [INTRO, results.markdown([head, *rows]), "## Task by task"]
    for task in dict.fromkeys(a.task for a in found):
        own = sorted(
            (a for a in found if a.task == task), key=lambda a: -a.difference.interval.mean
        )
        table = [["rule", "difference, points", "95 % interval", "seeds", "memory", "floats"]]
        table += [
            [
                a.label,
                f"{100 * a.difference.interval.mean:+.2f}",
                _interval(a.difference),
                str(len(a.difference.differences)),
                f"{a.memory:.2f}",
                f"{a.floats:.2f}",
            ]
            for a in own
        ]
        parts += [f"### {task}", results.markdown(table)]
    return "\n\n".join(parts) + "\n"


def _median(own: Sequence[Against]) -> float:
    return statistics.median(a.difference.interval.mean for a in own)


def _range(values: Sequence[float], form: str) -> str:
    middle = f"{statistics.median(values):{form}}"
    return (
        middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"
    )


def _interval(pairs: Paired) -> str:
    i = pairs.interval
    if not math.isfinite(i.low):
        return "one seed"
    return f"{100 * i.low:+.2f} to {100 * i.high:+.2f}"


def write(path: Path | None = None) -> str:
    """Write the page from the files as they are, and return it."""
    found = [
        one
        for recipe in results.read_recipes()
        for one in compared(recipe, results.read_records(results.RESULTS / recipe.name))
    ]
    text = page(found)
    (path or results.PAGE.with_name("which-rule.md")).write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    write()
