"""What the CUDA kernels compute number by number.

``real`` is the type, float32 or float64, so that no number is widened on the way.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import numba
from numba import types
from numba.extending import register_jitable

CONFIG: Any = numba.config  # its settings are made at run time: invisible to a type checker
SIMULATED = bool(CONFIG.ENABLE_CUDASIM)  # its threads are slow: few show as much
THREADS = 8 if SIMULATED else 128  # of a block: a power of 2, as the sums over a block need
IDENTITY, RELU, HARDSIGMOID, TANH, SIGMOID, GELU = range(6)


@functools.cache
def functions(real: Any) -> Any:
    """Functions of numbers, and constants, of a real type; ``T`` is Numba's name of it."""
    zero, half, one = real(0), real(0.5), real(1)
    root_half, of_gauss = real(math.sqrt(0.5)), real(1 / math.sqrt(2 * math.pi))

    @register_jitable
    def sigmoid(a):
        e = math.exp(-abs(a))  # never overflows
        return (one if a >= zero else e) / (one + e)

    @register_jitable
    def softplus(a):
        return (max(zero, a)) + math.log1p(math.exp(-abs(a)))

    @register_jitable
    def normal_cdf(a):
        return half * math.erfc(-a * root_half)

    @register_jitable
    def act(a, kind):
        if kind == RELU:
            return a if not a <= zero else zero  # NaN passes through
        if kind == HARDSIGMOID:
            return zero if a <= zero else (a if not a >= one else one)  # and here
        if kind == TANH:
            return math.tanh(a)
        if kind == SIGMOID:
            return sigmoid(a)
        if kind == GELU:
            return a * normal_cdf(a)
        return a

    @register_jitable
    def slope(a, y, kind):
        if kind == RELU:
            return one if a > zero else zero
        if kind == HARDSIGMOID:
            return one if a > zero and a < one else zero
        if kind == TANH:
            return one - y * y
        if kind == SIGMOID:
            return y * (one - y)
        if kind == GELU:
            return normal_cdf(a) + a * math.exp(-half * a * a) * of_gauss
        return one

    T = types.float32 if real().itemsize == 4 else types.float64
    return SimpleNamespace(**{n: f for n, f in locals().items() if n != "real"})
