"""The gated recurrent unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.recurrence import Recurrent


@dataclass(frozen=True)
class GRU(Recurrent):
    """A gate r lets the past into the new value n, a gate u keeps the past instead of it.

        r = sigmoid(zx_r + zh_r)    u = sigmoid(zx_u + zh_u)    n = tanh(zx_n + r zh_n)
        h_t = (1 - u) n + u h_{t-1}

    Wx (D, 3 H), Wh (H, 3 H) and b (3 H,), columns in the order r, u, n.

    Parameters
    ----------
    units, last, credit
        As of `fflearn.recurrence.Recurrent`.  A unit's own path ("eprop") is u h_{t-1}.

    Notes
    -----
    Differs from the paper: r acts after the product with Wh, as in cuDNN and PyTorch; and there
    is one b, where those have a second one inside r (...).

    References
    ----------
    Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder for statistical
    machine translation", arXiv:1406.1078, eq. 5-8.
    """

    kind: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3

    def cell(self, k: Any, zx: Any, zh: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
        (h,) = state
        (xr, xu, xn), (hr, hu, hn) = np.split(zx, 3, axis=1), np.split(zh, 3, axis=1)
        r, u = k.act(xr + hr, "sigmoid"), k.act(xu + hu, "sigmoid")
        n = np.tanh(xn + r * hn)
        return (n + u * (h - n),), (r, u, n, hn, h)

    def cell_vjp(self, k: Any, kept: Any, dstate: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        (r, u, n, hn, h), (dh,) = kept, dstate
        dzn = dh * (1 - u) * (1 - n * n)
        dzr = dzn * hn * r * (1 - r)
        dzu = dh * (h - n) * u * (1 - u)
        dzx = np.concatenate([dzr, dzu, dzn], axis=1)
        return dzx, np.concatenate([dzr, dzu, dzn * r], axis=1), (dh * u,)

    def cell_jvp(self, k: Any, kept: Any, dzx: Any, dzh: Any, dstate: Any) -> tuple[Any, ...]:
        (r, u, n, hn, h), (dh,) = kept, dstate
        (xr, xu, xn), (hr, hu, dhn) = np.split(dzx, 3, axis=1), np.split(dzh, 3, axis=1)
        dr, du = (xr + hr) * r * (1 - r), (xu + hu) * u * (1 - u)
        dn = (xn + dr * hn + r * dhn) * (1 - n * n)
        return (dn * (1 - u) + du * (h - n) + u * dh,)
