"""Root-mean-square normalisation: each place of each sample gets mean square 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fflearn.layers.layer_norm import LayerNorm


@dataclass(frozen=True)
class RmsNorm(LayerNorm):
    """``a = g x / sqrt(mean x^2 + eps)``, ``y = act(a)``, the mean over the last axis.

    As `LayerNorm`, without mean and shift; g (C,) starts at 1.

    References
    ----------
    Zhang, Sennrich (2019), "Root mean square layer normalization", arXiv:1910.07467, eq. 4.
    """

    kind: ClassVar[str] = "rms_norm"
    center: ClassVar[bool] = False
