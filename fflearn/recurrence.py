"""What recurrent layers share: the unrolled pass, and how far credit reaches back in time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.reference import Product
from fflearn.layers import Layer

CREDITS = ("bptt", "eprop", "step")


class Unrolled(NamedTuple):
    """What a pass over a sequence leaves behind, one entry per time step."""

    before: list[Any]  # (B, H)  the state h that the step read
    kept: list[Any]  # what the cell's derivatives need


@dataclass(frozen=True)
class Recurrent(Layer):
    """Base of recurrent layers: (B, T, D) -> last state (B, H), or all states (B, T, H).

        zx_t = x_t Wx + b,   zh_t = h_{t-1} Wh,   state_t = cell(zx_t, zh_t, state_{t-1})

    with state 0 at first.  ``a`` is the state h itself and the activation the identity.  Noise is
    added to ``a`` after the pass; where each time step is a unit of credit of its own
    (credit=step, all states), after each step, and the noisy state goes on.

    Parameters
    ----------
    units : int
        H.
    last : bool
        Whether the output is the last state alone.
    credit : str
        What the derivatives in `param_vjp` and `input_vjp` follow back in time.  "bptt":
        everything, the exact gradient; "eprop": a unit's own state, not what other units read
        of it; "step": nothing, the state from before a step is a constant of that step.
        `jvp` is exact with all three.

    Notes
    -----
    e-prop is defined by eligibility traces that run forward in time, e_t = (d state_t / d
    state_{t-1}) e_{t-1} + d state_t / d w, with grad w = sum_t (d loss / d state_t) e_t.  The
    same sum is taken here in the other order, which costs a product of matrices in place of a
    trace per weight and sample; a test compares both.

    References
    ----------
    Bellec et al. (2020), "A solution to the learning dilemma for recurrent networks of spiking
    neurons", Nature Communications 11, 3625, eq. 1-4 and, for LSTM, the supplement.
    """

    units: int
    last: bool = True
    credit: str = "bptt"

    gates: ClassVar[int] = 1  # pre-activations per unit
    states: ClassVar[int] = 1  # arrays (B, H) that go from step to step, h first
    _act: ClassVar[str] = "identity"  # an `activation` is the cell's
    weights: ClassVar[tuple[str, ...]] = ("Wx", "Wh")
    words: ClassVar[tuple[str, ...]] = ("units",)

    def __post_init__(self) -> None:
        if isinstance(self.units, bool) or not isinstance(self.units, int) or self.units < 1:
            raise SpecError(f"{self.kind} needs a positive number of units; got {self.units!r}.")
        if self.credit not in CREDITS:
            raise SpecError(
                f"{self.kind} needs credit to be one of {', '.join(CREDITS)}; got {self.credit!r}."
            )

    # -- the cell --------------------------------------------------------------------------------
    def cell(self, k: Any, zx: Any, zh: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
        """(B, gates H) twice and the state -> the next state, and what derivatives need."""
        raise NotImplementedError

    def cell_vjp(self, k: Any, kept: Any, dstate: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """d loss/d next state -> d loss by zx, by zh, and by the state other than through zh."""
        raise NotImplementedError

    def cell_jvp(self, k: Any, kept: Any, dzx: Any, dzh: Any, dstate: Any) -> tuple[Any, ...]:
        """Tangents of zx, zh and the state -> tangent of the next state."""
        raise NotImplementedError

    def own_path(self, down: Any, dzh: Any, wh: Any) -> Any:
        """e-prop: d loss by the state, along each unit's own path alone."""
        return down

    # -- as every layer --------------------------------------------------------------------------
    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(4), (3, 2)), (cls(3, last=False), (4, 2)), (cls(2), (1, 3))]

    @property
    def linear(self) -> bool:
        return False

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 2:
            raise ShapeError(
                f"{self.spec()!r} needs sequences (T, D); its input has the shape {in_shape}. "
                f"Train for instance on data='row-digits'."
            )
        return (self.units,) if self.last else (in_shape[0], self.units)

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        columns, std = self.gates * self.units, self.weight_std(in_shape)
        return {
            "Wx": key.fold("Wx").normal((in_shape[1], columns), dtype) * std["Wx"],
            "Wh": key.fold("Wh").normal((self.units, columns), dtype) * std["Wh"],
            "b": np.zeros(columns, dtype),
        }

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        return {"Wx": 1 / math.sqrt(in_shape[1]), "Wh": 1 / math.sqrt(self.units)}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        zx = _each_time(k.matmul, x, p["Wx"]) + p["b"]
        state = self._zeros(x)
        states, inner = [], Unrolled([], [])
        within = self.credit == "step" and not self.last
        for at in range(x.shape[1]):
            inner.before.append(state[0])
            state, kept = self.cell(k, zx[:, at], k.matmul(state[0], p["Wh"]), state)
            inner.kept.append(kept)
            if noise is not None and within:
                state = (state[0] + noise[:, at], *state[1:])
            states.append(state[0])
        a = states[-1] if self.last else k.stack(states, axis=1)
        if noise is not None and not within:
            a = a + noise
        return Trace(x, a, a, p, inner)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        dzx, dzh = self._sweep(k, t, da)
        n, columns = len(da), dzx.shape[-1]
        rows, before = dzx.reshape(-1, columns), k.stack(t.inner.before, axis=1)
        return {
            "Wx": Product(t.x.reshape(len(rows), -1), rows, n),
            "Wh": Product(before.reshape(len(rows), -1), dzh.reshape(-1, columns), n),
            "b": k.colmean(rows, n),
        }

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        dzx, _ = self._sweep(k, t, da)
        return _each_time(k.matmul_nt, dzx, t.params["Wx"])

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        dzx = np.zeros_like(t.x, shape=(*t.x.shape[:2], self.gates * self.units))
        if "Wx" in dp:
            dzx = dzx + _each_time(k.matmul, t.x, dp["Wx"])
        if "b" in dp:
            dzx = dzx + dp["b"]
        if dx is not None:
            dzx = dzx + _each_time(k.matmul, dx, t.params["Wx"])
        dstate, tangents = self._zeros(t.x), []
        for at, (before, kept) in enumerate(zip(*t.inner, strict=True)):
            dzh = k.matmul(dstate[0], t.params["Wh"])
            if "Wh" in dp:
                dzh = dzh + k.matmul(before, dp["Wh"])
            dstate = self.cell_jvp(k, kept, dzx[:, at], dzh, dstate)
            tangents.append(dstate[0])
        return tangents[-1] if self.last else k.stack(tangents, axis=1)

    # -- inside ----------------------------------------------------------------------------------
    def _zeros(self, x: Any) -> tuple[Any, ...]:
        return tuple(np.zeros_like(x, shape=(len(x), self.units)) for _ in range(self.states))

    def _sweep(self, k: Any, t: Trace, da: Any) -> tuple[Any, Any]:
        """Backwards in time, as far as the credit reaches -> d loss by zx and zh (B, T, gates H)."""
        steps, wh = t.x.shape[1], t.params["Wh"]
        dstate, dzx, dzh = self._zeros(t.x), [], []
        for at in reversed(range(steps)):
            if not self.last:
                dstate = (dstate[0] + da[:, at], *dstate[1:])
            elif at == steps - 1:
                dstate = (da, *dstate[1:])
            by_x, by_h, down = self.cell_vjp(k, t.inner.kept[at], dstate)
            dzx.append(by_x)
            dzh.append(by_h)
            if self.credit == "bptt":
                dstate = (down[0] + k.matmul_nt(by_h, wh), *down[1:])
            elif self.credit == "eprop":
                dstate = self.own_path(down, by_h, wh)
            else:
                dstate = self._zeros(t.x)
        return k.stack(dzx[::-1], axis=1), k.stack(dzh[::-1], axis=1)


def _each_time(product: Any, rows: Any, w: Any) -> Any:
    """A product of matrices at each step of (B, T, n) -> (B, T, m)."""
    return product(rows.reshape(-1, rows.shape[-1]), w).reshape(*rows.shape[:2], -1)
