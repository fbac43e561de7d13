"""Layers: pure functions of parameters, one kind per file; the file's name is the kind's name.

A layer holds sizes and names, never arrays.  Its derivatives are written by hand; nothing here
is differentiated by a machine.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from fflearn.base import NO_A, Point, Trace
from fflearn.errors import SpecError
from fflearn.kernels.reference import BY_INPUT
from fflearn.topology import plus


@dataclass(frozen=True)
class Layer:
    """Base of every layer: a core with parameters, then a pointwise activation.

    ``a = core(x)`` is the pre-activation and ``y = act(a)`` the activity.  In all methods ``k``
    is the table of kernels, ``p`` the parameters by name, ``t`` the `Trace` of a forward, and
    ``da`` the per-sample d loss_i / d a of shape (B, *out).
    """

    kind: ClassVar[str]
    learns: ClassVar[bool] = True  # has parameters
    slopes: ClassVar[bool] = True  # has derivatives other than 0
    weights: ClassVar[tuple[str, ...]] = ()  # parameters that are weight matrices
    buffers: ClassVar[tuple[str, ...]] = ()  # parameters that no gradient moves
    couples_samples: ClassVar[bool] = False  # one sample's output depends on the others
    draws: ClassVar[bool] = False  # it draws noise for each sample
    shares: ClassVar[bool] = False  # forward and param_vjp take a `Shown` in the place of x
    words: ClassVar[tuple[str, ...]] = ()  # fields that a spec string gives by position

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        """Layers of this kind with an input shape each, for the shared tests."""
        raise NotImplementedError

    def example_batch(
        self, rng: Any, rows: int, in_shape: tuple[int, ...]
    ) -> tuple[Any, dict[str, Any]]:
        """Inputs (rows, *in) and side data for the shared tests."""
        return rng.normal(size=(rows, *in_shape)), {}

    @property
    def linear(self) -> bool:
        """Whether the core is linear in its input (relaxation rules need it)."""
        raise NotImplementedError

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Per-sample output shape; raises ShapeError where the input does not fit."""
        raise NotImplementedError

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        """Fresh parameters by name."""
        raise NotImplementedError

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        """Standard deviation of the initial weight matrices, by name."""
        return {}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Any, noise: Any = None) -> Any:
        """(B, *in) -> Trace; ``noise`` (B, *out) is added to the pre-activation."""
        raise NotImplementedError

    def headed(self, k: Any, t: Any, env: Any) -> tuple[Any, int]:
        """A trace that went on through the head, and the floats of activity that took."""
        return t, 0

    @property
    def _act(self) -> str:
        """The pointwise function that ends the layer."""
        return getattr(self, "activation", "identity")

    def act(self, k: Any, a: Any) -> Any:
        """(B, *out) -> (B, *out)."""
        return k.act(a, self._act)

    def act_vjp(self, k: Any, t: Any, dy: Any, into: Any = None) -> Any:
        """d loss/d y -> d loss/d a, both (B, *out); ``into`` is an array that may be written to."""
        return dy if self._act == "identity" else k.act_vjp(dy, t.a, t.y, self._act, into)

    def _needs_a(self, env: Any) -> bool:
        """Whether the pre-activation outlasts the forward."""
        return "a" in env.keeps or self._act in BY_INPUT

    def _fired(
        self, k: Any, p: Any, x: Any, a: Any, env: Any, inner: Any = None, own: bool = False
    ) -> Trace:
        """The trace of a forward, from the pre-activation on, which is the forward's ``own``."""
        keep = self._needs_a(env)
        into = a if own and not keep and self._act != "identity" else None
        return Trace(x, a if keep else NO_A, k.act(a, self._act, into), p, inner)

    def param_vjp(self, k: Any, t: Any, da: Any) -> dict[str, Any]:
        """Batch-mean gradients by name; a weight's may be a `Product` not formed yet."""
        raise NotImplementedError

    def input_vjp(self, k: Any, t: Any, da: Any) -> Any:
        """(B, *out) d loss/d a -> (B, *in) d loss/d x: transposes ``t.params``."""
        raise NotImplementedError

    def jvp(self, k: Any, t: Any, dx: Any, dp: Mapping[str, Any]) -> Any:
        """Tangents of x (or None) and of the parameters -> (B, *out) tangent of y."""
        raise NotImplementedError

    # -- where a rule may move a layer ----------------------------------------------------------
    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        """Whether each place of the output reads that place alone, and what channels are cut into.

        In as many equal parts as divide the number, each part of the channels of the output reads
        the like part alone.  What is not sure is said to mix.
        """
        return False, 1

    def points(self, in_shape: tuple[int, ...]) -> tuple[Point, ...]:
        """The pre-activations that a rule may move: a layer's own."""
        out = self.out_shape(in_shape)
        return (Point("a", out, True, out[-1]),)

    def push(self, k: Any, t: Any, dx: Any, dp: Mapping[str, Any]) -> Any:
        """As `jvp`, with ``dp`` of points too; None where nothing moves."""
        inner = {n: d for n, d in dp.items() if n != "a"}
        up = None if dx is None and not inner else self.jvp(k, t, dx, inner)
        return plus(up, self.act_vjp(k, t, dp["a"])) if "a" in dp else up

    def points_vjp(self, k: Any, t: Any, da: Mapping[str, Any]) -> dict[str, Any]:
        """Batch-mean gradients by name from d loss/d (pre-activation) of each point."""
        live = self.act_vjp(k, t, np.ones_like(t.y)) != 0
        return self.param_vjp(k, t, da["a"] * live)

    def running(self, k: Any, t: Any) -> dict[str, Any]:
        """New values of the `buffers` after the trace of the pass "x" (running statistics)."""
        return {}

    def spec(self) -> str:
        """The layer as `fflearn.network` reads it."""
        parts = [self.kind]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in self.words:
                if f.default is MISSING or value != f.default:
                    parts.append(str(value))
            elif value != f.default:
                parts.append(f"{f.name}={str(value).lower()}")
        return " ".join(parts)


