"""docs/performance.md from the recorded results: ``python -m benchmarks.performance``; nothing is timed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu import goal, reached
from benchmarks.machine import sentence
from fflearn.registry import REFERENCE

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
INTRO = """# Performance

Written by `python -m benchmarks.performance` from the files in `benchmarks/results`. Do not edit it.

Ratios are medians over rounds in which all variants take turns, with the interquartile range in brackets; below 1 the first is
faster, or smaller. A rule's step is `Engine.step`, as a user runs it; PyTorch is its backpropagation on the same network and the
same images, with a fused optimizer, convolutions channels-last, pinned, and the better of one thread and all. Goals were set on
another machine; those that were missed are shown as missed."""
CPU = """## On a processor

`python -m benchmarks.cpu --json benchmarks/results/cpu.json`

| row | rule | batch | ms a step | PyTorch, ms | ratio | goal | |
|---|---|---|---|---|---|---|---|"""
# What was tried where a goal is missed, by the beginning of the row's name.
TRIED = {
    "small32": """Four fifths of a small step are its kernels, most of them products near the processor's peak; the rest is Python: finding
the recorded step, giving it the batch and the rates. Tried, and kept: the whole step in one native call with its numbers in
memory; a batch like an earlier one taken without another check; threads set once for many steps; a transposed operand read where it
lies; bias and activation on rows that no use is counted of; exp in vectors; products that end in a part of a panel, copied by
masked vectors. Two threads for a product are no gain: a parallel region costs more than it saves.""",
}
FIRST = """## The first step

`python -m benchmarks.first_step --json benchmarks/results/first_step.json`

Seconds of a process's first step, with nothing compiled and with all of it kept from before; goals {cold:g} and {warm:g}. The third
step is the first that is repeated from a recording, whose kernels are compiled then: the last two columns are the first three together.

| rule | cold | warm | three, cold | three, warm |
|---|---|---|---|---|"""
COMPILING = """Nearly all of a cold first step is compiling. Tried, and kept: one parallel loop for all kernels, no way in from Python
where none is needed, kernels compiled once for all calls and not anew for numbers written out."""
SPARSE = """## Silent units

`python -m benchmarks.sparse --data {data} --epochs {epochs} --json benchmarks/results/sparse.json`

Time of a product over active units alone beside the dense product, {rows_of_product} rows and {units} units, by the share of units that
are active. In the layers that Forward-Forward trained on {data} for {epochs} epochs the shares are {active}, where the ratio, read
off between the rows, is {there}. The package's products are dense.

| active | ratio |
|---|---|"""
MEMORY = """## Memory over depth

`python -m benchmarks.memory --json benchmarks/results/memory.json`

| rule | kept for learning, a layer | of backprop's |
|---|---|---|"""
PROCESS = """Peak of a process above what it was before the network was made: weights, data, activity, everything.
PyTorch's, which varies, is the median of five processes, the least in brackets. Goals for Forward-Forward and DRTP: 0.35 at
batch 512 and 0.12 at 4096, where the weights alone are {weights}. Beside weights and batch a step of these two holds one
layer's input, activity and error, twice for Forward-Forward (positives and negatives); backpropagation holds one activity a layer.
Tried, and kept: traces without what no rule reads, activity and error written in place, what is read no more freed before a layer
learns, the recorded step's largest arrays laid first, freed memory given back to the system before it runs.

| network | rule | peak | predicted | of PyTorch's |
|---|---|---|---|---|"""
GPU = """## On a GPU

