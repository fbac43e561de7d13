"""The locality audit: what each layer's update was made of, measured, never written by hand.

One step of a rule on a small network is recorded: every entry into every layer, with what came
in.  Then each layer is rebuilt alone in a fresh process, fed its own mail again, and has to learn
the same, bit for bit (``replay``).  What it proves, and what not: docs/locality.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.audit.replay import AUTOGRAD, Mail, replayed
from fflearn.audit.transcript import Transcript
from fflearn.base import DOWNWARD
from fflearn.checks import CHAIN, Bench, learned, samples
from fflearn.errors import LocalityError, ShapeError, SpecError
from fflearn.locality import blind_change, of_layer, poison
from fflearn.random import Key
from fflearn.registry import Variant
from fflearn.state import write_atomically
from fflearn.training import make_engine

STEPS_BEFORE = 2  # what a rule keeps between steps in the wrong place shows in the third
COLUMNS = (
    "weight transport",
    "backward pass",
    "phases",
    "stored activity",
    "update locking",
    "autograd",
)
NUDGE = 1e-4  # of a weight matrix's norm


@dataclass(frozen=True)
class Layer:
    """What was measured of one layer.

    Attributes
    ----------
    replays : bool
        Alone in a fresh process, fed its own mail, it learns the same bits.
    why : str
        What differed, if it does not.
    reads_weights : bool
        Its update changes, or is lost, when the weights of other layers are hidden.
    passes, sweeps, messages_down : int
        How often it fired, relaxed, and sent something down.
    delay : int
        Entries into other layers between its last firing and its update: 0 is no update locking.
    influence : tuple of float
        By layer j: relative change of its update over the relative change of W_j that made it.
    """

    name: str
    replays: bool
    why: str
    reads_weights: bool
    passes: int
    sweeps: int
    messages_down: int
    delay: int
    influence: tuple[float, ...]


@dataclass(frozen=True)
class Audit:
    """What was measured of a rule, and what it declares.

    Attributes
    ----------
    rule, net : str
    refused : str
        Why the engine stopped the rule, if it did; then nothing was measured.
    layers : tuple of Layer
    floats : dict of str to float
        Per sample, by channel, as the ledger counted.
    stored : float
        Arrays kept alive for learning, in units of the activity of one pass.
    autograd : bool
        Whether a package that differentiates was loaded by the rule.
    declared : tuple of str
    """

    rule: str
    net: str
    refused: str = ""
    layers: tuple[Layer, ...] = ()
    floats: dict[str, float] | None = None
    stored: float = 0.0
    autograd: bool = False
    declared: tuple[str, ...] = ()

    @property
    def cheating(self) -> list[str]:
        """Layers that learn from something that no declared channel brought them."""
        declared = self._declares_transport
        return [
            layer.name
            for layer in self.layers
            if not layer.replays or (layer.reads_weights and not declared)
        ]

    @property
    def _declares_transport(self) -> bool:
        return bool({"transpose", "sign"} & set(self.declared))

    @property
    def ok(self) -> bool:
        """Nothing was refused, no layer cheats, and what was measured is what is declared."""
        return not self.refused and not self.cheating and not self.disagreements()

    def verdict(self) -> dict[str, str]:
        """The table of what the rule needs, measured."""
        if self.refused:
            return {"refused": self.refused}
        transport = "no"
        if any(layer.reads_weights for layer in self.layers):
            transport = "signs" if "sign" in (self.floats or {}) else "yes"
        passes = max(layer.passes for layer in self.layers)
        sweeps = max(layer.sweeps for layer in self.layers)
        found = (
            transport,
            "yes" if any(layer.messages_down for layer in self.layers) else "no",
            f"{passes} forward" + (f", {sweeps} settling" if sweeps else ""),
            f"{self.stored:.2g} passes",
            "yes" if any(layer.delay for layer in self.layers) else "no",
            "yes" if self.autograd else "no",
        )
        return dict(zip(COLUMNS, found, strict=True))

    def disagreements(self) -> list[str]:
        """Where the measured table differs from what the rule declares."""
        found = self.verdict()
        told = []
        if (found["weight transport"] != "no") != self._declares_transport:
            told.append(
                f"weight transport: {found['weight transport']}, and declares {self.declared}"
            )
        down = any(c.value in self.declared for c in DOWNWARD)
        if (found["backward pass"] == "yes") != down:
            told.append(f"backward pass: {found['backward pass']}, and declares {self.declared}")
        if set(self.floats or {}) - {"activity"} != set(self.declared):
            told.append(f"used {sorted(self.floats or {})}, and declares {self.declared}")
        if self.autograd:
            told.append("a package for automatic differentiation was loaded")
        return told

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what was measured and what follows from it."""
        return asdict(self) | {
            "verdict": self.verdict(),
            "cheating": self.cheating,
            "ok": self.ok,
        }


