"""Compiled Philox: the draws of `fflearn.random`, filled block by block.

Every ``out`` is flat and holds whole blocks of four words, whatever the caller asked for.  Block
numbers count from 0, so pieces can be filled by different threads.
"""

import math

import numpy as np
from numba import prange
from numba.extending import register_jitable

from fflearn.kernels import scalars
from fflearn.kernels.jit import kernel

SPAN = 1 << 10  # blocks a thread takes at a time
SERIAL = 1 << 11  # blocks below which a parallel region costs more than it gives

philox = register_jitable(scalars.philox)
unit32 = register_jitable(scalars.unit32)
unit64 = register_jitable(scalars.unit64)


@register_jitable
def box_muller(w0, w1):
    """Two normal numbers from two words, in float64: see `fflearn.random.normal`."""
    radius = math.sqrt(-2.0 * math.log((np.float64(w0) + 1.0) * scalars.WORD_UNIT))
    angle = scalars.TWO_PI * (np.float64(w1) * scalars.WORD_UNIT)
    return radius * math.cos(angle), radius * math.sin(angle)


@kernel()
def _words(k0, k1, c2, c3, out, start, stop):
    for block in range(start, stop):
        c = np.uint64(block)
        w0, w1, w2, w3 = philox(c & scalars.LOW, c >> scalars.HALF, c2, c3, k0, k1)
        i = 4 * block
        out[i], out[i + 1], out[i + 2], out[i + 3] = w0, w1, w2, w3


@kernel(parallel=True)
def words(k0, k1, c2, c3, out):
    """Fill uint32 (4 blocks,)."""
    blocks = out.size // 4
    if blocks < SERIAL:
        _words(k0, k1, c2, c3, out, 0, blocks)
    else:
        for t in prange((blocks + SPAN - 1) // SPAN):
            _words(k0, k1, c2, c3, out, t * SPAN, min(blocks, (t + 1) * SPAN))


@kernel()
def _uniform(k0, k1, c2, c3, out, start, stop):
    single = out.itemsize == 4
    for block in range(start, stop):
        c = np.uint64(block)
        w0, w1, w2, w3 = philox(c & scalars.LOW, c >> scalars.HALF, c2, c3, k0, k1)
        if single:
            i = 4 * block
            out[i], out[i + 1] = unit32(w0), unit32(w1)
            out[i + 2], out[i + 3] = unit32(w2), unit32(w3)
        else:
            out[2 * block], out[2 * block + 1] = unit64(w0, w1), unit64(w2, w3)


@kernel(parallel=True)
def uniform(k0, k1, c2, c3, out):
    """Fill float32 (4 blocks,) or float64 (2 blocks,)."""
    blocks = out.size // (4 if out.itemsize == 4 else 2)
    if blocks < SERIAL:
        _uniform(k0, k1, c2, c3, out, 0, blocks)
    else:
        for t in prange((blocks + SPAN - 1) // SPAN):
            _uniform(k0, k1, c2, c3, out, t * SPAN, min(blocks, (t + 1) * SPAN))


@kernel()
def _normal(k0, k1, c2, c3, out, start, stop):
    for block in range(start, stop):
        c = np.uint64(block)
        w0, w1, w2, w3 = philox(c & scalars.LOW, c >> scalars.HALF, c2, c3, k0, k1)
        i = 4 * block
        out[i], out[i + 1] = box_muller(w0, w1)
        out[i + 2], out[i + 3] = box_muller(w2, w3)


@kernel(parallel=True)
def normal(k0, k1, c2, c3, out):
    """Fill float32 or float64 (4 blocks,)."""
    blocks = out.size // 4
    if blocks < SERIAL:
        _normal(k0, k1, c2, c3, out, 0, blocks)
    else:
        for t in prange((blocks + SPAN - 1) // SPAN):
            _normal(k0, k1, c2, c3, out, t * SPAN, min(blocks, (t + 1) * SPAN))
