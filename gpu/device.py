"""A device: its arrays, its products, its launches.  A GPU through CuPy, or Numba's simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from fflearn.gpu.launch import Launcher, Simulator
from fflearn.gpu.scalars import THREADS


class CupyDevice:
    """A GPU: CuPy's arrays on a stream of our own.

    Parameters
    ----------
    index : int
        Which GPU, as CUDA numbers them.
    precision : str
        Of float32 products: "" (float32), "tf32" or "bf16".

    Attributes
    ----------
    no_graphs : str
        Why steps cannot be captured; "" where they can.
    grid : tuple of (int, int)
        Blocks of an elementwise kernel, at most, and threads of one.
    small : int
        Products of at most so many multiplications are made by a kernel of our own.
    direct : bool
        Whether convolutions are: cuBLAS has the tensor cores, and needs the patches stored.
    """

    small = 1 << 20
    no_graphs = ""
    grid = 1056, THREADS  # 8 blocks for each of 132 multiprocessors

    def __init__(self, index: int = 0, precision: str = ""):
        import cupy

        from fflearn.gpu.blas import Blas

        self.xp, self._cupy, self.index, self.direct = cupy, cupy, index, not precision
        self._device = cupy.cuda.Device(index)
        with self._device:
            # Not "non_blocking": what a user reads on CUDA's default stream waits for the step.
            self.stream = cupy.cuda.Stream()
            self.launch = Launcher(self._device)
            self.gemm = Blas(precision).gemm

    def title(self) -> str:
        """The name of the GPU, and its memory."""
        found = self._cupy.cuda.runtime.getDeviceProperties(self.index)
        return f"{found['name'].decode()}, {found['totalGlobalMem'] / 2**30:.0f} GiB"

    @contextmanager
    def here(self) -> Iterator[None]:
        """A context in which this device and its stream are the current ones."""
        with self._device, self.stream:
            yield

    def fits(self, nbytes: int) -> bool:
        """Whether data of that size can stay on the device and leave half of it to the steps."""
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return 2 * nbytes <= free

    def peak(self, step: Callable[[], Any]) -> int:
        """Bytes that CuPy's pool had to have for a step, beyond those in use before."""
        pool = self._cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        step()
        self.stream.synchronize()
        return int(pool.total_bytes() - before)

    def host(self, a: Any) -> np.ndarray:
        """A copy in NumPy's memory."""
        return self._cupy.asnumpy(a)

    def special(self, name: str, a: Any) -> Any:
        """A special function of SciPy's, elementwise."""
        from cupyx.scipy import special

        return getattr(special, name)(a)


class SimulatedDevice:
    """No GPU: NumPy's arrays, and kernels in Numba's simulator (NUMBA_ENABLE_CUDASIM=1).

    ``small``, ``direct`` and ``grid`` as of `CupyDevice`: by default NumPy makes all products, and
    few threads do the rest, since the simulator is slow.
    """

    xp = np
    no_graphs = "the simulator has no CUDA graphs"
    grid = 2, 3

    def __init__(self, small: int = 0, direct: bool = False) -> None:
        self.launch, self.small, self.direct = Simulator(), small, direct

    def here(self) -> Any:
        """Nothing has to be current."""
        return nullcontext()

    def fits(self, nbytes: int) -> bool:
        """The memory is the host's, where the data are already."""
        return True

    def host(self, a: Any) -> np.ndarray:
        """The array itself."""
        return np.asarray(a)

    def special(self, name: str, a: Any) -> Any:
        """A special function of SciPy's, elementwise."""
        from scipy import special

        return getattr(special, name)(a)

    def gemm(self, ta: bool, tb: bool, a: Any, b: Any, c: Any, alpha: Any, beta: Any) -> None:
        """As `fflearn.gpu.blas.Blas.gemm`."""
        made = (a.swapaxes(-1, -2) if ta else a) @ (b.swapaxes(-1, -2) if tb else b)
        c[...] = alpha * made + (beta * c if beta else 0)
