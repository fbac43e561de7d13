"""The compiled loops behind `CpuKernels`: arrays in, arrays out, nothing allocated.

Written twice over: inner loops run on one row or on a flat span, so that they vectorise, and a
driver splits rows or elements in pieces that depend on the size alone.  Elementwise loops repeat
the reference's operations in its order, so they round alike.
"""

import math

import numpy as np

from fflearn.kernels.blas import piece, steps
from fflearn.kernels.exponential import exp
from fflearn.kernels.jit import inner, kernel, part, row_sum
from fflearn.kernels.team import spread

# act and act_vjp; tanh, sigmoid and gelu forward stay with NumPy, whose exp and tanh are
# vectorised (Numba has no vector maths library to call).
IDENTITY, RELU, HARDSIGMOID, TANH, SIGMOID = range(5)
SSQ, NEG_SSQ, MSQ, L2, LIN = range(5)

SPAN = 1 << 14  # elements a thread takes at a time
SERIAL = 1 << 16  # elements below which a parallel region costs more than it gives


@inner
def _spans(n):
    return (n + SPAN - 1) // SPAN


@inner
def _span(t, n):
    """Where a span lies.  A loop over what is cut out there counts from 0, and so is vectorised."""
    return slice(t * SPAN, min(n, (t + 1) * SPAN))


# ---- dense ----------------------------------------------------------------------------------
@inner
def _copy(a, y):
    for j in range(y.size):
        y[j] = a[j]


@inner
def _add(y, b):
    for j in range(y.size):
        y[j] += b[j]


@inner
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


@inner
def _dense(t, x, W, b, noise, a, y, kind, di, dj):
    m, n = a.shape
    across = (n + dj - 1) // dj
    i0, j0 = t // across * di, t % across * dj
    rows, wide = min(m, i0 + di) - i0, min(n, j0 + dj) - j0
    zero, one = a.dtype.type(0), a.dtype.type(1)
    piece(False, False, x, W, a, one, zero, i0, i0 + rows, j0, j0 + wide)
    first = i0 * n + j0
    if b.size > 0:
        for i in range(rows):
            _add(part(a, first + i * n, wide), part(b, j0, wide))
    if noise.size > 0:
        for i in range(rows):
            _add(part(a, first + i * n, wide), part(noise, first + i * n, wide))
    if wide == n:  # all in one
        rows, wide = 1, rows * n
    for i in range(rows):
        to = part(a, first + i * n, wide)
        if y.size > 0:
            _copy(to, part(y, first + i * n, wide))
            to = part(y, first + i * n, wide)
        _act(to, kind)


@kernel
def dense(x, W, b, noise, a, y, kind):
    """a = x W + b + noise and y = act(a), in place of a where y is empty.

    An empty b or noise adds nothing.
    """
    m, n = a.shape
    di, dj = steps(m, n, x.shape[1])
    pieces = (m + di - 1) // di * ((n + dj - 1) // dj)
    spread(_dense, pieces, False, (x, W, b, noise, a, y, kind, di, dj))


@inner
def _act_span(t, a, y, kind):
    s = _span(t, y.size)
    if a.ctypes.data != y.ctypes.data:
        _copy(a[s], y[s])
    _act(y[s], kind)


@kernel
def act(a, y, kind):
    """y = act(a), flat; y may be a."""
    spread(_act_span, _spans(y.size), y.size < SERIAL, (a, y, kind))


@inner
def _act_vjp_span(t, dy, y, da, kind):
    s = _span(t, da.size)
    y, d = y[s], da[s]
    zero, one = d.dtype.type(0), d.dtype.type(1)
    if dy.ctypes.data != da.ctypes.data:
        _copy(dy[s], d)
    if kind == RELU:
        for i in range(d.size):
            d[i] = d[i] if y[i] > zero else zero
    elif kind == HARDSIGMOID:
        for i in range(d.size):
            d[i] = d[i] if (y[i] > zero) & (y[i] < one) else zero
    elif kind == TANH:
        for i in range(d.size):
            d[i] = d[i] * (one - y[i] * y[i])
    else:
        for i in range(d.size):
            d[i] = d[i] * (y[i] * (one - y[i]))


@kernel
def act_vjp(dy, y, da, kind):
    """da = dy act'(a), flat; da may be dy."""
    spread(_act_vjp_span, _spans(da.size), da.size < SERIAL, (dy, y, da, kind))


@kernel
def colmean(da, n, out):
    """out = sum over rows of da / n."""
    out[:] = 0
    for i in range(da.shape[0]):
        _add(out, part(da, i * out.size, out.size))
    for j in range(out.size):
        out[j] /= n


# ---- rows: one pass over each, its sum in one order ---------------------------------------------
@row_sum
def _dot(a, b):
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@row_sum
def _sum(a):
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j]
    return total


@kernel
def normalize(x, c, eps, out):
    """x / (sqrt(c sum x^2) + eps) by row."""
    for i in range(x.shape[0]):
        row, to = x[i], out[i]
        s = math.sqrt(_dot(row, row) * c) + eps
        for j in range(row.size):
            to[j] = row[j] / s


@kernel
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


