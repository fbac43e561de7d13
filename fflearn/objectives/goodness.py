"""Forward-Forward's layer-local objective: goodness against a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        """(B, *out) activity and phase (B,) in {-1, +1} -> loss (B,), d loss/d y (B, *out)."""
        flat = y.reshape(len(y), -1)
        g = k.goodness(flat, self.goodness)
        loss, dg = k.logistic(g, target, self.theta, self.temperature)
        return Readout(loss, k.goodness_vjp(dg, flat, self.goodness).reshape(y.shape))

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
