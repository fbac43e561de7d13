"""Everything that survives a step, and its file."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fflearn.errors import CheckpointError

FORMAT = 1


class Slots(Mapping[str, np.ndarray]):
    """Arrays by name, at addresses that never change: assigning copies into place.

    Attributes
    ----------
    readable : mapping of str to read-only array
        The same memory, as rules see it.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = {n: a.copy(order="C") for n, a in arrays.items()}
        views = {n: a.view() for n, a in self._arrays.items()}
        for view in views.values():
            if isinstance(view, np.ndarray):  # a device's arrays have no such flag
                view.flags.writeable = False
        self.readable = MappingProxyType(views)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __setitem__(self, name: str, value: Any) -> None:
        put(self._arrays[name], value)

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return Slots, (self._arrays,)  # the views of a copy are views of the copy


def host(a: Any) -> np.ndarray:
    """The values as a NumPy array: copied, where they lie on a device."""
    return a if isinstance(a, np.ndarray) else a.get()


def put(to: Any, value: Any) -> None:
    """Copy values into an array, also from the host into a device's, or back."""
    if isinstance(to, np.ndarray):
        to[...] = host(value) if hasattr(value, "get") else value
    elif isinstance(value, np.ndarray):
        to.set(np.ascontiguousarray(value, to.dtype))
    else:
        to[...] = value


@dataclass
class State:
    """What a training run is, between two steps.

    Attributes
    ----------
    params, aux, opt : list of Slots
        Per layer: parameters, the rule's own arrays, the optimizer's.
    step : int
        Steps done.  Epoch and position in it follow from this number.
    seed : int
        All randomness is a function of it, the step, the layer and a tag.
    meta : dict
        What a checkpoint says of itself: network, rule, data, fingerprint.
    """

    params: list[Slots]
    aux: list[Slots]
    opt: list[Slots]
    step: int
    seed: int
    meta: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by path, e.g. "params/0/W", "aux/1/B", "opt/0/m.W"."""
        return {
            f"{part}/{i}/{name}": a
            for part in ("params", "aux", "opt")
            for i, slots in enumerate(getattr(self, part))
            for name, a in slots.items()
        }

    def copy(self) -> State:
        """An independent state with the same values."""
        return self.mapped(lambda a: a)

    def mapped(self, change: Callable[[Any], Any]) -> State:
        """An independent state, each array changed by a function (to another device, say)."""
        params, aux, opt = (
            [Slots({n: change(a) for n, a in s.items()}) for s in part]
            for part in (self.params, self.aux, self.opt)
        )
        return State(params, aux, opt, self.step, self.seed, dict(self.meta))

    def restore(self, other: State) -> None:
        """Take over the values of another state of the same run, in place."""
        mine, theirs = self.arrays(), other.arrays()
        check_same_arrays(mine, theirs, "the state to restore")
        for path, a in mine.items():
            put(a, theirs[path])
        self.step, self.seed, self.meta = other.step, other.seed, dict(other.meta)

    def first_bad(self) -> str | None:
        """Path of the first array with a number that is not finite, or None."""
        return next((p for p, a in self.arrays().items() if not np.isfinite(a).all()), None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as .safetensors: all of it or nothing (temporary file, then rename).

        Raises
        ------
        CheckpointError
            An array is not finite, or the file cannot be written; an existing file stays.
        """
        from safetensors.numpy import save

        bad = self.first_bad()
        if bad:
            raise CheckpointError(f"{bad} is not finite at step {self.step}: not saved.")
        head = {"format": FORMAT, "step": self.step, "seed": self.seed, **self.meta}
        arrays = {n: host(a) for n, a in self.arrays().items()}
        blob = save(arrays, {"fflearn": json.dumps(head, sort_keys=True)})
        write_atomically(Path(path), blob)


def write_atomically(path: Path, blob: bytes) -> None:
    """Put bytes at ``path``: a reader sees the old file or the new one, never a part.

    Raises
    ------
    CheckpointError
        With the system's reason; the old file, if any, is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        # Opened so, it gets the permissions of any new file; tempfile's would be the owner's alone.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as f:
            f.write(blob)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        temporary = None
        if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a power cut
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as e:
        raise CheckpointError(
            f"{path} could not be written: {e.strerror or e}. Nothing was changed."
        ) from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> State:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, not a checkpoint of fflearn, or from a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}. Give a .safetensors file.")
    try:
        with safe_open(path, framework="numpy") as f:
            head = json.loads((f.metadata() or {})["fflearn"])
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        step, seed, version = int(head.pop("step")), int(head.pop("seed")), head.pop("format")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} is damaged or no checkpoint of fflearn ({e}).") from e
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}; this fflearn reads format {FORMAT}. Update fflearn."
        )
    bad = next((n for n, a in arrays.items() if not np.isfinite(a).all()), None)
    if bad:
        raise CheckpointError(f"{path} holds numbers in {bad} that are not finite.")
    params, aux, opt = _by_layer(path, arrays, head)
    return State(params, aux, opt, step, seed, head)


def _by_layer(
    path: Path, arrays: Mapping[str, np.ndarray], head: dict[str, Any]
) -> list[list[Slots]]:
    depth = head.get("depth")
    if not isinstance(depth, int) or not 0 < depth < 100_000:
        raise CheckpointError(f"{path} does not say how many layers it has.")
    parts: dict[str, list[dict[str, np.ndarray]]] = {
        p: [{} for _ in range(depth)] for p in ("params", "aux", "opt")
    }
    for name, a in arrays.items():
        part, index, own = (*name.split("/", 2), "", "")[:3]
        if part not in parts or not index.isdigit() or int(index) >= depth:
            raise CheckpointError(f"{path} holds an array {name!r} that belongs to no layer.")
        parts[part][int(index)][own] = a
    return [[Slots(s) for s in parts[p]] for p in ("params", "aux", "opt")]


def check_same_arrays(
    mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], what: str
) -> None:
    for path in sorted({*mine, *theirs}):
        a, b = mine.get(path), theirs.get(path)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            had = "nothing" if b is None else f"{b.dtype} {b.shape}"
            wants = "nothing" if a is None else f"{a.dtype} {a.shape}"
            raise CheckpointError(
                f"{what} has {had} at {path}, where this network and rule have {wants}. "
                f"Use the network, rule and optimizer it was made with."
            )
