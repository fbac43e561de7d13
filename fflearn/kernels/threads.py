"""One BLAS thread while a step runs, so that bits do not depend on the number of threads."""

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

Pool = tuple[Callable[[], int], Callable[[int], object]]  # tells and sets its number of threads


@functools.cache
def _pools(scipy_loaded: bool) -> tuple[Pool, ...]:
    # NumPy and SciPy carry an OpenBLAS each; SciPy's may be loaded after the first look, hence
    # the argument.  Finding them walks every loaded library (milliseconds): once is enough.
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController().select(user_api="blas")
    return tuple(_pool(c) for c in controller.lib_controllers)


def _pool(controller: Any) -> Pool:
    """OpenBLAS's own two functions, which take a tenth of the time; else threadpoolctl's."""
    library = ctypes.CDLL(controller.filepath)
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            tell, change = (f"{prefix}openblas_{do}_num_threads{suffix}" for do in ("get", "set"))
            if hasattr(library, tell) and hasattr(library, change):
                return getattr(library, tell), getattr(library, change)
    return lambda: controller.num_threads, controller.set_num_threads


class _OneThread:
    """Whoever comes first holds every BLAS pool to one thread; who leaves last restores them.

    OpenBLAS splits a product according to its thread count, which changes the rounding, and its
    idle workers spin, which halves the speed of a parallel loop that runs beside them.  The count
    is the process's: with steps on several threads, none may restore it under the others.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._held: list[tuple[Callable[[int], object], int]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            for tell, change in _pools("scipy.linalg" in sys.modules):
                if (before := tell()) != 1:
                    change(1)
                    self._held.append((change, before))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            while self._held and not self._inside:
                change, before = self._held.pop()
                change(before)


ONE_BLAS_THREAD = _OneThread()
