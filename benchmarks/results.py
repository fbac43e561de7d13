"""docs/results.md from recipes and records: ``python -m benchmarks.results``; nothing is trained.

The page is a function of the recipes in ``benchmarks/recipes`` and of the records in
``benchmarks/results`` alone: the same files give the same page on every machine.
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import sentence
from fflearn import registry
from fflearn.base import Channel
from fflearn.errors import SpecError
from fflearn.experiment import Experiment

Record = Mapping[str, Any]
ROOT = Path(__file__).resolve().parents[1]
RECIPES, RESULTS = ROOT / "benchmarks" / "recipes", ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"

# A mean this far below the published number (in points, besides one standard error) is explained.
TOLERANCE = 0.3
FIRST = ("backprop", "torch", "frozen")  # the yardsticks lead every table
INTRO = """# Results

Written by `python -m benchmarks.replay` from the recipes in `benchmarks/recipes` and the records in
`benchmarks/results`. Do not edit it: edit those.

Accuracy: mean ± standard error over the seeds, at the end of training, on the test part. Loss, where
a table has it: mean cross-entropy per prediction, on the test part. Training:
time in training steps alone; - where other work shared the processor. Peak learning: arrays kept alive for learning, parameters and
optimizer state left out. Weight transport: whether a message passes through the forward weights
(yes), their signs (sign), or neither (no)."""
HEAD = (
    "rule",
    "test accuracy, %",
    "published, %",
    "epochs",
    "seeds",
    "training, s",
    "peak learning, MB",
    "floats across layers per sample",
    "weight transport",
)


@dataclass(frozen=True)
class Recipe:
    """An experiment and what is published about it (the table ``[published]`` of its file).

    Attributes
    ----------
    published : mapping
        "title", "about", "source", "epochs" (the full length), and "rows": rule, or
        "rule, predictor", to {accuracy (% or [low, high]), source, epochs, note}.
    """

    experiment: Experiment
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the recipe's file and its folder of results."""
        return self.experiment.name

    def row(self, label: str, predictor: str) -> Mapping[str, Any]:
        """What is published about a rule."""
        rows = self.published.get("rows", {})
        return rows.get(f"{label}, {predictor}") or rows.get(label) or {}

    def full_length(self, label: str) -> int:
        """Epochs of the published run."""
        whole = self.published.get("epochs", self.experiment.epochs)
        return self.row(label, "").get("epochs", whole)


def read_recipe(path: Path) -> Recipe:
    """A recipe from its TOML file."""
    experiment = Experiment.load(path)
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Recipe(experiment, table.get("published", {}))


def read_recipes(folder: Path | None = None) -> list[Recipe]:
    """Every recipe of a folder (default `RECIPES`), by name."""
    return [read_recipe(path) for path in sorted((folder or RECIPES).glob("*.toml"))]


