"""Time of a training step: every rule against PyTorch's autograd.

``python -m benchmarks.rules`` takes all variants of a size in turns, round after round, and
compares within a round.  PyTorch trains the given network by backpropagation with the same
optimizer settings and threads, in its fused form.  A rule's ratio below 1 is faster than that.
What the Engine adds to its kernels is among the rows of `benchmarks.cpu`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import autograd
from benchmarks.cases import Case, engine_turn, slow, torch_turn
from benchmarks.machine import header, save, sentence
from benchmarks.timing import ratios, round_robin, spread, watched
from fflearn import registry

TORCH = "PyTorch backprop"


SIZES = {
    "wide": Case("dense 512 relu | dense 512 relu | dense 10", (784,), 128, "adam"),
    "small": Case("dense 64 relu | dense 64 relu | dense 10", (64,), 32, "adam"),
}


def against_torch(
    size: str, case: Case, rules: list[str], threads: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """A row per rule; the ratio is null where PyTorch is missing."""
    turns = {TORCH: torch_turn(case, threads)} if autograd.available() else {}
    turns |= {rule: engine_turn(case, rule, threads) for rule in rules}
    times = round_robin(turns, rounds, seconds)
    return [_row(size, name, times) for name in turns]


def _row(size: str, name: str, times: Mapping[str, list[float]]) -> dict[str, Any]:
    own = times[name]
    of_base = ratios(own, times[TORCH]) if TORCH in times else None
    return {
        "size": size,
        "name": name,
        "against": TORCH,
        "ratio": statistics.median(of_base) if of_base else None,
        "ratio_spread": spread(of_base) if of_base else None,
        "median_ms": 1e3 * statistics.median(own),
        "spread": 1e3 * spread(own),
        "rounds": len(own),
    }


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    lines, wide = [sentence(result["machine"])], max(len(r["name"]) for r in result["rows"])
    for size in result["sizes"]:
        rows = [r for r in result["rows"] if r["size"] == size["name"]]
        lines += [
            "",
            f"{size['name']}: {size['inputs']} inputs | {size['net']}, batch {size['batch']}",
        ]
        lines.append(f"  {'':{wide}}{'ms/step':>9} {'IQR':>8}  ratio (IQR)")
        for r in rows:
            ratio = "-" if r["ratio"] is None else f"{r['ratio']:.2f} ({r['ratio_spread']:.2f})"
            lines.append(f"  {r['name']:{wide}}{r['median_ms']:9.4g} {r['spread']:8.2g}  {ratio}")
    return "\n".join([*lines, *(f"\n{note}" for note in result["notes"])])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.rules", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--net", help="one network of your own instead of the two sizes")
    parser.add_argument("--inputs", type=int, default=784, help="its inputs (%(default)s)")
    parser.add_argument("--batch", type=int, help="samples per step (128 wide, 32 small)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--rules", help="which, separated by commas (all)")
    parser.add_argument("--rounds", type=int, default=25, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it run?")
    options = parser.parse_args(argv)
    rounds, seconds = (2, 0.002) if options.quick else (options.rounds, 0.1)
    rules = registry.split_list(options.rules) if options.rules else registry.names()
    sizes = SIZES
    if options.net:
        sizes = {"given": Case(options.net, (options.inputs,), options.batch or 128, "adam")}
    elif options.batch:
        sizes = {name: replace(case, batch=options.batch) for name, case in sizes.items()}
    limits = options.threads, rounds, seconds
    notes = [] if autograd.available() else [autograd.MISSING]
    with watched(notes):
        rows = [r for size in sizes.items() for r in against_torch(*size, rules, *limits)]
    result = {
        **header("rules", options.threads),
        "optimizer": slow("adam").settings(),
        "sizes": [
            {"name": name, "net": case.net, "inputs": case.in_shape[0], "batch": case.batch}
            for name, case in sizes.items()
        ],
        "rows": rows,
        "notes": notes,
    }
    print(show(result))
    save(options.json, result)
    return 0


if __name__ == "__main__":
    # Unpinned, two OpenMP threads can share a core for a long time; read when a pool starts.
    os.environ.setdefault("OMP_PROC_BIND", "true")
    raise SystemExit(main())
