"""The backend "cuda": CuPy's arrays, CUDA kernels written in Python, steps as CUDA graphs.

Importing this package needs nothing; `load` needs CuPy, numba-cuda and a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fflearn.errors import BackendUnavailable

__all__ = ["load"]


def load(*options: str) -> Any:
    """The kernels of a GPU.

    Parameters
    ----------
    options : str
        A whole number says which GPU, as CUDA numbers them (0); "tf32" or "bf16" the precision of
        float32 products, in place of float32; "cudnn" has PyTorch make the convolutions.

    Raises
    ------
    BackendUnavailable
        There is no GPU, or not so many; the message says what to type instead.
    MissingExtra
        "cudnn" without PyTorch.
    """
    index = next((int(o) for o in options if o.isdecimal()), 0)
    precision = next((o for o in options if o in ("tf32", "bf16")), "")
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
    if "cudnn" in options:
        from fflearn.gpu.cudnn import CudnnKernels

        return CudnnKernels(_device(index, precision))
    from fflearn.gpu.table import CudaKernels

    return CudaKernels(_device(index, precision))


@cache
def _device(index: int, precision: str) -> Any:
    """One for all kernels of a process: loaded code, stream and workspace are shared."""
    from fflearn.gpu.device import CupyDevice

    return CupyDevice(index, precision)
