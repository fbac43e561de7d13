"""Probes: numbers measured on a network while it learns, layer by layer, that change no bit of it.

A probe is a function ``probe(v, u, g) -> float`` of one layer's view, of what its rule would
learn, and of what backprop would learn from the same batch with the same weights (None where
backprop cannot train that network).  None or nan means: nothing to measure here.  A rule adds
probes of its own as methods ``name(v, u)`` listed in `Rule.probes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.base import Array, Batch, LayerView, Rule, Update
from fflearn.emergence import hoyer
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.registry import Variant
from fflearn.state import State

Probe = Callable[[LayerView, Update, Update | None], float | None]


# -- the rule's update beside the true gradient --------------------------------------------------
def gradient_angle(v: LayerView, u: Update, g: Update | None) -> float | None:
    """Degrees between the update and the gradient: 90 is unrelated, below 90 the loss falls."""
    return angle(v.k, u, g)


def gradient_cosine(v: LayerView, u: Update, g: Update | None) -> float | None:
    """Cosine of that angle."""
    return cosine(v.k, u, g)


def gradient_norm_ratio(v: LayerView, u: Update, g: Update | None) -> float | None:
    """|update| / |gradient|."""
    a, b = _both(v.k, u, g)
    return math.sqrt((a @ a) / (b @ b)) if b.any() else None


def gradient_sign_agreement(v: LayerView, u: Update, g: Update | None) -> float | None:
    """Part of the gradient's entries other than 0 whose sign the update has: chance is 0.5."""
    a, b = _both(v.k, u, g)
    return float((a * b > 0).sum() / np.count_nonzero(b)) if b.any() else None


def angle(k: Any, one: Update, two: Update | None) -> float | None:
    """Degrees between what two rules would learn in a layer; None where one of the two is 0."""
    c = cosine(k, one, two)
    return None if c is None else math.degrees(math.acos(min(max(c, -1.0), 1.0)))


def cosine(k: Any, one: Update, two: Update | None) -> float | None:
    """Cosine of that angle."""
    a, b = _both(k, one, two)
    norms = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / norms) if norms else None


def _both(k: Any, one: Update, two: Update | None) -> tuple[Array, Array]:
    """Both as vectors in float64, over the parameters that both give a gradient."""
    names = sorted(one.grads.keys() & two.grads.keys()) if two is not None else []
    if two is None or not names:
        return np.zeros(0), np.zeros(0)
    return _vector(k, one, names), _vector(k, two, names)


def _vector(k: Any, u: Update, names: list[str]) -> Array:
    return np.concatenate([np.ravel(k.formed(u.grads[n])).astype(float) for n in names])


# -- what a layer's activity looks like ----------------------------------------------------------
def dead_units(v: LayerView, u: Update, g: Update | None) -> float | None:
    """Part of the units that are 0 for every sample and place of the batch."""
    y = _activity(v)
    return None if y is None else float((~y.any(axis=0)).mean())


def effective_rank(v: LayerView, u: Update, g: Update | None) -> float | None:
    """Dimensions that the activity spreads over: exp of the entropy of its normalised spectrum.

    Of the singular values of the centred activity.  Roy & Vetterli (2007), "The effective rank",
    EUSIPCO, sec. 2.
    """
    y = _activity(v)
    if y is None:
        return None
    s = np.linalg.svd(y - y.mean(axis=0), compute_uv=False)
    p = s[s > 0] / s.sum() if s.any() else s[:0]
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def hoyer_sparsity(v: LayerView, u: Update, g: Update | None) -> float | None:
    """Mean of Hoyer's sparsity over samples and places, without those where all units are 0."""
    y = _activity(v)
    if y is None or y.shape[1] < 2:
        return None
    found = hoyer(y)
    there = np.isfinite(found)
    return float(found[there].mean()) if there.any() else None


def _activity(v: LayerView) -> Array | None:
    """(samples times places, units) of the pass "x" in float64; None where it left no trace."""
    if "x" not in v.traces or not np.ndim(y := v.traces["x"].y) > 1:
        return None
    return y.reshape(-1, y.shape[-1]).astype(float)


# -- measuring -----------------------------------------------------------------------------------
PROBES: dict[str, Probe] = {
    f.__name__: f
    for f in (
        gradient_angle,
        gradient_cosine,
        gradient_norm_ratio,
        gradient_sign_agreement,
        dead_units,
        effective_rank,
        hoyer_sparsity,
    )
}


class Probing:
    """Measures probes by name, on one batch, of a network as it stands.

    Parameters
    ----------
    engine : Engine or TorchEngine
        Nothing is measured in the latter.
    batch : Batch
        Fixed, so that one measurement can be compared with the next.
    names : iterable of str
        Of `PROBES` and of the rule's own; what another rule has is left out here.

    Raises
    ------
    SpecError
        A name that no rule knows.
    """

    def __init__(self, engine: Any, batch: Batch, names: Iterable[str]):
        self.engine, self.batch = engine, batch
        ours = isinstance(engine, Engine)  # the reference path has no views
        self.probes = {n: p for n in names if (p := _probe(engine.rule, n)) and ours}
        self.exact = exact_engine(engine) if self.probes else None

    def measure(self, state: State) -> dict[str, float | None]:
        """``{"name/layer index": value}``; None where there was nothing to measure."""
        gradients = self._gradients(state)
        found: dict[str, float | None] = {}

        def observe(v: LayerView, u: Update) -> None:
            for name, probe in self.probes.items():
                value = probe(v, u, gradients.get(v.spec.index))
                known = value is not None and math.isfinite(value)
                found[f"{name}/{v.spec.index}"] = value if known else None

        if self.probes:
            with np.errstate(all="ignore"):
                self.engine.observed(state, self.batch, observe)
        return found

    def _gradients(self, state: State) -> dict[int, Update]:
        if self.exact is None:
            return {}
        with np.errstate(all="ignore"):
            return dict(
                enumerate(self.exact.updates(with_weights_of(state, self.exact), self.batch))
            )


def exact_engine(engine: Engine) -> Engine | None:
    """Backprop on the network that a rule trains, or None where it cannot train that."""
    try:
        exact = Engine(
            engine.net,
            registry.build(Variant("backprop")),
            engine.in_shape,
            engine.n_classes,
            objective=engine.objective,
            backend=engine.backend,
            dtype=engine.dtype,
            threads=engine.threads,
            task=engine.task,
        )
    except SpecError:
        return None
    same = [(s.in_shape, s.out_shape) for s in engine.specs]
    return exact if same == [(s.in_shape, s.out_shape) for s in exact.specs] else None


def with_weights_of(state: State, engine: Engine) -> State:
    """A state of another rule's engine with these parameters, at the same step of training."""
    twin = engine.init(state.seed)
    twin.step = state.step
    for mine, theirs in zip(twin.params, state.params, strict=True):
        for name in mine:
            mine[name] = theirs[name]
    return twin


def _probe(rule: Rule, name: str) -> Probe | None:
    if name in PROBES:
        return PROBES[name]
    if name in rule.probes:
        own = getattr(rule, name)
        return lambda v, u, g: own(v, u)
    known = known_probes()
    if name not in known:
        raise SpecError(f"there is no probe {name!r}; there are: {', '.join(known)}.")
    return None


def known_probes() -> list[str]:
    """Names of all probes, those of the rules among them."""
    own = (n for r in registry.names() for n in registry.rule_class(r).probes)
    return [*PROBES, *dict.fromkeys(own)]
