"""exp of many float32 numbers at once: the compiler makes vectors of a polynomial, not of libm."""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fflearn.kernels.jit import inner

HELD = 0x4B400000  # the bits of 1.5 2^23: to them a sum with a whole number adds that number


@intrinsic
def _scaled(typing, x, held):
    """x 2^n for the n in the lowest bits of ``held``, in two halves: the result may be denormal."""

    def codegen(context, builder, signature, args):
        i32, (found, held) = ir.IntType(32), args
        n = builder.sub(builder.bitcast(held, i32), i32(HELD))
        half = builder.ashr(n, i32(1))
        for some in (half, builder.sub(n, half)):
            power = builder.shl(builder.add(some, i32(127)), i32(23))
            found = builder.fmul(found, builder.bitcast(power, ir.FloatType()))
        return found

    return types.float32(types.float32, types.float32), codegen


@inner
def _exp32(x):
    """exp(x) for x up to 0, in float32: 2^n exp(r), with exp(r) as a polynomial.

    Its coefficients are those of the Cephes library (Moshier, 1992); within a unit in the last place.
    """
    f = np.float32
    x = f(-104) if x < f(-104) else x  # noqa: FURB136  whose exp is 0; NaN passes
    held = x * f(1.44269504) + f(1.5 * 2**23)  # which has no bits for a fraction
    n = held - f(1.5 * 2**23)
    r = x - n * f(0.693359375) - n * f(-2.12194440e-4)
    p = f(1.9875691500e-4) * r + f(1.3981999507e-3)
    for c in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(c)
    return _scaled(p * (r * r) + r + f(1), held)


@inner
def exp(x):
    """In place, of a vector (n,) of float32 or float64 numbers, none of them above 0."""
    if x.itemsize == 4:
        for j in range(x.size):
            x[j] = _exp32(x[j])
    else:
        for j in range(x.size):
            x[j] = math.exp(x[j])
