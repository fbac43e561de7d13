"""Products of float32 matrices in registers, for processors with AVX-512.

A tile of 8 x 32 numbers stays in 16 vector registers while a loop over k adds products to it: one
broadcast number of A and two vectors of B feed 16 of them.  B is packed a panel of 32 columns at a
time, so that the loop reads one stream whatever the layout; a transposed A is packed too.

Every number of the result is one chain of fused multiply-adds over a block of k, in its order, so
its bits depend neither on the tile it falls in nor on the number of threads.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fflearn.kernels.jit import PORTABLE, kernel

LANES = 16  # float32 numbers in a vector
ROWS, WIDE = 8, 2 * LANES  # of a tile
BLOCK = 256  # of k at a time: a panel of B, 32 KB, then lies in the L1 cache

AVAILABLE = not PORTABLE and llvm.get_host_cpu_features().get("avx512f", False)


@intrinsic
def _copy_panel(typing, source, by_row, n, to):
    """Two vectors from each of n rows, one after the other: raw addresses, n above 0."""
    word = types.intp
    f32, i64 = ir.FloatType(), ir.IntType(64)
    at = ir.VectorType(f32, LANES).as_pointer()

    def codegen(context, builder, sig, args):
        source, by_row, n, to = args
        before, block = builder.block, builder.function
        body, after = block.append_basic_block("copy.k"), block.append_basic_block("copy.end")
        builder.branch(body)
        builder.position_at_end(body)
        pairs = ((i64(0), i64(1)), (source, by_row), (to, i64(4 * WIDE)))
        phis = [builder.phi(i64) for _ in pairs]
        later = [builder.add(phi, by) for phi, (_, by) in zip(phis, pairs, strict=True)]
        for phi, (first, _), value in zip(phis, pairs, later, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, body)
        for v in range(2):
            here, there = (builder.add(phi, i64(4 * LANES * v)) for phi in phis[1:])
            value = builder.load(builder.inttoptr(here, at))
            value.align = 4
            builder.store(value, builder.inttoptr(there, at)).align = 4
        builder.cbranch(builder.icmp_signed("<", later[0], n), body, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(word, word, word, word), codegen


@intrinsic
def _turn_square(typing, source, by_row, to):
    """16 x 16 numbers transposed into a panel: raw addresses."""
    word = types.intp
    i32, i64 = ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(ir.FloatType(), LANES)
    at = vector.as_pointer()

    def codegen(context, builder, sig, args):
        source, by_row, to = args
        rows = []
        for r in range(LANES):
            here = builder.add(source, builder.mul(by_row, i64(r)))
            rows.append(builder.load(builder.inttoptr(here, at)))
            rows[-1].align = 4
        for s in (1, 2, 4, 8):  # swap the off-diagonal squares of s x s numbers
            lanes = range(LANES)
            low = [lane if not lane & s else LANES + lane - s for lane in lanes]
            high = [lane + s if not lane & s else LANES + lane for lane in lanes]
            of = ir.VectorType(i32, LANES)
            for r in lanes:
                if not r & s:
                    pair = rows[r], rows[r + s]
                    rows[r] = builder.shuffle_vector(*pair, ir.Constant(of, low))
                    rows[r + s] = builder.shuffle_vector(*pair, ir.Constant(of, high))
        for r in range(LANES):
            there = builder.add(to, i64(4 * WIDE * r))
            builder.store(rows[r], builder.inttoptr(there, at)).align = 4
        return context.get_dummy_value()

    return types.void(word, word, word), codegen


def _tile(rows, vectors):
    """A tile of ``rows`` x ``vectors`` * 16: c = alpha a b + beta c on raw addresses."""
    f32, i32, i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector, mask = ir.VectorType(f32, LANES), ir.VectorType(ir.IntType(1), LANES)

    @intrinsic
    def tile(typing, a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta):
        word, real = types.intp, types.float32
        signature = types.void(*[word] * 9, real, real)

        def codegen(context, builder, sig, args):
            a, by_row, by_k, b, b_by_k, k, c, c_by_row, columns, alpha, beta = args
            module = builder.module

            def function(name, result, *given):
                found = module.globals.get(name)
                return found or ir.Function(module, ir.FunctionType(result, given), name)

            at = vector.as_pointer()
            fma = function("llvm.fma.v16f32", vector, vector, vector, vector)
            read = function("llvm.masked.load.v16f32.p0", vector, at, i32, mask, vector)
            write = function("llvm.masked.store.v16f32.p0", ir.VoidType(), vector, at, i32, mask)
            zero = ir.Constant(vector, [0.0] * LANES)

            def splat(value, of):
                one = builder.insert_element(ir.Constant(of, ir.Undefined), value, i32(0))
                lanes = ir.Constant(ir.VectorType(i32, LANES), [0] * LANES)
                return builder.shuffle_vector(one, ir.Constant(of, ir.Undefined), lanes)

            def number(address):
                found = builder.load(builder.inttoptr(address, f32.as_pointer()))
                found.align = 4
                return splat(found, vector)

            def plain(address):
                found = builder.load(builder.inttoptr(address, at))
                found.align = 4
                return found

            before, block = builder.block, builder.function
            body, after = block.append_basic_block("tile.k"), block.append_basic_block("tile.c")
            row_at = [builder.mul(by_row, i64(r)) for r in range(rows)]
            builder.branch(body)
            builder.position_at_end(body)
            step, pa, pb = builder.phi(i64), builder.phi(i64), builder.phi(i64)
            held = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
            bs = [plain(builder.add(pb, i64(4 * LANES * v))) for v in range(vectors)]
            new = []
            for r in range(rows):
                x = number(builder.add(pa, row_at[r]))
                new.append([builder.call(fma, [x, bs[v], held[r][v]]) for v in range(vectors)])
            further = builder.add(step, i64(1))
            next_a, next_b = builder.add(pa, by_k), builder.add(pb, b_by_k)
            for phi, first, later in ((step, i64(0), further), (pa, a, next_a), (pb, b, next_b)):
                phi.add_incoming(first, before)
                phi.add_incoming(later, body)
            for r in range(rows):
                for v in range(vectors):
                    held[r][v].add_incoming(zero, before)
                    held[r][v].add_incoming(new[r][v], body)
            builder.cbranch(builder.icmp_signed("<", further, k), body, after)
            builder.position_at_end(after)

            lane = ir.Constant(ir.VectorType(i64, LANES), list(range(LANES)))
            wanted = [
                builder.icmp_signed(
                    "<", lane, splat(builder.sub(columns, i64(LANES * v)), lane.type)
                )
                for v in range(vectors)
            ]
            times, keep = splat(alpha, vector), splat(beta, vector)
            adds = builder.fcmp_unordered("!=", beta, f32(0.0))

            def finish(old):
                for r in range(rows):
                    for v in range(vectors):
                        to = builder.add(
                            c, builder.add(builder.mul(c_by_row, i64(r)), i64(4 * LANES * v))
                        )
                        to = builder.inttoptr(to, at)
                        value = builder.fmul(times, new[r][v])
                        if old:
                            was = builder.call(read, [to, i32(4), wanted[v], zero])
                            value = builder.call(fma, [keep, was, value])
                        builder.call(write, [value, to, i32(4), wanted[v]])

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


@kernel()
def strip(a, by_row, by_k, rows, b, k, c, c_by_row, columns, alpha, beta):
    """Up to 8 rows and up to 32 columns; b is a packed panel."""
    wide = 4 * WIDE
    if columns > LANES:
        if rows == 8:
            _tile_8_2(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
            return
        for part in (4, 2, 1):
            if rows & part:
                if part == 4:
                    _tile_4_2(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
                elif part == 2:
                    _tile_2_2(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
                else:
                    _tile_1_2(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
                a += part * by_row
                c += part * c_by_row
    else:
        if rows == 8:
            _tile_8_1(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
            return
        for part in (4, 2, 1):
            if rows & part:
                if part == 4:
                    _tile_4_1(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
                elif part == 2:
                    _tile_2_1(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
                else:
                    _tile_1_1(a, by_row, by_k, b, wide, k, c, c_by_row, columns, alpha, beta)
                a += part * by_row
                c += part * c_by_row


@kernel()
def _pack(b, tb, k0, k1, j0, j1, to):
    """op(b)[k0:k1, j0:j1] -> panels (k, 32) one after the other; missing columns are left."""
    n, at = k1 - k0, 0
    source, by_row, panel = b.ctypes.data, 4 * b.shape[1], to.ctypes.data
    for j in range(j0, j1, WIDE):
        columns = min(WIDE, j1 - j)
        if not tb and columns == WIDE:
            _copy_panel(source + k0 * by_row + 4 * j, by_row, n, panel + 4 * at)
        elif not tb:
            for k in range(n):
                row, own = b[k0 + k, j:j1], to[at + k * WIDE : at + k * WIDE + columns]
                for q in range(columns):
                    own[q] = row[q]
        else:
            square = columns // LANES * LANES
            whole = n // LANES * LANES
            for q in range(0, square, LANES):
                for k in range(0, whole, LANES):
                    here = source + (j + q) * by_row + 4 * (k0 + k)
                    _turn_square(here, by_row, panel + 4 * (at + k * WIDE + q))
            for q in range(columns):
                row = b[j + q, k0:k1]
                for k in range(whole if q < square else 0, n):
                    to[at + k * WIDE + q] = row[k]
        at += n * WIDE


@kernel()
def product(ta, tb, a, b, out, alpha, beta, i0, i1, j0, j1):
    """out[i0:i1, j0:j1] = alpha op(a) op(b) + beta out there; row-major float32 arrays."""
    k_all = a.shape[0] if ta else a.shape[1]
    across = (j1 - j0 + WIDE - 1) // WIDE
    panels = np.empty(across * min(BLOCK, k_all) * WIDE, np.float32)
    column = np.empty(BLOCK * ROWS, np.float32)
    lda, ldc = a.shape[1], 4 * out.shape[1]
    for k0 in range(0, k_all, BLOCK):
        k1 = min(k_all, k0 + BLOCK)
        keep = beta if k0 == 0 else np.float32(1)
        _pack(b, tb, k0, k1, j0, j1, panels)
        for i in range(i0, i1, ROWS):
            rows = min(ROWS, i1 - i)
            if ta:
                for k in range(k1 - k0):
                    row, own = a[k0 + k, i : i + rows], column[k * ROWS : k * ROWS + rows]
                    for r in range(rows):
                        own[r] = row[r]
                source, by_row, by_k = column.ctypes.data, 4, 4 * ROWS
            else:
                source, by_row, by_k = a.ctypes.data + 4 * (i * lda + k0), 4 * lda, 4
            for p in range(across):
                j = j0 + p * WIDE
                strip(
                    source, by_row, by_k, rows,
                    panels.ctypes.data + 4 * p * (k1 - k0) * WIDE, k1 - k0,
                    out.ctypes.data + i * ldc + 4 * j, ldc, j1 - j, alpha, keep,
                )  # fmt: skip
