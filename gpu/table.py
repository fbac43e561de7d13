"""`CudaKernels`: every kernel on a GPU's arrays.

What is not overridden is the reference's own code, which CuPy runs on its arrays as NumPy does on
its.  Each family is a file: its CUDA kernels in Python, which are compiled for a GPU or run in
Numba's simulator, and the methods that launch them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fflearn.gpu import (
    columns,
    convolution,
    draws,
    elementwise,
    patches,
    products,
    rows,
    sparse,
    updates,
)

FAMILIES = elementwise, rows, columns, products, sparse, patches, convolution, updates, draws


@functools.cache
def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """CUDA kernels for float32 or float64 by name, with the letters of their arguments.

    Every array is a flat pointer, rows one after the other; the letters are those of
    `fflearn.gpu.launch`.
    """
    return {name: kernel for family in FAMILIES for name, kernel in family.kernels(real).items()}


class CudaKernels(convolution.Convolutions, rows.Rows, updates.Updates, draws.Draws):
    """Kernels for float32 and float64 arrays of one device (see `fflearn.gpu.arrays.Arrays`)."""
