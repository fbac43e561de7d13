"""Products of float32 matrices in registers, for processors with AVX-512.

A tile of 8 x 32 numbers stays in 16 vector registers while a loop over k adds products to it: one
broadcast number of A and two vectors of B feed 16 of them.  B is packed a panel of 32 columns at a
time, so that the loop reads one stream whatever the layout; A is read where it lies.

Every number of the result is one chain of fused multiply-adds over a block of k, in its order, so
its bits depend neither on the tile it falls in nor on the number of threads.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from fflearn.kernels.jit import PORTABLE, inner, native

LANES = 16  # float32 numbers in a vector
ROWS, WIDE = 8, 2 * LANES  # of a tile
SHORT = 64  # rows for which b is not copied
BLOCK = 256  # of k at a time: a panel of B, 32 KB, then lies in the L1 cache

AVAILABLE = not PORTABLE and llvm.get_host_cpu_features().get("avx512f", False)


I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
VECTOR, MASK = ir.VectorType(F32, LANES), ir.VectorType(ir.IntType(1), LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


def _function(builder, name, result, *given):
    """An intrinsic of LLVM."""
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, given), name)


def _splat(builder, value, of):
    """A number in every lane."""
    nothing = ir.Constant(of, ir.Undefined)
    one = builder.insert_element(nothing, value, I32(0))
    lanes = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, nothing, lanes)


def _masked_load(builder, address, mask):
    """A vector with zeros where the mask has none: those numbers are not touched."""
    at = VECTOR.as_pointer()
    read = _function(builder, "llvm.masked.load.v16f32.p0", VECTOR, at, I32, MASK, VECTOR)
    return builder.call(read, [builder.inttoptr(address, at), I32(4), mask, ZERO])


def _within(builder, columns, vectors):
    """A mask for each of some vectors side by side: whether a lane is one of so many columns."""
    lane = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
    return [
        builder.icmp_signed(
            "<", lane, _splat(builder, builder.sub(columns, I64(LANES * v)), lane.type)
        )
        for v in range(vectors)
    ]


@intrinsic
def _copy_panel(typing, source, by_row, n, columns, to):
    """32 numbers of each of n rows, zeros from ``columns`` on: raw addresses, n above 0."""
    word = types.intp

    def codegen(context, builder, sig, args):
        source, by_row, n, columns, to = args
        wanted = _within(builder, columns, 2)
        before, block = builder.block, builder.function
        body, after = block.append_basic_block("copy.k"), block.append_basic_block("copy.end")
        builder.branch(body)
        builder.position_at_end(body)
        pairs = ((I64(0), I64(1)), (source, by_row), (to, I64(4 * WIDE)))
        phis = [builder.phi(I64) for _ in pairs]
        later = [builder.add(phi, by) for phi, (_, by) in zip(phis, pairs, strict=True)]
        for phi, (first, _), value in zip(phis, pairs, later, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, body)
        for v in range(2):
            here, there = (builder.add(phi, I64(4 * LANES * v)) for phi in phis[1:])
            value = _masked_load(builder, here, wanted[v])
            builder.store(value, builder.inttoptr(there, VECTOR.as_pointer())).align = 4
        builder.cbranch(builder.icmp_signed("<", later[0], n), body, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(word, word, word, word, word), codegen


@intrinsic
def _turn_square(typing, source, by_row, to):
    """16 x 16 numbers transposed into a panel: raw addresses."""
    word = types.intp
    at = VECTOR.as_pointer()

    def codegen(context, builder, sig, args):
        source, by_row, to = args
        rows = []
        for r in range(LANES):
            here = builder.add(source, builder.mul(by_row, I64(r)))
            rows.append(builder.load(builder.inttoptr(here, at)))
            rows[-1].align = 4
        for s in (1, 2, 4, 8):  # swap the off-diagonal squares of s x s numbers
            lanes = range(LANES)
            low = [lane if not lane & s else LANES + lane - s for lane in lanes]
            high = [lane + s if not lane & s else LANES + lane for lane in lanes]
            of = ir.VectorType(I32, LANES)
            for r in lanes:
                if not r & s:
                    pair = rows[r], rows[r + s]
                    rows[r] = builder.shuffle_vector(*pair, ir.Constant(of, low))
                    rows[r + s] = builder.shuffle_vector(*pair, ir.Constant(of, high))
        for r in range(LANES):
            there = builder.add(to, I64(4 * WIDE * r))
            builder.store(rows[r], builder.inttoptr(there, at)).align = 4
        return context.get_dummy_value()

    return types.void(word, word, word), codegen


def _tile(rows, vectors):
    """A tile of ``rows`` x ``vectors`` * 16: c = alpha a b + beta c on raw addresses."""

    @intrinsic
    def tile(typing, a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta):
        word, real = types.intp, types.float32
        signature = types.void(*[word] * 9, real, real)

        def codegen(context, builder, sig, args):
            a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta = args
            at = VECTOR.as_pointer()
            fma = _function(builder, "llvm.fma.v16f32", VECTOR, VECTOR, VECTOR, VECTOR)
            write = _function(
                builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), VECTOR, at, I32, MASK
            )

            def number(address):
                found = builder.load(builder.inttoptr(address, F32.as_pointer()))
                found.align = 4
                return _splat(builder, found, VECTOR)

            def plain(address):
                found = builder.load(builder.inttoptr(address, at))
                found.align = 4
                return found

            before, block = builder.block, builder.function
            body, after = block.append_basic_block("tile.k"), block.append_basic_block("tile.c")
            row_at = [builder.mul(by_row, I64(r)) for r in range(rows)]
            builder.branch(body)
            builder.position_at_end(body)
            step, pa, pb = builder.phi(I64), builder.phi(I64), builder.phi(I64)
            held = [[builder.phi(VECTOR) for _ in range(vectors)] for _ in range(rows)]
            bs = [plain(builder.add(pb, I64(4 * LANES * v))) for v in range(vectors)]
            new = []
            for r in range(rows):
                x = number(builder.add(pa, row_at[r]))
                new.append([builder.call(fma, [x, bs[v], held[r][v]]) for v in range(vectors)])
            further = builder.add(step, I64(1))
            next_a, next_b = builder.add(pa, by_k), builder.add(pb, b_by_k)
            for phi, first, later in ((step, I64(0), further), (pa, a, next_a), (pb, b, next_b)):
                phi.add_incoming(first, before)
                phi.add_incoming(later, body)
            for r in range(rows):
                for v in range(vectors):
                    held[r][v].add_incoming(ZERO, before)
                    held[r][v].add_incoming(new[r][v], body)
            builder.cbranch(builder.icmp_signed("<", further, k), body, after)
            builder.position_at_end(after)

            wanted = _within(builder, columns, vectors)
            times, keep = (_splat(builder, one, VECTOR) for one in (alpha, beta))
            adds = builder.fcmp_unordered("!=", beta, F32(0.0))

            def finish(old):
                # All is read before any is written: a row may lie in the next one's vectors,
                # whose reading would wait for the write.
                done = []
                for r in range(rows):
                    for v in range(vectors):
                        to = builder.add(
                            c, builder.add(builder.mul(c_by_row, I64(r)), I64(4 * LANES * v))
                        )
                        value = builder.fmul(times, new[r][v])
                        if old:
                            was = _masked_load(builder, to, wanted[v])
                            value = builder.call(fma, [keep, was, value])
                        done.append((value, builder.inttoptr(to, at), wanted[v]))
                for value, to, mask in done:
                    builder.call(write, [value, to, I32(4), mask])

            with builder.if_else(adds) as (then, otherwise):
                with then:
                    finish(True)
                with otherwise:
                    finish(False)
            return context.get_dummy_value()

        return signature, codegen

    return tile


_tile_8_2, _tile_4_2, _tile_2_2, _tile_1_2 = (_tile(r, 2) for r in (8, 4, 2, 1))
_tile_8_1, _tile_4_1, _tile_2_1, _tile_1_1 = (_tile(r, 1) for r in (8, 4, 2, 1))


@intrinsic
def _pointer(typing, address):
    """A raw address as a pointer to float32 numbers."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(types.float32)(types.intp), codegen


