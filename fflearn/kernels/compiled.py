"""The compiled loops behind `CpuKernels`: arrays in, arrays out, nothing allocated.

Written twice over: inner loops run on one row or on a flat span, so that they vectorise, and a
driver splits rows or elements in pieces that depend on the size alone.  Elementwise loops repeat
the reference's operations in its order, so they round alike.
"""

import math

import numpy as np
from numba import prange

from fflearn.kernels.blas import piece, steps
from fflearn.kernels.jit import kernel

# act and act_vjp; tanh, sigmoid and gelu forward stay with NumPy, whose exp and tanh are
# vectorised (Numba has no vector maths library to call).
IDENTITY, RELU, HARDSIGMOID, TANH, SIGMOID = range(5)
SSQ, NEG_SSQ, MSQ, L2, LIN = range(5)

SPAN = 1 << 14  # elements a thread takes at a time
SERIAL = 1 << 16  # elements below which a parallel region costs more than it gives


# ---- dense ----------------------------------------------------------------------------------
@kernel()
def _copy(a, y):
    for j in range(y.size):
        y[j] = a[j]


@kernel()
def _act(y, kind):
    """In place: a loop over two arrays would first ask whether they overlap."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    if kind == RELU:
        for j in range(y.size):
            # Not max(): written so, NaN passes through as it does in np.maximum.
            y[j] = zero if y[j] <= zero else y[j]  # noqa: FURB136
    elif kind == HARDSIGMOID:
        for j in range(y.size):
            h = zero if y[j] <= zero else y[j]  # noqa: FURB136
            y[j] = one if h >= one else h  # noqa: FURB136


@kernel()
def _dense_piece(x, W, b, noise, a, y, kind, i0, i1, j0, j1):
    zero, one = a.dtype.type(0), a.dtype.type(1)
    piece(False, False, x, W, a, one, zero, i0, i1, j0, j1)
    for i in range(i0, i1):
        row = a[i, j0:j1]
        if b.size > 0:
            bias = b[j0:j1]
            for j in range(row.size):
                row[j] += bias[j]
        if noise.size > 0:
            extra = noise[i, j0:j1]
            for j in range(row.size):
                row[j] += extra[j]
        if y.size > 0:
            _copy(row, y[i, j0:j1])
            _act(y[i, j0:j1], kind)
        else:
            _act(row, kind)


@kernel(parallel=True)
def dense(x, W, b, noise, a, y, kind):
    """a = x W + b + noise and y = act(a), in place of a where y is empty.

    An empty b or noise adds nothing.
    """
    m, n = a.shape
    di, dj = steps(m, n, x.shape[1])
    if di == m and dj == n:
        none = np.int64(0)  # a 0 written out would be a type of its own, and compiled for
        _dense_piece(x, W, b, noise, a, y, kind, none, m, none, n)
    else:
        across = (n + dj - 1) // dj
        for t in prange((m + di - 1) // di * across):
            i, j = t // across * di, t % across * dj
            _dense_piece(x, W, b, noise, a, y, kind, i, min(m, i + di), j, min(n, j + dj))


@kernel()
def _act_span(a, y, kind):
    if a.ctypes.data != y.ctypes.data:
        _copy(a, y)
    _act(y, kind)


@kernel(parallel=True)
def act(a, y, kind):
    """y = act(a), flat; y may be a."""
    if y.size < SERIAL:
        _act_span(a, y, kind)
    else:
        for t in prange((y.size + SPAN - 1) // SPAN):
            s = slice(t * SPAN, min(y.size, (t + 1) * SPAN))
            _act_span(a[s], y[s], kind)


@kernel()
def _act_vjp_span(dy, y, da, kind):
    zero, one = da.dtype.type(0), da.dtype.type(1)
    if dy.ctypes.data != da.ctypes.data:
        _copy(dy, da)
    if kind == RELU:
        for i in range(da.size):
            da[i] = da[i] if y[i] > zero else zero
    elif kind == HARDSIGMOID:
        for i in range(da.size):
            da[i] = da[i] if (y[i] > zero) & (y[i] < one) else zero
    elif kind == TANH:
        for i in range(da.size):
            da[i] = da[i] * (one - y[i] * y[i])
    else:
        for i in range(da.size):
            da[i] = da[i] * (y[i] * (one - y[i]))


@kernel(parallel=True)
def act_vjp(dy, y, da, kind):
    """da = dy act'(a), flat; da may be dy."""
    if da.size < SERIAL:
        _act_vjp_span(dy, y, da, kind)
    else:
        for t in prange((da.size + SPAN - 1) // SPAN):
            s = slice(t * SPAN, min(da.size, (t + 1) * SPAN))
            _act_vjp_span(dy[s], y[s], da[s], kind)


@kernel()
def colmean(da, n, out):
    """out = sum over rows of da / n."""
    out[:] = 0
    for i in range(da.shape[0]):
        row = da[i]
        for j in range(out.size):
            out[j] += row[j]
    for j in range(out.size):
        out[j] /= n


# ---- rows: one pass over each, its sum in one order ---------------------------------------------
@kernel(reassociate=True)
def _dot(a, b):
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@kernel(reassociate=True)
def _sum(a):
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j]
    return total


