"""Convolutions of 3 x 3 with fewer products, after Winograd: float32, stride 1, many channels.

A tile of m x m outputs reads n x n pixels, n = m + 2.  With d the pixels, g the weights and o the
product number by number, each channel in and out,

    forward    Y = A^T [(G g G^T) o (B^T d B)] A
    weights    dg = G^T [(A dY A^T) o (B^T d B)] G      the adjoint in g

so that n^2 products of matrices, (tiles, C) by (C, units), stand in the place of 9 with m^2 times
as many rows: for m = 4 a quarter of the arithmetic.

References
----------
Lavin, Gray (2016), "Fast algorithms for convolutional neural networks", CVPR, arXiv:1509.09308,
sec. 4.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fflearn.kernels import micro
from fflearn.kernels.jit import inner, kernel
from fflearn.kernels.micro import LANES, WIDE
from fflearn.kernels.team import spread

M, N = 4, 6  # outputs and pixels of a tile, along an axis
CHUNK = 1 << 20  # numbers in the transformed tiles that are worked on at a time
SHARES = 16  # of tiles, whatever the number of threads

# Lavin, Gray (2016), sec. 4.3: F(4 x 4, 3 x 3).
BT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
AT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _turned(matrix):
    return tuple(zip(*matrix, strict=True))


def _sandwich(matrix):
    """M X M^T for numbers that lie side by side: X (q, q) and the result (p, p) of vectors.

    The vectors of X start at ``source + r by_row + s by_column``, those of the result at ``to + i
    to_row + j to_column`` (bytes); there are ``n`` numbers in each.
    """
    p, q = len(matrix), len(matrix[0])
    f32, i32, i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector, mask = ir.VectorType(f32, LANES), ir.VectorType(ir.IntType(1), LANES)
    at = vector.as_pointer()

    @intrinsic
    def sandwich(typing, source, by_row, by_column, to, to_row, to_column, n):
        signature = types.void(*[types.intp] * 7)

        def codegen(context, builder, sig, args):
            source, by_row, by_column, to, to_row, to_column, n = args
            module = builder.module

            def function(name, result, *given):
                found = module.globals.get(name)
                return found or ir.Function(module, ir.FunctionType(result, given), name)

            read = function("llvm.masked.load.v16f32.p0", vector, at, i32, mask, vector)
            write = function("llvm.masked.store.v16f32.p0", ir.VoidType(), vector, at, i32, mask)
            zero = ir.Constant(vector, [0.0] * LANES)
            lane = ir.Constant(ir.VectorType(i64, LANES), list(range(LANES)))
            none = ir.Constant(lane.type, ir.Undefined)

            def address(start, i, by_i, j, by_j):
                return builder.add(
                    start, builder.add(builder.mul(by_i, i64(i)), builder.mul(by_j, i64(j)))
                )

            def combined(weights, values):
                """The sum of weights times values; weights of 0 and 1 cost nothing."""
                total = None
                for weight, value in zip(weights, values, strict=True):
                    if weight == 0:
                        continue
                    if abs(weight) != 1:
                        by = ir.Constant(vector, [float(np.float32(abs(weight)))] * LANES)
                        value = builder.fmul(value, by)
                    if total is None:
                        total = value if weight > 0 else builder.fsub(zero, value)
                    else:
                        total = (builder.fadd if weight > 0 else builder.fsub)(total, value)
                return total

            before, block = builder.block, builder.function
            body, after = block.append_basic_block("wino.c"), block.append_basic_block("wino.end")
            builder.branch(body)
            builder.position_at_end(body)
            c = builder.phi(i64)
            further = builder.add(c, i64(LANES))
            c.add_incoming(i64(0), before)
            c.add_incoming(further, body)
            first = builder.insert_element(none, builder.sub(n, c), i32(0))
            lanes = ir.Constant(ir.VectorType(i32, LANES), [0] * LANES)
            wanted = builder.icmp_signed("<", lane, builder.shuffle_vector(first, none, lanes))
            moved, there = (
                builder.add(source, builder.mul(c, i64(4))),
                builder.add(to, builder.mul(c, i64(4))),
            )
            x = [
                [
                    builder.call(
                        read,
                        [
                            builder.inttoptr(address(moved, r, by_row, s, by_column), at),
                            i32(4),
                            wanted,
                            zero,
                        ],
                    )
                    for s in range(q)
                ]
                for r in range(q)
            ]
            half = [
                [combined(row, [x[r][s] for r in range(q)]) for s in range(q)] for row in matrix
            ]
            for i in range(p):
                for j in range(p):
                    value = combined(matrix[j], half[i])
                    place = builder.inttoptr(address(there, i, to_row, j, to_column), at)
                    builder.call(write, [value, place, i32(4), wanted])
            builder.cbranch(builder.icmp_signed("<", further, n), body, after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return signature, codegen

    return sandwich


_pixels = _sandwich(BT)  # B^T d B
_weights = _sandwich(G)  # G g G^T
_outputs = _sandwich(AT)  # A^T Y A
_errors = _sandwich(_turned(AT))  # A dY A^T
_gradient = _sandwich(_turned(G))  # G^T S G


@inner
def _read_tiles(image, t0, t1, across, start, size, patch, to, plane, which):
    """Tiles t0 .. t1 of a stack of images (B, H, W, C), transformed into planes (tiles, C).

    A tile starts at ``M`` times its place plus ``start``, and has ``size`` pixels along an axis;
    pixels outside are 0.  ``which``: 0 for pixels, 1 for errors.
    """
    height, width, c = image.shape[1:]
    down = across[0]
    line, pixel = 4 * width * c, 4 * c
    for t in range(t0, t1):
        b, place = t // (down * across[1]), t % (down * across[1])
        i, j = place // across[1] * M + start, place % across[1] * M + start
        there = to + 4 * (t - t0) * c
        if i >= 0 and j >= 0 and i + size <= height and j + size <= width:
            source, by_row = image.ctypes.data + ((b * height + i) * width + j) * pixel, line
        else:
            patch[:] = 0
            for r in range(max(0, -i), min(size, height - i)):
                for s in range(max(0, -j), min(size, width - j)):
                    own = patch[(r * size + s) * c : (r * size + s + 1) * c]
                    row = image[b, i + r, j + s]
                    for e in range(c):
                        own[e] = row[e]
            source, by_row = patch.ctypes.data, size * pixel
        if which == 0:
            _pixels(source, by_row, pixel, there, N * plane, plane, c)
        else:
            _errors(source, by_row, pixel, there, N * plane, plane, c)


@inner
def _write_tiles(planes, plane, t0, t1, across, bias, patch, out):
    """Planes (tiles, units) -> outputs (B, OH, OW, units), plus bias, for tiles t0 .. t1."""
    height, width, c = out.shape[1:]
    down = across[0]
    for t in range(t0, t1):
        b, place = t // (down * across[1]), t % (down * across[1])
        i, j = place // across[1] * M, place % across[1] * M
        source = planes + 4 * (t - t0) * c
        whole = i + M <= height and j + M <= width
        if whole:
            to = out.ctypes.data + 4 * ((b * height + i) * width + j) * c
            _outputs(source, N * plane, plane, to, 4 * width * c, 4 * c, c)
        else:
            _outputs(source, N * plane, plane, patch.ctypes.data, 4 * M * c, 4 * c, c)
        for r in range(min(M, height - i)):
            for s in range(min(M, width - j)):
                row = out[b, i + r, j + s]
                if not whole:
                    own = patch[(r * M + s) * c : (r * M + s + 1) * c]
                    for e in range(c):
                        row[e] = own[e]
                if bias.size > 0:
                    for e in range(c):
                        row[e] += bias[e]


@inner
def _transformed(p, image, t0, t1, across, start, size, planes, which):
    plane, c = 4 * planes.shape[1] * planes.shape[2], image.shape[3]
    patch = np.empty(size * size * c, np.float32)
    lo, hi = t0 + p * (t1 - t0) // SHARES, t0 + (p + 1) * (t1 - t0) // SHARES
    to = planes.ctypes.data + 4 * (lo - t0) * c
    _read_tiles(image, lo, hi, across, start, size, patch, to, plane, which)


@inner
def _pack_weights(i, W, packed):
    c, units = W.shape[2:]
    row = np.empty((N * N, units), np.float32)
    source = W.ctypes.data + 4 * i * units
    _weights(
        source, 12 * c * units, 4 * c * units, row.ctypes.data, 4 * N * units, 4 * units, units
    )
    for p in range(N * N):
        for j in range(packed.shape[1]):
            columns = min(WIDE, units - j * WIDE)
            own, part = packed[p, j, i], row[p, j * WIDE : j * WIDE + columns]
            for e in range(columns):
                own[e] = part[e]


@inner
def _forward(p, planes, packed, products, tiles):
    c, units = planes.shape[2], products.shape[2]
    zero, one = np.float32(0), np.float32(1)
    micro.product(
        0, micro.PACKED, planes[p].ctypes.data, c, packed[p].ctypes.data, 0, c,
        products[p].ctypes.data, units, one, zero, 0, tiles, 0, units,
    )  # fmt: skip


@inner
def _written(p, products, t0, t1, across, bias, out):
    plane, units = 4 * products.shape[1] * products.shape[2], products.shape[2]
    patch = np.empty(M * M * units, np.float32)
    lo, hi = t0 + p * (t1 - t0) // SHARES, t0 + (p + 1) * (t1 - t0) // SHARES
    source = products.ctypes.data + 4 * (lo - t0) * units
    _write_tiles(source, plane, lo, hi, across, bias, patch, out)


@kernel
def conv(x, W, b, padding, planes, products, packed, out):
    """Outputs (B, OH, OW, units) of W (3, 3, C, units); an empty b adds nothing.

    Parameters
    ----------
    planes, products : Array (N^2, tiles, C), (N^2, tiles, units)
        Scratch, for as many tiles as are worked on at a time.
    packed : Array (N^2, panels, C, 32)
        Scratch for the transformed weights.
    """
    across = (out.shape[1] + M - 1) // M, (out.shape[2] + M - 1) // M
    tiles, at_once = len(x) * across[0] * across[1], planes.shape[1]
    spread(_pack_weights, W.shape[2], False, (W, packed))
    for t0 in range(0, tiles, at_once):
        t1 = min(tiles, t0 + at_once)
        spread(_transformed, SHARES, False, (x, t0, t1, across, -padding, N, planes, 0))
        spread(_forward, N * N, False, (planes, packed, products, t1 - t0))
        spread(_written, SHARES, False, (products, t0, t1, across, b, out))


@inner
def _backward(p, planes, errors, sums, tiles, scale, keep):
    c, units = sums.shape[1:]
    micro.product(
        1, micro.PLAIN, planes[p].ctypes.data, c, errors[p].ctypes.data, units, tiles,
        sums[p].ctypes.data, units, scale, keep, 0, c, 0, units,
    )  # fmt: skip


@inner
def _formed(i, sums, out):
    c, units = out.shape[2:]
    plane = 4 * c * units
    source, to = sums.ctypes.data + 4 * i * units, out.ctypes.data + 4 * i * units
    _gradient(source, N * plane, plane, to, 3 * plane, plane, units)


@kernel
def conv_weights(x, da, scale, padding, planes, errors, sums, out):
    """Sum over samples and places of x^T da, times scale: the gradient (3, 3, C, units).

    Parameters
    ----------
    planes, errors : Array (N^2, tiles, C), (N^2, tiles, units)
        Scratch, for as many tiles as are worked on at a time.
    sums : Array (N^2, C, units)
        Scratch.
    """
    across = (da.shape[1] + M - 1) // M, (da.shape[2] + M - 1) // M
    tiles, at_once = len(x) * across[0] * across[1], planes.shape[1]
    for t0 in range(0, tiles, at_once):
        t1 = min(tiles, t0 + at_once)
        keep = np.float32(0) if t0 == 0 else np.float32(1)
        spread(_transformed, SHARES, False, (x, t0, t1, across, -padding, N, planes, 0))
        spread(_transformed, SHARES, False, (da, t0, t1, across, 0, M, errors, 1))
        spread(_backward, N * N, False, (planes, errors, sums, t1 - t0, scale, keep))
    spread(_formed, out.shape[2], False, (sums, out))
