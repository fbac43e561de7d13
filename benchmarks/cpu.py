"""Training steps against PyTorch's backprop on this processor: ``python -m benchmarks.cpu``.

Every row is a rule's `Engine.step`, as a user runs it, in turns with PyTorch's backpropagation on
the same network and the same number of images: fused optimizer, convolutions channels-last,
threads pinned, and the better of one thread and all.  The ratio is the median over rounds; below 1
the rule is faster.  The rows ``engine_*`` compare the Engine with a loop over its own kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import autograd
from benchmarks.cases import FF, Case, bare_turn, engine_turn, torch_turn
from benchmarks.machine import header, save, sentence
from benchmarks.timing import Turn, ratios, round_robin, spread, watched
from fflearn import kernels

MLP = "dense 1024 relu | dense 1024 relu | dense 1024 relu | dense 10"
FF_MNIST = "dense 1000 relu | dense 1000 relu | dense 1000 relu | dense 10"
SMALL = "dense 128 relu | dense 64 relu | dense 10"
BARE = ("backprop", "dfa", FF, "dual_propagation")


def convolutions(channels: int) -> str:
    """Four convolutions of as many channels as the images have, and a read-out."""
    body = " | ".join([f"conv {channels} relu"] * 4)
    return f"{body} | avg_pool 8 | dense 10"


@dataclass(frozen=True)
class Row(Case):
    """One line of the table: a case, and beside it

    Attributes
    ----------
    rule : str
        As the command line writes it; "" for the worst of `BARE` against its bare loop.
    goal : float
        The ratio aimed at.
    reached : float or None
        The ratio that a prototype had reached on another machine.
    of : str
        What the goal is of: "ratio", or "ms", the milliseconds of a step.
    """

    rule: str
    goal: float
    reached: float | None = None
    of: str = "ratio"


def _table() -> dict[str, Row]:
    mnist, digits = (784,), (64,)
    rows = {
        "mlp128_dfa_adam": Row(MLP, mnist, 128, "adam", "dfa", 0.48, 0.52),
        "mlp128_dfa_sgd": Row(MLP, mnist, 128, "sgd", "dfa", 0.45, 0.52),
        "mlp128_backprop_sgd": Row(MLP, mnist, 128, "sgd", "backprop", 0.62, 0.71),
        "mlp128_dual_propagation_sgd": Row(MLP, mnist, 128, "sgd", "dual_propagation", 0.65, 0.74),
        "mlp512_dfa_sgd": Row(MLP, mnist, 512, "sgd", "dfa", 0.58, 0.60),
        "mlp128_ff_sgd": Row(MLP, mnist, 128, "sgd", FF, 0.85, 0.97),
        "ff_mnist": Row(FF_MNIST, mnist, 100, "adam", "forward_forward", 15.0, of="ms"),
        "mlp128_pfa10_sgd": Row(MLP, mnist, 128, "sgd", "pfa", 7.0),
        "mlp128_pfa10_structured_sgd": Row(MLP, mnist, 128, "sgd", "pfa[matrix=signs]", 5.0),
        "mlp128_pfa10_collapsed_sgd": Row(MLP, mnist, 128, "sgd", "pfa[collapsed=true]", 1.2),
        "small32_dfa_sgd": Row(SMALL, digits, 32, "sgd", "dfa", 0.09, 0.10),
        "small32_dfa_adam": Row(SMALL, digits, 32, "adam", "dfa", 0.09, 0.11),
    }
    for channels, size, goal, reached in (
        (64, 32, 0.42, 0.48),
        (128, 16, 0.62, 0.67),
        (256, 8, 0.66, 0.73),
    ):
        image = (size, size, channels)
        net = convolutions(channels)
        rows[f"conv{channels}_local"] = Row(net, image, 128, "sgd", "dfa", goal, reached)
    rows["vgg8_dfa"] = Row("vgg8", (32, 32, 3), 128, "sgd", "dfa", 0.70)
    narrow = "dense 64 relu | dense 64 relu | dense 10"
    wide = "dense 512 relu | dense 512 relu | dense 10"
    rows["engine_small"] = Row(narrow, digits, 32, "adam", "", 1.05, 1.13)
    rows["engine_wide"] = Row(wide, mnist, 128, "adam", "", 1.02, 1.07)
    return rows


ROWS: Mapping[str, Row] = _table()


def against_torch(row: Row, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """A row's numbers; no ratio where PyTorch is missing."""
    turns: dict[str, Turn] = {}
    if autograd.available():
        for n in sorted({1, threads}):
            turns[f"PyTorch, {n} thread{'s' * (n > 1)}"] = torch_turn(row, n)
    turns["rule"] = engine_turn(row, row.rule, threads)
    times = round_robin(turns, rounds, seconds)
    found = {
        "median_ms": 1e3 * statistics.median(times["rule"]),
        "spread_ms": 1e3 * spread(times["rule"]),
    }
    others = {name: statistics.median(t) for name, t in times.items() if name != "rule"}
    if not others:
        return found | {"against": None, "ratio": None, "ratio_spread": None}
    base = min(others, key=others.__getitem__)
    of_base = ratios(times["rule"], times[base])
    return found | {
        "against": base,
        "against_ms": 1e3 * others[base],
        "ratio": statistics.median(of_base),
        "ratio_spread": spread(of_base),
    }


