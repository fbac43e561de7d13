"""Locality, measured: does a layer's update depend on weights it was never sent?

Two measurements, both on `Engine.updates`, neither looking at a rule's code:

Poison.  To judge layer l, the parameters of all other layers are NaN in every hook but `forward`
(and `relax`, where a layer's own activity goes up): the update of a local rule stays finite and
bit-identical.  A message sent down may therefore not depend on the sender's weights.

Blind change.  The weights of layer j are changed where its inputs have no component, so that every
activity stays as it is; then only a copy of the weights themselves, taken at whatever moment, can
change the update of another layer.

A rule that declares SIGN or TRANSPOSE is the control: poison must show in its updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.base import Channel, LayerView, Shown
from fflearn.bus import Bus
from fflearn.checks import BRANCHES, CHAIN, CHECKS, Bench, Make, bench, learned
from fflearn.layers import Layer
from fflearn.layers.block import HEAD, Block
from fflearn.state import State
from fflearn.topology import map_leaves

CARRIES_WEIGHTS = frozenset({Channel.SIGN, Channel.TRANSPOSE})


@dataclass(frozen=True)
class Verdict:
    """What the measurement found in one layer."""

    layer: str
    finite: bool
    identical: bool


@dataclass(frozen=True)
class Report:
    """What the measurement found in every layer, against what the rule declares."""

    layers: tuple[Verdict, ...]
    transport: bool

    @property
    def depend(self) -> list[str]:
        """Layers whose updates depend on the weights of others."""
        return [v.layer for v in self.layers if not (v.finite and v.identical)]

    @property
    def verdict(self) -> str:
        """In words; "violation" and "control failed" are the bad ones."""
        if not self.depend:
            if self.transport:
                return "control failed: it declares weight transport, but no update shows it"
            return "local"
        if self.transport:
            return "needs weight transport, and declares it"
        return "violation: undeclared weight transport into " + ", ".join(self.depend)

    @property
    def ok(self) -> bool:
        """Whether the verdict agrees with the declared channels."""
        return bool(self.depend) == self.transport


class PoisonBus(Bus):
    """A bus that hides the weights of all layers but the judged one while hooks run."""

    def __init__(self, *args: Any, judged: int, **named: Any):
        super().__init__(*args, **named)
        self._judged = judged

    def _call(self, hook: str, v: LayerView, *args: Any) -> Any:
        if hook == "forward":  # its channel is the activity going up, which may use the weights
            return super()._call(hook, v, *args)
        seen = {self._judged, v.spec.index} if hook == "relax" else {self._judged}
        with poisoned(self._state, seen):
            return super()._call(hook, v, *args)


@contextmanager
def poisoned(state: State, but: set[int]) -> Iterator[None]:
    """Parameters of all layers but some are NaN, in place; afterwards what they were."""
    others = [slots for i, slots in enumerate(state.params) if i not in but]
    kept = [{n: a.copy() for n, a in slots.items()} for slots in others]
    try:
        with np.errstate(all="ignore"):
            for slots in others:
                for name in slots:
                    slots[name] = np.nan
            yield
    finally:
        for slots, values in zip(others, kept, strict=True):
            for name, a in values.items():
                slots[name] = a


def of_layer(found: list[tuple[str, np.ndarray]], layer: int) -> list[tuple[str, np.ndarray]]:
    """One layer's tensors among those that `checks.learned` yields."""
    return [(path, g) for path, g in found if path.startswith(f"{layer}/")]


def poison(tried: Bench) -> Report:
    """Judge every layer of a network by hiding the weights of all others."""
    engine, state, batch = tried
    clean = list(learned(engine, engine.updates(state, batch)))
    verdicts = []
    for spec in engine.specs:
        wire: Any = partial(PoisonBus, judged=spec.index)
        with np.errstate(all="ignore"):  # what the schedule reads out is not a number either
            seen = of_layer(list(learned(engine, engine.updates(state, batch, wire))), spec.index)
        expected = of_layer(clean, spec.index)
        finite = all(np.isfinite(g).all() for _, g in seen)
        same = len(seen) == len(expected) and all(
            p == q and a.tobytes() == b.tobytes()
            for (p, a), (q, b) in zip(seen, expected, strict=True)
        )
        verdicts.append(Verdict(spec.name, finite, same))
    return Report(tuple(verdicts), bool(CARRIES_WEIGHTS & engine.rule.channels))


Heard = dict[str, list[np.ndarray]]  # what was applied to each weight matrix of a layer, by name


class _Ear:
    """A layer that notes what its weights are applied to."""

    def __init__(self, layer: Any, heard: list[np.ndarray]):
        self._layer, self._heard = layer, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def forward(self, *args: Any) -> Any:
        t = self._layer.forward(*args)
        shared = isinstance(t.x, Shown)
        self._heard.append(t.x.whole.reshape(len(t.y), -1) if shared else t.inner)
        return t

    def jvp(self, k: Any, t: Any, dx: Any, dp: Any) -> Any:
        if dx is not None:
            rows = dx.reshape(len(dx), -1)
            normal = self._layer.norm == "none"
            self._heard.append(
                rows if normal else k.normalize_jvp(rows, t.x, t.inner, self._layer.norm)
            )
        return self._layer.jvp(k, t, dx, dp)

    def push(self, k: Any, t: Any, dx: Any, dp: Any) -> Any:
        return Layer.push(self, k, t, dx, dp)  # type: ignore[arg-type]  # which goes by this jvp


