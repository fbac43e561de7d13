"""Long short-term memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.recurrence import Recurrent


@dataclass(frozen=True)
class LSTM(Recurrent):
    """A memory c that gates write to, erase and read.

        i, f, o = sigmoid(zx + zh)    g = tanh(zx + zh)
        c_t = f c_{t-1} + i g         h_t = o tanh(c_t)

    Wx (D, 4 H), Wh (H, 4 H) and b (4 H,), columns in the order i, f, g, o, as in PyTorch.  At
    first b is 1 for f, so that the memory lasts, and 0 otherwise.

    Parameters
    ----------
    units, last, credit
        As of `fflearn.recurrence.Recurrent`.  A unit's own path ("eprop") is f c_{t-1}.

    References
    ----------
    Hochreiter, Schmidhuber (1997), "Long short-term memory", Neural Computation 9; with the
    forget gate of Gers, Schmidhuber, Cummins (2000), Neural Computation 12, and its bias of 1.
    """

    kind: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        p = super().init(key, in_shape, dtype)
        p["b"][self.units : 2 * self.units] = 1
        return p

    def cell(self, k: Any, zx: Any, zh: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
        zi, zf, zg, zo = np.split(zx + zh, 4, axis=1)
        i, f, o = (k.act(k.asarray(z), "sigmoid") for z in (zi, zf, zo))
        g, before = np.tanh(zg), state[1]
        c = f * before + i * g
        top = np.tanh(c)
        return (o * top, c), (i, f, g, o, before, top)

    def cell_vjp(self, k: Any, kept: Any, dstate: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        (i, f, g, o, before, top), (dh, dc) = kept, dstate
        dc = dc + dh * o * (1 - top * top)
        dzi, dzf = dc * g * i * (1 - i), dc * before * f * (1 - f)
        dzg, dzo = dc * i * (1 - g * g), dh * top * o * (1 - o)
        dz = np.concatenate([dzi, dzf, dzg, dzo], axis=1)
        return dz, dz, (np.zeros_like(dh), dc * f)

    def cell_jvp(self, k: Any, kept: Any, dzx: Any, dzh: Any, dstate: Any) -> tuple[Any, ...]:
        (i, f, g, o, before, top), (_, dc) = kept, dstate
        zi, zf, zg, zo = np.split(dzx + dzh, 4, axis=1)
        di, df, do = zi * i * (1 - i), zf * f * (1 - f), zo * o * (1 - o)
        dc = df * before + f * dc + di * g + i * zg * (1 - g * g)
        return do * top + o * dc * (1 - top * top), dc
