"""Time of a training step: every rule against PyTorch's autograd, the Engine against its kernels.

``python -m benchmarks.rules`` takes all variants of a size in turns, round after round, and
compares within a round.  PyTorch trains the given network by backpropagation with the same
optimizer settings and threads, in its fused form.  A rule's ratio below 1 is faster than that.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import autograd, bare
from benchmarks.machine import header, save, sentence
from benchmarks.timing import Turn, ratios, round_robin, spread, watched
from fflearn import registry
from fflearn.base import Batch, Key
from fflearn.engine import Engine
from fflearn.networks import network
from fflearn.optim import optimizer

# So small that the network stays as it was drawn: a step costs the same from first to last.
OPTIMIZER = optimizer("adam", lr=1e-7)
TORCH = "PyTorch backprop"


@dataclass(frozen=True)
class Size:
    """A network with the shape of its data."""

    name: str
    net: str
    inputs: int
    batch: int

    def data(self) -> tuple[Batch, int]:
        """Standard normal samples with random labels, and the number of classes."""
        classes, key = network(self.net).leaves[-1].units, Key(0)
        labels = key.fold("y").integers(classes, self.batch)
        x = key.fold("x").normal((self.batch, self.inputs))
        return Batch(x, np.eye(classes, dtype=x.dtype)[labels]), classes


WIDE = Size("wide", "dense 512 relu | dense 512 relu | dense 10", 784, 128)
SMALL = Size("small", "dense 64 relu | dense 64 relu | dense 10", 64, 32)


def engine_of(rule: str, size: Size, threads: int) -> Engine:
    """The engine of a rule on a size, with the benchmark's optimizer."""
    built = registry.build(registry.parse(rule))
    return Engine(size.net, built, (size.inputs,), size.data()[1], OPTIMIZER, threads=threads)


def engine_turn(rule: str, size: Size, threads: int) -> Turn:
    """Steps through `Engine.step`."""
    engine, (batch, _) = engine_of(rule, size, threads), size.data()
    state = engine.init(0)

    def turn(n: int) -> None:
        for _ in range(n):
            engine.step(state, batch)

    return turn


def bare_turn(rule: str, size: Size, threads: int) -> Turn:
    """The same steps as a loop over kernels."""
    engine, (batch, _) = engine_of(rule, size, threads), size.data()
    step = bare.STEPS[rule](engine, engine.init(0), batch)

    def turn(n: int) -> None:
        with engine.kernels.running(threads):
            for _ in range(n):
                step()

    return turn


def torch_turn(size: Size, threads: int) -> Turn:
    """The same network in PyTorch."""
    engine, (batch, _) = engine_of("backprop", size, threads), size.data()
    step, _ = autograd.autograd_step(engine, engine.init(0), batch)

    def turn(n: int) -> None:
        for _ in range(n):
            step()

    return turn


def against_torch(
    size: Size, rules: list[str], threads: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """A row per rule; the ratio is null where PyTorch is missing."""
    turns = {TORCH: torch_turn(size, threads)} if autograd.available() else {}
    turns |= {rule: engine_turn(rule, size, threads) for rule in rules}
    times = round_robin(turns, rounds, seconds)
    return [_row(size, name, times, TORCH) for name in turns]


def against_kernels(size: Size, threads: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row per rule that has a bare loop: the Engine's time over the loop's."""
    turns: dict[str, Turn] = {}
    for rule in bare.STEPS:
        turns[f"{rule}, kernels"] = bare_turn(rule, size, threads)
        turns[rule] = engine_turn(rule, size, threads)
    times = round_robin(turns, rounds, seconds)
    rows = []
    for rule in bare.STEPS:
        loop = f"{rule}, kernels"
        extra = [a - b for a, b in zip(times[rule], times[loop], strict=True)]
        row = _row(size, rule, times, loop) | {"against": "bare kernels"}
        rows.append(row | {"microseconds": 1e6 * statistics.median(extra)})
    return rows


def _row(size: Size, name: str, times: Mapping[str, list[float]], base: str) -> dict[str, Any]:
    own = times[name]
    of_base = ratios(own, times[base]) if base in times else None
    return {
        "size": size.name,
        "name": name,
        "against": base,
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
            engine = r["against"] == "bare kernels"
            extra = f"   Engine over kernels, {r['microseconds']:+.0f} us" if engine else ""
            lines.append(
                f"  {r['name']:{wide}}{r['median_ms']:9.4g} {r['spread']:8.2g}  {ratio}{extra}"
            )
    return "\n".join([*lines, *(f"\n{note}" for note in result["notes"])])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.rules", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--net", help="one network of your own instead of the two sizes")
    parser.add_argument("--inputs", type=int, default=WIDE.inputs, help="its inputs (%(default)s)")
    parser.add_argument("--batch", type=int, help="samples per step (128 wide, 32 small)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--rules", help="which, separated by commas (all)")
    parser.add_argument("--rounds", type=int, default=25, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it run?")
    options = parser.parse_args(argv)
    rounds, seconds = (2, 0.002) if options.quick else (options.rounds, 0.1)
    rules = registry.split_list(options.rules) if options.rules else registry.names()
    sizes = [WIDE, SMALL]
    if options.net:
        sizes = [Size("given", options.net, options.inputs, options.batch or WIDE.batch)]
    elif options.batch:
        sizes = [Size(s.name, s.net, s.inputs, options.batch) for s in sizes]
    limits = options.threads, rounds, seconds
    notes = [] if autograd.available() else [autograd.MISSING]
    with watched(notes):
        rows = [row for size in sizes for row in against_torch(size, rules, *limits)]
        if SMALL in sizes:
            rows += against_kernels(SMALL, *limits)
    result = {
        **header("rules", options.threads),
        "optimizer": OPTIMIZER.settings(),
        "sizes": [vars(size) for size in sizes],
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
