"""The compiled loops behind one signature, so that a list of calls runs without Python.

A call is a row of 64-bit words: the address of a kernel, then its arguments: addresses of arrays
and their sizes, whole numbers, and addresses of float64 numbers, which may change between runs.
`run` makes the calls of many rows, one after the other, in one go.

The loops are those that `CpuKernels` calls, so the bits are the same.  float32 alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils  # noqa: F401  registers what the intrinsics need
from numba.extending import intrinsic, register_jitable

from fflearn.kernels import blas, compiled, draws
from fflearn.kernels.jit import inner, kept, kernel

WIDTH = 32  # words of a row
SIGNATURE = types.void(types.CPointer(types.int64))
ADD, SUB, MUL, DIV = range(4)
NEGATIVE, ABSOLUTE, ROOT = range(3)


class Native:
    """A kernel of a tape: compiled when it is first needed, kept on disk."""

    def __init__(self, function: Callable[..., None]):
        self.function, self.name = function, function.__name__
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Of the machine code."""
        if self._compiled is None:
            with kept():
                compiled_now = numba.cfunc(SIGNATURE, cache=True, error_model="numpy")
                self._compiled = compiled_now(self.function)
        return self._compiled.address


# ---- words as arrays and numbers ------------------------------------------------------------------


def _pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(typing, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), codegen

    return pointer


floats = _pointer(types.float32)
doubles = _pointer(types.float64)
integers = _pointer(types.int64)
naturals = _pointer(types.uint32)
octets = _pointer(types.uint8)


