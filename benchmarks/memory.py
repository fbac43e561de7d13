"""Memory of learning over depth: ``python -m benchmarks.memory``.

Two measures.  The ledger's peak: arrays that a rule keeps alive between the first forward pass and
the last update, without parameters, optimizer state and gradients being formed; over the depth it
is a line, whose slope is compared with backpropagation's.  And the process: peak resident memory
above what it was before the network was made, parameters and everything else included, each in a
process of its own, beside what `fflearn.memory` says before anything is taken.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import autograd
from benchmarks.cases import FF, Case, slow
from benchmarks.machine import header, save, sentence
from fflearn import registry
from fflearn.base import Batch
from fflearn.heap import release
from fflearn.memory import predict

RULES = (
    "backprop",
    "dfa",
    "fa",
    "forward_forward",
    FF,
    "frozen",
)
IN_PROCESS = (registry.REFERENCE, "backprop", FF, "drtp")
DEEP, BATCHES = 1024, (512, 4096)  # width and batches of what processes train
WIDTH, BATCH, DEPTHS = 256, 256, (4, 8, 16, 32, 64)


def case_of(depth: int, width: int, batch: int) -> Case:
    """``depth`` layers, the last one 10 outputs wide."""
    net = " | ".join([f"dense {width} relu"] * (depth - 1) + ["dense 10"])
    return Case(net, (width,), batch, "sgd")  # which has no state beside what learning needs


def held(rule: str, case: Case) -> int:
    """The ledger's peak bytes in one step."""
    engine = case.engine(rule)
    return engine.step(engine.init(0), case.data())[1].peak_bytes


def over_depth(
    rules: tuple[str, ...], depths: tuple[int, ...], width: int, batch: int
) -> list[dict]:
    """A row per rule: peak bytes at each depth, slope, and the slope's ratio to backprop's."""
    cases = [case_of(depth, width, batch) for depth in depths]
    peaks = {rule: [held(rule, case) for case in cases] for rule in rules}
    slopes = {r: statistics.linear_regression(depths, p).slope for r, p in peaks.items()}
    return [
        {
            "name": rule,
            "peak_bytes": {str(d): n for d, n in zip(depths, peaks[rule], strict=True)},
            "bytes_per_layer": slopes[rule],
            "ratio": slopes[rule] / slopes["backprop"],
        }
        for rule in rules
    ]


# ---- the process ------------------------------------------------------------


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def measure(name: str, depth: int, width: int, batch: int) -> int:
    """Peak resident bytes of three steps, above those after the imports and a small network."""
    small = case_of(3, 16, 8)
    _three_steps(name, small, small.data())  # compiles, and starts the thread pools
    case = case_of(depth, width, batch)
    before = resident("VmRSS")
    data = case.data()
    release()  # what drawing them took
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    _three_steps(name, case, data)
    return resident("VmHWM") - before


def _three_steps(name: str, case: Case, batch: Batch) -> None:
    engine = case.engine("backprop" if name == registry.REFERENCE else name)
    state = engine.init(0)
    if name == registry.REFERENCE:
        step, _ = autograd.autograd_step(engine, state, batch)
        del state, engine
        gc.collect()
        release()  # what our copy of the weights took is not PyTorch's
    else:

        def step() -> Any:
            return engine.step(state, batch)

    for _ in range(3):
        step()


def in_process(names: tuple[str, ...], depth: int, width: int, batch: int) -> list[dict]:
    """A row per name, each measured in a fresh process; bytes are null where it cannot be.

    PyTorch's peak varies between processes, ours hardly does: it is measured in five.  Ratios are
    to its median.
    """
    rows: list[dict[str, Any]] = []
    case = case_of(depth, width, batch)
    for name in names:
        theirs = name == registry.REFERENCE
        found: list[int] = []
        told = None if theirs else predict(case.engine(name), case.data()).peak
        if sys.platform == "linux" and (not theirs or autograd.available()):
            command = [sys.executable, "-m", "benchmarks.memory", "--child", name]
            command += [str(n) for n in (depth, width, batch)]
            for _ in range(5 if theirs else 1):
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(run.stdout))
        about: dict[str, Any] = {"name": name, "depth": depth, "width": width, "batch": batch}
        peak = statistics.median(found) if found else None
        least = min(found, default=None)
        about |= {"peak_bytes_above_start": peak, "least_bytes": least, "predicted_bytes": told}
        rows.append(about)
    base = rows[0]["peak_bytes_above_start"]
    for row in rows:
        found = row["peak_bytes_above_start"]
        row["ratio"] = found / base if found and base else None
    return rows


# ---- telling ------------------------------------------------------------


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    depths, wide = list(result["rows"][0]["peak_bytes"]), max(map(len, RULES))
    lines = [
        sentence(result["machine"]),
        f"layers of {result['width']}, batch {result['batch']}",
        "",
        "held for learning, MB at depth".ljust(wide)
        + "".join(f"{d:>8}" for d in depths)
        + "   kB/layer   ratio",
    ]
    for r in result["rows"]:
        peaks = "".join(f"{b / 1e6:8.2f}" for b in r["peak_bytes"].values())
        lines.append(
            f"{r['name']:{wide}}{peaks}{r['bytes_per_layer'] / 1e3:11.1f}{r['ratio']:8.3f}"
        )
    for r in result["process"]:
        if r["name"] == result["process"][0]["name"]:
            size = f"{r['depth']} layers of {r['width']}, batch {r['batch']}"
            lines += ["", f"peak of the process above its start, {size}"]
        found = r["peak_bytes_above_start"]
        text = "not measured" if found is None else f"{found / 1e6:8.1f} MB"
        told = r["predicted_bytes"]
        lines.append(
            f"{r['name']:{wide}}{text}"
            + (f"{r['ratio']:8.3f}" if r["ratio"] else "")
            + (f"   {told / 1e6:.1f} MB predicted" if told else "")
        )
    return "\n".join([*lines, *(f"\n{note}" for note in result["notes"])])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--quick", action="store_true", help="small and shallow: does it run?")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        name, *numbers = options.child
        print(measure(name, *map(int, numbers)))
        return 0
    width, batch, depths = (32, 16, (4, 8)) if options.quick else (WIDTH, BATCH, DEPTHS)
    result = {
        **header("memory", 1),
        "width": width,
        "batch": batch,
        "optimizer": slow("sgd").settings(),
        "rows": over_depth(RULES, depths, width, batch),
        "process": [
            row
            for n in ((16,) if options.quick else BATCHES)
            for row in in_process(IN_PROCESS, depths[-1], width if options.quick else DEEP, n)
        ],
        "notes": [] if autograd.available() else [autograd.MISSING],
    }
    print(show(result))
    save(options.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