class ListeningBus(Bus):
    """A bus that notes the inputs of every weight matrix, in all passes and sweeps."""

    def __init__(self, *args: Any, heard: list[Heard], **named: Any):
        super().__init__(*args, **named)
        for v, rows in zip(self._views, heard, strict=True):
            v._layer = _listening(v._layer, rows)


def _listening(layer: Any, heard: Heard, path: str = "") -> Any:
    """The layer with an ear on its weights; on those of each layer inside, if it is a block."""
    if not isinstance(layer, Block):
        return _Ear(layer, heard.setdefault(f"{path}W", []))

    def ears(body: Any, path: str) -> Any:
        number = count()
        return map_leaves(body, lambda leaf: _listening(leaf, heard, f"{path}{next(number)}."))

    head = None if layer.head is None else ears(layer.head, f"{path}{HEAD}.")
    return Block(ears(layer.body, path), head)


def blind_change(tried: Bench, tolerance: float = 1e-9) -> Report:
    """Judge every layer by changing the weights of the others where no input sees it.

    The layers must be dense, or blocks of dense layers.  A layer whose inputs span all directions
    cannot be changed so.
    """
    engine, state, batch = tried
    heard: list[Heard] = [{} for _ in engine.specs]
    wire: Any = partial(ListeningBus, heard=heard)
    clean = list(learned(engine, engine.updates(state, batch, wire)))
    depends = [False for _ in engine.specs]
    for changed, inputs in enumerate(heard):
        before = {name: state.params[changed][name].copy() for name in inputs}
        for name, rows in inputs.items():
            w = state.params[changed][name]
            unseen = _unseen(np.concatenate([*rows, np.zeros((1, len(w)))]))
            # Ten times the weights' own size, so that signs flip too.
            w += unseen @ (10 * np.abs(w).max() * np.sign(unseen.T @ w))
        found = list(learned(engine, engine.updates(state, batch)))
        for name, w in before.items():
            state.params[changed][name] = w
        for layer in range(len(depends)):
            if layer != changed:
                pairs = zip(of_layer(clean, layer), of_layer(found, layer), strict=True)
                depends[layer] |= any(_far(b, a) > tolerance for (_, a), (_, b) in pairs)
    verdicts = [Verdict(s.name, True, not d) for s, d in zip(engine.specs, depends, strict=True)]
    return Report(tuple(verdicts), bool(CARRIES_WEIGHTS & engine.rule.channels))


def _unseen(inputs: np.ndarray) -> np.ndarray:
    """Orthonormal columns of the directions in which no row of ``inputs`` has a component."""
    parts = np.concatenate([inputs.real, inputs.imag])  # complex states see with either
    _, sizes, rows = np.linalg.svd(parts, full_matrices=True)
    rank = int((sizes > 1e-10 * sizes.max()).sum())
    return rows[rank:].T


def _far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-300)


# ---- as checks ------------------------------------------------------------------------------------


def stays_local(make: Make) -> None:
    """Updates depend on no weights of other layers, unless the channels say so."""
    for hidden in (CHAIN, BRANCHES):
        for rows in (1, 7):
            tried = bench(make, hidden, rows=rows)
            before = tried.state.copy()
            report = poison(tried)
            assert report.ok, f"{report.verdict} ({rows} samples)"
            kept = all((a == before.arrays()[p]).all() for p, a in tried.state.arrays().items())
            assert kept, "the check itself left the state changed."


def keeps_no_copy_of_weights(make: Make) -> None:
    """Changing weights without changing any activity changes no other layer's update."""
    report = blind_change(bench(make, n_classes=2, rows=2))
    assert report.transport or report.ok, report.verdict


ALL = (stays_local, keeps_no_copy_of_weights, *CHECKS)


def check(name: str) -> list[tuple[str, str]]:
    """Run every check on a rule and its variants.

    Parameters
    ----------
    name : str
        A rule's name, or the path of a Python file with one rule.

    Returns
    -------
    list of (str, str)
        The check, with the variant in brackets, and "ok" or what is wrong.
    """
    kind = registry.rule_class(name)
    found = []
    for label, settings in {"": {}, **kind.variants}.items():
        make = partial(registry.rule, name, **settings)
        for run in ALL:
            title = f"{run.__name__}[{label}]" if label else run.__name__
            found.append((title, _outcome(run, make)))
    return found


def _outcome(run: Any, make: Make) -> str:
    try:
        run(make)
    except AssertionError as e:
        return str(e) or "failed"
    except Exception as e:  # noqa: BLE001 - whatever a rule under test raises is its result
        return f"{type(e).__name__}: {e}"
    return "ok"


__all__ = ["ALL", "Report", "blind_change", "check", "poison"]
