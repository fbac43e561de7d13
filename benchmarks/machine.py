"""What every benchmark says of the machine and the versions it ran with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fflearn.fingerprint import fingerprint, versions


def header(benchmark: str, threads: int, dtype: str = "float32") -> dict[str, Any]:
    """The head of a benchmark's JSON: its name, the machine, the versions."""
    return {
        "benchmark": benchmark,
        "machine": fingerprint("numba", dtype, threads),
        "versions": versions(),
    }


def sentence(machine: Mapping[str, Any]) -> str:
    """A fingerprint in words.

    Examples
    --------
    >>> sentence({"processor": "Z80", "cores": 1, "memory_gib": 0.1, "threads": 1})
    'Z80, 1 logical core, 0.1 GiB of memory; 1 thread'
    """
    parts = [machine["processor"], _count(machine["cores"], "logical core")]
    if machine.get("memory_gib"):
        parts.append(f"{machine['memory_gib']:g} GiB of memory")
    kind = [machine[n] for n in ("dtype", "backend") if n in machine]
    return "; ".join([", ".join(parts), ", ".join([_count(machine["threads"], "thread"), *kind])])


def save(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a benchmark's result as JSON, if a path was given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
