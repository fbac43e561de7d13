"""How a kernel comes to a launch, without the compiler and without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fflearn.gpu import launch
from fflearn.gpu.device import CupyDevice


@pytest.fixture
def made(monkeypatch, tmp_path):
    """What was compiled, in order; machine code here is the name of the kernel."""
    made = []

    def machine_code(name, real, cc):
        made.append((name, real, cc))
        return f"{name} {np.dtype(real).char} {cc}".encode()

    monkeypatch.setattr(launch, "machine_code", machine_code)
    monkeypatch.setattr(launch, "_digest", lambda: "0")
    monkeypatch.setattr(launch, "cache_folder", lambda: tmp_path / "not" / "there yet")
    return made


def test_machine_code_is_kept_by_kernel_type_and_gpu(made):
    keys = [
        (name, real, cc)
        for name in ("act", "adam")
        for real in (np.float32, np.float64)
        for cc in ((8, 0), (9, 0))
    ]
    for _ in range(2):
        for name, real, cc in keys:
            code = launch._kept(name, real, cc).read_bytes()
            assert code == f"{name} {np.dtype(real).char} {cc}".encode()
    assert made == keys


@pytest.mark.parametrize(("given", "want"), {"90": (9, 0), "86": (8, 6), "120": (12, 0)}.items())
def test_a_launch_has_the_types_of_its_kernel(made, monkeypatch, given, want):
    launched = []

    def module(path):
        def function(blocks, threads, args):
            launched.append((Path(path).read_text(), blocks, threads, args))

        return SimpleNamespace(get_function=lambda name: function)

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=module))
    run = launch.Launcher(SimpleNamespace(compute_capability=given))
    array = object()
    for real in (np.float32, np.float64, np.float32):
        run("normalize", real, 7, 128, (array, array, 5, 0.1, 1e-8))
        text, blocks, threads, args = launched[-1]
        assert text == f"normalize {np.dtype(real).char} {want}"
        assert (blocks, threads) == ((7,), (128,)) and args[:2] == (array, array)
        assert [type(a) for a in args[2:]] == [np.int64, real, real]
    assert made == [("normalize", np.float32, want), ("normalize", np.float64, want)]


def test_data_leave_half_of_the_memory_to_the_steps():
    device, free = object.__new__(CupyDevice), SimpleNamespace(memGetInfo=lambda: (100, 500))
    device._cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=free))
    assert device.fits(50) and not device.fits(51)