@kernel()
def normalize(x, c, eps, out):
    """x / (sqrt(c sum x^2) + eps) by row."""
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        s = math.sqrt(_dot(row, row) * c) + eps
        for j in range(row.size):
            to[j] = row[j] / s


@kernel()
def normalize_vjp(dn, x, n, c, eps, out):
    """dn / (r + eps) - n (c / r) sum(dn n) by row; 0 where r is 0."""
    for i in range(x.shape[0]):
        d, normal, to = dn[i], n[i], out[i]
        r = math.sqrt(_dot(x[i], x[i]) * c)
        if r > 0:
            s, along = r + eps, _dot(d, normal) * (c / r)
            for j in range(to.size):
                to[j] = d[j] / s - normal[j] * along
        else:
            to[:] = 0


@kernel()
def softmax_ce(z, target, loss, error):
    """loss = -sum target log softmax(z) and error = softmax(z) - target, by row."""
    for i in range(z.shape[0]):
        row, want, e = z[i], target[i], error[i]
        top = row[0]
        for j in range(1, row.size):
            top = max(top, row[j])
        for j in range(row.size):
            e[j] = math.exp(row[j] - top)
        total = _sum(e)
        log_total, lost = math.log(total), z.dtype.type(0)
        for j in range(row.size):
            lost += want[j] * (log_total - (row[j] - top))
            e[j] = e[j] / total - want[j]
        loss[i] = lost


@kernel()
def goodness(y, kind, out):
    """The goodness of each row."""
    n = y.dtype.type(y.shape[1])
    for i in range(y.shape[0]):
        if kind == LIN:
            out[i] = _sum(y[i]) / n
        else:
            ssq = _dot(y[i], y[i])
            if kind == MSQ:
                ssq = ssq / n
            elif kind == NEG_SSQ:
                ssq = -ssq
            elif kind == L2:
                ssq = math.sqrt(ssq)
            out[i] = ssq


@kernel()
def goodness_vjp(dg, y, kind, factor, out):
    """dg d goodness / dy: factor dg y (or over the norm for L2, without y for LIN), by row."""
    for i in range(y.shape[0]):
        row, to = y[i], out[i]
        scale = dg[i] * factor
        if kind == LIN:
            to[:] = scale
        else:
            if kind == L2:
                norm = math.sqrt(_dot(row, row))
                scale = scale / norm if norm > 0 else norm
            for j in range(row.size):
                to[j] = scale * row[j]


@kernel()
def logistic(g, phase, theta, temperature, loss, dg):
    """softplus(u) and its derivative by g, with u = -phase (g - theta) / temperature."""
    one = g.dtype.type(1)
    for i in range(g.size):
        slope = -phase[i] / temperature
        u = slope * (g[i] - theta)
        e = math.exp(-abs(u))
        loss[i] = (u if u > 0 else g.dtype.type(0)) + math.log1p(e)
        dg[i] = slope * ((one if u >= 0 else e) / (one + e))