@intrinsic
def invoke(typing, function, args):
    """Call a kernel at an address."""

    def codegen(context, builder, signature, values):
        words = ir.IntType(64).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [words]).as_pointer()
        builder.call(builder.inttoptr(values[0], kind), [builder.inttoptr(values[1], words)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@kernel
def run(rows):
    """Make the calls of all rows (n, WIDTH)."""
    base, step = rows.ctypes.data, rows.shape[1] * 8
    for i in range(rows.shape[0]):
        invoke(rows[i, 0], base + i * step + 8)


@register_jitable
def _vec(p, i):
    return carray(floats(p[i]), (p[i + 1],))


@register_jitable
def _mat(p, i):
    return carray(floats(p[i]), (p[i + 1], p[i + 2]))


@register_jitable
def _f64(p, i):
    return carray(doubles(p[i]), (1,))[0]


@register_jitable
def _f32(p, i):
    return np.float32(_f64(p, i))


# ---- kernels ------------------------------------------------------------------------------------


@Native
def gemm(p):
    blas.gemm(p[9] != 0, p[10] != 0, _mat(p, 0), _mat(p, 3), _mat(p, 6), _f32(p, 11), _f32(p, 12))


@Native
def descend(p):
    """w = (1 - lr decay) w - lr / n x^T da: all of plain gradient descent is one product."""
    lr = _f64(p, 9)
    alpha, beta = np.float32(-lr / _f64(p, 10)), np.float32(1 - lr * _f64(p, 11))
    blas.gemm(True, False, _mat(p, 0), _mat(p, 3), _mat(p, 6), alpha, beta)


@Native
def dense(p):
    compiled.dense(_mat(p, 0), _mat(p, 3), _vec(p, 6), _mat(p, 8), _mat(p, 11), _mat(p, 14), p[17])


@Native
def act(p):
    compiled.act(_vec(p, 0), _vec(p, 2), p[4])


@Native
def act_vjp(p):
    compiled.act_vjp(_vec(p, 0), _vec(p, 2), _vec(p, 4), p[6])


@Native
def colmean(p):
    compiled.colmean(_mat(p, 0), _f32(p, 5), _vec(p, 3))


@Native
def normalize(p):
    compiled.normalize(_mat(p, 0), _f32(p, 6), _f32(p, 7), _mat(p, 3))


@Native
def normalize_vjp(p):
    compiled.normalize_vjp(_mat(p, 0), _mat(p, 3), _mat(p, 6), _f32(p, 12), _f32(p, 13), _mat(p, 9))


@Native
def softmax_ce(p):
    compiled.softmax_ce(_mat(p, 0), _mat(p, 3), _vec(p, 6), _mat(p, 8))


@Native
def goodness(p):
    compiled.goodness(_mat(p, 0), p[5], _vec(p, 3))


@Native
def goodness_vjp(p):
    compiled.goodness_vjp(_vec(p, 0), _mat(p, 2), p[8], _f32(p, 9), _mat(p, 5))


@Native
def logistic(p):
    compiled.logistic(_vec(p, 0), _vec(p, 2), _f32(p, 8), _f32(p, 9), _vec(p, 4), _vec(p, 6))


@Native
def sgd(p):
    compiled.sgd(_vec(p, 0), _vec(p, 2), _vec(p, 4), _f32(p, 6), _f32(p, 7), _f32(p, 8))


@Native
def adam(p):
    compiled.adam(
        _vec(p, 0), _vec(p, 2), _vec(p, 4), _vec(p, 6), _f32(p, 8), _f32(p, 9), _f32(p, 10),
        _f32(p, 11), _f32(p, 12), _f32(p, 13), _f32(p, 14), _f32(p, 15),
    )  # fmt: skip


@register_jitable
def _counter(p, i):
    """The key's two words, and those of the step, which is read from memory."""
    step = np.uint64(carray(integers(p[i + 2]), (1,))[0])
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    return np.uint64(p[i]), np.uint64(p[i + 1]), step & low, step >> half


@Native
def words(p):
    k0, k1, c2, c3 = _counter(p, 2)
    draws.words(k0, k1, c2, c3, carray(naturals(p[0]), (p[1],)))


@Native
def uniform(p):
    k0, k1, c2, c3 = _counter(p, 2)
    draws.uniform(k0, k1, c2, c3, _vec(p, 0))


@Native
def normal(p):
    k0, k1, c2, c3 = _counter(p, 2)
    draws.normal(k0, k1, c2, c3, _vec(p, 0))


# ---- elementwise: what IEEE 754 rounds correctly, and so as NumPy ----------------------------------


@inner
def _vectors(code, o, a, b):
    if code == ADD:
        for i in range(o.size):
            o[i] = a[i] + b[i]
    elif code == SUB:
        for i in range(o.size):
            o[i] = a[i] - b[i]
    elif code == MUL:
        for i in range(o.size):
            o[i] = a[i] * b[i]
    else:
        for i in range(o.size):
            o[i] = a[i] / b[i]


@inner
def _vector_number(code, o, a, b):
    if code == ADD:
        for i in range(o.size):
            o[i] = a[i] + b
    elif code == SUB:
        for i in range(o.size):
            o[i] = a[i] - b
    elif code == MUL:
        for i in range(o.size):
            o[i] = a[i] * b
    else:
        for i in range(o.size):
            o[i] = a[i] / b


@inner
def _number_vector(code, o, a, b):
    if code == SUB:
        for i in range(o.size):
            o[i] = a - b[i]
    elif code == DIV:
        for i in range(o.size):
            o[i] = a / b[i]
    else:
        _vector_number(code, o, b, a)


@inner
def _binary_line(code, o, so, a, sa, b, sb, n):
    """o = a (code) b, n numbers that lie so, sa and sb bytes apart."""
    if so == 4 and sa == 4 and sb == 4:
        _vectors(code, carray(floats(o), (n,)), carray(floats(a), (n,)), carray(floats(b), (n,)))
    elif so == 4 and sa == 4 and sb == 0:
        number = carray(floats(b), (1,))[0]
        _vector_number(code, carray(floats(o), (n,)), carray(floats(a), (n,)), number)
    elif so == 4 and sa == 0 and sb == 4:
        number = carray(floats(a), (1,))[0]
        _number_vector(code, carray(floats(o), (n,)), number, carray(floats(b), (n,)))
    else:
        for i in range(n):
            one, two = carray(floats(a + i * sa), (1,)), carray(floats(b + i * sb), (1,))
            _vectors(code, carray(floats(o + i * so), (1,)), one, two)


@Native
def binary(p):
    """out, a, b, code, three sizes, and three strides in bytes of each."""
    for i in range(p[4]):
        for j in range(p[5]):
            o = p[0] + i * p[7] + j * p[8]
            a = p[1] + i * p[10] + j * p[11]
            b = p[2] + i * p[13] + j * p[14]
            _binary_line(p[3], o, p[9], a, p[12], b, p[15], p[6])


@Native
def copy(p):
    """out, a, three sizes, and three strides in bytes of each."""
    for i in range(p[2]):
        for j in range(p[3]):
            o, a = p[0] + i * p[5] + j * p[6], p[1] + i * p[8] + j * p[9]
            if p[7] == 4 and p[10] == 4:
                to, source = carray(floats(o), (p[4],)), carray(floats(a), (p[4],))
                for k in range(to.size):
                    to[k] = source[k]
            else:
                for k in range(p[4]):
                    carray(floats(o + k * p[7]), (1,))[0] = carray(floats(a + k * p[10]), (1,))[0]


@Native
def fill(p):
    """out (n,) = a number."""
    out, number = _vec(p, 0), _f32(p, 2)
    for i in range(out.size):
        out[i] = number


@Native
def unpack_bits(p):
    """out (8 n,) = the bits of octets (n,), lowest first."""
    out, source = carray(octets(p[0]), (p[3] * 8,)), carray(octets(p[2]), (p[3],))
    for i in range(source.size):
        for j in range(8):
            out[8 * i + j] = (source[i] >> np.uint8(j)) & np.uint8(1)


@Native
def from_octets(p):
    """out (n,) = octets (n,) as numbers."""
    out, source = _vec(p, 0), carray(octets(p[2]), (p[1],))
    for i in range(out.size):
        out[i] = np.float32(source[i])


@inner
def _block(a, start, n, zero):
    """The sum of a[start : start + n], at most 128 numbers, in NumPy's order; zero has its type."""
    if n < 8:
        total = zero
        for i in range(start, start + n):
            total += zero + a[i]
        return total
    r0, r1, r2, r3 = zero + a[start], zero + a[start + 1], zero + a[start + 2], zero + a[start + 3]
    i = start + 4
    r4, r5, r6, r7 = zero + a[i], zero + a[i + 1], zero + a[i + 2], zero + a[i + 3]
    i = start + 8
    while i < start + n - n % 8:
        r0 += zero + a[i]
        r1 += zero + a[i + 1]
        r2 += zero + a[i + 2]
        r3 += zero + a[i + 3]
        r4 += zero + a[i + 4]
        r5 += zero + a[i + 5]
        r6 += zero + a[i + 6]
        r7 += zero + a[i + 7]
        i += 8
    total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
    for j in range(i, start + n):
        total += zero + a[j]
    return total


@inner
def _pairwise(a, start, n, zero):
    """The sum of n numbers in NumPy's order: halves of halves, down to blocks."""
    if n <= 128:
        return _block(a, start, n, zero)
    half = n // 2 - n // 2 % 8
    return _pairwise(a, start, half, zero) + _pairwise(a, start + half, n - half, zero)


@Native
def rows_sum(p):
    """out (R,) = the sums of the rows of a (R, N), over a number unless that is 0."""
    out, a, n = _vec(p, 0), _mat(p, 2), _f32(p, 5)
    for i in range(out.size):
        out[i] = _pairwise(a[i], np.int64(0), a.shape[1], np.float32(0))
        if n != 0:
            out[i] /= n


@Native
def columns_sum(p):
    """out (N,) = the sum of the rows of a (R, N), over a number unless that is 0."""
    out, a, n = _vec(p, 0), _mat(p, 2), _f32(p, 5)
    out[:] = 0
    for i in range(a.shape[0]):
        row = a[i]
        for j in range(out.size):
            out[j] += row[j]
    if n != 0:
        for j in range(out.size):
            out[j] /= n


@inner
def _negative(o, a):
    for i in range(o.size):
        o[i] = -a[i]


@inner
def _absolute(o, a):
    for i in range(o.size):
        o[i] = abs(a[i])


@inner
def _root(o, a):
    for i in range(o.size):
        o[i] = np.sqrt(a[i])


@Native
def unary(p):
    """out, code, of a: all (n,)."""
    out, a = _vec(p, 0), _vec(p, 2)
    if p[4] == NEGATIVE:
        _negative(out, a)
    elif p[4] == ABSOLUTE:
        _absolute(out, a)
    else:
        _root(out, a)


@Native
def mean64(p):
    """out () float64 = the mean of a (n,)."""
    a = _vec(p, 1)
    carray(doubles(p[0]), (1,))[0] = _pairwise(a, np.int64(0), a.size, 0.0) / np.float64(a.size)


@Native
def from_double(p):
    """out () = a () of float64."""
    carray(floats(p[0]), (1,))[0] = np.float32(carray(doubles(p[1]), (1,))[0])
