"""Memory that was freed, given back to the system."""

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """Of glibc, which keeps what it may hand out again; None where the C library is another."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def release() -> None:
    """What is free leaves the process, so that what comes next does not add to it."""
    trim = _trim()
    if trim is not None:
        trim(0)
