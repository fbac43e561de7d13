"""Every CUDA kernel becomes machine code, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None,
    reason="needs numba-cuda: pip install 'fflearn[gpu-compile]'",
)

# float32 kernels with float64 numbers in them, and why
WIDE = {
    **dict.fromkeys(["sgd", "adam"], "the settings lie in memory as float64"),
    **dict.fromkeys(["adam_scales", "fold", "settle"], "they compute with the settings"),
    **dict.fromkeys(["uniform", "normal"], "the definition of the draws is in float64"),
    **dict.fromkeys(
        ["column_sums", "column_finish", "standardize_rows", "standardize_rows_vjp"],
        "columns and rows of many numbers are added up in float64, as the reference does",
    ),
}

# In a process of its own: the simulator, once chosen, cannot compile.
COMPILE = """
import json, re, sys
import numpy as np
from fflearn.gpu import launch
from fflearn.gpu.table import kernels
found = {}
for real in (np.float32, np.float64):
    for name in sys.argv[1].split():
        for cc in ((8, 0), (9, 0)):
            code = launch.machine_code(name, real, cc)
            key = f"{name} {np.dtype(real).name} sm_{cc[0]}{cc[1]}"
            entry = (launch.PREFIX + name).encode()
            assert b".text." + entry + bytes(1) in code, f"{name}: it has another entry"
            found[key] = code[:4].hex(), len(code)
        text = launch.ptx(name, real, (9, 0))
        parameters = len(re.findall(r"\\.param", text.split(".entry")[1].split(")")[0]))
        letters = kernels(real)[name][1]
        found[f"{name} {np.dtype(real).name}"] = ".f64" in text, parameters == len(letters)
print(json.dumps(found))
"""


def names() -> list[str]:
    import numpy as np

    from fflearn.gpu.table import kernels

    return list(kernels(np.float32))


def compiled(kernels: str) -> dict[str, list]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_ENABLE_CUDASIM": "0"}
    command = [sys.executable, "-c", COMPILE, kernels]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_every_kernel_compiles(part):
    mine = names()[part::6]
    found = compiled(" ".join(mine))
    assert len(found) == 6 * len(mine)
    for key, (first, second) in found.items():
        if "sm_" in key:
            assert first == b"\x7fELF".hex() and second > 1000, key
        else:
            assert second, f"{key}: parameters other than its letters say"
            if key.endswith("float32"):
                assert first == (key.split()[0] in WIDE), f"{key}: float64 numbers, or none"


def test_the_list_of_wide_kernels_names_kernels():
    assert set(WIDE) <= set(names())


KEPT = """
import numpy as np
from fflearn.gpu import launch
first = launch._kept("advance", np.float32, (9, 0))
made = first.stat().st_mtime_ns
assert launch._kept("advance", np.float32, (9, 0)).stat().st_mtime_ns == made
assert launch._kept("advance", np.float64, (9, 0)) != first
print(sum(1 for _ in first.parent.iterdir()))
"""


def test_machine_code_is_kept(tmp_path):
    env = {"PYTHONPATH": str(ROOT), "NUMBA_ENABLE_CUDASIM": "0", "FFLEARN_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", KEPT],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "2", done.stderr


def test_names_fit_in_a_file_system():
    assert max(map(len, names())) < 100
