"""The files of a run in its folder: a checkpoint while it trains, its end, and taking up either."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fflearn.errors import CheckpointError
from fflearn.state import check_same_arrays
from fflearn.state import load as load_state

if TYPE_CHECKING:
    from fflearn.training import Progress

CHECKPOINT, FINAL = "checkpoint.safetensors", "final.safetensors"


class RunFiles:
    """The two files of a run in its folder; without a folder, none."""

    def __init__(self, folder: str | Path | None, every_seconds: float):
        self.folder = None if folder is None else Path(folder)
        self.every, self.saved = every_seconds, time.monotonic()
        self._lock: int | None = None

    def __enter__(self) -> Self:
        if self.folder is not None:
            writable(self.folder)
            self._lock = _locked(self.folder)
            for part in self.folder.glob(".*.safetensors.*"):  # of a process that was killed
                part.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def resume(self, run: Progress) -> None:
        """Take over the state and curves of an earlier, equal run, if there is one."""
        path = self._newest()
        if path is None:
            return
        kept = load_state(path)
        mine, theirs = run.state.meta["run"], kept.meta.get("run")
        theirs = theirs if isinstance(theirs, dict) else {}
        differs = [n for n in mine if mine[n] != theirs.get(n)]
        differs += ["seed"] if kept.seed != run.state.seed else []
        if differs:
            raise CheckpointError(
                f"{path} belongs to a run with another {', '.join(differs)}. Choose another "
                f"--out, or repeat the options of that run."
            )
        check_same_arrays(run.state.arrays(), kept.arrays(), str(path))
        try:
            progress = kept.meta.pop("progress")
            run.curves, run.best = progress["curves"], tuple(progress["best"])
            run.compile_seconds = progress["compile_seconds"]
        except (KeyError, TypeError) as e:
            raise CheckpointError(f"{path} is damaged: its progress lacks {e}.") from e
        run.finished = path.name == FINAL or progress.get("finished", False)
        run.state.restore(kept)

    def _newest(self) -> Path | None:
        if self.folder is None:
            return None
        names = (FINAL, CHECKPOINT)
        return next((p for name in names if (p := self.folder / name).exists()), None)

    def save(self, run: Progress) -> None:
        """Write the checkpoint, if it is time."""
        if time.monotonic() - self.saved >= self.every:
            self._write(CHECKPOINT, run)
            self.saved = time.monotonic()

    def finish(self, run: Progress) -> None:
        """Write the final file beside the checkpoint, unless it is there."""
        path = self._newest()
        if path is None or path.name != FINAL:
            self._write(FINAL, run)

    def _write(self, name: str, run: Progress) -> None:
        if self.folder is None:
            return
        kept = ("curves", "best", "compile_seconds", "finished")
        meta = {**run.state.meta, "progress": {n: getattr(run, n) for n in kept}}
        replace(run.state, meta=meta).save(self.folder / name)


def writable(folder: Path) -> None:
    """Make a folder and write to it once; CheckpointError says why that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise CheckpointError(
            f"the folder {folder} cannot be written: {e.strerror or e}. Choose another --out."
        ) from e


def _locked(folder: Path) -> int | None:
    """Keep other processes from training into a folder, where the system can; for os.close."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise CheckpointError(
            f"another process trains into {folder}. Wait for it, or choose another --out."
        ) from None
    return handle