def names() -> list[str]:
    """Kinds of layers, found by listing this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


@cache
def load(kind: str) -> type[Layer]:
    """The layer class of a kind."""
    module = import_module(f"fflearn.layers.{kind}")
    (found,) = (
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Layer) and c.__module__ == module.__name__
    )
    return found


def from_words(kind: str, words: list[str]) -> Layer:
    """``["512", "relu", "norm=rms"]`` -> the layer; raises SpecError."""
    layer = load(kind)
    given = options(kind, words, layer.words, {f.name: f.type for f in fields(layer)})
    missing = [f.name for f in fields(layer) if f.default is MISSING and f.name not in given]
    if missing:
        example = layer.examples()[0][0].spec()
        raise SpecError(f"{kind} needs {missing[0]}. Type for instance: {example}")
    return layer(**given)


def options(
    kind: str, words: list[str], plain: tuple[str, ...], types: Mapping[str, Any]
) -> dict[str, Any]:
    """What the words after a name say: ``512 relu norm=rms`` -> values by option, typed.

    ``plain`` are the options that come without a name, in order; SpecError for a word too many,
    an unknown option, or a value of another type.
    """
    given: dict[str, Any] = {}
    positions = list(plain)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            if not positions:
                raise SpecError(
                    f"{kind} takes {len(plain)} plain words {plain}; {word!r} is one "
                    f"too many. Write options as name=value: {sorted(types)}."
                )
            name, value = positions.pop(0), word
        if name not in types:
            raise SpecError(f"{kind} has no option {name!r}; it has {sorted(types)}.")
        given[name] = _typed(kind, name, value, types[name])
    return given


def _typed(kind: str, name: str, value: str, annotation: Any) -> Any:
    kinds: dict[str, Any] = {
        "int": int,
        "float": float,
        "str": str,
        "bool": {"true": True, "false": False}.get,
    }
    try:
        converted = kinds[str(annotation)](value)
    except ValueError:
        converted = None
    if converted is None:
        raise SpecError(f"{kind} needs {name} of type {annotation}; got {value!r}.")
    return converted