`python -m benchmarks.gpu --json benchmarks/results/gpu.json`
"""
# What the rows of `benchmarks.gpu` are about, where no GPU was at hand to measure them.
UNMEASURED = """Not measured: no GPU was at hand. The kernels are tested in Numba's simulator and compiled for compute
capabilities 8.0 and 9.0; the command above checks and times them where there is one."""


def cpu(found: Mapping[str, Any]) -> str:
    """The table of `benchmarks.cpu`."""
    lines = [CPU]
    for r in found["rows"]:
        cells = [f"`{r['name']}`", f"`{r['rule']}`" if r["rule"] else "worst of four"]
        cells += [f"{r['batch']}", f"{r['median_ms']:.3g}"]
        if r["ratio"] is None:
            cells += ["not measured", "", goal(r), ""]
        else:
            cells += [f"{r['against_ms']:.3g} ({r['against']})"]
            cells += [f"{r['ratio']:.3f} ({r['ratio_spread']:.3f})", goal(r)]
            cells += ["reached" if reached(r) else "missed"]
        lines.append("| " + " | ".join(cells) + " |")
    missed = [r["name"] for r in found["rows"] if r["ratio"] is not None and not reached(r)]
    tried = [text for name, text in TRIED.items() if any(m.startswith(name) for m in missed)]
    notes = sorted({note for r in found["rows"] for note in r["notes"]} | set(found["notes"]))
    machine = f"{sentence(found['machine'])}."
    return "\n".join([*lines, "", machine, *notes, *(f"\n{text}" for text in tried)])


def first_step(found: Mapping[str, Any]) -> str:
    """The table of `benchmarks.first_step`."""
    lines, missed = [FIRST.format(**found["goals"])], False
    for r in found["rows"]:
        cells = [f"`{r['rule']}`"]
        for name, goal_of in found["goals"].items():
            late = r[name] > goal_of
            cells.append(f"{r[name]:.2f} s, {'missed' if late else 'reached'}")
            missed |= late
        cells += [f"{r[f'three_{name}']:.2f} s" for name in found["goals"]]
        lines.append("| " + " | ".join(cells) + " |")
    machine = f"{found['net']}. {sentence(found['machine'])}."
    return "\n".join([*lines, "", machine, *([f"\n{COMPILING}"] if missed else [])])


def sparse(found: Mapping[str, Any]) -> str:
    """The table of `benchmarks.sparse`, and what follows from it."""
    shares, times = zip(*((r["share"], r["ratio"]) for r in found["rows"]), strict=True)
    there = np.interp(found["active"], shares, times)
    about = {n: found[n] for n in ("data", "epochs", "rows_of_product", "units")}
    text = SPARSE.format(
        **about,
        active=", ".join(f"{share:.2f}" for share in found["active"]),
        there=", ".join(f"{ratio:.2f}" for ratio in there),
    )
    lines = [
        f"| {r['share']:g} | {r['ratio']:.2f} ({r['ratio_spread']:.2f}) |" for r in found["rows"]
    ]
    machine = f"{sentence(found['machine'])}."
    return "\n".join([text, *lines, "", machine, *found["notes"]])


def memory(found: Mapping[str, Any]) -> str:
    """The tables of `benchmarks.memory`."""
    lines = [MEMORY]
    for r in found["rows"]:
        lines.append(f"| `{r['name']}` | {r['bytes_per_layer'] / 1e3:.1f} kB | {r['ratio']:.3f} |")
    about = f"Layers of {found['width']}, batch {found['batch']}. {sentence(found['machine'])}."
    shares = []
    for r in found["process"]:
        if r["name"] == REFERENCE:
            weights = 4 * r["width"] ** 2 * (r["depth"] - 1)
            shares.append(f"{weights / (r['peak_bytes_above_start'] or weights):.2f}")
    lines += ["", about, "", PROCESS.format(weights=" and ".join(shares))]
    for r in found["process"]:
        size = f"{r['depth']} layers of {r['width']}, batch {r['batch']}"
        peak = r["peak_bytes_above_start"]
        told = "not measured" if peak is None else f"{peak / 1e6:.0f} MB"
        if peak != r["least_bytes"]:
            told += f" ({r['least_bytes'] / 1e6:.0f})"
        before = f"{r['predicted_bytes'] / 1e6:.0f} MB" if r["predicted_bytes"] else ""
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.3f}"
        name = "PyTorch backprop" if r["name"] == "torch" else f"`{r['name']}`"
        lines.append(f"| {size} | {name} | {told} | {before} | {ratio} |")
    return "\n".join([*lines, *found["notes"]])


def gpu(found: Mapping[str, Any] | None) -> str:
    """The table of `benchmarks.gpu`, or that there is none."""
    if found is None:
        return f"{GPU}\n{UNMEASURED}"
    head = ["| row | ms a step | ratio | goal |", "|---|---|---|---|"]
    rows = [
        f"| `{r['name']}` | {r['median_ms']:.3g} | {r['ratio']:.3f} | {r['goal']:g} |"
        for r in found["rows"]
    ]
    return "\n".join([GPU, *head, *rows, "", f"{found['machine']['gpu']}."])


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    for name, part in (
        ("cpu", cpu),
        ("first_step", first_step),
        ("memory", memory),
        ("sparse", sparse),
    ):
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(part(json.loads(path.read_text(encoding="utf-8"))))
    path = RESULTS / "gpu.json"
    parts.append(gpu(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
