"""What to run: an Experiment (a TOML file) and the single runs it stands for."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fflearn import registry
from fflearn.errors import SpecError
from fflearn.optim import OPTIMIZERS, Optimizer, optimizer
from fflearn.registry import Variant

NETS = {  # the network of a data set where none is given
    "digits": "dense 256 relu | dense 256 relu | dense 10",
    "cifar10": "dense 1024 relu | dense 512 relu | dense 10",
}
OPTIMIZER_SETTINGS = ("optimizer", "lr", "momentum", "weight_decay", "schedule")


@dataclass(frozen=True)
class Experiment:
    """Several rules on one data set, with the same network, data order, seeds and budget.

    Parameters
    ----------
    name : str
        Names the output folder.
    data : str
        A name that `fflearn.load_data` knows, or the path of a CSV or npz file.
    rules : tuple of str
        Rules, with parameters in brackets: "dfa", "ff[negatives=hard]", "backprop@ff".  Empty:
        every rule that can run here.
    net : str
        Spec string.  Empty: two hidden layers of 256 and one output per class.
    epochs, batch_size : int
    seeds : tuple of int
    objective : str
        At the network's output.
    lr, momentum, weight_decay, optimizer, schedule
        For all rules; None keeps each rule's own default.  ``weight_decay`` may be a list with
        one value per epoch, the last one repeated.
    settings : mapping of str to value
        ``{"rule.param": value}``: a parameter or optimizer setting of one rule, by its name or
        label.
    tune : int
        Learning rates to try per rule, chosen by accuracy on the validation set; 0 or 1 keeps
        the given one.
    adapted : bool
        Also run backprop on every network that a rule adapted.
    patience : int
        Stop after this many epochs without a better validation accuracy; 0 never stops early.
    evaluate_every : int
        Epochs between two evaluations for the curves.
    backend, dtype, threads
        See `fflearn.Engine`.
    """

    name: str = ""
    data: str = "digits"
    rules: tuple[str, ...] = ()
    net: str = ""
    epochs: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    objective: str = "softmax_cross_entropy"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | tuple[float, ...] | None = None
    optimizer: str | None = None
    schedule: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tune: int = 0
    adapted: bool = False
    patience: int = 0
    evaluate_every: int = 1
    backend: str = "numba"
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, kind in _LISTS.items():
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
            if name == "seeds" and isinstance(value, int) and not isinstance(value, bool):
                value = tuple(range(value))  # "3 seeds" are the seeds 0, 1, 2
            if isinstance(value, tuple) and not all(isinstance(v, kind) for v in value):
                raise SpecError(f"{name} needs a list; got {value!r}.")
            object.__setattr__(self, name, value)
        for name in ("epochs", "batch_size", "threads", "evaluate_every"):
            _whole(name, getattr(self, name), 1)
        for name in ("tune", "patience"):
            _whole(name, getattr(self, name), 0)
        if not isinstance(self.seeds, tuple) or not self.seeds:
            raise SpecError(f"seeds needs at least one seed; got {self.seeds!r}. Type --seeds 3")
        for seed in self.seeds:
            _whole("seeds", seed, 0)
        if not self.name:
            object.__setattr__(self, "name", Path(self.data).stem)
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise SpecError(f"name needs letters, digits and . + - _ alone; got {self.name!r}.")

    # -- files -----------------------------------------------------------------------------------
    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Read a TOML file; its keys are the fields, ``[settings]`` a table."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise SpecError(f"the recipe {path} cannot be read: {e}.") from e
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise SpecError(f"the recipe {path} is not TOML: {e}.") from e
        table.pop("published", None)  # numbers to compare with; benchmarks.replay reads them
        return cls.of(f"the recipe {path}", {"name": path.stem, **table})

    @classmethod
    def of(cls, where: str, given: Mapping[str, Any]) -> Experiment:
        """An experiment from fields; SpecError names an unknown one or one of a wrong kind."""
        known = {f.name: f for f in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise SpecError(f"{where} has no field {name!r}; there are: {', '.join(known)}.")
            if not _fits(value, str(known[name].type)):
                raise SpecError(f"{where} needs {name} as {known[name].type}; got {value!r}.")
        return cls(**given)

    def dump(self) -> str:
        """The TOML text that `load` reads back, every option resolved."""
        plain = {n: v for n, v in asdict(self).items() if v is not None and n != "settings"}
        lines = [f"{n} = {_toml(v)}" for n, v in plain.items()]
        if self.settings:
            lines += ["", "[settings]", *(f'"{n}" = {_toml(v)}' for n, v in self.settings.items())]
        return "\n".join(lines) + "\n"

    # -- the runs --------------------------------------------------------------------------------
    def resolved(self, n_classes: int) -> Experiment:
        """The experiment with network and rules spelled out."""
        net = (
            self.net
            or NETS.get(self.data)
            or (f"dense 256 relu | dense 256 relu | dense {n_classes}")
        )
        return replace(self, net=net, rules=self.rules or tuple(available_rules()))

    def runs(self) -> list[Run]:
        """One run per rule and seed, in the order of the rules."""
        variants = [registry.parse(r) for r in self.rules]
        if self.adapted:
            variants += self._yardsticks(variants)
        labels = [v.label for v in variants]
        if len(set(labels)) < len(labels):
            raise SpecError(f"the rules {', '.join(labels)} hold one twice. Name each once.")
        used: set[str] = set()
        found = [self._run(v, seed, used) for v in variants for seed in self.seeds]
        for name in self.settings:
            if name not in used:
                rules = ", ".join(labels)
                raise SpecError(f"the setting {name!r} belongs to none of the rules {rules}.")
        return found

    def _yardsticks(self, variants: list[Variant]) -> list[Variant]:
        from fflearn.networks import network

        net = network(self.net)
        changed = [
            v
            for v in variants
            if v.name != registry.REFERENCE and registry.build(v).adapt(net) != net
        ]
        return [Variant("backprop", {}, v.name) for v in changed]

    def _run(self, variant: Variant, seed: int, used: set[str]) -> Run:
        params, chosen = dict(variant.params), {}
        for n in OPTIMIZER_SETTINGS:
            if getattr(self, n) is not None:
                chosen[n] = getattr(self, n)
        for name, value in self.settings.items():
            rule, _, param = name.rpartition(".")
            if rule not in (variant.label, variant.name) and rule not in _short(variant.name):
                continue
            used.add(name)
            if param in OPTIMIZER_SETTINGS:
                chosen[param] = tuple(value) if isinstance(value, list) else value
            else:
                params.setdefault(param, value)
        return Run(variant, replace(variant, params=params), seed, chosen, self)


def _short(name: str) -> tuple[str, ...]:
    return () if name == registry.REFERENCE else registry.rule_class(name).short


@dataclass(frozen=True)
class Run:
    """One rule with one seed.

    Attributes
    ----------
    shown : Variant
        The rule as tables call it.
    variant : Variant
        The rule with every parameter that was set.
    chosen : mapping
        Optimizer settings that replace the rule's defaults.
    """

    shown: Variant
    variant: Variant
    seed: int
    chosen: Mapping[str, Any]
    experiment: Experiment

    @property
    def label(self) -> str:
        """The rule as tables call it."""
        return self.shown.label

    def optimizer(self) -> Optimizer:
        """The optimizer with the rule's defaults where nothing was chosen."""
        name = self.variant.name
        kind = registry.rule_class("backprop" if name == registry.REFERENCE else name)
        chosen = dict(self.chosen)
        own = dict(kind.optimizer)
        name = chosen.pop("optimizer", own["name"])
        if name not in OPTIMIZERS:
            raise SpecError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}.")
        if name != own.pop("name"):
            own = {}
        momentum = {f.name for f in fields(OPTIMIZERS[name])} >= {"momentum"}
        if "momentum" in chosen and not momentum:
            raise SpecError(
                f"{name} has no momentum setting. Type --optimizer sgd, or leave it out."
            )
        return optimizer(name, **{**own, **chosen})

    def spec(self) -> dict[str, Any]:
        """Everything the result depends on, as plain values."""
        e = self.experiment
        return {
            "rule": self.variant.label,
            "seed": self.seed,
            "data": e.data,
            "net": e.net,
            "epochs": e.epochs,
            "batch_size": e.batch_size,
            "objective": e.objective,
            "optimizer": self.optimizer().settings(),
            "tune": e.tune,
            "patience": e.patience,
            "evaluate_every": e.evaluate_every,
            "backend": e.backend,
            "dtype": e.dtype,
        }

    def digest(self, data_sha256: str) -> str:
        """Names the record: equal settings and data, equal digest."""
        text = json.dumps({**self.spec(), "sha256": data_sha256}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def slug(self, data_sha256: str) -> str:
        """File name of the record, without suffix."""
        plain = re.sub(r"[^\w.=+-]+", "_", self.label).strip("_")
        return f"{plain[:60]}-seed{self.seed}-{self.digest(data_sha256)}"


def available_rules() -> list[str]:
    """Every rule of the package, the yardsticks first, and the reference where torch is."""
    from importlib.util import find_spec

    first = ["backprop", *([registry.REFERENCE] if find_spec("torch") else []), "frozen"]
    return [*first, *(n for n in registry.names() if n not in first)]


_LISTS: dict[str, Any] = {"rules": str, "seeds": int, "weight_decay": (int, float)}


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(f"{name} needs a whole number from {least} on; got {value!r}.")


def _fits(value: Any, kind: str) -> bool:
    """Whether a TOML value fits a field's annotation."""
    kinds: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    words = [w.strip() for w in kind.split("|")]
    if isinstance(value, bool):
        return "bool" in words
    if isinstance(value, (list, tuple)):
        return "tuple" in kind
    if isinstance(value, Mapping):
        return "Mapping" in kind
    if value is None:
        return "None" in words
    if kind.startswith("tuple[int") and isinstance(value, int):
        return True
    return any(isinstance(value, kinds[w]) for w in words if w in kinds)


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # JSON's strings and numbers are TOML's
