"""A small data set, a rule from outside, and processes of their own, for several test files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fflearn.random import Key

ROOT = Path(__file__).resolve().parents[2]

RULE = '''"""A rule from outside."""

from dataclasses import dataclass
from typing import ClassVar

from fflearn.base import Rule, Update


@dataclass(frozen=True)
class Mine(Rule):
    """The read-out learns, faster than it should.

    References
    ----------
    None.
    """

    speed: float = 1.0
    citation: ClassVar = "nobody (never)"

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.update(top=out.error)
        return {"loss": out.loss.mean()}

    def update(self, v, s):
        if not v.is_output:
            return Update()
        return Update(v.param_vjp(v.trace, self.speed * v.act_vjp(v.trace, s.top)))
'''


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


def blobs(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around three corners, four features: (n, 4) and (n,)."""
    y = np.arange(n) % 3
    return Key(0).fold("blobs").normal((n, 4)) * 0.5 + 2 * np.eye(4, dtype=np.float32)[y], y


def spawn(*words: object, code: str | None = None, **environment: str) -> Said:
    """Run the command line, or Python code, in a process of its own."""
    start = ["-m", "fflearn"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *start, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def unmeasured(record):
    """A record without what a clock or a counter measured."""
    measured = ("train_seconds", "compile_seconds", "seconds", "joules", "contended")
    kept = {n: v for n, v in record.items() if n not in measured}
    return {**kept, "curves": {n: v for n, v in record["curves"].items() if n not in measured}}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
