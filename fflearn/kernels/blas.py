"""Matrix products for compiled code: SciPy's BLAS by address, split over our own threads.

The split depends on the shape alone, each piece is one single-threaded BLAS call, so the bits do
not depend on the number of threads (inside `CpuKernels.running`, which holds BLAS to one).
"""

import scipy.linalg  # noqa: F401  Numba resolves numba_xxgemm through SciPy's cython_blas
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fflearn.kernels import micro
from fflearn.kernels.jit import inner, kernel
from fflearn.kernels.team import spread

# Multiply-adds below which a product is one BLAS call: 10 us of work, against 5 us that an
# OpenMP region costs.
SERIAL = 1 << 20


@intrinsic
def xgemm(typing, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C = alpha op(A) op(B) + beta C on column-major addresses; alpha's type picks s or d."""
    real, word = alpha, types.intp
    signature = types.void(
        word, word, word, word, word, real, word, word, word, word, real, word, word
    )

    def codegen(context, builder, sig, args):
        ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = args
        i8, i64, i32 = ir.IntType(8), ir.IntType(64), ir.IntType(32)
        address = i8.as_pointer()
        order = [i8, i8, i8, i64, i64, i64, address, address, i64, address, i64, address]
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(i32, [*order, address, i64]), "numba_xxgemm"
        )

        def spilled(value):  # BLAS takes its scalars by address
            return builder.bitcast(cgutils.alloca_once_value(builder, value), address)

        def pointer(value):
            return builder.inttoptr(value, address)

        kind = ir.Constant(i8, ord("s" if real == types.float32 else "d"))
        ta, tb = builder.trunc(ta, i8), builder.trunc(tb, i8)
        scaled = [spilled(alpha), pointer(a), lda, pointer(b), ldb, spilled(beta), pointer(c), ldc]
        builder.call(function, [kind, ta, tb, m, n, k, *scaled])
        return context.get_dummy_value()

    return signature, codegen


@inner
def piece(ta, tb, a, b, out, alpha, beta, i0, i1, j0, j1):
    """out[i0:i1, j0:j1] = alpha op(a) op(b) + beta out there; row-major arrays, one BLAS call."""
    k = a.shape[0] if ta else a.shape[1]
    if micro.AVAILABLE and out.itemsize == 4 and k > 0:
        micro.product(
            ta, tb, a.ctypes.data, a.shape[1], b.ctypes.data, b.shape[1], k,
            out.ctypes.data, out.shape[1], alpha, beta, i0, i1, j0, j1,
        )  # fmt: skip
        return
    size = out.itemsize
    lda, ldb, ldc = a.shape[1], b.shape[1], out.shape[1]
    at = a.ctypes.data + size * (i0 if ta else i0 * lda)
    bt = b.ctypes.data + size * (j0 * ldb if tb else j0)
    ct = out.ctypes.data + size * (i0 * ldc + j0)
    # Read column-major, a row-major array is its transpose: out^T = op(b)^T op(a)^T.
    xgemm(
        84 if tb else 78, 84 if ta else 78, j1 - j0, i1 - i0, k,
        alpha, bt, ldb, at, lda, beta, ct, ldc,
    )  # fmt: skip


@inner
def steps(m, n, k):
    """Rows and columns of a piece, for an (m, n) product with inner size k.

    About 256 columns (a BLAS call packs its operands anew: narrower pieces pay for it), always
    an even number of pieces.  Rows are split instead where there are far more of them.
    """
    if m * n * k < SERIAL:
        return m, n
    if m > 4 * n:
        return _step(m), n
    return m, _step(n)


@inner
def _step(n):
    count = 2 * max(1, (n + 256) // 512)
    return ((n + count - 1) // count + 15) // 16 * 16


@inner
def _gemm(t, ta, tb, a, b, out, alpha, beta, di, dj):
    m, n = out.shape
    across = (n + dj - 1) // dj
    i, j = t // across * di, t % across * dj
    piece(ta, tb, a, b, out, alpha, beta, i, min(m, i + di), j, min(n, j + dj))


@kernel
def gemm(ta, tb, a, b, out, alpha, beta):
    """out = alpha op(a) op(b) + beta out.

    Parameters
    ----------
    ta, tb : bool
        op transposes a (K, M), b (N, K).
    a, b, out : Array (M, K), (K, N), (M, N)
        C-contiguous, one dtype; out is not read where beta is 0.
    alpha, beta : float of that dtype
    """
    m, n = out.shape
    di, dj = steps(m, n, a.shape[0] if ta else a.shape[1])
    pieces = (m + di - 1) // di * ((n + dj - 1) // dj)
    spread(_gemm, pieces, False, (ta, tb, a, b, out, alpha, beta, di, dj))