@kernel
def softmax_ce(z, target, loss, error):
    """loss = -sum target log softmax(z) and error = softmax(z) - target, by row."""
    for i in range(z.shape[0]):
        row, e = z[i], error[i]
        top = row[0]
        for j in range(1, row.size):
            top = max(top, row[j])
        for j in range(row.size):
            e[j] = row[j] - top
        loss[i] = _dot(target[i], e)
    exp(part(error, 0, error.size))
    for i in range(z.shape[0]):
        want, e = target[i], error[i]
        total, shown = _sum(e), _sum(want)
        loss[i] = shown * math.log(total) - loss[i]
        for j in range(e.size):
            e[j] = e[j] / total - want[j]


@kernel
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


@kernel
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


@kernel
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
@inner
def _column_sum(p, x, mean, squares, sums):
    total = sums[p]
    total[:] = 0
    for i in range(p * len(x) // len(sums), (p + 1) * len(x) // len(sums)):
        row = x[i]
        for j in range(row.size):
            d = row[j] - mean[j]
            total[j] += d * d if squares else d


@inner
def _mean_of(sums, n, out):
    for j in range(out.size):
        total = 0.0
        for p in range(len(sums)):
            total += sums[p, j]
        out[j] = total / n


@inner
def _standardized(p, shares, x, mean, scale, n):
    for i in range(p * len(x) // shares, (p + 1) * len(x) // shares):
        row, to = x[i], n[i]
        for j in range(to.size):
            to[j] = (row[j] - mean[j]) / scale[j]


@kernel
def standardize(x, eps, sums, n, mean, var):
    """n = (x - mean) / sqrt(var + eps) by column, and the moments (N,); sums (shares, N) float64."""
    mean[:] = 0
    spread(_column_sum, len(sums), False, (x, mean, False, sums))
    _mean_of(sums, len(x), mean)
    spread(_column_sum, len(sums), False, (x, mean, True, sums))
    _mean_of(sums, len(x), var)
    scale = np.sqrt(var + eps)
    spread(_standardized, len(sums), False, (len(sums), x, mean, scale, n))


@inner
def _vjp_sums(p, dn, n, sums):
    shares = sums.shape[1]
    plain, along = sums[0, p], sums[1, p]
    plain[:] = 0
    along[:] = 0
    for i in range(p * len(n) // shares, (p + 1) * len(n) // shares):
        row, own = dn[i], n[i]
        for j in range(row.size):
            plain[j] += row[j]
            along[j] += row[j] * own[j]


@inner
def _standardize_vjp(p, shares, dn, n, scale, means, dx):
    for i in range(p * len(n) // shares, (p + 1) * len(n) // shares):
        row, own, to = dn[i], n[i], dx[i]
        for j in range(to.size):
            to[j] = scale[j] * (row[j] - means[0, j] - own[j] * means[1, j])


@kernel
def standardize_vjp(dn, n, scale, sums, dx):
    """dx = scale (dn - mean(dn) - n mean(dn n)) by column; sums (2, shares, N)."""
    shares = sums.shape[1]
    spread(_vjp_sums, shares, False, (dn, n, sums))
    means = np.empty((2, scale.size), scale.dtype)
    _mean_of(sums[0], len(n), means[0])
    _mean_of(sums[1], len(n), means[1])
    spread(_standardize_vjp, shares, False, (shares, dn, n, scale, means, dx))


# ---- optimizers, flat and in place ----------------------------------------------------------
@inner
def _sgd_span(t, w, g, m, lr, momentum, decay):
    zero, s = w.dtype.type(0), _span(t, w.size)
    w, g, m = w[s], g[s], m[s]
    if m.size > 0:
        for i in range(w.size):
            d = g[i] if decay == zero else g[i] + decay * w[i]
            m[i] = momentum * m[i] + d
            w[i] -= lr * m[i]
    else:
        for i in range(w.size):
            d = g[i] if decay == zero else g[i] + decay * w[i]
            w[i] -= lr * d


@kernel
def sgd(w, g, m, lr, momentum, decay):
    """m = momentum m + g + decay w;  w -= lr m; an empty m keeps no buffer."""
    spread(_sgd_span, _spans(w.size), w.size < SERIAL, (w, g, m, lr, momentum, decay))


@inner
def _adam_span(t, w, g, m, v, keep, decay, new_m, beta2, new_v, scale, root, eps):
    zero, one, s = w.dtype.type(0), w.dtype.type(1), _span(t, w.size)
    w, g, m, v = w[s], g[s], m[s], v[s]
    for i in range(w.size):
        p = w[i] if keep == one else w[i] * keep
        d = g[i] if decay == zero else g[i] + decay * p
        m[i] = m[i] + new_m * (d - m[i])
        v[i] = v[i] * beta2 + new_v * (d * d)
        w[i] = p - scale * (m[i] / (np.sqrt(v[i]) * root + eps))


@kernel
def adam(w, g, m, v, keep, decay, new_m, beta2, new_v, scale, root, eps):
    """Adam; keep multiplies w first (AdamW), decay w is added to g (Adam)."""
    numbers = keep, decay, new_m, beta2, new_v, scale, root, eps
    spread(_adam_span, _spans(w.size), w.size < SERIAL, (w, g, m, v, *numbers))
