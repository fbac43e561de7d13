"""How every CPU kernel is compiled, and where the machine code is kept.

Numba's cache notices an edit of the file a kernel is in, not of the files it calls into.  So the
folder is named after a digest of all that hold compiled code: an edit of one starts an empty cache.
"""

import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

_HERE = Path(__file__).resolve().parent
NEVER_COMPILED = (
    "__init__.py",
    "cpu.py",
    "lowering.py",
    "patches.py",
    "reference.py",
    "threads.py",
)
CONFIG: Any = numba.config  # its settings are made at run time: invisible to a type checker
_njit: Any = numba.njit  # takes options that its types leave out
_KEEPING = threading.RLock()
PORTABLE = os.environ.get("FFLEARN_CPU") == "portable"  # do without this processor's own kernels


def digest() -> str:
    """Hash of the sources a compiled kernel can come from."""
    h = hashlib.blake2b(digest_size=8)
    for path in sorted(_HERE.glob("*.py")):
        if path.name in NEVER_COMPILED:
            continue
        h.update(path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()


@functools.cache
def cache_folder() -> Path:
    """The folder for this version of the kernels, made if missing.

    Under NUMBA_CACHE_DIR if the user set it, else FFLEARN_CACHE, else ~/.cache/fflearn; a private
    temporary folder, removed at exit, where that cannot be written (Numba unpickles what it finds
    there, so a folder that others could write to will not do).
    """
    root = CONFIG.CACHE_DIR or os.environ.get("FFLEARN_CACHE") or "~/.cache/fflearn"
    folder = Path(root).expanduser() / f"numba-{digest()}{'-portable' * PORTABLE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(_temporary().name)
    return folder


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fflearn-numba-", ignore_cleanup_errors=True)


@contextmanager
def kept() -> Iterator[None]:
    """A context in which Numba keeps what it compiles in our folder; one thread at a time."""
    with _KEEPING:
        before, CONFIG.CACHE_DIR = CONFIG.CACHE_DIR, str(cache_folder())
        try:
            yield
        finally:
            CONFIG.CACHE_DIR = before


def native(signature: Any, parallel: bool = False) -> Callable[[Callable], Any]:
    """Decorator: compile now, for calls by address from other compiled code; kept on disk."""

    def compile_now(function: Callable) -> Any:
        with kept():
            return numba.cfunc(signature, cache=True, parallel=parallel)(function)

    return compile_now


def kernel(function: Callable) -> Callable:
    """Decorator: compile on first call, keep on disk, run without the GIL.

    An elementwise kernel rounds exactly as the reference does (no fused multiply-add).
    """
    return _later(function)


def inner(function: Callable) -> Callable:
    """Decorator, as `kernel`, for what compiled code alone calls.

    A way in from Python would take longer to compile than most of these functions.
    """
    return _later(function, no_cpython_wrapper=True)


def row_sum(function: Callable) -> Callable:
    """Decorator, as `inner`, for the sum of a row, which may be vectorised.

    Its order is then the compiler's, fixed for a processor, the same for every run, row and number
    of threads.
    """
    return _later(function, no_cpython_wrapper=True, fastmath={"reassoc"})


def _later(function: Callable, **more: Any) -> Callable:
    options = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    with kept():
        return _njit(**options, **more)(function)


@intrinsic
def _numbers(typing, a, start):
    """The address of a number of a contiguous array."""

    def codegen(context, builder, signature, args):
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
        return builder.gep(array.data, [args[1]])

    return types.CPointer(a.dtype)(a, types.intp), codegen


@register_jitable
def part(a, start, n):
    """n numbers of a contiguous array.  Cut out by a slice, they would be counted as in use."""
    return carray(_numbers(a, start), (n,))
