"""What to run: an Experiment (a TOML file) and the single runs it stands for."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from fflearn import kernels, registry, sizes, tuning
from fflearn.data.kind import TASKS
from fflearn.engine import default_optimizer
from fflearn.errors import SpecError
from fflearn.fingerprint import installed
from fflearn.networks import network
from fflearn.optim import Optimizer
from fflearn.registry import Variant
from fflearn.zoo import NETWORKS

# The network of a data set where none is given and that of its kind would not do.
NETS = {"cifar10": "dense 1024 relu | dense 512 relu | dense 10"}
OBJECTIVES = {"classification": "softmax_cross_entropy", "regression": "mse"}
OPTIMIZER_SETTINGS = ("optimizer", "lr", "momentum", "weight_decay", "schedule")

# Fields of later versions: where they are left alone, a record of before is found again.
LATER = ("probes", "budget_seconds", "budget_samples", "memory_budget")
BEFORE = "grid"  # how learning rates were searched when records did not say it
MOST_SEEDS = 1000  # what "how many seeds" can mean: a larger number was meant as a seed


@dataclass(frozen=True)
class Experiment:
    """Several rules with the same data, network, data order, seeds and budget.

    Parameters
    ----------
    name : str
        Names the output folder.
    data : str
        A name that `fflearn.load_data` knows, or the path of a CSV, npz or txt file.
    datasets, nets : tuple of str
        Several in place of ``data`` and of ``net``: each data set with each network.
    task : str
        "classification" or "regression"; see `fflearn.load_data`.  Empty: what the data say.
    rules : tuple of str
        Rules, with parameters in brackets: "dfa", "ff[negatives=hard]", "backprop@ff".  Empty:
        every rule that can train this network on these data.
    net : str
        Spec string, or the name of a network.  Empty: what suits the data (`Data.net`).
    epochs, batch_size : int
    seeds : tuple of int
    objective : str
        At the network's output.  Empty: softmax_cross_entropy, or mse for regression.
    lr, momentum, weight_decay, optimizer, schedule
        For all rules; None keeps each rule's own default.  ``weight_decay`` may be a list with
        one value per epoch, the last one repeated.
    settings : mapping of str to value
        ``{"rule.param": value}``: a parameter or optimizer setting of one rule, by its name or
        label.
    tune : int
        Learning rates to try per rule and seed, chosen by the data's first measure on the
        validation part; 0 or 1 keeps the given one.
    search : str
        Which ones: "optuna" (log-uniform, then near those that did well) or "grid"; `fflearn.tuning`.
    adapted : bool
        Also run backprop on every network that a rule adapted.
    patience : int
        Stop after this many epochs without a better validation accuracy; 0 never stops early.
    budget_seconds, budget_samples
        What a run may spend in training before it stops, within an epoch if need be; schedules
        go by ``epochs`` all the same.
    memory_budget : str
        What the arrays of a run may take, as "200MB"; see `fflearn.train`.
    evaluate_every : int
        Epochs between two evaluations for the curves.
    probes : tuple of str
        What to measure of each layer where it is evaluated; names of `fflearn.probes`.
    backend, dtype, threads
        See `fflearn.Engine`.
    """

    name: str = ""
    data: str = "digits"
    task: str = ""
    rules: tuple[str, ...] = ()
    net: str = ""
    datasets: tuple[str, ...] = ()
    nets: tuple[str, ...] = ()
    epochs: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    objective: str = ""
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | tuple[float, ...] | None = None
    optimizer: str | None = None
    schedule: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tune: int = 0
    search: str = "optuna"
    adapted: bool = False
    patience: int = 0
    budget_seconds: float | None = None
    budget_samples: int | None = None
    memory_budget: str = ""
    evaluate_every: int = 1
    probes: tuple[str, ...] = ()
    backend: str = "numba"
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        seeds = self.seeds
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            object.__setattr__(self, "seeds", _first_seeds(seeds))
        for f in fields(self):
            value = getattr(self, f.name)
            value = tuple(value) if isinstance(value, list) else value
            object.__setattr__(self, f.name, fitting(f.name, str(f.type), value))
        for name in ("epochs", "batch_size", "threads", "evaluate_every"):
            whole(name, getattr(self, name), 1)
        whole("patience", self.patience, 0)
        for name in ("budget_seconds", "budget_samples"):
            if (given := getattr(self, name)) is not None and not given > 0:
                raise SpecError(f"{name} needs a number above 0; got {given!r}.")
        if self.memory_budget:
            try:
                sizes.size(self.memory_budget)
            except SpecError as e:
                raise SpecError(f"memory_budget: {e}") from None
        tuning.check(self.search, whole("tune", self.tune, 0))
        for seed in self.seeds:
            whole("a seed", seed, 0)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpecError(f"seeds needs one seed or more, each once; got {self.seeds!r}.")
        if self.weight_decay == ():
            raise SpecError("weight_decay needs at least one number; got an empty list.")
        if self.task not in ("", *TASKS):
            raise SpecError(f"task needs one of {', '.join(TASKS)}; got {self.task!r}.")
        kernels.check(self.backend)
        object.__setattr__(self, "settings", _flat(self.settings))
        for name in ("datasets", "nets"):
            if len(set(given := getattr(self, name))) < len(given):
                raise SpecError(f"{name} needs each one once; got {', '.join(given)}.")
        stems = "-".join(Path(name).stem for name in self.datasets or (self.data,))
        object.__setattr__(self, "name", self.name or _file_name(stems))
        if not re.fullmatch(r"[\w.=+-]+", self.name):
            raise SpecError(f"name needs letters, digits and . + - = _ alone; got {self.name!r}.")

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
        return cls.of(f"the recipe {path}", {"name": _file_name(path.stem), **table})

    @classmethod
    def of(cls, where: str, given: Mapping[str, Any]) -> Experiment:
        """An experiment from fields; SpecError says where an unknown or wrong one is."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"It may have {', '.join(known)}."
                raise SpecError(f"{where} has an unknown field {name!r}. {hint}")
        try:
            return cls(**given)
        except SpecError as e:
            raise SpecError(f"{where}: {e}") from e

    def dump(self) -> str:
        """The TOML text that `load` reads back, every option resolved."""
        plain = {n: v for n, v in asdict(self).items() if v is not None and n != "settings"}
        lines = [f"{n} = {_toml(v)}" for n, v in plain.items()]
        if self.settings:
            lines += ["", "[settings]", *(f'"{n}" = {_toml(v)}' for n, v in self.settings.items())]
        return "\n".join(lines) + "\n"

    # -- the runs --------------------------------------------------------------------------------
    def cells(self) -> list[Experiment]:
        """One experiment per data set and network."""
        pairs = product(self.datasets or (self.data,), self.nets or (self.net,))
        return [replace(self, data=d, net=n, datasets=(), nets=()) for d, n in pairs]

    def resolved(
        self, n_classes: int, net: str = "mlp", task: str = "classification"
    ) -> Experiment:
        """The experiment with network, rules and objective spelled out.

        ``net`` and ``task`` are those of the data.
        """
        net = self.net or NETS.get(self.data, net)
        if set(re.findall(r"[\w-]+", net)) & set(NETWORKS):
            net = network(net, n_classes).spec()
        return replace(
            self,
            net=net,
            rules=self.rules or tuple(available_rules()),
            objective=self.objective or OBJECTIVES[task],
        )

    def runs(self) -> list[Run]:
        """One run per rule and seed, in the order of the rules."""
        found = [self._run(registry.parse(r)) for r in self.rules]
        labels = [run.label for run in found]
        if len(set(labels)) < len(labels):
            raise SpecError(f"the rules {', '.join(labels)} hold one twice. Name each once.")
        if self.adapted:
            found += [run for run in self._yardsticks(found) if run.label not in labels]
        for name in self.settings:
            if not any(_concerns(name, run.shown) for run in found):
                raise SpecError(
                    f"the setting {name!r} belongs to none of the rules {', '.join(labels)}."
                )
        return [replace(run, seed=seed) for run in found for seed in self.seeds]

    def _yardsticks(self, runs: list[Run]) -> list[Run]:
        """Backprop on every network that a rule adapted, each network once."""
        seen, found = [network(self.net)], []
        for run in runs:
            variant = run.variant
            if variant.name == registry.REFERENCE or variant.network_of:
                continue
            rule = registry.build(variant)
            net = rule.adapt(seen[0])
            if rule.ends_in_logits and net not in seen:
                seen.append(net)
                found.append(self._run(Variant("backprop", {}, variant.label)))
        return found

    def _run(self, shown: Variant) -> Run:
        params: dict[str, Any] = {}
        chosen = {n: v for n in OPTIMIZER_SETTINGS if (v := getattr(self, n)) is not None}
        kinds = {f.name: str(f.type) for f in fields(self)}
        # What is said of a rule comes first, what is said of this variant of it replaces that.
        of_rule = [n for n in self.settings if _concerns(n, Variant(shown.name))]
        of_variant = [n for n in self.settings if _concerns(n, shown) and n not in of_rule]
        for name in (*of_rule, *of_variant):
            param, value = name.rpartition(".")[2], self.settings[name]
            if param in OPTIMIZER_SETTINGS:
                chosen[param] = fitting(name, kinds[param], value)
            else:
                params[param] = _parameter(shown.name, param, value)
        return Run(shown, replace(shown, params=params | dict(shown.params)), 0, chosen, self)


