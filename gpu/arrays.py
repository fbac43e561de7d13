"""The arrays of a device, and how a kernel is launched on them: what every family builds on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fflearn.gpu.scalars import THREADS
from fflearn.gpu.sparse import Sparse
from fflearn.kernels.reference import Array, Kernels


class Arrays(Kernels):
    """What the families of kernels share.

    Parameters
    ----------
    device : CupyDevice or SimulatedDevice
        Whose arrays, products and launches these are: see `fflearn.gpu.device`.
    """

    name = "cuda"
    on_host = False
    no_graphs = ""  # why steps cannot be captured

    def __init__(self, device: Any):
        self.device, self.xp = device, device.xp
        self._constants: dict[Any, Array] = {}
        self._sides: dict[int, tuple[Any, Any]] = {}

    @contextmanager
    def running(self, threads: int) -> Iterator[None]:
        """A context in which steps run: on this device, and on its own stream."""
        with self.device.here():
            yield

    def steps(self, engine: Any) -> Any:
        from fflearn.gpu.graphs import Graphs

        return Graphs(engine)

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        with self.device.here():
            return self.xp.ascontiguousarray(self.xp.asarray(a, dtype))

    def fits(self, nbytes: int) -> bool:
        """Whether there is room for data of that size, and for the steps."""
        with self.device.here():
            return self.device.fits(nbytes)

    def host(self, a: Any) -> np.ndarray:
        with self.device.here():
            return self.device.host(a)

    def constant(self, a: np.ndarray) -> Array:
        key = (a.shape, a.dtype.str, a.tobytes())
        if key not in self._constants:
            self._constants[key] = self.asarray(a)
        return self._constants[key]

    def side(self, a: Any) -> Any:
        if id(a) not in self._sides:  # kept with the original, whose name it has for that long
            placed = Sparse(self, a.tocsr()) if hasattr(a, "tocsr") else self.asarray(a)
            self._sides[id(a)] = a, placed
        return self._sides[id(a)][1]

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        # Of more than 8 small arrays CuPy brings the addresses from the host.
        parts = [self.xp.stack(arrays[i : i + 8], axis) for i in range(0, len(arrays), 8)]
        while len(parts) > 1:
            groups = (parts[i : i + 8] for i in range(0, len(parts), 8))
            parts = [self.xp.concatenate(group, axis) for group in groups]
        return parts[0]

    def erfc(self, a: Array) -> Array:
        return self.device.special("erfc", a)

    def ndtri(self, p: Array) -> Array:
        return self.device.special("ndtri", p)

    # ---- launches -------------------------------------------------------------------------------
    def _once_only(self, kernel: str, real: Any, *args: Any) -> None:
        """One thread."""
        self.device.launch(kernel, real, 1, 1, args)

    def _each(self, kernel: str, like: Array, *args: Any, real: Any = None) -> None:
        """Threads that share the elements of an array; none where it is empty."""
        most, threads = self.device.grid
        if like.size:
            blocks = min(-(-like.size // threads), most)
            self.device.launch(kernel, real or like.dtype.type, blocks, threads, args)

    def _rows(self, kernel: str, like: Array, *args: Any) -> None:
        """A block for each row."""
        self._blocks(kernel, like, len(like), *args)

    def _blocks(self, kernel: str, like: Array, blocks: int, *args: Any) -> None:
        self.device.launch(kernel, like.dtype.type, blocks, THREADS, args)

    def _filled(self, value: float, shape: Any, dtype: Any) -> Array:
        return self.constant(np.full(shape, value, dtype))

    def _plain(self, a: Array) -> Array:
        return a if a.flags.c_contiguous else self.xp.ascontiguousarray(a)


def reals(*arrays: Array) -> bool:
    """All float32 or all float64."""
    dtype = arrays[0].dtype
    return dtype.char in "fd" and all(a.dtype == dtype for a in arrays)


def matrices(*arrays: Array) -> bool:
    """Matrices with elements, of one real type."""
    return reals(*arrays) and all(a.ndim == 2 and a.size for a in arrays)
