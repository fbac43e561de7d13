"""Batch normalisation: each channel gets mean 0 and variance 1 over the batch and all places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.layers.layer_norm import LayerNorm

MOMENTUM = 0.1  # share of the newest batch in the running statistics, as torch's default


@dataclass(frozen=True)
class BatchNorm(LayerNorm):
    """``n = (x - mean) / sqrt(var + eps)``, ``a = g n + b``, ``y = act(a)``, channel by channel.

    In training mean and variance (biased) are the batch's, over samples and places, and the
    derivatives go through them: a sample's output depends on the others.  In use they are the
    buffers ``mean`` and ``var``, running averages that every training step moves by a tenth
    towards the batch's; the running variance is the unbiased one.

    Notes
    -----
    A channel with one number in the whole batch has n = 0 and leaves a variance of 0 behind.

    References
    ----------
    Ioffe, Szegedy (2015), "Batch normalization", arXiv:1502.03167, algorithms 1 and 2.
    Momentum, and the unbiased running variance, as torch.nn.BatchNorm2d.
    """

    kind: ClassVar[str] = "batch_norm"
    buffers: ClassVar[tuple[str, ...]] = ("mean", "var")
    couples_samples: ClassVar[bool] = True
    axis: ClassVar[int] = 0

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        channels = in_shape[-1]
        moments = {"mean": np.zeros(channels, dtype), "var": np.ones(channels, dtype)}
        return super().init(key, in_shape, dtype) | moments

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return False, in_shape[-1]

    def _moments(self, k: Any, p: Mapping[str, Any], rows: Any, env: Env) -> tuple[Any, ...]:
        if env.train:
            return super()._moments(k, p, rows, env)
        mean, var = p["mean"], p["var"]
        return (rows - mean) / np.sqrt(var + var.dtype.type(self.eps)), mean, var, False

    def running(self, k: Any, t: Trace) -> dict[str, Any]:
        n, mean, var, follows = t.inner
        if not follows:
            return {}
        count = n.size // n.shape[-1]
        found = {"mean": mean[0], "var": var[0] * var.dtype.type(count / max(count - 1, 1))}
        old, new = var.dtype.type(1 - MOMENTUM), var.dtype.type(MOMENTUM)
        return {name: old * t.params[name] + new * found[name] for name in self.buffers}