def audit(rule: str | Variant, hidden: str = CHAIN, rows: int = 7) -> Audit:
    """Measure the locality of a rule on a small network.

    Parameters
    ----------
    rule : str
        As the command line writes it: "dfa", "dfa[scale=2]", "my_rule.py".
    hidden : str
        Spec of the layers before the output layer of three units; samples are (11,).
    rows : int
        Samples in the batch.

    Raises
    ------
    SpecError
        The rule is unknown, or cannot train such a network.
    """
    variant = registry.parse(rule) if isinstance(rule, str) else rule
    loaded = set(sys.modules)
    engine = make_engine(
        f"{hidden} | dense 3",
        variant,
        (11,),
        3,
        backend="reference",
        dtype="float64",
        horizon=(10, 2),
        mode="eager",  # the code itself is on trial, also where recording would stop it
    )
    declared = tuple(sorted(c.value for c in engine.rule.channels))
    state = engine.init(0)
    tried = Bench(engine, state, samples(rows, 3))
    try:
        for step in range(STEPS_BEFORE):
            engine.step(state, samples(rows, 3, seed=step + 1))
        transcript = Transcript(tried)
        layers, autograd = _layers(variant, tried, transcript)
    except LocalityError as e:
        return Audit(variant.label, engine.net.spec(), str(e), declared=declared)
    _, ledger = engine.step(state.copy(), tried.batch)
    per_pass = ledger.one_forward * rows * np.dtype(engine.dtype).itemsize
    return Audit(
        variant.label,
        engine.net.spec(),
        "",
        layers,
        ledger.per_sample(),
        ledger.peak_bytes / per_pass,
        autograd or bool((set(sys.modules) - loaded) & set(AUTOGRAD)),
        declared,
    )


def _layers(
    variant: Variant, tried: Bench, transcript: Transcript
) -> tuple[tuple[Layer, ...], bool]:
    """What was measured of each layer, and whether hooks loaded a package that differentiates."""
    engine = tried.engine
    hidden, blind = poison(tried), _blind(variant)
    influence = _influence(tried)
    mail = [Mail(variant, engine, transcript, i) for i in range(len(engine.specs))]
    found = []
    replays = replayed(mail)
    for spec, (why, _) in zip(engine.specs, replays, strict=True):
        i = spec.index
        calls = [call.hook for call in transcript.calls if call.layer == i]
        reads = spec.name in hidden.depend or i in blind
        found.append(
            Layer(
                spec.name,
                not why,
                why,
                reads,
                calls.count("forward"),
                calls.count("relax"),
                transcript.messages_down[i],
                transcript.delay(i),
                tuple(influence[i].tolist()),
            )
        )
    return tuple(found), any(r.autograd for r in replays)


def _blind(variant: Variant) -> set[int]:
    """Layers whose updates see a change of others' weights that no activity sees."""
    engine = make_engine(
        f"{CHAIN} | dense 2",
        variant,
        (11,),
        2,
        backend="reference",
        dtype="float64",
        horizon=(10, 2),
    )
    found = blind_change(Bench(engine, engine.init(0), samples(2, 2)))
    return {i for i, v in enumerate(found.layers) if not (v.finite and v.identical)}


def _influence(tried: Bench) -> np.ndarray:
    """(layers, layers): how much the update of layer l changes with the weights of layer j."""
    engine, state, batch = tried
    depth = len(engine.specs)
    clean = list(learned(engine, engine.updates(state, batch)))
    table = np.zeros((depth, depth))
    for j, layer in enumerate(engine.net.leaves):
        if not layer.weights:
            continue
        moved = state.copy()
        for name in layer.weights:
            w = moved.params[j][name]
            noise = Key(0).fold("audit", j, name).normal(w.shape, np.float64)
            moved.params[j][name] = w + noise * (NUDGE * np.linalg.norm(w) / np.linalg.norm(noise))
        found = list(learned(engine, engine.updates(moved, batch)))
        for i in range(depth):
            a = np.concatenate([g.ravel() for _, g in of_layer(clean, i)] or [np.zeros(0)])
            b = np.concatenate([g.ravel() for _, g in of_layer(found, i)] or [np.zeros(0)])
            size = np.linalg.norm(a)
            table[i, j] = np.linalg.norm(b - a) / size / NUDGE if size else 0.0
    return table


def keep_audits(rules: Iterable[str], folder: str | Path) -> None:
    """Write an audit of each rule into ``audit/`` of a folder, unless it is there.

    A rule that cannot train the small network of an audit is left out.
    """
    folder = Path(folder) / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    for rule in rules:
        path = folder / (re.sub(r"[^\w.=+-]+", "_", rule) + ".json")
        if path.exists():
            continue
        try:
            found = audit(rule)
        except (SpecError, ShapeError):
            continue
        write_atomically(path, (json.dumps(found.to_dict(), indent=1) + "\n").encode())


def table(audits: Sequence[Audit]) -> str:
    """One row per rule, and below it whatever is wrong."""
    rows, wrong = [], []
    for a in audits:
        found = a.verdict()
        if a.refused:
            wrong.append(f"{a.rule} was refused: {a.refused}")
            continue
        same = sum(layer.replays for layer in a.layers)
        rows.append((a.rule, f"{same} of {len(a.layers)} layers", *found.values()))
        wrong += [f"{a.rule} cheats in layer {name!r}" for name in a.cheating]
        wrong += [f"{a.rule}: {what}" for what in a.disagreements()]
    head = ("rule", "replay", *COLUMNS)
    width = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()
        for row in [head, tuple("-" * w for w in width), *rows]
    ]
    return "\n".join([*lines, *([""] if wrong else []), *wrong])


__all__ = ["Audit", "Layer", "audit", "keep_audits", "table"]
