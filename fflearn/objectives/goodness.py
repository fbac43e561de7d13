"""Forward-Forward's layer-local objective: goodness, its threshold, and losses over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Readout
from fflearn.errors import SpecError
from fflearn.objectives import Objective

KINDS = ("ssq", "msq", "l2")

# A threshold means something only for a pair (norm of the layer's input, goodness).  "units" is
# the number of units of the layer.  Sources: rms+ssq Hinton's released code; unit+msq, unit+l2
# and unit+ssq from re-implementations; rms+msq is rms+ssq divided by the number of units.
THRESHOLDS: dict[tuple[str, str], float | str] = {
    ("rms", "ssq"): "units",
    ("rms", "msq"): 1.0,
    ("unit", "msq"): 2.0,
    ("unit", "ssq"): 2.0,
    ("unit", "l2"): 3.0,
}


@dataclass(frozen=True)
class Goodness(Objective):
    """``loss = softplus(-phase (g - theta) / T)``: high goodness on positive data, low on negative.

    Parameters
    ----------
    goodness : str
        g per sample: "ssq" sum of y^2, "msq" mean of y^2, "l2" length of y.
    theta : float
        Threshold, in units of g.
    temperature : float
        T > 0.

    References
    ----------
    Hinton (2022), "The Forward-Forward algorithm", arXiv:2212.13345, eq. 1.
    """

    goodness: str = "ssq"
    theta: float = 1.0
    temperature: float = 1.0

    kind: ClassVar[str] = "goodness"
    at_output: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.goodness not in KINDS:
            raise SpecError(f"goodness needs one of {', '.join(KINDS)}; got {self.goodness!r}.")
        if not self.temperature > 0:
            raise SpecError(f"goodness needs a temperature above 0; got {self.temperature}.")

    def of(self, k: Any, y: Any) -> Any:
        """(B, *out) -> goodness (B,)."""
        return k.goodness(y.reshape(len(y), -1), self.goodness)

    def vjp(self, k: Any, dg: Any, y: Any) -> Any:
        """d loss/d g (B,) and activity (B, *out) -> d loss/d y (B, *out)."""
        return k.goodness_vjp(dg, y.reshape(len(y), -1), self.goodness).reshape(y.shape)

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        """(B, *out) activity and phase (B,) in {-1, +1} -> loss (B,), d loss/d y (B, *out)."""
        loss, dg = k.logistic(self.of(k, y), target, self.theta, self.temperature)
        return Readout(loss, self.vjp(k, dg, y))

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        return [(cls(kind, 0.7, t), "phase") for kind in KINDS for t in (1.0, 3.0)]


def threshold(norm: str, goodness: str, units: int) -> float:
    """The threshold that belongs to a pair (norm, goodness); SpecError for a pair without one."""
    known = THRESHOLDS.get((norm, goodness))
    if known is None:
        pairs = ", ".join(f"{n}+{g}" for n, g in THRESHOLDS)
        raise SpecError(
            f"the goodness {goodness!r} on inputs with norm={norm} has no threshold of its own. "
            f"Use one of {pairs}, or give theta."
        )
    return float(units) if isinstance(known, str) else known


# ---- losses over the goodness of a sample's positive and negatives --------------------------------


@dataclass(frozen=True)
class Loss:
    """What a layer makes of the goodness of each sample's positive and of its negatives.

    Parameters
    ----------
    temperature : float
        T > 0, in units of goodness: the difference that matters.
    """

    temperature: float = 1.0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SpecError(
                f"the loss {self.name} needs a temperature above 0; got {self.temperature}."
            )

    def __call__(self, k: Any, u: Any, phase: Any) -> tuple[Any, Any]:
        """u = g - theta of the positives, then of r blocks of negatives of the same samples.

        Parameters
        ----------
        u, phase : array, shape (1 + r, B)
            Phase is +1 in the first row and -1 below.

        Returns
        -------
        losses : array, shape (n,)
            The loss L is their mean.
        du : array, shape (1 + r, B)
            (1 + r) B dL/du, since `LayerView.param_vjp` takes the mean over all rows.
        """
        raise NotImplementedError


class Logistic(Loss):
    """``softplus(-phase u / T)``: each row against the threshold.

    A sample's negatives together weigh as much as its positive.
    Hinton (2022), arXiv:2212.13345, eq. 1.
    """

    name: ClassVar[str] = "logistic"

    def of_rows(self, k: Any, u: Any, phase: Any) -> tuple[Any, Any]:
        """The losses (rows,) and their slopes (rows,) of rows that belong to no others."""
        return k.logistic(u, phase, 0.0, self.temperature)

    def __call__(self, k: Any, u: Any, phase: Any) -> tuple[Any, Any]:
        losses, du = self.of_rows(k, u.ravel(), phase.ravel())
        blocks = len(u)
        weights = np.full_like(u, blocks / (2 * (blocks - 1)), shape=(blocks, 1))
        weights[0] = blocks / 2
        return (weights * losses.reshape(u.shape)).ravel(), weights * du.reshape(u.shape)


class SymBa(Loss):
    """``softplus(-(u+ - u-) / T)``: a positive against each of its own negatives; 1 / T is alpha.

    Lee & Song (2023), "SymBa: symmetric backpropagation-free contrastive learning with
    Forward-Forward algorithm for optimizing convergence", arXiv:2303.08418.
    """

    name: ClassVar[str] = "symba"

    def __call__(self, k: Any, u: Any, phase: Any) -> tuple[Any, Any]:
        return _over_pairs(
            lambda d: k.logistic(d, np.ones_like(d), 0.0, self.temperature), u, phase
        )


class Margin(Loss):
    """``max(0, T - (u+ - u-))``: nothing more to learn once a positive is T ahead."""

    name: ClassVar[str] = "margin"

    def __call__(self, k: Any, u: Any, phase: Any) -> tuple[Any, Any]:
        def hinge(d: Any) -> tuple[Any, Any]:
            short = d.dtype.type(self.temperature) - d
            return np.maximum(short, 0), -(short > 0).astype(d.dtype)

        return _over_pairs(hinge, u, phase)


class Softmax(Loss):
    """``-log softmax(u / T)`` of the positive among its negatives: over classes, where the
    negatives are all the wrong labels."""

    name: ClassVar[str] = "softmax"

    def __call__(self, k: Any, u: Any, phase: Any) -> tuple[Any, Any]:
        temperature = u.dtype.type(self.temperature)
        losses, error = k.softmax_ce(k.asarray(u.T / temperature), (phase.T > 0).astype(u.dtype))
        return losses, len(u) / temperature * error.T


LOSSES: dict[str, type[Loss]] = {kind.name: kind for kind in (Logistic, SymBa, Margin, Softmax)}


def loss(name: str, temperature: float) -> Loss:
    """A loss over goodness by name."""
    if name not in LOSSES:
        raise SpecError(f"unknown loss over goodness {name!r}; known: {', '.join(LOSSES)}.")
    return LOSSES[name](temperature)


def _over_pairs(of_lead: Callable[[Any], tuple[Any, Any]], u: Any, phase: Any) -> tuple[Any, Any]:
    """The mean of a loss of each positive's lead over each of its negatives.

    ``of_lead`` maps leads u+ - u- (n,) to losses and their derivatives, both (n,).
    """
    signed, again = phase * u, len(u) - 1
    losses, d = of_lead((signed[:1] + signed[1:]).ravel())
    d = d.reshape(again, -1) * d.dtype.type((1 + again) / again)
    return losses, phase * np.concatenate([d.sum(axis=0, keepdims=True), d])