def against_kernels(row: Row, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """The worst rule's time through the Engine over a loop on the same kernels."""
    worst: dict[str, Any] = {}
    for rule in BARE:
        turns = {"loop": bare_turn(row, rule, threads), "rule": engine_turn(row, rule, threads)}
        times = round_robin(turns, rounds, seconds)
        of_loop = ratios(times["rule"], times["loop"])
        if not worst or statistics.median(of_loop) > worst["ratio"]:
            worst = {
                "against": f"kernels of {rule}",
                "against_ms": 1e3 * statistics.median(times["loop"]),
                "median_ms": 1e3 * statistics.median(times["rule"]),
                "spread_ms": 1e3 * spread(times["rule"]),
                "ratio": statistics.median(of_loop),
                "ratio_spread": spread(of_loop),
            }
    return worst


def pin(threads: int) -> None:
    """Start the threads of Numba and PyTorch, so that each has all cores.

    Both bring an OpenMP of their own.  Told to pin (OMP_PROC_BIND), the one that starts first pins
    this thread too, and the second would find a single core for all of its threads.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    k = kernels.load("numba")
    with k.running(threads):
        k.matmul(*np.ones((2, 1024, 1024), np.float32))
    if cores:
        os.sched_setaffinity(0, cores)
    if autograd.available():
        import torch

        torch.set_num_threads(threads)
        torch.ones(1024, 1024) @ torch.ones(1024, 1024)


def measured(name: str, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """One row, in this process."""
    pin(threads)
    row, notes = ROWS[name], list[str]()
    measure: Callable[..., dict[str, Any]] = against_torch if row.rule else against_kernels
    with watched(notes):
        found = measure(row, threads, rounds, seconds)
    about = {"net": row.net, "rule": row.rule, "batch": row.batch, "optimizer": row.optimizer}
    aims = {"goal": row.goal, "prototype": row.reached, "of": row.of}
    return {"name": name, **about, **found, **aims, "rounds": rounds, "notes": notes}


def apart(name: str, options: Any) -> dict[str, Any]:
    """One row in a process of its own, whose threads are nobody else's."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--rows", name, "--here"]
    command += ["--threads", str(options.threads), "--rounds", str(options.rounds)]
    command += ["--quick"] * options.quick
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def goal(row: Mapping[str, Any]) -> str:
    """What a row aims at."""
    return f"{row['goal']:g}{' ms' if row['of'] == 'ms' else ''}"


def reached(row: Mapping[str, Any]) -> bool:
    """Whether it does better than that."""
    found = row["median_ms"] if row["of"] == "ms" else row["ratio"]
    return found is not None and found <= row["goal"]


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    wide = max(len(r["name"]) for r in result["rows"])
    lines = [
        sentence(result["machine"]),
        f"{'':{wide}} {'ms/step':>9} {'ratio':>7} {'IQR':>6} {'goal':>5}",
    ]
    for r in result["rows"]:
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.3f}"
        iqr = "-" if r["ratio"] is None else f"{r['ratio_spread']:.3f}"
        line = f"{r['name']:{wide}} {r['median_ms']:9.4g} {ratio:>7} {iqr:>6} {goal(r):>5}"
        lines += [f"{line}  {r['against'] or ''}".rstrip(), *(f"  {note}" for note in r["notes"])]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.cpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--rows", help=f"which, separated by commas (all: {', '.join(ROWS)})")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it run?")
    parser.add_argument("--here", action="store_true", help="one row, in this process, as JSON")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 2
    names = options.rows.split(",") if options.rows else list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        print(f"there is no row {unknown[0]!r}; there are: {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    if options.here:
        seconds = 0.002 if options.quick else 0.3
        print(json.dumps(measured(names[0], options.threads, options.rounds, seconds)))
        return 0
    notes = [] if autograd.available() else [autograd.MISSING]
    rows = [apart(name, options) for name in names]
    result = {**header("cpu", options.threads), "rows": rows, "notes": notes}
    print(show(result))
    save(options.json, result)
    return 0


if __name__ == "__main__":
    # Unpinned, two OpenMP threads can share a core for a long time; read when a pool starts.
    os.environ.setdefault("OMP_PROC_BIND", "true")
    raise SystemExit(main())
