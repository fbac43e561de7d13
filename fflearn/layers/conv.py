"""The convolution of images, with length normalisation as part of the layer that reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.patches import out_size
from fflearn.layers import Layer
from fflearn.layers.dense import CHOICES, UNIFORM


@dataclass(frozen=True)
class Conv(Layer):
    """``a_ij = sum over taps of n(x)_{i stride + k, j stride + l} W_kl + b``, ``y = act(a)``.

    Images are (B, H, W, C), channels last.

    Parameters
    ----------
    units : int
        Channels of the output.
    activation : str
        relu, tanh, sigmoid, hardsigmoid, gelu or identity.
    kernel : int
        K: a patch is K x K pixels.
    stride : int
        Pixels from one patch to the next.
    padding : str
        Pixels of 0 around the image, a number; "same" is (K - 1) / 2, for odd K: it keeps the
        size where the stride is 1.
    groups : int
        Parts into which the channels are divided; each output channel reads one of them.
    norm : str
        n: "none"; "rms", x / sqrt(mean x^2) over the whole sample; "unit", x / |x|.
    bias : bool
        Whether there is a b (units,), starting at 0.
    draw : str
        Initial W (K, K, C / groups, units), as of `Dense` with n_in = K^2 C / groups numbers read
        by an output and, for "xavier", K^2 units / groups outputs that read an input.

    References
    ----------
    LeCun, Bottou, Bengio, Haffner (1998), "Gradient-based learning applied to document
    recognition", Proc. IEEE 86(11), sec. II.
    """

    units: int
    activation: str = "identity"
    kernel: int = 3
    stride: int = 1
    padding: str = "same"
    groups: int = 1
    norm: str = "none"
    bias: bool = True
    draw: str = "kaiming"

    kind: ClassVar[str] = "conv"
    weights: ClassVar[tuple[str, ...]] = ("W",)
    words: ClassVar[tuple[str, ...]] = ("units", "activation")

    def __post_init__(self) -> None:
        for name in ("units", "kernel", "stride", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"conv needs {name} to be 1 or more; got {value!r}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise SpecError(
                    f"conv needs {name} to be one of {', '.join(known)}; "
                    f"got {getattr(self, name)!r}."
                )
        # A number is as good as its digits: both print and compare alike.
        object.__setattr__(self, "padding", str(self.padding).lower())
        if self.padding != "same" and not self.padding.isdecimal():
            raise SpecError(f"conv needs padding to be same or a number; got {self.padding!r}.")
        if self.padding == "same" and self.kernel % 2 == 0:
            raise SpecError(
                f"conv needs an odd kernel for padding=same; got {self.kernel}. Type padding=0"
            )
        if self.units % self.groups:
            raise SpecError(
                f"conv needs units that divide into {self.groups} groups; got {self.units}."
            )

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [
            (cls(4, "tanh"), (5, 6, 3)),
            (cls(5, "relu", norm="rms"), (6, 5, 9)),
            (cls(3, "sigmoid", kernel=2, stride=2, padding="0", norm="unit"), (5, 4, 2)),
            (cls(3, kernel=1, stride=2, bias=False, draw="xavier"), (5, 5, 8)),
            (cls(4, "tanh", kernel=5, stride=3, padding="1"), (9, 8, 3)),
            (cls(6, "tanh", groups=3, draw="lecun"), (4, 5, 9)),
            (cls(4, "gelu", kernel=1, padding="2"), (2, 3, 8)),
            (cls(4, "tanh", kernel=1, groups=2), (3, 2, 6)),
            (cls(4, kernel=1, groups=2, norm="rms"), (3, 2, 6)),
        ]

    @property
    def linear(self) -> bool:
        return self.norm == "none"

    @property
    def _padding(self) -> int:
        return self.kernel // 2 if self.padding == "same" else int(self.padding)

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 3:
            raise ShapeError(
                f"{self.spec()!r} needs images (height, width, channels); its input has the shape "
                f"{in_shape}. Put it before the dense layers."
            )
        *sizes, channels = in_shape
        if channels % self.groups:
            raise ShapeError(
                f"{self.spec()!r} needs channels that divide into {self.groups} groups; its input "
                f"has {channels}. Change groups."
            )
        high, wide = (out_size(n, self.kernel, self.stride, self._padding) for n in sizes)
        if min(high, wide) < 1:
            raise ShapeError(
                f"{self.spec()!r} needs images of at least {self.kernel} x {self.kernel} pixels, "
                f"padding included; its input has the shape {in_shape}. Use a smaller kernel."
            )
        return (high, wide, self.units)

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        if self.norm != "none":
            return False, 1
        return self.kernel == self.stride == 1 and not self._padding, self.groups

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        shape = (self.kernel, self.kernel, in_shape[2] // self.groups, self.units)
        std = self.weight_std(in_shape)["W"]
        if self.draw in UNIFORM:
            w = (2 * key.fold("W").uniform(shape, np.float64) - 1) * (math.sqrt(3) * std)
        else:
            w = key.fold("W").normal(shape, dtype) * std
        p = {"W": w.astype(dtype, copy=False)}
        return {**p, "b": np.zeros(self.units, dtype)} if self.bias else p

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        n_in = self.kernel**2 * (in_shape[2] // self.groups)
        if self.draw == "zeros":
            return {"W": 0.0}
        if self.draw == "xavier":
            return {"W": math.sqrt(2 / (n_in + self.kernel**2 * (self.units // self.groups)))}
        if self.draw == "uniform":
            return {"W": math.sqrt(1 / (3 * n_in))}
        gain = 2 if self.draw == "kaiming" and self.activation in ("relu", "gelu") else 1
        return {"W": math.sqrt(gain / n_in)}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        n = x
        if self.norm != "none":
            n = k.normalize(x.reshape(len(x), -1), self.norm).reshape(x.shape)
        a = k.conv(n, p["W"], p.get("b"), self.stride, self._padding)
        if noise is not None:
            a = a + noise
        return self._fired(k, p, x, a, env, n, own=True)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        shape = (self.kernel, self.kernel, t.x.shape[3] // self.groups, self.units)
        g = {"W": k.conv_weights(t.inner, da, len(da), shape, self.stride, self._padding)}
        return {**g, "b": k.colmean(da.reshape(-1, self.units), len(da))} if self.bias else g

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        dn = k.conv_input(da, t.params["W"], t.x.shape[1:], self.stride, self._padding)
        if self.norm == "none":
            return dn
        rows = (a.reshape(len(da), -1) for a in (dn, t.x, t.inner))
        return k.normalize_vjp(*rows, self.norm).reshape(t.x.shape)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        da = np.zeros_like(t.y)
        if "W" in dp:
            da = da + k.conv(t.inner, dp["W"], None, self.stride, self._padding)
        if "b" in dp:
            da = da + dp["b"]
        if dx is not None:
            if self.norm != "none":
                rows = (a.reshape(len(dx), -1) for a in (dx, t.x, t.inner))
                dx = k.normalize_jvp(*rows, self.norm).reshape(t.x.shape)
            da = da + k.conv(dx, t.params["W"], None, self.stride, self._padding)
        # The activation is pointwise: its jvp is its vjp.
        return k.act_vjp(da, t.a, t.y, self.activation)
