"""Objectives: a loss per sample and its derivative, one kind per file.

An objective compares a layer's output with what it should be.  At the network's output the
target is the label; inside, it is what the rule broadcasts (for `goodness`, the phase).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from fflearn.base import Readout
from fflearn.errors import SpecError


@dataclass(frozen=True)
class Objective:
    """Base of every objective."""

    kind: ClassVar[str]
    at_output: ClassVar[bool] = True  # can train the network's output against targets
    classes: ClassVar[bool] = True  # its targets must be classes, and no other numbers
    slopes: ClassVar[bool] = True  # has derivatives other than 0

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        """(B, *out) and its target -> loss (B,) and d loss_i / d y (B, *out), no batch mean.

        At the output, (B, *places, C) may come with class ids (B, *places); the loss of a sample
        is the mean over its places, so its error carries 1 / places.
        """
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[tuple[Objective, str]]:
        """Objectives of this kind, each with the target the shared tests feed it:
        "one-hot", "real" or "phase"."""
        raise NotImplementedError


def over_places(
    k: Any, core: Callable[[Any, Any], tuple[Any, Any]], y: Any, target: Any
) -> Readout:
    """The mean over each sample's places of ``core(y, t) -> loss (rows,), error (rows, C)``.

    Parameters
    ----------
    y : array, shape (B, *places, C)
    target : array, shape (B, *places, C), or class ids of shape (B, *places)
    """
    if target.shape != y.shape:
        target = k.one_hot(target, y.shape[-1], y.dtype)
    flat = y.reshape(-1, y.shape[-1])
    loss, error = core(flat, target.reshape(flat.shape))
    places = len(flat) // len(y)
    if places > 1:
        loss, error = loss.reshape(len(y), places).mean(axis=1), error / places
    return Readout(loss, error.reshape(y.shape))


def names() -> list[str]:
    """Kinds of objectives, found by listing this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


@cache
def load(kind: str) -> type[Objective]:
    """The objective class of a kind; SpecError lists the known ones."""
    if kind not in names():
        raise SpecError(f"unknown objective {kind!r}; known: {', '.join(names())}.")
    module = import_module(f"fflearn.objectives.{kind}")
    (found,) = (
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Objective) and c.__module__ == module.__name__
    )
    return found
