"""Probes: numbers measured on a network while it learns, layer by layer, that change no bit of it.

A probe of a step is a function ``probe(v, u, g) -> float`` of one layer's view, of what its rule
would learn, and of what backprop would learn from the same batch with the same weights (None where
backprop cannot train that network).  A rule adds probes of its own as methods ``name(v, u)``
listed in `Rule.probes`.  A probe of what a layer holds is a function of its activity on samples of
the training part and of the held-out part (`HELD`).  None or nan means: nothing to measure here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fflearn import registry, representations
from fflearn.base import Array, Batch, Key, LayerView, Rule, Update
from fflearn.bus import Bus
from fflearn.data import DataSet
from fflearn.emergence import hoyer
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.registry import Variant
from fflearn.state import State

Probe = Callable[[LayerView, Update, Update | None], float | None]
SAMPLES = 1000  # at most, of either part of the data, for what layers hold


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


# -- what a layer holds, on samples not learned from ---------------------------------------------
class Held(NamedTuple):
    """A layer's activity while the network predicts, and the labels (N,) or numbers (N, K)."""

    train: Array
    y_train: Array
    held: Array
    y_held: Array


def linear_probe(h: Held) -> float | None:
    """Accuracy on held-out samples of a linear read-out fitted to training samples; of classes.

    See `fflearn.representations.linear_probe`.
    """
    return representations.linear_probe(*h) if h.y_train.ndim == 1 else None


def cka(h: Held) -> float:
    """Similarity of a layer's activity to the labels, one-hot, on held-out samples: 0 to 1.

    1 where the samples of a class are all alike and classes lie equally far apart; of numbers to
    predict, where activity is a rotation of them.  Kornblith et al. (2019), arXiv:1905.00414, eq. 3.
    """
    y = h.y_held
    labels = y if y.ndim > 1 else (y[:, None] == np.unique(y)).astype(float)
    return representations.cka(h.held, labels)


# -- how far a layer has settled -----------------------------------------------------------------
class Relaxing(Bus):
    """A Bus that notes how much each state changed in the last sweep in which it relaxed."""

    def __init__(self, *args: Any, changes: dict[int, float], **named: Any):
        super().__init__(*args, **named)
        self._changes = changes

    def _call(self, hook: str, v: Any, *args: Any) -> Any:
        if hook != "relax" or not self.rule.has_state(v.spec):
            return super()._call(hook, v, *args)
        old = v.state["s"]
        super()._call(hook, v, *args)
        self._changes[v.spec.index] = float(np.abs(v.state["s"] - old).max())


# -- measuring -----------------------------------------------------------------------------------
GRADIENT: dict[str, Probe] = {
    f.__name__: f
    for f in (gradient_angle, gradient_cosine, gradient_norm_ratio, gradient_sign_agreement)
}
PROBES: dict[str, Probe] = GRADIENT | {
    f.__name__: f for f in (dead_units, effective_rank, hoyer_sparsity)
}
HELD: dict[str, Callable[[Held], float | None]] = {f.__name__: f for f in (linear_probe, cka)}
# The largest change of a unit in the last sweep of the step's last settling (of equilibrium
# propagation the nudged one); None of layers and rules that do not relax.
RESIDUAL = "relaxation_residual"


class Probing:
    """Measures probes by name, on one batch, of a network as it stands.

    Parameters
    ----------
    engine : Engine or TorchEngine
        Nothing is measured in the latter.
    batch : Batch
        Fixed, so that one measurement can be compared with the next.
    names : iterable of str
        Of `PROBES`, `HELD`, `RESIDUAL` and of the rule's own; what another rule has is left out
        here.
    data : Data, optional
        What `HELD` looks at: at most `SAMPLES` of its training and test part each, of data with one
        label or row of numbers per sample.  Without it those are left out.

    Raises
    ------
    SpecError
        A name that no rule knows.
    """

    def __init__(self, engine: Any, batch: Batch, names: Iterable[str], data: Any = None):
        self.engine, self.batch = engine, batch
        known = [n for n in names if _known(engine.rule, n)]
        names = known if isinstance(engine, Engine) else []  # the reference path has no views
        own = {n: _own(engine.rule, n) for n in names if n in engine.rule.probes}
        self.probes: dict[str, Probe] = {n: PROBES[n] for n in names if n in PROBES} | own
        self.held = {n: HELD[n] for n in names if n in HELD}
        self.residual = RESIDUAL in names
        self.samples = _samples(data) if self.held else None
        self.exact = exact_engine(engine) if GRADIENT.keys() & self.probes.keys() else None

    def measure(self, state: State) -> dict[str, float | None]:
        """``{"name/layer index": value}``; None where there was nothing to measure."""
        gradients = self._gradients(state)
        found: dict[str, float | None] = {}
        changes: dict[int, float] = {}

        def observe(v: LayerView, u: Update) -> None:
            for name, probe in self.probes.items():
                found[f"{name}/{v.spec.index}"] = probe(v, u, gradients.get(v.spec.index))

        with np.errstate(all="ignore"):
            if self.probes or self.residual:
                wire: Any = partial(Relaxing, changes=changes)
                self.engine.observed(state, self.batch, observe, wire)
            found |= self._of_what_layers_hold(state)
        if self.residual:
            found |= {f"{RESIDUAL}/{s.index}": changes.get(s.index) for s in self.engine.specs}
        finite = {n: value is not None and math.isfinite(value) for n, value in found.items()}
        by_layer = sorted(found, key=lambda n: int(n.rpartition("/")[2]))
        return {n: found[n] if finite[n] else None for n in by_layer}

    def _of_what_layers_hold(self, state: State) -> dict[str, float | None]:
        if self.samples is None:
            return {}
        x, y, x_held, y_held = self.samples
        train, held = (representations.in_use(self.engine, state, a) for a in (x, x_held))
        learning = [s.index for s in self.engine.specs if s.learns and s.index in train]
        return {
            f"{name}/{layer}": probe(Held(train[layer], y, held[layer], y_held))
            for name, probe in self.held.items()
            for layer in learning
        }

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


def _known(rule: Rule, name: str) -> bool:
    """Whether a probe can be measured with a rule; SpecError where no rule has it."""
    if name in {*PROBES, *HELD, RESIDUAL, *rule.probes}:
        return True
    if name not in (known := known_probes()):
        raise SpecError(f"there is no probe {name!r}; there are: {', '.join(known)}.")
    return False


def _own(rule: Rule, name: str) -> Probe:
    own = getattr(rule, name)
    return lambda v, u, g: own(v, u)


def known_probes() -> list[str]:
    """Names of all probes, those of the rules among them."""
    own = (n for r in registry.names() for n in registry.rule_class(r).probes)
    return [*PROBES, *HELD, RESIDUAL, *dict.fromkeys(own)]


def _samples(data: Any) -> tuple[Array, Array, Array, Array] | None:
    """Samples and labels of the training and of the test part, the same in every run."""
    if not isinstance(data, DataSet):
        return None
    key = Key(0).fold("probes")
    train, held = (key.permutation(n)[:SAMPLES] for n in (data.n_train, data.test_n))
    return data.x_train[train], data.y_train[train], data.x_test[held], data.y_test[held]