def read_records(folder: Path) -> list[Record]:
    """The records of one recipe's results."""
    paths = sorted((folder / "records").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def belonging(recipe: Recipe, records: Iterable[Record]) -> dict[str, list[Record]]:
    """Rule -> its records by seed; those of other settings than the recipe's are left out."""
    records = list(records)
    present = sorted({r["label"] for r in records if _known(r["label"])}, key=_rank)
    rules = recipe.experiment.rules or tuple(present)
    if not rules:
        return {}
    runs = replace(recipe.experiment.resolved(10), rules=rules).runs()
    found: dict[str, list[Record]] = {}
    for run in runs:
        spec = json.dumps(run.spec(), sort_keys=True)
        own = [r for r in records if json.dumps(r["spec"], sort_keys=True) == spec]
        if own:
            found.setdefault(run.label, []).append(own[0])
    return found


def _known(label: str) -> bool:
    try:
        return bool(registry.parse(label))
    except SpecError:  # the record of a rule that is no more
        return False


def _rank(label: str) -> tuple[int, str]:
    name = label.partition("[")[0]
    return (FIRST.index(name) if name in FIRST else len(FIRST)), label


# ---- one row ------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A rule (and one of its ways to predict) against what is published."""

    label: str
    predictor: str  # empty where the rule has one way only
    records: Sequence[Record]
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.label}, {self.predictor}" if self.predictor else self.label

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy in percent, by seed."""
        by = self.predictor or next(iter(self.records[0]["metrics"]))
        return [100 * r["metrics"][by]["accuracy"] for r in self.records]

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def standard_error(self) -> float:
        """0 for a single seed, which has none."""
        n = len(self.accuracies)
        return statistics.stdev(self.accuracies) / math.sqrt(n) if n > 1 else 0.0

    @property
    def published(self) -> Mapping[str, Any]:
        return self.recipe.row(self.label, self.predictor)

    @property
    def published_range(self) -> list[float]:
        """Lowest and highest published number, empty if there is none."""
        found = self.published.get("accuracy", [])
        return list(found) if isinstance(found, (list, tuple)) else [found, found]

    @property
    def epochs(self) -> int:
        """The shortest of the runs."""
        return min(r["epochs"] for r in self.records)

    @property
    def full_length(self) -> int:
        return self.recipe.full_length(self.label)

    @property
    def shortfall(self) -> float:
        """Points below the highest published number, if more than chance and tolerance; else 0."""
        if not self.published_range:
            return 0.0
        below = self.published_range[1] - self.mean
        return below if below > self.standard_error + TOLERANCE else 0.0

    @property
    def losses(self) -> list[float]:
        """Test loss by seed; empty where the data's score has none."""
        by = self.predictor or next(iter(self.records[0]["metrics"]))
        return [r["metrics"][by]["loss"] for r in self.records if "loss" in r["metrics"][by]]

    def cells(self) -> list[str]:
        """As `HEAD` names them, the loss at the end where there is one."""
        first, planned = self.records[0], len(self.recipe.experiment.seeds)
        pm = f" ± {self.standard_error:.2f}" if len(self.records) > 1 else ""
        short = "" if self.epochs >= self.full_length else ", not run at full length"
        alone = [r["train_seconds"] for r in self.records if not r.get("contended")]
        seeds = f"{len(self.records)}" + (f" of {planned}" if len(self.records) < planned else "")
        return [
            self.name,
            f"{self.mean:.2f}{pm}",
            self._published_cell(),
            f"{self.epochs} of {self.full_length}{short}",
            seeds,
            f"{statistics.mean(alone):.3g}" if alone else "-",
            f"{max(r['peak_learning_bytes'] for r in self.records) / 1e6:.3g}",
            _floats(first["floats_per_sample"]),
            first["weight_transport"],
            *([f"{statistics.mean(self.losses):.3f}"] if self.losses else []),
        ]

    def _published_cell(self) -> str:
        if not self.published_range:
            return "none"
        low, high = self.published_range
        source = self.published.get("source", self.recipe.published.get("source", ""))
        number = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        return f"{number} ({source})" if source else number

    def explanation(self) -> str:
        """Why the row is below the published number; empty if it is not."""
        if not self.shortfall:
            return ""
        note = self.published.get("note", "no explanation is known.")
        cut = (
            ""
            if self.epochs >= self.full_length
            else (f" It ran {self.epochs} of the {self.full_length} epochs.")
        )
        return f"{self.name} is {self.shortfall:.2f} points below the published number: {note}{cut}"


def rows_of(recipe: Recipe, records: Iterable[Record]) -> list[Row]:
    """One row per rule, or per rule and way to predict where it has several."""
    rows = []
    for label, own in belonging(recipe, records).items():
        several = own[0]["metrics"] if len(own[0]["metrics"]) > 1 else [""]
        rows += [Row(label, predictor, own, recipe) for predictor in several]
    return rows


def _floats(per_sample: Mapping[str, float]) -> str:
    order = ["activity", *(c.value for c in Channel)]
    parts = [f"{per_sample[c]:.6g} {c}" for c in order if c in per_sample]
    return " + ".join(parts) or "none"


# ---- the page ------------------------------------------------------------


def page(
    recipes: Iterable[Recipe],
    records: Mapping[str, Iterable[Record]],
    emergence: Mapping[str, Any] | None = None,
) -> str:
    """The Markdown of docs/results.md.

    Parameters
    ----------
    recipes : iterable of Recipe
    records : mapping of recipe name to iterable of Record
    emergence : mapping, optional
        What `benchmarks.emergence` found.
    """
    parts = [INTRO, *(section(r, records.get(r.name, ())) for r in recipes)]
    return "\n\n".join([*parts, *([representations(emergence)] if emergence else [])]) + "\n"


def representations(found: Mapping[str, Any]) -> str:
    """How sparse the layers of Forward-Forward and backprop are, and what categories share."""
    about = f"""## MNIST, sparsity and ensembles of Forward-Forward and backprop

Three rectified layers of {found["width"]}, {found["samples"]} training images, {found["epochs"]} epochs, seed {found["seed"]}. Of test \
images that a network classifies rightly, shown with their labels: Hoyer's sparsity of a layer's activity, units of a category's \
ensemble, units that two categories share. The first layer of Forward-Forward is sparser by {found["gap"]:.2f}. Published, after \
far longer runs: 0.63 to 0.90 and 0.31 to 0.60 (Tosato et al. (2023), arXiv:2305.18353).

- command: `python -m benchmarks.emergence --json benchmarks/results/emergence.json`
- machine: {sentence(found["machine"])}"""
    table = [["rule", "accuracy, %", "layer", "Hoyer", "units of an ensemble", "shared by two"]]
    for r in found["rows"]:
        for layer in r["layers"]:
            numbers = [f"{layer['hoyer']:.3f}"]
            numbers += [f"{layer[n]:.1f}" for n in ("ensemble_size", "shared_by_two")]
            table.append(
                [r["name"], f"{100 * r['accuracy']:.2f}", f"{layer['layer'] + 1}", *numbers]
            )
    return "\n\n".join([about, markdown(table)])


