"""One BLAS thread while a step runs, so that bits do not depend on the number of threads."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@functools.cache
def _pools(scipy_loaded: bool) -> tuple:
    # NumPy and SciPy carry an OpenBLAS each; SciPy's may be loaded after the first look, hence
    # the argument.  Finding them walks every loaded library (milliseconds): once is enough.
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController().select(user_api="blas")
    return tuple(controller.lib_controllers)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS pool to one thread; restore each afterwards, also after an exception.

    OpenBLAS splits a product according to its thread count, which changes the rounding, and its
    idle workers spin, which halves the speed of a parallel loop that runs beside them.
    """
    pools = _pools("scipy.linalg" in sys.modules)
    before = [pool.num_threads for pool in pools]
    for pool in pools:
        pool.set_num_threads(1)
    try:
        yield
    finally:
        for pool, n in zip(pools, before, strict=True):
            pool.set_num_threads(n)
