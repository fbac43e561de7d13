"""Ensembles in Forward-Forward and in backprop: ``python -m benchmarks.emergence``.

Two networks of rectified layers learn the same digits.  On test samples that a network classifies
rightly, shown with their labels: how sparse each layer's activity is (Hoyer), how large the
ensembles of the categories are, and how many units two of them share.  Tosato et al. (2023),
arXiv:2305.18353, table 1 and fig. 3: Forward-Forward's first layer is much the sparser one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import header, save, sentence
from fflearn import registry
from fflearn.data import DataSet, load
from fflearn.emergence import activities, ensembles, hoyer, sharing
from fflearn.optim import optimizer
from fflearn.training import train

# Goodness, norm, label and negatives of the authors' code, github.com/NiccoloTosato/
# EmergentRepresentations, and their learning rates; there the runs are far longer.
RULES = {
    "forward_forward[goodness=l2,norm=unit,negatives=wrong,label=overlay,peer=0.0,head=false]": 1e-2,
    "backprop": 1e-4,
}
LAYERS = 3
GAP = 0.15  # of the first layers' sparsity, less than half of what is published


def subset(data: DataSet, samples: int) -> DataSet:
    """The first training samples, and as many of the test part at most."""
    return replace(
        data,
        x_train=data.x_train[:samples],
        y_train=data.y_train[:samples],
        x_test=data.x_test[:samples],
        y_test=data.y_test[:samples],
    )


def measured(rule: str, lr: float, data: DataSet, width: int, epochs: int, seed: int) -> dict:
    """One network, trained and looked at: its accuracy, and a row per hidden layer."""
    net = " | ".join([f"dense {width} relu"] * LAYERS + [f"dense {data.n_classes}"])
    run = train(
        net,
        rule,
        data,
        epochs=epochs,
        batch_size=100,
        seed=seed,
        optimizer=optimizer("adam", lr=lr),
        evaluate_every=epochs,
    )
    x, labels = data.x_test, data.y_test
    right = run.engine.predict(run.state, x).argmax(axis=1) == labels
    x, labels = x[right], labels[right]
    seen = activities(run.engine, run.state, x, np.eye(data.n_classes)[labels])
    rows = []
    for layer in range(LAYERS):
        shared = sharing(ensembles(seen[layer], labels, data.n_classes))
        pairs = shared[~np.eye(data.n_classes, dtype=bool)]
        rows.append(
            {
                "layer": layer,
                "hoyer": float(np.nanmean(hoyer(seen[layer]))),
                "ensemble_size": float(np.diag(shared).mean()),
                "shared_by_two": float(pairs.mean()),
                "sharing": shared.tolist(),
            }
        )
    name = registry.parse(rule).name
    return {"rule": rule, "name": name, "accuracy": float(right.mean()), "layers": rows}


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    lines = [sentence(result["machine"]), ""]
    lines.append(f"{'':16} accuracy  layer  Hoyer  units of an ensemble  shared by two")
    for r in result["rows"]:
        for row in r["layers"]:
            first = f"{r['name']:16} {100 * r['accuracy']:8.2f}" if row["layer"] == 0 else " " * 25
            lines.append(
                f"{first}  {row['layer'] + 1:5}  {row['hoyer']:5.3f}"
                f"{row['ensemble_size']:22.1f}{row['shared_by_two']:15.1f}"
            )
    enough = "at least" if result["gap"] >= GAP else "less than"
    lines += ["", f"gap of the first layers' sparsity: {result['gap']:.3f}, {enough} {GAP}"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.emergence", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--data", default="mnist", help="(%(default)s)")
    parser.add_argument("--samples", type=int, default=10_000, help="to learn from (%(default)s)")
    parser.add_argument("--width", type=int, default=784, help="of each layer (%(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args(argv)
    data = subset(load(options.data), options.samples)
    size = options.width, options.epochs, options.seed
    rows = [measured(rule, lr, data, *size) for rule, lr in RULES.items()]
    gap = rows[0]["layers"][0]["hoyer"] - rows[1]["layers"][0]["hoyer"]
    settings = {n: v for n, v in vars(options).items() if n != "json"}
    result = {**header("emergence", 1), **settings, "rows": rows, "gap": gap}
    print(show(result))
    save(options.json, result)
    return 0 if gap >= GAP else 1


if __name__ == "__main__":
    raise SystemExit(main())
