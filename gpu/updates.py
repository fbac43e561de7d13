"""Optimizers.  Learning rate, weight decay and step are read in memory when a kernel runs, so that
a captured step stays true (`fflearn.gpu.graphs`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fflearn.errors import RecordError
from fflearn.gpu.products import Products
from fflearn.gpu.scalars import functions
from fflearn.kernels.reference import Array, Product

LR, DECAY, PROGRESS = range(3)  # of the settings in the device's memory


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""
    zero = functions(real).zero

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

    return {
        "sgd": (sgd, "pppiDddfi"),
        "adam_scales": (adam_scales, "DUdddD"),
        "adam": (adam, "ppppiDDddiffff"),
        "fold": (fold, "Ddddp"),
        "settle": (settle, "DUdddu"),
        "advance": (advance, "U"),
    }


@dataclass(frozen=True)
class Setting:
    """A number that lies in the device's memory, where its kernels find it, times a factor."""

    factor: float = 1.0

    def __mul__(self, factor: float) -> Setting:
        return Setting(self.factor * factor)

    __rmul__ = __mul__

    def __float__(self) -> float:
        raise RecordError(
            "a learning rate, weight decay or progress was read in a step on a GPU, where it is "
            "known to the device alone. Multiply it by a number, or return gradients and leave it "
            "to the optimizer."
        )


class Settings(NamedTuple):
    """Where an optimizer reads what it multiplies by."""

    live: Array  # float64 (3,): learning rate, weight decay, progress
    rate: float  # factor of the learning rate
    decays: float  # and of the weight decay
    counter: Array  # uint64 (1,): the step, counted from 0


class Updates(Products):
    """Methods of `Kernels` that launch these, and what tells the device the settings of a step."""

    def __init__(self, device: Any):
        super().__init__(device)
        with device.here():
            self.live = self.xp.zeros(3, np.float64)
            self.counter = self.xp.zeros(1, np.uint64)
        self._known: tuple[Any, ...] = ()
        self._made: dict[Any, Array] = {}

    def settle(self, step: int, progress: float, lr: float, weight_decay: float) -> None:
        """Bring step and settings to the device, unless it has them already."""
        self._made.clear()
        if (step, progress, lr, weight_decay) != self._known:
            numbers = lr, weight_decay, progress, step
            self._once_only("settle", np.float64, self.live, self.counter, *numbers)
        self._known = (step, progress, lr, weight_decay)

    def forget(self) -> None:
        """Bring the settings anew, whatever the device has."""
        self._known = ()

    def advance(self) -> None:
        """Count a step, on the device."""
        self._once_only("advance", np.float64, self.counter)
        self.advanced()

    def advanced(self) -> None:
        """Note that the device has counted a step."""
        self._known = (self._known[0] + 1, *self._known[1:])

    def sgd(
        self,
        w: Array,
        g: Array | Product,
        m: Array | None,
        lr: Any,
        momentum: float,
        weight_decay: Any,
    ) -> None:
        s = self._settings(lr, weight_decay, 1)
        if isinstance(g, Product) and m is None:
            # The whole update is one product: no gradient is ever stored.
            by, keep = self._fold(s, float(g.n), w.dtype)
            return self._add_product(g.x, g.da, by, keep, w)
        d = self.formed(g)
        kept = d if m is None else m
        numbers = s.rate, s.decays, momentum, m is not None
        self._each("sgd", w, w, self._plain(d), kept, w.size, s.live, *numbers)

    def adam(
        self,
        w: Array,
        g: Array | Product,
        m: Array,
        v: Array,
        lr: Any,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: Any,
        decoupled: bool,
        t: Any,
    ) -> None:
        s, d = self._settings(lr, weight_decay, t), self.formed(g)
        scales = self._adam_scales(s, beta1, beta2)
        numbers = s.rate, s.decays, decoupled, 1 - beta1, beta2, 1 - beta2, eps
        self._each("adam", w, w, self._plain(d), m, v, w.size, s.live, scales, *numbers)

    def _settings(self, lr: Any, weight_decay: Any, t: int) -> Settings:
        if isinstance(lr, Setting):
            return Settings(self.live, lr.factor, weight_decay.factor, self.counter)
        numbers = self.asarray(np.array([lr, weight_decay, 0.0]))
        return Settings(numbers, 1.0, 1.0, self.asarray(np.array([t - 1], np.uint64)))

    def _add_product(self, x: Array, da: Array, by: Array, keep: Array, w: Array) -> None:
        """w = keep w + by x^T da."""
        if self._is_small(x.shape[1], *da.shape):
            self._small(True, False, x, da, by, beta=keep, into=w)
        else:
            self.device.gemm(True, False, self._plain(x), self._plain(da), w, by, keep)

    def _fold(self, s: Settings, n: float, dtype: Any) -> tuple[Array, Array]:
        """-lr / n and 1 - lr weight_decay."""

        def fill(out: Array) -> None:
            self._once_only("fold", out.dtype.type, s.live, s.rate, s.decays, n, out)

        out = self._once(("fold", s, n, dtype), 2, dtype, fill)
        return out[:1], out[1:]

    def _adam_scales(self, s: Settings, beta1: float, beta2: float) -> Array:
        def fill(out: Array) -> None:
            numbers = s.rate, beta1, beta2
            self._once_only("adam_scales", np.float64, s.live, s.counter, *numbers, out)

        return self._once(("adam", s, beta1, beta2), 2, np.float64, fill)

    def _once(self, key: Any, n: int, dtype: Any, fill: Callable[[Array], None]) -> Array:
        """A few numbers that follow from the settings: made once per step."""
        name, s, *others = key
        if s.live is not self.live:  # settings of this call alone
            out = self.xp.empty(n, dtype)
            fill(out)
            return out
        key = name, s.rate, s.decays, *others
        out = self._made.get(key)
        if out is None:
            out = self._made[key] = self.xp.empty(n, dtype)
            fill(out)
        return out
