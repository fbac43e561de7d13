"""One BLAS thread while a step runs, so that bits do not depend on the number of threads."""

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS pool to one thread; restore each afterwards, also after an exception.

    OpenBLAS splits a product according to its thread count, which changes the rounding, and its
    idle workers spin, which halves the speed of a parallel loop that runs beside them.
    """
    held = []
    for tell, change in _pools("scipy.linalg" in sys.modules):
        if (before := tell()) != 1:
            change(1)
            held.append((change, before))
    try:
        yield
    finally:
        for change, before in held:
            change(before)