@inner
def _numbers(address, n):
    """n numbers at a raw address."""
    return carray(_pointer(address), (n,))


@inner
def _strip(a, by_row, by_k, rows, b, b_by_k, k, c, c_by_row, columns, alpha, beta):
    """Up to 8 rows and up to 32 columns."""
    if rows == 8 and columns > LANES:
        _tile_8_2(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
        return
    for part in (8, 4, 2, 1):
        if rows & part:
            if columns > LANES:
                if part == 4:
                    _tile_4_2(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
                elif part == 2:
                    _tile_2_2(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
                else:
                    _tile_1_2(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
            elif part == 8:
                _tile_8_1(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
            elif part == 4:
                _tile_4_1(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
            elif part == 2:
                _tile_2_1(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
            else:
                _tile_1_1(a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta)
            a += part * by_row
            c += part * c_by_row


@inner
def _pack(b, ldb, tb, k0, k1, j0, j1, to):
    """op(b)[k0:k1, j0:j1] -> panels (k, 32) one after the other."""
    n, by_row = k1 - k0, 4 * ldb
    for j in range(j0, j1, WIDE):
        columns = min(WIDE, j1 - j)
        if not tb:
            _copy_panel(b + k0 * by_row + 4 * j, by_row, n, columns, to)
        else:
            square, whole = columns // LANES * LANES, n // LANES * LANES
            for q in range(0, square, LANES):
                for k in range(0, whole, LANES):
                    here = b + (j + q) * by_row + 4 * (k0 + k)
                    _turn_square(here, by_row, to + 4 * (k * WIDE + q))
            for q in range(columns):
                row = _numbers(b + (j + q) * by_row + 4 * k0, n)
                for k in range(whole if q < square else 0, n):
                    _numbers(to + 4 * (k * WIDE + q), 1)[0] = row[k]
        to += 4 * n * WIDE


PLAIN, TURNED, PACKED = range(3)  # how b lies: (k, n), (n, k), or panels (k, 32) of columns


def _product(ta, how, a, lda, b, ldb, k_all, out, ldc, alpha, beta, i0, i1, j0, j1):
    """out[i0:i1, j0:j1] = alpha op(a) b + beta out there, on raw addresses; ld in numbers."""
    across, by_k = (j1 - j0 + WIDE - 1) // WIDE, 4 * WIDE
    # Few rows do not repay a copy of b: whole panels of it are read where they lie.
    direct = (j1 - j0) // WIDE if how == PLAIN and i1 - i0 <= SHORT else 0
    packed = 0 if how == PACKED else across - direct
    panels = np.empty(packed * min(BLOCK, k_all) * WIDE, np.float32)
    for k0 in range(0, k_all, BLOCK):
        n = min(BLOCK, k_all - k0)
        keep = beta if k0 == 0 else np.float32(1)
        first, by_panel = panels.ctypes.data, n * by_k
        if how == PACKED:
            first, by_panel = b + k0 * by_k, k_all * by_k
        elif packed > 0:
            _pack(b, ldb, how == TURNED, k0, k0 + n, j0 + direct * WIDE, j1, first)
        for i in range(i0, i1, ROWS):
            rows = min(ROWS, i1 - i)
            source, by_row, by_a = a + 4 * (i * lda + k0), 4 * lda, 4
            if ta:  # eight numbers of a row lie in one line of the cache: no copy pays
                source, by_row, by_a = a + 4 * (k0 * lda + i), 4, 4 * lda
            to, by_c = out + 4 * (i * ldc + j0), 4 * ldc
            for p in range(direct):
                panel = b + 4 * (k0 * ldb + j0 + p * WIDE)
                at = to + p * by_k
                _strip(source, by_row, by_a, rows, panel, 4 * ldb, n, at, by_c, WIDE, alpha, keep)
            for p in range(direct, across):
                panel, wide = first + (p - direct) * by_panel, j1 - j0 - p * WIDE
                at = to + p * by_k
                _strip(source, by_row, by_a, rows, panel, by_k, n, at, by_c, wide, alpha, keep)


# One copy for all kernels: they call it by name, instead of each holding its code.
_WORDS = (types.intp,) * 9
_SIGNATURE = types.void(*_WORDS, types.float32, types.float32, *(types.intp,) * 4)
_NAME = "fflearn_product"
if AVAILABLE:
    llvm.add_symbol(_NAME, native(_SIGNATURE)(_product).address)


@intrinsic
def product(typing, ta, how, a, lda, b, ldb, k, out, ldc, alpha, beta, i0, i1, j0, j1):
    """As `_product`."""

    def codegen(context, builder, sig, args):
        i64, f32 = ir.IntType(64), ir.FloatType()
        kinds = [f32 if kind is types.float32 else i64 for kind in _SIGNATURE.args]
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), kinds), _NAME
        )
        builder.call(function, args)
        return context.get_dummy_value()

    return _SIGNATURE, codegen
