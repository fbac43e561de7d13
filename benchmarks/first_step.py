"""Seconds until the first step is done, with nothing compiled and with all of it kept: ``python -m benchmarks.first_step``.

And until the third is, the first that is repeated from a recording.

Each is taken in fresh processes, whose compiled kernels are kept in a folder that is empty at first.
The imports are not counted, reading and compiling kernels is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.machine import header, save, sentence

RULES = ("dfa", "forward_forward", "backprop")
GOALS = {"cold": 5.0, "warm": 0.3}  # seconds
CASE = Case("dense 256 relu | dense 256 relu | dense 10", (784,), 128, "adam")


def here(rule: str) -> list[float]:
    """Seconds of this process's first step, with the state made, and of the first three."""
    batch, engine = CASE.data(), CASE.engine(rule)
    start, found = time.perf_counter(), []
    state = engine.init(0)
    for _ in range(3):
        engine.step(state, batch)
        found.append(time.perf_counter() - start)
    return [found[0], found[2]]


def apart(rule: str, cache: Path) -> list[float]:
    """The same, in a process of its own that keeps what it compiles in a folder."""
    env = {n: v for n, v in os.environ.items() if n != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-m", "benchmarks.first_step", "--here", rule]
    env["FFLEARN_CACHE"] = str(cache)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measured(rule: str, rounds: int) -> dict[str, Any]:
    """A rule's seconds: medians over so many folders."""
    found: dict[str, list[float]] = {n: [] for n in ("cold", "three_cold", "warm", "three_warm")}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in GOALS:  # what the first has compiled, the second finds
                for name, seconds in zip(
                    (kind, f"three_{kind}"), apart(rule, Path(cache)), strict=True
                ):
                    found[name].append(seconds)
    return {"rule": rule, **{name: statistics.median(times) for name, times in found.items()}}


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    names = "cold", "warm", "three_cold", "three_warm"
    lines = [sentence(result["machine"]), " ".join([f"{'':16}", *(f"{n:>11}" for n in names)])]
    lines += [
        " ".join([f"{r['rule']:16}", *(f"{r[n]:10.2f}s" for n in names)]) for r in result["rows"]
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.first_step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one rule, once: does it run?")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.here:
        print(json.dumps(here(options.here)))
        return 0
    rules, rounds = (RULES[:1], 1) if options.quick else (RULES, options.rounds)
    rows = [measured(rule, rounds) for rule in rules]
    result = {**header("first_step", 1), "net": CASE.net, "rows": rows, "goals": GOALS}
    print(show(result))
    save(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