def section(recipe: Recipe, records: Iterable[Record]) -> str:
    """What one recipe found: a table per data set and network, and one per probe."""
    e, records = recipe.experiment, list(records)
    cells = [Recipe(cell, recipe.published) for cell in e.cells()]
    command = f"`python -m benchmarks.replay {recipe.name}`"
    parts = [f"## {recipe.published.get('title', recipe.name)}"]
    parts += [recipe.published["about"]] if "about" in recipe.published else []
    seeds = ", ".join(map(str, e.seeds))
    net = cells[0].experiment.resolved(10).net if len(cells) == 1 else ""
    settings = [("data", ", ".join(e.datasets) or e.data), ("network", net), ("epochs", e.epochs)]
    settings += [("batch", e.batch_size), ("seeds", seeds), ("optimizer", _optimizer(e))]
    settings += [("settings", ", ".join(f"{n} = {v}" for n, v in e.settings.items()))]
    listed = [f"- {name}: `{value}`" for name, value in settings if value]
    found = [rows_of(cell, records) for cell in cells]
    if not any(found):
        return "\n\n".join([*parts, "\n".join(listed), f"Not run yet. Type {command}."])
    machines = {sentence(r["fingerprint"]) for rows in found for row in rows for r in row.records}
    listed += [f"- command: {command}", *(f"- machine: {m}" for m in sorted(machines))]
    parts += ["\n".join(listed)]
    for cell, rows in zip(cells, found, strict=True):
        if len(cells) > 1:
            parts += [f"### {cell.experiment.data}: `{cell.experiment.resolved(10).net}`"]
        if rows:
            head = [*HEAD, "test loss"] if rows[0].losses else HEAD
            parts += [markdown([head, *(row.cells() for row in rows)])]
        parts += [row.explanation() for row in rows if row.shortfall]
    parts += [probed(name, cells, found) for name in e.probes]
    return "\n\n".join(parts)


def probed(name: str, cells: Sequence[Recipe], found: Sequence[Sequence[Row]]) -> str:
    """What a probe measured, of the first seed: by epoch, or, of several networks, at the end.

    Backprop is left out: it is what gradients are compared with.
    """
    measured: list[tuple[list[str], dict[int, float]]] = []
    for cell, rows in zip(cells, found, strict=True):
        for row in (r for r in rows if r.label != "backprop"):
            curves = row.records[0]["curves"]
            layers = {
                int(n.rpartition("/")[2]): c for n, c in curves.items() if n.startswith(f"{name}/")
            }
            for i, epoch in enumerate(curves["epoch"]):
                values = {k: c[i] for k, c in layers.items() if c[i] is not None}
                last = epoch == curves["epoch"][-1]
                if values and (last or len(cells) == 1):
                    where = [f"`{cell.experiment.net}`"] if len(cells) > 1 else []
                    measured.append(([*where, row.name, str(epoch)], values))
    layers = sorted({k for _, values in measured for k in values})
    head = [*(["network"] if len(cells) > 1 else []), "rule", "epoch", *map(str, layers)]
    lines = [
        [*start, *(f"{values[k]:.3g}" if k in values else "" for k in layers)]
        for start, values in measured
    ]
    return (
        f"{name.replace('_', ' ')} by layer, seed {cells[0].experiment.seeds[0]}:\n\n"
        + markdown([head, *lines])
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def _optimizer(e: Experiment) -> str:
    names = ("optimizer", "lr", "momentum", "weight_decay", "schedule")
    given = [(n, getattr(e, n)) for n in names if getattr(e, n) is not None]
    return ", ".join(f"{n} = {v}" for n, v in given) or "each rule's own default"


def write(
    path: Path | None = None, recipes: Path | None = None, results: Path | None = None
) -> str:
    """Write the page from the files as they are, and return it."""
    path, results = path or PAGE, results or RESULTS
    found = read_recipes(recipes)
    records = {r.name: read_records(results / r.name) for r in found}
    measured = results / "emergence.json"
    emergence = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else None
    text = page(found, records, emergence)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    write()
