"""The CUDA kernels, in Python: compiled for a GPU, or run in Numba's simulator without one.

Every array is a flat pointer, rows one after the other.  `table` makes the kernels for float32 or
float64: ``real`` is that type, so that no number is widened on the way.  Row kernels give a row
to a block and add in a fixed order, so that the same input has the same bits in every run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.extending import register_jitable

from fflearn.kernels import scalars

THREADS = 128  # of a block: a power of 2, as the sums over a block need
IDENTITY, RELU, HARDSIGMOID, TANH, SIGMOID, GELU = range(6)
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
    T = types.float32 if real is np.float32 else types.float64
    zero, half, one = real(0), real(0.5), real(1)
    root_half, of_gauss = real(math.sqrt(0.5)), real(1 / math.sqrt(2 * math.pi))

    # ---- scalars --------------------------------------------------------------------------------
    @register_jitable
    def sigmoid(a):
        e = math.exp(-abs(a))  # never overflows
        return (one if a >= zero else e) / (one + e)

    @register_jitable
    def normal_cdf(a):
        return half * math.erfc(-a * root_half)

    @register_jitable
    def act1(a, kind):
        if kind == RELU:
            return a if not a <= zero else zero  # NaN passes through
        if kind == HARDSIGMOID:
            return zero if a <= zero else (min(one, a))
        if kind == TANH:
            return math.tanh(a)
        if kind == SIGMOID:
            return sigmoid(a)
        if kind == GELU:
            return a * normal_cdf(a)
        return a

    @register_jitable
    def slope1(a, y, kind):
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

    @register_jitable
    def total(partial, t, value):
        """The sum of one value per thread, known to all of them."""
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
            loss[i] = (max(zero, u)) + math.log1p(math.exp(-abs(u)))
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

    # ---- rows of few numbers: a thread each -----------------------------------------------------------
    def softmax_ce(z, target, loss, error, rows, cols):
        for i in range(cuda.grid(1), rows, cuda.gridsize(1)):
            row = i * cols
            top = z[row]
            for j in range(1, cols):
                top = max(top, z[row + j])
            s = zero
            for j in range(cols):
                s += math.exp(z[row + j] - top)
            log_s, value = math.log(s), zero
            for j in range(cols):
                d = z[row + j] - top
                value += target[row + j] * (log_s - d)
                error[row + j] = math.exp(d) / s - target[row + j]
            loss[i] = value

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
        w = block_words(np.uint64(cuda.grid(1)), static, counter[0])
        i = 4 * cuda.grid(1)
        for j in range(4):
            if i + j < n:
                out[i + j] = w[j]

    def uniform(static, counter, out, n):
        w = block_words(np.uint64(cuda.grid(1)), static, counter[0])
        if real is np.float32:
            i = 4 * cuda.grid(1)
            for j in range(4):
                if i + j < n:
                    out[i + j] = unit32(w[j])
        else:
            i = 2 * cuda.grid(1)
            if i < n:
                out[i] = unit64(w[0], w[1])
            if i + 1 < n:
                out[i + 1] = unit64(w[2], w[3])

    def normal(static, counter, out, n):
        w = block_words(np.uint64(cuda.grid(1)), static, counter[0])
        i = 4 * cuda.grid(1)
        for pair in range(2):
            at = i + 2 * pair
            if at < n:
                first, second = box_muller(w[2 * pair], w[2 * pair + 1])
                out[at] = first
                if at + 1 < n:
                    out[at + 1] = second

    # ---- images, channels last ------------------------------------------------------------------------
    def im2col(x, cols, n, h, w, c, oh, ow, k, stride, padding):
        """The pixels under each patch side by side: n is the number of numbers in cols."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            channel = i % c
            tap = (i // c) % (k * k)
            place = i // (c * k * k)
            row = (place // ow) % oh * stride - padding + tap // k
            col = place % ow * stride - padding + tap % k
            inside = row >= 0 and row < h and col >= 0 and col < w
            at = ((place // (ow * oh) * h + row) * w + col) * c + channel
            cols[i] = x[at] if inside else zero

    def col2im(cols, x, n, h, w, c, oh, ow, k, stride, padding):
        """The adjoint of `im2col`: each pixel gathers from the patches that hold it."""
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            channel = i % c
            col = (i // c) % w + padding
            row = (i // (c * w)) % h + padding
            image = i // (c * w * h)
            s = zero
            for ki in range(k):
                for kj in range(k):
                    oi, oj = row - ki, col - kj
                    if oi >= 0 and oj >= 0 and oi % stride == 0 and oj % stride == 0:
                        oi, oj = oi // stride, oj // stride
                        if oi < oh and oj < ow:
                            at = ((image * oh + oi) * ow + oj) * k * k + ki * k + kj
                            s += cols[at * c + channel]
            x[i] = s

    return {
        "bias_act": (bias_act, "ppppiiiii"),
        "act": (act, "ppii"),
        "act_vjp": (act_vjp, "ppppii"),
        "logistic": (logistic, "ppffppi"),
        "goodness_vjp": (goodness_vjp, "ppppiiif"),
        "normalize": (normalize, "ppiff"),
        "normalize_vjp": (normalize_vjp, "ppppiff"),
        "goodness": (goodness, "ppii"),
        "softmax_ce": (softmax_ce, "ppppii"),
        "sgd": (sgd, "pppiDddfi"),
        "adam_scales": (adam_scales, "DUdddD"),
        "adam": (adam, "ppppiDDddiffff"),
        "fold": (fold, "Ddddp"),
        "settle": (settle, "DUdddu"),
        "advance": (advance, "U"),
        "words": (words, "uUWi"),
        "uniform": (uniform, "uUpi"),
        "normal": (normal, "uUpi"),
        "im2col": (im2col, "ppiiiiiiiii"),
        "col2im": (col2im, "ppiiiiiiiii"),
    }
