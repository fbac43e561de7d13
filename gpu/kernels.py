"""The CUDA kernels, in Python: compiled for a GPU, or run in Numba's simulator without one.

Every array is a flat pointer, rows one after the other.  `table` makes the kernels for float32 or
float64.  Row kernels give a row to a block and add in a fixed order, so that the same input has
the same bits in every run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.extending import register_jitable

from fflearn.gpu import columns, images, products
from fflearn.gpu.scalars import IDENTITY, THREADS, functions
from fflearn.kernels import scalars

SSQ, NEG_SSQ, MSQ, L2, LIN = range(5)
LR, DECAY, PROGRESS = range(3)  # of the settings in the device's memory

philox = register_jitable(scalars.philox)
unit32 = register_jitable(scalars.unit32)
unit64 = register_jitable(scalars.unit64)


@register_jitable
def block_words(block, static, step):
    """The four words of a block."""
    return philox(
        block & scalars.LOW,
        block >> scalars.HALF,
        step & scalars.LOW,
        step >> scalars.HALF,
        static & scalars.LOW,
        static >> scalars.HALF,
    )


@register_jitable
def box_muller(w0, w1):
    """Two normal numbers from two words, in float64: see `fflearn.random.normal`."""
    radius = math.sqrt(-2.0 * math.log((np.float64(w0) + 1.0) * scalars.WORD_UNIT))
    angle = scalars.TWO_PI * (np.float64(w1) * scalars.WORD_UNIT)
    return radius * math.cos(angle), radius * math.sin(angle)


@functools.cache
def table(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """Kernels by name, with the letters of their arguments (see `fflearn.gpu.launch`)."""
    f = functions(real)
    T, zero, half = f.T, f.zero, f.half
    act1, slope1, sigmoid, softplus = f.act, f.slope, f.sigmoid, f.softplus

    # ---- over a block (here, since the simulator reaches into no other module) -------------------
    @register_jitable
    def total(partial, t, value):
        """The sum of one value per thread, known to all of them; always in the same order."""
        partial[t] = value
        cuda.syncthreads()
        k = THREADS // 2
        while k > 0:
            if t < k:
                partial[t] += partial[t + k]
            cuda.syncthreads()
            k //= 2
        found = partial[0]
        cuda.syncthreads()
        return found

    @register_jitable
    def highest(partial, t, value):
        """The largest of one value per thread, known to all of them."""
        partial[t] = value
        cuda.syncthreads()
        k = THREADS // 2
        while k > 0:
            if t < k:
                partial[t] = max(partial[t], partial[t + k])
            cuda.syncthreads()
            k //= 2
        found = partial[0]
        cuda.syncthreads()
        return found

    # ---- elementwise ------------------------------------------------------------------------------
    def bias_act(a, b, noise, y, n, cols, biased, noisy, kind):
        """a += b + noise in place, and y = act(a), but for the identity, whose y is a."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            v = a[i]
            if biased:
                v += b[i % cols]
            if noisy:
                v += noise[i]
            a[i] = v
            if kind != IDENTITY:
                y[i] = act1(v, kind)

    def act(a, y, n, kind):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            y[i] = act1(a[i], kind)

    def act_vjp(dy, a, y, da, n, kind):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            da[i] = dy[i] * slope1(a[i], y[i], kind)

    def logistic(g, phase, theta, temperature, loss, dg, n):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            slope = -phase[i] / temperature
            u = slope * (g[i] - theta)
            loss[i] = softplus(u)
            dg[i] = slope * sigmoid(u)

    def goodness_vjp(dg, g, y, dy, n, cols, kind, factor):
        """factor dg y; "lin" without y; "l2" over the norm g, 0 where that is 0."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            row = i // cols
            if kind == LIN:
                dy[i] = dg[row] * factor
            elif kind == L2:
                dy[i] = dg[row] / g[row] * y[i] if g[row] > zero else zero
            else:
                dy[i] = dg[row] * factor * y[i]

    # ---- rows: a block each -------------------------------------------------------------------------
    def normalize(x, n, cols, c, eps):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s = zero
        for j in range(t, cols, THREADS):
            s += x[row + j] * x[row + j]
        r = math.sqrt(total(partial, t, s) * c) + eps
        for j in range(t, cols, THREADS):
            n[row + j] = x[row + j] / r

    def normalize_vjp(dn, x, n, dx, cols, c, eps):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s, along = zero, zero
        for j in range(t, cols, THREADS):
            s += x[row + j] * x[row + j]
            along += dn[row + j] * n[row + j]
        r = math.sqrt(total(partial, t, s) * c)
        along = total(partial, t, along)
        for j in range(t, cols, THREADS):
            if r > zero:
                dx[row + j] = dn[row + j] / (r + eps) - n[row + j] * (along * (c / r))
            else:
                dx[row + j] = zero

    def goodness(y, g, cols, kind):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s = zero
        for j in range(t, cols, THREADS):
            v = y[row + j]
            s += v if kind == LIN else v * v
        s = total(partial, t, s)
        if t == 0:
            if kind == NEG_SSQ:
                s = -s
            elif kind == MSQ or kind == LIN:
                s /= real(cols)
            elif kind == L2:
                s = math.sqrt(s)
            g[cuda.blockIdx.x] = s

    def softmax(z, y, cols):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        top, s = z[row], zero
        for j in range(t, cols, THREADS):
            top = max(top, z[row + j])
        top = highest(partial, t, top)
        for j in range(t, cols, THREADS):
            s += math.exp(z[row + j] - top)
        s = total(partial, t, s)
        for j in range(t, cols, THREADS):
            y[row + j] = math.exp(z[row + j] - top) / s

    def softmax_ce(z, target, loss, error, cols):
        partial = cuda.shared.array(THREADS, T)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        top, s, value = z[row], zero, zero
        for j in range(t, cols, THREADS):
            top = max(top, z[row + j])
        top = highest(partial, t, top)
        for j in range(t, cols, THREADS):
            s += math.exp(z[row + j] - top)
        s = total(partial, t, s)
        log_s = math.log(s)
        for j in range(t, cols, THREADS):
            d = z[row + j] - top
            value += target[row + j] * (log_s - d)
            error[row + j] = math.exp(d) / s - target[row + j]
        value = total(partial, t, value)
        if t == 0:
            loss[cuda.blockIdx.x] = value

    def row_loss(y, target, loss, error, cols, binary):
        """Half the squares of y - target added up, or the binary cross-entropies of logits y."""
        partial = cuda.shared.array(THREADS, T)
        row, t, s = cuda.blockIdx.x * cols, cuda.threadIdx.x, zero
        for j in range(t, cols, THREADS):
            v, wanted = y[row + j], target[row + j]
            if binary:
                s += max(v, zero) - v * wanted + math.log1p(math.exp(-abs(v)))
                error[row + j] = sigmoid(v) - wanted
            else:
                d = v - wanted
                s += half * d * d
                error[row + j] = d
        s = total(partial, t, s)
        if t == 0:
            loss[cuda.blockIdx.x] = s

    def standardize_rows(x, n, mean, var, cols, eps, center):
        partial = cuda.shared.array(THREADS, types.float64)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        m = zero
        if center:
            s = 0.0
            for j in range(t, cols, THREADS):
                s += np.float64(x[row + j])
            m = real(total(partial, t, s) / cols)
        s = 0.0
        for j in range(t, cols, THREADS):
            d = x[row + j] - m
            s += np.float64(d * d)
        v = real(total(partial, t, s) / cols)
        r = math.sqrt(v + eps)
        for j in range(t, cols, THREADS):
            n[row + j] = (x[row + j] - m) / r
        if t == 0:
            mean[cuda.blockIdx.x], var[cuda.blockIdx.x] = m, v

    def standardize_rows_vjp(dn, n, var, dx, cols, eps, center):
        partial = cuda.shared.array(THREADS, types.float64)
        row, t = cuda.blockIdx.x * cols, cuda.threadIdx.x
        s, along = 0.0, 0.0
        for j in range(t, cols, THREADS):
            s += np.float64(dn[row + j])
            along += np.float64(dn[row + j] * n[row + j])
        m = real(total(partial, t, s) / cols) if center else zero
        a = real(total(partial, t, along) / cols)
        r = math.sqrt(var[cuda.blockIdx.x] + eps)
        for j in range(t, cols, THREADS):
            dx[row + j] = (dn[row + j] - n[row + j] * a - m) / r

    # ---- optimizers, in place: settings are read when the kernel runs --------------------------------
    def sgd(w, g, m, n, live, rate, decays, momentum, kept):
        lr = real(live[LR] * rate)
        decay = real(live[DECAY] * decays)
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            d = g[i] + decay * w[i] if decay != zero else g[i]
            if kept:
                d = momentum * m[i] + d
                m[i] = d
            w[i] -= lr * d

    def adam_scales(live, counter, rate, beta1, beta2, out):
        """lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) of the step t, counted from 1."""
        t = np.float64(counter[0]) + 1.0
        out[0] = live[LR] * rate / (1.0 - math.pow(beta1, t))
        out[1] = 1.0 / math.sqrt(1.0 - math.pow(beta2, t))

    def adam(w, g, m, v, n, live, scales, rate, decays, decoupled, new_m, beta2, new_v, eps):
        scale, root = real(scales[0]), real(scales[1])
        decay = real(live[DECAY] * decays)
        keep = real(1.0 - live[LR] * rate * (live[DECAY] * decays))
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            p, d = w[i], g[i]
            if decoupled:
                p *= keep
            elif decay != zero:
                d += decay * p
            m[i] = m[i] + new_m * (d - m[i])
            v[i] = v[i] * beta2 + new_v * (d * d)
            w[i] = p - scale * (m[i] / (math.sqrt(v[i]) * root + eps))

    def fold(live, rate, decays, n, out):
        """-lr / n and 1 - lr weight_decay: what an update that is a product multiplies by."""
        out[0] = real(-live[LR] * rate / n)
        out[1] = real(1.0 - live[LR] * rate * (live[DECAY] * decays))

    def settle(live, counter, lr, decay, progress, step):
        """Write the settings of the coming step."""
        live[LR], live[DECAY], live[PROGRESS] = lr, decay, progress
        counter[0] = step

    def advance(counter):
        counter[0] += np.uint64(1)

    # ---- random numbers -----------------------------------------------------------------------------
    def words(static, counter, out, n):
        for block in range(cuda.grid(1), (n + 3) // 4, cuda.gridsize(1)):
            w = block_words(np.uint64(block), static, counter[0])
            for j in range(4):
                if 4 * block + j < n:
                    out[4 * block + j] = w[j]

    def uniform(static, counter, out, n):
        if real is np.float32:
            for block in range(cuda.grid(1), (n + 3) // 4, cuda.gridsize(1)):
                w = block_words(np.uint64(block), static, counter[0])
                for j in range(4):
                    if 4 * block + j < n:
                        out[4 * block + j] = unit32(w[j])
        else:
            for block in range(cuda.grid(1), (n + 1) // 2, cuda.gridsize(1)):
                w = block_words(np.uint64(block), static, counter[0])
                out[2 * block] = unit64(w[0], w[1])
                if 2 * block + 1 < n:
                    out[2 * block + 1] = unit64(w[2], w[3])

    def normal(static, counter, out, n):
        for block in range(cuda.grid(1), (n + 3) // 4, cuda.gridsize(1)):
            w = block_words(np.uint64(block), static, counter[0])
            for pair in range(2):
                at = 4 * block + 2 * pair
                if at < n:
                    first, second = box_muller(w[2 * pair], w[2 * pair + 1])
                    out[at] = first
                    if at + 1 < n:
                        out[at + 1] = second

    return {
        "bias_act": (bias_act, "ppppiiiii"),
        "act": (act, "ppii"),
        "act_vjp": (act_vjp, "ppppii"),
        "logistic": (logistic, "ppffppi"),
        "goodness_vjp": (goodness_vjp, "ppppiiif"),
        "normalize": (normalize, "ppiff"),
        "normalize_vjp": (normalize_vjp, "ppppiff"),
        "goodness": (goodness, "ppii"),
        "softmax": (softmax, "ppi"),
        "softmax_ce": (softmax_ce, "ppppi"),
        "row_loss": (row_loss, "ppppii"),
        "sgd": (sgd, "pppiDddfi"),
        "adam_scales": (adam_scales, "DUdddD"),
        "adam": (adam, "ppppiDDddiffff"),
        "fold": (fold, "Ddddp"),
        "settle": (settle, "DUdddu"),
        "advance": (advance, "U"),
        "words": (words, "uUWi"),
        "uniform": (uniform, "uUpi"),
        "normal": (normal, "uUpi"),
        "standardize_rows": (standardize_rows, "ppppifi"),
        "standardize_rows_vjp": (standardize_rows_vjp, "ppppifi"),
        **columns.table(real),
        **images.table(real),
        **products.table(real),
    }