def _concerns(setting: str, variant: Variant) -> bool:
    """Whether a setting names this variant, or the rule that it is a variant of."""
    target = registry.parse(setting.rpartition(".")[0])
    return target.label in (variant.label, variant.name)


def _parameter(rule: str, name: str, value: Any) -> Any:
    """A rule's parameter from TOML, which has no word for None but the text "none"."""
    if value != "none" or rule == registry.REFERENCE:
        return value
    own = {f.name: f.default for f in fields(registry.rule_class(rule))}
    return value if isinstance(own.get(name), str) else None


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
        reference = self.variant.name == registry.REFERENCE
        rule = registry.build(Variant("backprop") if reference else self.variant)
        chosen = {"name" if n == "optimizer" else n: v for n, v in self.chosen.items()}
        return default_optimizer(rule, **chosen)

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
            **{n: v for n in LATER if (v := getattr(e, n))},
            **({"search": e.search} if e.tune > 1 and e.search != BEFORE else {}),
            **source(self.variant.name),
        }

    def digest(self, data_sha256: str) -> str:
        """Names the record: equal settings and data, equal digest."""
        text = json.dumps({**self.spec(), "sha256": data_sha256}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def slug(self, data_sha256: str) -> str:
        """File name of the record, without suffix."""
        return f"{_file_name(self.label)[:60]}-seed{self.seed}-{self.digest(data_sha256)}"


def available_rules() -> list[str]:
    """Every rule of the package, the yardsticks first, and the reference where torch is."""
    first = ["backprop", *([registry.REFERENCE] if installed("torch") else []), "frozen"]
    return [*first, *(n for n in registry.names() if n not in first)]


def source(rule: str) -> dict[str, str]:
    """For a rule from a file, the file's digest: another text is another rule."""
    path = Path(rule)
    if path.suffix != ".py" or not path.is_file():
        return {}
    return {"rule_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


# -- checking fields -------------------------------------------------------------------------------
def whole(name: str, value: Any, least: int) -> int:
    """The value as an int, if it is a whole number from ``least`` on; SpecError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise SpecError(f"{name} needs a whole number from {least} on; got {value!r}.")
    return operator.index(value)


def fitting(name: str, kind: str, value: Any) -> Any:
    """The value, if it fits a field's annotation; SpecError says what would."""
    kinds = [k.strip() for k in kind.split("|")]
    if not any(_KINDS[k][0](value) for k in kinds):
        words = " or ".join(_KINDS[k][1] for k in kinds if k != "None")
        raise SpecError(f"{name} needs {words}; got {value!r}.")
    return value


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(map(check, value))


def _is(*kinds: type) -> Callable[[Any], bool]:
    """Whether a value is of a type; True and 1 are told apart."""
    return lambda value: isinstance(value, kinds) and (bool in kinds) >= isinstance(value, bool)


# The annotations of the Experiment: what fits them, and how to say it.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "None": (_is(type(None)), "nothing"),
    "bool": (_is(bool), "true or false"),
    "int": (_is(int), "a whole number"),
    "float": (_is(int, float), "a number"),
    "str": (_is(str), "a text"),
    "tuple[str, ...]": (_all(_is(str)), "a list of texts"),
    "tuple[int, ...]": (_all(_is(int)), "a list of whole numbers"),
    "tuple[float, ...]": (_all(_is(int, float)), "a list of numbers"),
    "Mapping[str, Any]": (_is(Mapping), "a table"),
}


def _first_seeds(n: int) -> tuple[int, ...]:
    if whole("seeds", n, 1) > MOST_SEEDS:
        raise SpecError(
            f"seeds needs a list, or how many: at most {MOST_SEEDS}; got {n}. For this one seed, "
            f'type --seeds "{n},"'
        )
    return tuple(range(n))  # "3 seeds" are the seeds 0, 1, 2


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by "rule.param"; in TOML, ``ff.lr = 1`` and ``"ff.lr" = 1`` mean the same."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{param}": inner for param, inner in value.items()}
        else:
            found[name] = value
    for name, value in found.items():
        found[name] = value = tuple(value) if isinstance(value, list) else value
        if "." not in name:
            raise SpecError(f"a setting needs the form rule.param; got {name!r}.")
        fitting(f"the setting {name!r}", "bool | float | str | tuple[float, ...]", value)
    return found


def _file_name(text: str) -> str:
    """The text with everything that file names cannot hold everywhere replaced by _."""
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_") or "experiment"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # JSON's strings and numbers are TOML's, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
