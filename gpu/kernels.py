"""Random numbers on the GPU: Philox from the scalars that the CPU kernels use.

Words and uniforms have the bits of `fflearn.random`; normals differ by the last places of the
device's log, sin and cos.  The step is read from memory, so a captured launch draws fresh
numbers on each replay.  Under NUMBA_ENABLE_CUDASIM=1 the same kernels run in plain Python.
"""

import math

import numpy as np
from numba import cuda

from fflearn.kernels import scalars

THREADS = 128

philox = cuda.jit(device=True)(scalars.philox)
unit32 = cuda.jit(device=True)(scalars.unit32)
unit64 = cuda.jit(device=True)(scalars.unit64)


@cuda.jit(device=True)
def block_words(block, static, step):
    """The four words of a block."""
    return philox(
        block & scalars.LOW,
        block >> scalars.HALF,
        step & scalars.LOW,
        step >> scalars.HALF,
        static & scalars.LOW,
        static >> scalars.HALF,
    )


@cuda.jit(device=True)
def box_muller(w0, w1):
    """Two normal numbers from two words, in float64: see `fflearn.random.normal`."""
    radius = math.sqrt(-2.0 * math.log((np.float64(w0) + 1.0) * scalars.WORD_UNIT))
    angle = scalars.TWO_PI * (np.float64(w1) * scalars.WORD_UNIT)
    return radius * math.cos(angle), radius * math.sin(angle)


@cuda.jit
def words(static, counter, out):
    """Fill out, uint32 (n,); counter is uint64 (1,), the step."""
    block = np.uint64(cuda.grid(1))
    w = block_words(block, static, counter[0])
    i = 4 * cuda.grid(1)
    for j in range(4):
        if i + j < out.size:
            out[i + j] = w[j]


@cuda.jit
def uniform32(static, counter, out):
    """Fill out, float32 (n,)."""
    w = block_words(np.uint64(cuda.grid(1)), static, counter[0])
    i = 4 * cuda.grid(1)
    for j in range(4):
        if i + j < out.size:
            out[i + j] = unit32(w[j])


@cuda.jit
def uniform64(static, counter, out):
    """Fill out, float64 (n,)."""
    w = block_words(np.uint64(cuda.grid(1)), static, counter[0])
    i = 2 * cuda.grid(1)
    if i < out.size:
        out[i] = unit64(w[0], w[1])
    if i + 1 < out.size:
        out[i + 1] = unit64(w[2], w[3])


@cuda.jit
def normal(static, counter, out):
    """Fill out, float32 or float64 (n,)."""
    w = block_words(np.uint64(cuda.grid(1)), static, counter[0])
    i = 4 * cuda.grid(1)
    for pair in range(2):
        at = i + 2 * pair
        if at < out.size:
            first, second = box_muller(w[2 * pair], w[2 * pair + 1])
            out[at] = first
            if at + 1 < out.size:
                out[at + 1] = second


def fill(kernel, static: int, counter, out) -> None:
    """Launch a kernel of this module over a flat device array.

    Parameters
    ----------
    kernel : `words`, `uniform32`, `uniform64` or `normal`
    static : int
        `Key.static()`.
    counter : device array of uint64, shape (1,)
        The step; read when the kernel runs.
    out : device array, shape (n,)
    """
    per_block = 2 if kernel is uniform64 else 4
    blocks = -(-out.size // per_block)
    if blocks:
        kernel[-(-blocks // THREADS), THREADS](np.uint64(static), counter, out)
