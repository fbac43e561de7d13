"""Seconds until the first step is done, with nothing compiled and with all of it kept: ``python -m benchmarks.first_step``.

Each is taken in fresh processes, whose compiled kernels are kept in a folder that is empty at first.
The imports are not counted, reading and compiling kernels is.
"""

from __future__ import annotations

import argparse
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


def here(rule: str) -> float:
    """Seconds of this process's first step, with the state made."""
    batch, engine = CASE.data(), CASE.engine(rule)
    start = time.perf_counter()
    engine.step(engine.init(0), batch)
    return time.perf_counter() - start


def apart(rule: str, cache: Path) -> float:
    """The same, in a process of its own that keeps what it compiles in a folder."""
    env = {n: v for n, v in os.environ.items() if n != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-m", "benchmarks.first_step", "--here", rule]
    env["FFLEARN_CACHE"] = str(cache)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measured(rule: str, rounds: int) -> dict[str, Any]:
    """A rule's seconds: medians over so many folders."""
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for times in found.values():  # what the first has compiled, the second finds
                times.append(apart(rule, Path(cache)))
    return {"rule": rule, **{name: statistics.median(times) for name, times in found.items()}}


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    lines = [sentence(result["machine"]), f"{'':16} {'cold':>7} {'warm':>7}"]
    lines += [f"{r['rule']:16} {r['cold']:6.2f}s {r['warm']:6.2f}s" for r in result["rows"]]
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
        print(here(options.here))
        return 0
    rules, rounds = (RULES[:1], 1) if options.quick else (RULES, options.rounds)
    rows = [measured(rule, rounds) for rule in rules]
    result = {**header("first_step", 1), "net": CASE.net, "rows": rows, "goals": GOALS}
    print(show(result))
    save(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
