"""From a kernel in Python to a launch on the present GPU.

numba-cuda compiles a kernel to PTX, nvJitLink makes machine code of it (neither needs a GPU), and
CuPy loads and launches that on its own stream: arguments are plain pointers and numbers, so a
launch costs microseconds and can be captured.  Machine code is kept on disk like the CPU's.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import cuda, types

from fflearn.gpu.table import kernels
from fflearn.kernels.jit import cache_folder

PREFIX = "fflearn_"  # of a kernel's entry
# One letter per argument: p, D, W, U, I and B point to reals, float64, words, counters, indices and
# bytes; f is a real, d a float64, u a 64-bit counter, i an index.
_POINTERS = (
    ("D", types.float64),
    ("W", types.uint32),
    ("U", types.uint64),
    ("I", types.int32),
    ("B", types.uint8),
)
_NUMBERS = (("d", types.float64), ("u", types.uint64), ("i", types.int64))


def signature(letters: str, real: Any) -> tuple[Any, ...]:
    """Numba's types of a kernel's arguments; ``real`` is np.float32 or np.float64."""
    number = types.float32 if real is np.float32 else types.float64
    known = {"p": types.CPointer(number), "f": number, **dict(_NUMBERS)}
    known |= {letter: types.CPointer(of) for letter, of in _POINTERS}
    return tuple(known[letter] for letter in letters)


def ptx(name: str, real: Any, cc: tuple[int, int]) -> str:
    """Assembly of a kernel for a compute capability, its entry named after it; no GPU is needed."""
    from numba.cuda import dispatcher

    current = dispatcher.get_current_device
    # numba-cuda 0.30 asks the present GPU for its capability where a kernel calls a function.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        function, letters = kernels(real)[name]
        made = cuda.compile_ptx(function, signature(letters, real), cc=cc)[0]
    finally:
        dispatcher.get_current_device = current
    (entry,) = re.findall(r"\.entry\s+(\w+)", made)
    return made.replace(entry, PREFIX + name)  # Numba's own name is longer than a file's may be


def machine_code(name: str, real: Any, cc: tuple[int, int]) -> bytes:
    """Machine code of a kernel for a compute capability; no GPU is needed."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    assembly = ObjectCode.from_ptx(ptx(name, real, cc).encode())
    linker = Linker(assembly, options=LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}"))
    return bytes(linker.link("cubin").code)


@functools.cache
def _digest() -> str:
    import numba_cuda

    h = hashlib.blake2b(numba_cuda.__version__.encode(), digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        h.update(path.read_bytes())
    return h.hexdigest()


def _kept(name: str, real: Any, cc: tuple[int, int]) -> Path:
    """The file of a kernel's machine code, compiled if it is not there."""
    folder = cache_folder() / f"cuda-{_digest()}"
    path = folder / f"{name}-{np.dtype(real).char}-sm_{cc[0]}{cc[1]}.cubin"
    if not path.exists():
        code = machine_code(name, real, cc)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as f:
            f.write(code)
        os.replace(f.name, path)
    return path


class Launcher:
    """Launches kernels on a GPU, and compiles each at its first use."""

    def __init__(self, device: Any):
        self._cc = (int(device.compute_capability[:-1]), int(device.compute_capability[-1]))
        self._loaded: dict[tuple[str, Any], Callable[..., None]] = {}

    def __call__(self, name: str, real: Any, blocks: int, threads: int, args: tuple) -> None:
        """Run ``blocks`` x ``threads`` of a kernel on the current stream."""
        run = self._loaded.get((name, real)) or self._load(name, real)
        run(blocks, threads, args)

    def _load(self, name: str, real: Any) -> Callable[..., None]:
        import cupy

        path = _kept(name, real, self._cc)
        function = cupy.RawModule(path=str(path)).get_function(PREFIX + name)
        casts = _casts(kernels(real)[name][1], real)

        def run(blocks: int, threads: int, args: tuple) -> None:
            given = tuple(a if c is None else c(a) for c, a in zip(casts, args, strict=True))
            function((blocks,), (threads,), given)

        self._loaded[name, real] = run
        return run


class Simulator:
    """Runs the kernels in Numba's simulator, on NumPy arrays: slow, and anywhere."""

    def __init__(self) -> None:
        from numba.cuda.simulator.kernelapi import FakeCUDAShared

        self._made: dict[tuple[str, Any], Any] = {}
        # Numba's own looks whether there is one, and then makes it: two threads can both make it.
        shared: Any = FakeCUDAShared
        shared.array = _shared_array

    def __call__(self, name: str, real: Any, blocks: int, threads: int, args: tuple) -> None:
        """Run ``blocks`` x ``threads`` of a kernel."""
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        function, letters = kernels(real)[name]
        kernel = self._made.setdefault((name, real), cuda.jit(function))
        casts = _casts(letters, real)
        # Wrapped by hand: an array given as it is would be copied, once for each argument that it is.
        flat = [
            FakeCUDAArray(a.reshape(-1)) if c is None else c(a)
            for c, a in zip(casts, args, strict=True)
        ]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # its threads wait for each other by asking again and again
        try:
            kernel[blocks, threads](*flat)
        finally:
            sys.setswitchinterval(before)


def _shared_array(self: Any, shape: Any, dtype: Any) -> Any:
    """The one array of a block that a line of a kernel names, whichever thread comes first."""
    from numba.np.numpy_support import as_dtype

    line = sys._getframe(1)
    made = np.empty(shape, as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
    return self._allocations.setdefault((line.f_code.co_filename, line.f_lineno), made)


def _casts(letters: str, real: Any) -> list[Any]:
    """What makes an argument what its letter says; None for a pointer."""
    known = {"f": real, "d": np.float64, "u": np.uint64, "i": np.int64}
    return [known.get(letter) for letter in letters]
