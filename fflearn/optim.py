"""Optimizers, local by construction (one state per layer), and schedules of their settings.

An optimizer only calls kernels; it is the only writer of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

import numpy as np

from fflearn.errors import SpecError


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate as a function of time in epochs.

    Parameters
    ----------
    spec : str
        "constant"; "cosine", 1 -> 0 over the run; "halves", constant for the first half, then
        linearly to 0 (Hinton's Forward-Forward code); "step:20,30:0.5", times 0.5 at epochs 20
        and 30; any of them after "warmup:2+", linearly from 0 over two epochs.

    Examples
    --------
    >>> Schedule("step:20,30:0.5")(25.0, 40)
    0.5
    """

    spec: str = "constant"

    def __post_init__(self) -> None:
        self(0.0, 1)

    def __call__(self, epoch: float, epochs: float) -> float:
        """Factor at ``epoch`` (whole epochs done, plus the fraction of this one) of ``epochs``."""
        warmup, rest = 0.0, self.spec
        if rest.startswith("warmup:"):
            head, _, rest = rest.partition("+")
            warmup = _number(head.removeprefix("warmup:"), self.spec)
        factor = min(1.0, epoch / warmup) if warmup else 1.0
        kind, *options = rest.split(":")
        if kind == "constant" and not options:
            return factor
        if kind == "cosine" and not options:
            return factor * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
        if kind == "halves" and not options:
            whole = math.floor(epoch)
            return factor * (1.0 if whole < epochs / 2 else 2 * (epochs - whole) / epochs)
        if kind == "step" and len(options) == 2:
            at = [_number(e, self.spec) for e in options[0].split(",")]
            return factor * _number(options[1], self.spec) ** sum(epoch >= e for e in at)
        raise SpecError(
            f"unknown schedule {self.spec!r}. Type constant, cosine, halves, step:20,30:0.5, "
            f"or one of them after warmup:2+."
        )


_schedule = cache(Schedule)  # asked for in every step


def _number(text: str, spec: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise SpecError(f"schedule {spec!r} needs a number from 0 on where it has {text!r}.")
    return value


@dataclass(frozen=True)
class Optimizer:
    """Base: settings, and how one array is updated.

    Parameters
    ----------
    lr : float
        Learning rate.
    weight_decay : float or tuple of float
        A tuple gives one value per epoch, the last one repeated.
    schedule : str
        See `Schedule`.
    """

    lr: float = 1e-3
    weight_decay: float | tuple[float, ...] = 0.0
    schedule: str = "constant"

    name: ClassVar[str]
    linear: ClassVar[bool] = False  # whether its steps are linear in gradients and weights

    def __post_init__(self) -> None:
        decays = self.weight_decay if isinstance(self.weight_decay, tuple) else (self.weight_decay,)
        if not decays:
            raise SpecError(f"{self.name} needs a weight_decay, or one per epoch; got none.")
        for what, value in [("lr", self.lr), *[("weight_decay", d) for d in decays]]:
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise SpecError(f"{self.name} needs {what} to be 0 or more; got {value!r}.")
        _schedule(self.schedule)

    def settings_at(self, epoch: float, epochs: float) -> tuple[float, float]:
        """Learning rate and weight decay at a time in epochs."""
        decay = self.weight_decay
        if isinstance(decay, tuple):
            decay = decay[min(int(epoch), len(decay) - 1)]
        if self.schedule == "constant":  # asked for in every step
            return self.lr, decay
        return self.lr * _schedule(self.schedule)(epoch, epochs), decay

    def slots(self, name: str, w: np.ndarray) -> dict[str, np.ndarray]:
        """The optimizer's own arrays for one parameter, by name."""
        return {}

    def apply(
        self,
        k: Any,
        name: str,
        w: Any,
        g: Any,
        opt: Mapping[str, Any],
        lr: float,
        weight_decay: float,
        t: int,
    ) -> None:
        """Update ``w`` in place by the gradient ``g`` (an array or a `Product`), step t >= 1."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Every setting by name, "name" included."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


@dataclass(frozen=True)
class SGD(Optimizer):
    """``m = momentum m + (g + weight_decay w)``, ``w = w - lr m`` (as torch.optim.SGD)."""

    momentum: float = 0.0
    name: ClassVar[str] = "sgd"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.momentum, (int, float)) or not 0 <= self.momentum < 1:
            raise SpecError(f"sgd needs a momentum in [0, 1); got {self.momentum!r}.")

    def slots(self, name: str, w: np.ndarray) -> dict[str, np.ndarray]:
        return {f"m.{name}": np.zeros_like(w)} if self.momentum else {}

    def apply(
        self,
        k: Any,
        name: str,
        w: Any,
        g: Any,
        opt: Mapping[str, Any],
        lr: float,
        weight_decay: float,
        t: int,
    ) -> None:
        k.sgd(w, g, opt.get(f"m.{name}"), lr, self.momentum, weight_decay)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with L2 decay in the gradient (as torch.optim.Adam).

    References
    ----------
    Kingma & Ba (2015), arXiv:1412.6980, algorithm 1.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    name: ClassVar[str] = "adam"
    decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise SpecError(
                f"{self.name} needs beta1 and beta2 in [0, 1) and eps above 0; "
                f"got {self.beta1}, {self.beta2}, {self.eps}."
            )

    def slots(self, name: str, w: np.ndarray) -> dict[str, np.ndarray]:
        return {f"m.{name}": np.zeros_like(w), f"v.{name}": np.zeros_like(w)}

    def apply(
        self,
        k: Any,
        name: str,
        w: Any,
        g: Any,
        opt: Mapping[str, Any],
        lr: float,
        weight_decay: float,
        t: int,
    ) -> None:
        m, v = opt[f"m.{name}"], opt[f"v.{name}"]
        betas = self.beta1, self.beta2
        k.adam(w, g, m, v, lr, *betas, self.eps, weight_decay, self.decoupled, t)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled decay, ``w = w (1 - lr weight_decay)`` (as torch.optim.AdamW).

    References
    ----------
    Loshchilov & Hutter (2019), arXiv:1711.05101, algorithm 2.
    """

    name: ClassVar[str] = "adamw"
    decoupled: ClassVar[bool] = True


OPTIMIZERS: dict[str, type[Optimizer]] = {c.name: c for c in (SGD, Adam, AdamW)}


def optimizer(name: str, **settings: Any) -> Optimizer:
    """An optimizer by name; SpecError for unknown names and settings.

    Examples
    --------
    >>> optimizer("sgd", lr=0.1, momentum=0.9).lr
    0.1
    """
    if name not in OPTIMIZERS:
        raise SpecError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}.")
    kind = OPTIMIZERS[name]
    known = {f.name for f in fields(kind)}
    for s in settings:
        if s not in known:
            raise SpecError(f"{name} has no setting {s!r}; it has {', '.join(sorted(known))}.")
    return kind(**settings)
