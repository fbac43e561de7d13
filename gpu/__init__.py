"""The backend "cuda": CuPy's arrays, CUDA kernels written in Python, steps as CUDA graphs.

Importing this package needs nothing; `load` needs CuPy, numba-cuda and a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fflearn.errors import BackendUnavailable

__all__ = ["load"]


def load(index: int = 0, precision: str = "") -> Any:
    """The kernels of a GPU.

    Parameters
    ----------
    index : int
        Which GPU, as CUDA numbers them.
    precision : str
        Of float32 products: "" for float32, "tf32" or "bf16".

    Raises
    ------
    BackendUnavailable
        There is no GPU, or not so many; the message says what to type instead.
    """
    import cupy

    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise BackendUnavailable(
            f"the 'cuda' kernels need an NVIDIA GPU; its driver answers: {e}. Choose the 'numba' "
            f"kernels."
        ) from e
    if index >= found:
        raise BackendUnavailable(f"there is no GPU {index}, of {found}. Type cuda:0.")
    from fflearn.gpu.table import CudaKernels

    return CudaKernels(_device(index, precision))


@cache
def _device(index: int, precision: str) -> Any:
    """One for all kernels of a process: loaded code, stream and workspace are shared."""
    from fflearn.gpu.device import CupyDevice

    return CupyDevice(index, precision)
