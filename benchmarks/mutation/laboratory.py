"""Running the tests on one mutant after the other, in copies of the checkout."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutation.entries import Mistake, Mutant

SECONDS = 30  # that tests may take beyond five times what they take without a fault


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    status: str  # "killed", "timeout" (killed, too) or "survived"
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status != "survived"


class Laboratory:
    """Throw-away copies of the checkout, one a job, and how long the tests take without a fault."""

    def __init__(self, root: Path, folder: Path, jobs: int, slow: bool) -> None:
        litter = ["__pycache__", ".git", ".venv", ".cache", ".hypothesis", ".*_cache"]
        litter += ["build", "dist", "*.egg-info"]
        self.copies: queue.Queue[Path] = queue.Queue()
        self.root, self.slow, self.jobs = root, slow, jobs
        self.compiled = folder / "compiled"
        for number in range(jobs):
            copy = folder / str(number)
            shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(*litter))
            self.copies.put(copy)
        self.times: dict[tuple[tuple[str, ...], str], float] = {}
        self.locks: dict[tuple[tuple[str, ...], str], threading.Lock] = {}
        self.guard = threading.Lock()

    def pytest(
        self, copy: Path, tests: tuple[str, ...], marks: str, limit: float | None
    ) -> tuple[int | None, str]:
        """Exit status of pytest (None: too slow) and what it printed."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m"]
        # No .pyc: a fault of the same length within a second would find the old one still valid.
        env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
        env["NUMBA_CACHE_DIR"] = str(self.compiled)  # a mutated kernel fills a folder of its own
        if self.jobs > 1:
            env.setdefault("OMP_NUM_THREADS", "1")
        process = subprocess.Popen(
            [*command, marks, *tests],
            cwd=copy,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, "too slow"
            raise
        return process.returncode, out

    def baseline(self, copy: Path, tests: tuple[str, ...], marks: str) -> float:
        """Seconds that these tests take, or 0 if there are none; they must pass without a fault."""
        key = tests, marks
        with self.guard:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self.times:
                start = time.perf_counter()
                status, out = self.pytest(copy, tests, marks, None)
                if status not in (0, 5):
                    tail = "\n".join(out.splitlines()[-25:])
                    raise Mistake(f"{' '.join(tests)} fails without any fault:\n{tail}")
                self.times[key] = time.perf_counter() - start if status == 0 else 0.0
        return self.times[key]

    def runs(self, mutant: Mutant) -> list[tuple[tuple[str, ...], str]]:
        """(tests, pytest's -m expression), in order."""
        if mutant.chosen:
            return [(mutant.stages[0], "")]
        quick = [(tests, "not slow") for tests in mutant.stages]
        return quick + [(tests, "slow") for tests in mutant.stages if self.slow]

    def try_out(self, mutant: Mutant) -> Result:
        copy = self.copies.get()
        start, ran = time.perf_counter(), False
        path = copy / mutant.file
        clean, stamp = path.read_bytes(), path.stat()
        try:
            for tests, marks in self.runs(mutant):
                usual = self.baseline(copy, tests, marks)
                if not usual:
                    continue
                ran = True
                path.write_text(mutant.text, encoding="utf-8")
                status, out = self.pytest(copy, tests, marks, SECONDS + 5 * usual)
                restore(path, clean, stamp)
                if status in (3, 5):
                    raise Mistake(f"{mutant.name}: pytest ended with {status}:\n{out[-2000:]}")
                if status != 0:  # failures, errors while importing, a crash, or too slow
                    how = "timeout" if status is None else "killed"
                    return Result(mutant, how, time.perf_counter() - start)
            if not ran:
                raise Mistake(f"{mutant.name}: no test ran; wanted {mutant.stages}")
            return Result(mutant, "survived", time.perf_counter() - start)
        finally:
            restore(path, clean, stamp)
            self.copies.put(copy)


def restore(path: Path, clean: bytes, stamp: os.stat_result) -> None:
    """The file as it was; its time too, or what Numba compiled from it would count as old."""
    path.write_bytes(clean)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def run(root: Path, mutants: list[Mutant], jobs: int, slow: bool) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        laboratory = Laboratory(root, Path(folder).resolve(), jobs, slow)
        try:
            for result in pool.map(laboratory.try_out, mutants):
                results.append(result)
                print(f"{result.status:9}{result.seconds:6.1f} s  {result.mutant.name}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results
