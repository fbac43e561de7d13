"""Layer normalisation: each place of each sample gets mean 0 and variance 1 over its channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.reference import ACTIVATIONS
from fflearn.layers import Layer


@dataclass(frozen=True)
class LayerNorm(Layer):
    """``n = (x - mean) / sqrt(var + eps)``, ``a = g n + b``, ``y = act(a)``.

    Mean and variance (biased) are over the last axis, the channels, at each place of each sample:
    no sample sees another.  g and b (C,) are learned and start at 1 and 0.

    Parameters
    ----------
    activation : str
        relu, tanh, sigmoid, hardsigmoid, gelu or identity.
    eps : float
        Added to the variance.
    affine : bool
        Whether there are g and b; otherwise a is n.

    Notes
    -----
    The other norms are this layer with other rows: subclasses say which numbers are divided by
    one variance.

    References
    ----------
    Ba, Kiros, Hinton (2016), "Layer normalization", arXiv:1607.06450, eq. 4.
    """

    activation: str = "identity"
    eps: float = 1e-5
    affine: bool = True

    kind: ClassVar[str] = "layer_norm"
    words: ClassVar[tuple[str, ...]] = ("activation",)
    axis: ClassVar[int] = 1  # of the rows, the axis that mean and variance are taken over
    center: ClassVar[bool] = True  # subtract the mean, and have a shift b

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise SpecError(
                f"{self.kind} needs activation to be one of {', '.join(ACTIVATIONS)}; "
                f"got {self.activation!r}."
            )
        if isinstance(self.eps, bool) or not self.eps > 0:
            raise SpecError(f"{self.kind} needs eps above 0; got {self.eps!r}. Type eps=1e-5")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        plain = (cls("tanh", affine=False), (3, 2, 4))
        return [(cls(), (7,)), (cls("tanh"), (3, 5)), (cls("relu", 0.1), (2, 3, 4)), plain]

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return self.affine or bool(self.buffers)

    @property
    def linear(self) -> bool:
        return False

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if not in_shape:
            raise ShapeError(f"{self.spec()!r} needs channels; its input is one number.")
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return True, 1

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        if not self.affine:
            return {}
        scale = {"g": np.ones(in_shape[-1], dtype)}
        return {**scale, "b": np.zeros(in_shape[-1], dtype)} if self.center else scale

    # -- which numbers belong together ---------------------------------------------------------
    def _rows(self, x: Any) -> Any:
        """(B, *places, C) -> a matrix whose ``axis`` is normalised."""
        return x.reshape(-1, x.shape[-1])

    def _shaped(self, rows: Any, shape: tuple[int, ...]) -> Any:
        """The inverse of `_rows`."""
        return rows.reshape(shape)

    def _moments(self, k: Any, p: Mapping[str, Any], rows: Any, env: Env) -> tuple[Any, ...]:
        """n, mean and variance, and whether the last two follow x."""
        return (*k.standardize(rows, self.axis, self.eps, self.center), True)

    # -- the calculus -----------------------------------------------------------------------------
    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        n, *moments = self._moments(k, p, self._rows(x), env)
        n = self._shaped(n, x.shape)
        a = n * p["g"] if self.affine else n
        if "b" in p:
            a = a + p["b"]
        if noise is not None:
            a = a + noise
        return self._fired(k, p, x, a, env, (n, *moments))

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        if not self.affine:
            return {}
        channels = t.x.shape[-1]
        g = {"g": k.colmean((da * t.inner[0]).reshape(-1, channels), len(da))}
        return {**g, "b": k.colmean(da.reshape(-1, channels), len(da))} if self.center else g

    def _through(self, k: Any, t: Trace, d: Any) -> Any:
        """The Jacobian of n times d; it is symmetric, so this is vjp and jvp."""
        n, _, var, follows = t.inner
        if not follows:
            return d / np.sqrt(var + var.dtype.type(self.eps))
        rows = self._rows(d), self._rows(n), var
        return self._shaped(k.standardize_vjp(*rows, self.axis, self.eps, self.center), d.shape)

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return self._through(k, t, da * t.params["g"] if self.affine else da)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        da = np.zeros_like(t.y)
        if "g" in dp:
            da = da + t.inner[0] * dp["g"]
        if "b" in dp:
            da = da + dp["b"]
        if dx is not None:
            dn = self._through(k, t, dx)
            da = da + (dn * t.params["g"] if self.affine else dn)
        return k.act_vjp(da, t.a, t.y, self.activation)
