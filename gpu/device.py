"""A device: its arrays, its products, its launches.  A GPU through CuPy, or Numba's simulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from fflearn.gpu.launch import Launcher, Simulator


class CupyDevice:
    """A GPU: CuPy's arrays on a stream of our own.

    Parameters
    ----------
    index : int
        Which GPU, as CUDA numbers them.
    precision : str
        Of float32 products: "" (float32), "tf32" or "bf16".
    """

    def __init__(self, index: int = 0, precision: str = ""):
        import cupy

        from fflearn.gpu.blas import Blas

        self.xp, self._cupy, self.index = cupy, cupy, index
        self._device = cupy.cuda.Device(index)
        with self._device:
            # Not "non_blocking": what a user reads on CUDA's default stream waits for the step.
            self.stream = cupy.cuda.Stream()
            self.launch = Launcher(self._device)
            self.gemm = Blas(precision).gemm

    @contextmanager
    def here(self) -> Iterator[None]:
        """A context in which this device and its stream are the current ones."""
        with self._device, self.stream:
            yield

    def host(self, a: Any) -> np.ndarray:
        """A copy in NumPy's memory."""
        return self._cupy.asnumpy(a)

    def side(self, a: Any) -> Any:
        """Side data, dense or sparse."""
        with self.here():
            if not hasattr(a, "tocsr"):
                return self._cupy.asarray(a)
            from cupyx.scipy.sparse import csr_matrix

            return csr_matrix(a.tocsr())

    def special(self, name: str, a: Any) -> Any:
        """A special function of SciPy's, elementwise."""
        from cupyx.scipy import special

        return getattr(special, name)(a)


class SimulatedDevice:
    """No GPU: NumPy's arrays, and kernels in Numba's simulator (NUMBA_ENABLE_CUDASIM=1)."""

    xp = np

    def __init__(self) -> None:
        self.launch = Simulator()

    def here(self) -> Any:
        """Nothing has to be current."""
        return nullcontext()

    def host(self, a: Any) -> np.ndarray:
        """The array itself."""
        return np.asarray(a)

    def side(self, a: Any) -> Any:
        """Side data, as they are."""
        return a

    def special(self, name: str, a: Any) -> Any:
        """A special function of SciPy's, elementwise."""
        from scipy import special

        return getattr(special, name)(a)

    def gemm(
        self,
        ta: bool,
        tb: bool,
        m: int,
        n: int,
        k: int,
        alpha: Any,
        a: Any,
        b: Any,
        beta: Any,
        c: Any,
    ) -> None:
        """c = alpha op(a) op(b) + beta c, as `fflearn.gpu.blas.Blas.gemm`."""
        a, b = a.reshape((k, m) if ta else (m, k)), b.reshape((n, k) if tb else (k, n))
        c[...] = alpha * ((a.T if ta else a) @ (b.T if tb else b)) + (beta * c if beta else 0)
