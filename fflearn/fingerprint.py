"""What machine and which versions a result was made with."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

PACKAGES = ("numpy", "numba", "scikit-learn", "safetensors", "torch", "cupy-cuda13x", "optuna")


@cache
def machine() -> dict[str, Any]:
    """Processor, logical cores, memory (GiB) and system; no name or address."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        if names:
            return names[0]
    except OSError:
        pass  # not Linux: the platform's own word must do
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


@cache
def versions() -> dict[str, str]:
    """Python, fflearn and the packages that compute, those that are installed."""
    from fflearn import __version__

    found = {"python": platform.python_version(), "fflearn": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # something stands in the way of looking
        return False


def fingerprint(backend: str, dtype: str, threads: int) -> dict[str, Any]:
    """Everything that the bits of a run depend on besides its settings, and the threads."""
    return {"backend": backend, "dtype": dtype, "threads": threads, **machine()}