# ---- columns: rows are summed in shares, so that threads do not change the bits ----------------
@kernel(parallel=True)
def _column_sums(x, mean, squares, sums):
    """sums (shares, N) float64 of x - mean, or of its squares, each over its share of the rows."""
    for p in prange(len(sums)):
        total = sums[p]
        total[:] = 0
        for i in range(p * len(x) // len(sums), (p + 1) * len(x) // len(sums)):
            row = x[i]
            for j in range(row.size):
                d = row[j] - mean[j]
                total[j] += d * d if squares else d


@kernel()
def _mean_of(sums, n, out):
    for j in range(out.size):
        total = 0.0
        for p in range(len(sums)):
            total += sums[p, j]
        out[j] = total / n


@kernel(parallel=True)
def standardize(x, eps, sums, n, mean, var):
    """n = (x - mean) / sqrt(var + eps) by column, and the moments (N,)."""
    mean[:] = 0
    _column_sums(x, mean, False, sums)
    _mean_of(sums, len(x), mean)
    _column_sums(x, mean, True, sums)
    _mean_of(sums, len(x), var)
    scale = np.sqrt(var + eps)
    for p in prange(len(sums)):
        for i in range(p * len(x) // len(sums), (p + 1) * len(x) // len(sums)):
            row, to = x[i], n[i]
            for j in range(to.size):
                to[j] = (row[j] - mean[j]) / scale[j]


@kernel(parallel=True)
def standardize_vjp(dn, n, scale, sums, dx):
    """dx = scale (dn - mean(dn) - n mean(dn n)) by column; sums (2, shares, N)."""
    shares = sums.shape[1]
    for p in prange(shares):
        plain, along = sums[0, p], sums[1, p]
        plain[:] = 0
        along[:] = 0
        for i in range(p * len(n) // shares, (p + 1) * len(n) // shares):
            row, own = dn[i], n[i]
            for j in range(row.size):
                plain[j] += row[j]
                along[j] += row[j] * own[j]
    means = np.empty((2, scale.size), scale.dtype)
    _mean_of(sums[0], len(n), means[0])
    _mean_of(sums[1], len(n), means[1])
    for p in prange(shares):
        for i in range(p * len(n) // shares, (p + 1) * len(n) // shares):
            row, own, to = dn[i], n[i], dx[i]
            for j in range(to.size):
                to[j] = scale[j] * (row[j] - means[0, j] - own[j] * means[1, j])


# ---- optimizers, flat and in place ----------------------------------------------------------
@kernel()
def _sgd_span(w, g, m, lr, momentum, decay):
    zero = w.dtype.type(0)
    if m.size > 0:
        for i in range(w.size):
            d = g[i] if decay == zero else g[i] + decay * w[i]
            m[i] = momentum * m[i] + d
            w[i] -= lr * m[i]
    else:
        for i in range(w.size):
            d = g[i] if decay == zero else g[i] + decay * w[i]
            w[i] -= lr * d


@kernel(parallel=True)
def sgd(w, g, m, lr, momentum, decay):
    """m = momentum m + g + decay w;  w -= lr m; an empty m keeps no buffer."""
    if w.size < SERIAL:
        _sgd_span(w, g, m, lr, momentum, decay)
    else:
        for t in prange((w.size + SPAN - 1) // SPAN):
            s = slice(t * SPAN, min(w.size, (t + 1) * SPAN))
            _sgd_span(w[s], g[s], m[s] if m.size > 0 else m, lr, momentum, decay)


@kernel()
def _adam_span(w, g, m, v, keep, decay, new_m, beta2, new_v, scale, root, eps):
    zero, one = w.dtype.type(0), w.dtype.type(1)
    for i in range(w.size):
        p = w[i] if keep == one else w[i] * keep
        d = g[i] if decay == zero else g[i] + decay * p
        m[i] = m[i] + new_m * (d - m[i])
        v[i] = v[i] * beta2 + new_v * (d * d)
        w[i] = p - scale * (m[i] / (np.sqrt(v[i]) * root + eps))


@kernel(parallel=True)
def adam(w, g, m, v, keep, decay, new_m, beta2, new_v, scale, root, eps):
    """Adam; keep multiplies w first (AdamW), decay w is added to g (Adam)."""
    if w.size < SERIAL:
        _adam_span(w, g, m, v, keep, decay, new_m, beta2, new_v, scale, root, eps)
    else:
        for t in prange((w.size + SPAN - 1) // SPAN):
            s = slice(t * SPAN, min(w.size, (t + 1) * SPAN))
            _adam_span(
                w[s], g[s], m[s], v[s], keep, decay, new_m, beta2, new_v, scale, root, eps
            )  # fmt: skip
