"""Records, grouped: by data set and network, then by rule.  Everything a page or figure reads."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fflearn.errors import SpecError
from fflearn.statistics import Interval, Paired, holm, interval, paired, to_target

Record = Mapping[str, Any]
BASELINE = "backprop"
OF_THE_BEST = 0.98  # the target that time and samples are counted to


def read(folder: str | Path) -> list[Record]:
    """The records of a comparison's folder, in the order of its table.

    Raises
    ------
    SpecError
        There are none, or one cannot be read.
    """
    folder = Path(folder)
    records: list[Record] = []
    for path in sorted((folder / "records").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            order = (record["kind"], record["label"] != BASELINE, record["label"], record["seed"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise SpecError(f"the record {path} cannot be read: {e}. Delete it.") from e
        records.append({**record, "file": f"records/{path.name}", "order": order})
    if not records:
        raise SpecError(f"there are no records in {folder / 'records'}. Name a folder of compare.")
    # The yardsticks first: backprop, the torch reference, then the rules by name.
    return sorted(records, key=lambda r: (r["data"], r["net"], r["order"][1], *r["order"]))


def read_audits(folder: str | Path) -> list[Record]:
    """The audits that were kept with a comparison; none is no mistake."""
    paths = sorted((Path(folder) / "audit").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


@dataclass(frozen=True)
class Group:
    """One rule on one data set and network: its records by seed."""

    label: str
    records: Sequence[Record]

    @property
    def first(self) -> Record:
        """Of the first seed: what does not depend on the seed."""
        return self.records[0]

    @property
    def measure(self) -> str:
        """What it is compared by; the higher the better."""
        return self.first.get("measures", ["accuracy"])[0]

    @cached_property
    def scores(self) -> dict[int, float]:
        """Test score by seed, by the rule's first way to predict."""
        by = next(iter(self.first["metrics"]))
        return {r["seed"]: r["metrics"][by][self.measure] for r in self.records}

    @cached_property
    def score(self) -> Interval:
        """Mean over seeds and its interval."""
        return interval(list(self.scores.values()))

    @property
    def alone(self) -> list[Record]:
        """Runs that had the machine to themselves: times and energy count from these only."""
        return [r for r in self.records if not r.get("contended")]

    @property
    def seconds(self) -> float:
        """Training time, mean over seeds; nan where no run had the machine to itself."""
        found = [r["train_seconds"] for r in self.alone]
        return statistics.mean(found) if found else math.nan

    @property
    def joules(self) -> float:
        """Energy of training, mean over seeds; nan where it was not measured."""
        found = [r["joules"] for r in self.alone if r.get("joules") is not None]
        return statistics.mean(found) if found else math.nan

    @property
    def peak_bytes(self) -> int:
        """Arrays kept alive for learning."""
        return max(r["peak_learning_bytes"] for r in self.records)

    @property
    def floats(self) -> float:
        """Floats that crossed layer boundaries per sample, all channels together."""
        return sum(self.first["floats_per_sample"].values())

    @property
    def angle(self) -> float:
        """Mean angle to the gradient over hidden layers and seeds; nan where there is none."""
        found = [a for r in self.records for a in r.get("gradient_angles", {}).values()]
        return statistics.mean(found) if found else math.nan

    def cost_to(self, target: float, what: str) -> float:
        """Median over seeds of "seconds" or "samples" to the target; inf: never, nan: not known."""
        runs = self.alone if what == "seconds" else self.records
        if not runs:
            return math.nan
        return statistics.median(
            to_target(cost(r, what), r["curves"][self.measure], target) for r in runs
        )


def cost(record: Record, what: str) -> list[float]:
    """A curve's horizontal axis: "epoch", "seconds" or "samples"."""
    if what != "samples":
        return record["curves"][what]
    per_epoch = record["samples_seen"] / record["epochs"]
    return [e * per_epoch for e in record["curves"]["epoch"]]


@dataclass(frozen=True)
class Cell:
    """All rules on one data set and network."""

    data: str
    net: str
    groups: Sequence[Group]

    @property
    def baseline(self) -> Group:
        """What the others are compared with: backprop, or the first rule."""
        return next((g for g in self.groups if g.label == BASELINE), self.groups[0])

    @property
    def target(self) -> float:
        """The default target: a score that most rules reach or nearly reach."""
        return OF_THE_BEST * max(g.score.mean for g in self.groups)

    def differences(self) -> dict[str, tuple[Paired, float]]:
        """Rule -> paired differences from the baseline, and Holm's adjusted p."""
        found = {}
        for g in self.groups:
            pairs = paired(g.scores, self.baseline.scores)
            if g is not self.baseline and pairs is not None:
                found[g.label] = pairs
        adjusted = holm({name: pairs.p for name, pairs in found.items()})
        return {name: (pairs, adjusted[name]) for name, pairs in found.items()}


def cells_of(records: Iterable[Record]) -> list[Cell]:
    """Records by data set and network, then by rule, in the order in which they come."""
    found: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in records:
        found.setdefault((r["data"], r["net"]), {}).setdefault(r["label"], []).append(r)
    if not found:
        raise SpecError("there are no records to show.")
    return [
        Cell(data, net, [Group(label, own) for label, own in groups.items()])
        for (data, net), groups in found.items()
    ]


def difference(records: Sequence[Record], others: Sequence[Record]) -> str:
    """Two sets of records in one table: scores, paired by seed, of the rules that both have.

    Raises
    ------
    SpecError
        They have no run in common.
    """
    theirs = {(c.data, c.net, g.label): g for c in cells_of(others) for g in c.groups}
    lines: list[tuple[str, ...]] = []
    for cell in cells_of(records):
        for mine in cell.groups:
            other = theirs.get((cell.data, cell.net, mine.label))
            pairs = paired(mine.scores, other.scores) if other is not None else None
            if other is None or pairs is None:
                continue
            i, n = pairs.interval, len(pairs.differences)
            lines.append(
                (
                    cell.data,
                    mine.label,
                    f"{mine.score.mean:.4f}",
                    f"{other.score.mean:.4f}",
                    f"{i.mean:+.4f}",
                    f"{i.low:+.4f} to {i.high:+.4f}" if math.isfinite(i.low) else "-",
                    str(n),
                    f"{ratio:.2f}" if math.isfinite(ratio := mine.seconds / other.seconds) else "-",
                )
            )
    if not lines:
        raise SpecError("the two sets of records have no rule, network and seed in common.")
    head = ("data", "rule", "from", "against", "difference", "95 % interval", "seeds", "time ratio")
    width = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, width, strict=True))
        ).rstrip()
        for line in [head, tuple("-" * w for w in width), *lines]
    )
