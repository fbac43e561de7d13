"""Settings for every test, made before numba is imported."""

from __future__ import annotations

import importlib.util
import os

import pytest

SECONDS = 300  # for one test, where pytest-timeout is there to stop it


def _cuda_devices() -> int:
    """How many CUDA devices the driver reports, without importing numba or cupy."""
    import ctypes

    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int()
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


DEVICES = _cuda_devices()
if not DEVICES:
    # numba reads this once, when it is first imported: CUDA kernels then run in plain Python.
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples in every run; no deadline, because a first call may compile.
    settings.register_profile("fflearn", deadline=None, derandomize=True, database=None)
    settings.load_profile("fflearn")


def pytest_configure(config: pytest.Config) -> None:
    """Keep @pytest.mark.timeout legal where pytest-timeout is not installed."""
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): stops the test (pytest-timeout)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test a time limit; skip what this machine cannot run."""
    limited = config.pluginmanager.hasplugin("timeout") and not config.getoption("timeout", None)
    torch = importlib.util.find_spec("torch") is not None
    for item in items:
        if limited and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))
        if item.get_closest_marker("gpu") and not DEVICES:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("torch") and not torch:
            item.add_marker(pytest.mark.skip(reason="needs PyTorch: pip install fflearn[torch]"))
