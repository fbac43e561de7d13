"""The CUDA kernels, on a device or in Numba's simulator, against `fflearn.random`.

In a fresh process: the simulator is chosen when numba is first imported, which another test may
have done without it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

CHECK = """
import numpy as np
from numba import cuda
from fflearn import random
from fflearn.gpu import kernels as gpu

def draw(kernel, key, n, dtype):
    counter, out = cuda.to_device(np.array([key.step], np.uint64)), cuda.device_array(n, dtype)
    gpu.fill(kernel, key.static(), counter, out)
    return out.copy_to_host()

for n in (1, 2, 3, 4, 6, 601):
    for key in (random.Key(0).fold("gpu"), random.Key(1).at(2**40 + 1)):
        assert np.array_equal(draw(gpu.words, key, n, np.uint32), key.words(n))
        assert np.array_equal(draw(gpu.uniform32, key, n, np.float32), key.uniform(n))
        wide = draw(gpu.uniform64, key, n, np.float64)
        assert np.array_equal(wide, key.uniform(n, np.float64))
        for dtype in (np.float32, np.float64):
            want = key.normal(n, dtype)
            off = np.abs(draw(gpu.normal, key, n, dtype) - want)
            assert (off <= 2 * np.spacing(np.abs(want))).all(), off.max()

# The step is read from memory: the same launch, another counter, other numbers.
counter, out = cuda.to_device(np.array([5], np.uint64)), cuda.device_array(8, np.uint32)
gpu.fill(gpu.words, 7, counter, out)
first = out.copy_to_host()
counter.copy_to_device(np.array([6], np.uint64))
gpu.fill(gpu.words, 7, counter, out)
assert np.array_equal(first, random.words(7, 5, 8))
assert np.array_equal(out.copy_to_host(), random.words(7, 6, 8))
print("same")
"""


def run(code, **variables):
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )


def test_simulator_draws_the_same_bits():
    done = run(CHECK, NUMBA_ENABLE_CUDASIM="1")
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.gpu
def test_device_draws_the_same_bits():
    done = run(CHECK, NUMBA_ENABLE_CUDASIM="0")
    assert done.stdout.strip() == "same", done.stderr


def test_package_imports_with_nothing_installed():
    done = run("import sys, fflearn.gpu; print('numba' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
