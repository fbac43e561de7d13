"""Scalar maths written once: for NumPy arrays, for Numba on the CPU and for CUDA.

Nothing here imports Numba.  Every function is plain arithmetic on ``uint64`` values, so calling
it on arrays gives the NumPy definition, ``numba.extending.register_jitable`` the CPU kernel and
``cuda.jit(device=True)`` the GPU kernel, with the same bits.
"""

import math

import numpy as np

# Philox4x32: multipliers and Weyl constants of Salmon et al. (2011), table 2 and Random123 1.14.
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ONE, TWO, FIVE, SIX = np.uint64(1), np.uint64(2), np.uint64(5), np.uint64(6)
EIGHT = np.uint64(8)

F32_UNIT = 2.0**-24
F64_UNIT = 2.0**-53
WORD_UNIT = 2.0**-32
TWO_26 = 2.0**26
TWO_PI = 2.0 * math.pi


def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four counter words and two key words to four random words.

    All words are 32-bit values held in ``uint64``: Numba widens ``uint32`` sums and NumPy warns
    when they wrap, while a 64-bit product of two words never overflows.

    References
    ----------
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw (2011), "Parallel random numbers: as easy
    as 1, 2, 3", SC11, doi:10.1145/2063384.2063405.
    """
    for _ in range(10):
        p0 = M0 * c0
        p1 = M1 * c2
        c0 = (p1 >> HALF) ^ c1 ^ k0
        c1 = p1 & LOW
        c2 = (p0 >> HALF) ^ c3 ^ k1
        c3 = p0 & LOW
        k0 = (k0 + W0) & LOW
        k1 = (k1 + W1) & LOW
    return c0, c1, c2, c3


def unit32(w):
    """One word to a float64 in [0, 1) with 24 bits: exact in float32 too."""
    return (w >> EIGHT) * F32_UNIT


def unit64(w0, w1):
    """Two words to a float64 in [0, 1) with 53 bits."""
    return ((w0 >> FIVE) * TWO_26 + (w1 >> SIX)) * F64_UNIT
