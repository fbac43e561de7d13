"""Compiled Philox: the draws of `fflearn.random`, filled block by block.

Every ``out`` is flat and holds whole blocks of four words, whatever the caller asked for.  Block
numbers count from 0, so pieces can be filled by different threads.
"""

import math

import numpy as np
from numba.extending import register_jitable

from fflearn.kernels import scalars
from fflearn.kernels.jit import inner, kernel
from fflearn.kernels.team import spread

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


@inner
def _words(t, k0, k1, c2, c3, out, blocks):
    for block in range(t * SPAN, min(blocks, (t + 1) * SPAN)):
        c = np.uint64(block)
        w0, w1, w2, w3 = philox(c & scalars.LOW, c >> scalars.HALF, c2, c3, k0, k1)
        i = 4 * block
        out[i], out[i + 1], out[i + 2], out[i + 3] = w0, w1, w2, w3


@kernel
def words(k0, k1, c2, c3, out):
    """Fill uint32 (4 blocks,)."""
    blocks = out.size // 4
    spans = (blocks + SPAN - 1) // SPAN
    spread(_words, spans, blocks < SERIAL, (k0, k1, c2, c3, out, blocks))


@inner
def _uniform(t, k0, k1, c2, c3, out, blocks):
    single = out.itemsize == 4
    for block in range(t * SPAN, min(blocks, (t + 1) * SPAN)):
        c = np.uint64(block)
        w0, w1, w2, w3 = philox(c & scalars.LOW, c >> scalars.HALF, c2, c3, k0, k1)
        if single:
            i = 4 * block
            out[i], out[i + 1] = unit32(w0), unit32(w1)
            out[i + 2], out[i + 3] = unit32(w2), unit32(w3)
        else:
            out[2 * block], out[2 * block + 1] = unit64(w0, w1), unit64(w2, w3)


@kernel
def uniform(k0, k1, c2, c3, out):
    """Fill float32 (4 blocks,) or float64 (2 blocks,)."""
    blocks = out.size // (4 if out.itemsize == 4 else 2)
    spans = (blocks + SPAN - 1) // SPAN
    spread(_uniform, spans, blocks < SERIAL, (k0, k1, c2, c3, out, blocks))


@inner
def _normal(t, k0, k1, c2, c3, out, blocks):
    for block in range(t * SPAN, min(blocks, (t + 1) * SPAN)):
        c = np.uint64(block)
        w0, w1, w2, w3 = philox(c & scalars.LOW, c >> scalars.HALF, c2, c3, k0, k1)
        i = 4 * block
        out[i], out[i + 1] = box_muller(w0, w1)
        out[i + 2], out[i + 3] = box_muller(w2, w3)


@kernel
def normal(k0, k1, c2, c3, out):
    """Fill float32 or float64 (4 blocks,)."""
    blocks = out.size // 4
    spans = (blocks + SPAN - 1) // SPAN
    spread(_normal, spans, blocks < SERIAL, (k0, k1, c2, c3, out, blocks))
