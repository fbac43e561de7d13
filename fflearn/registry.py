"""Names to rules: from the folder rules/, from a file, or from an installed package.

Nothing registers itself; folders and entry points are listed.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fflearn import rules
from fflearn.base import Channel, Rule
from fflearn.errors import SpecError

REFERENCE = "torch"  # autograd in PyTorch, in fflearn/reference.py: no rule of the contract


@dataclass(frozen=True)
class Variant:
    """A rule with parameters, as the command line writes it: ``dfa[scale=2]``.

    Attributes
    ----------
    name : str
        The rule's full name.
    params : mapping
        Parameters that differ from the defaults.
    network_of : str
        Another rule whose adaptation of the network is used instead of the own:
        ``backprop@forward_forward``.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    network_of: str = ""

    @property
    def label(self) -> str:
        """How tables and records call it."""
        inside = ",".join(f"{n}={_text(v)}" for n, v in self.params.items())
        at = f"@{self.network_of}" if self.network_of else ""
        return f"{self.name}[{inside}]{at}" if inside else f"{self.name}{at}"


def names() -> list[str]:
    """Every rule: this package's and those of installed packages (group ``fflearn.rules``)."""
    return sorted({*rules.names(), *_entry_points()})


@cache
def _entry_points() -> dict[str, Any]:
    return {e.name: e for e in entry_points(group="fflearn.rules")}


def rule_class(name: str) -> type[Rule]:
    """The class of a rule by name, short name or path to a Python file.

    Raises
    ------
    SpecError
        Unknown, with the nearest known names; or a file without exactly one rule.
    """
    if name.endswith(".py"):
        path = Path(name).resolve()
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        return _from_file(path, changed)
    full = short_names().get(name, name)
    if full in rules.names():
        return _only_rule(import_module(f"fflearn.rules.{full}"), full)
    if full in _entry_points():
        return _entry_points()[full].load()
    known = [*names(), *short_names(), REFERENCE]
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names())}."
    raise SpecError(f"there is no rule {name!r}. {hint}")


@cache
def short_names() -> dict[str, str]:
    """Short form -> full name, of the rules in this package."""
    return {
        short: name
        for name in rules.names()
        for short in _only_rule(import_module(f"fflearn.rules.{name}"), name).short
    }


@cache
def _from_file(path: Path, changed: int) -> type[Rule]:
    """The rule in a file, read once for every state of the file."""
    if not path.is_file():
        raise SpecError(f"there is no rule file {path}.")
    # A name of its own, so that a file called like an installed module does not replace it.
    spec = importlib.util.spec_from_file_location(f"fflearn_rule_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[spec.name]
        raise SpecError(f"the rule file {path} fails on import: {type(e).__name__}: {e}") from e
    kind = _only_rule(module, str(path))
    _FILES[kind] = str(path.resolve())
    return kind


_FILES: dict[type[Rule], str] = {}  # rules from outside the package, and their files


def name_of(rule: Rule) -> str:
    """The name or path under which `rule_class` finds a rule's class again."""
    kind = type(rule)
    if kind in _FILES:
        return _FILES[kind]
    outside = {e.load(): name for name, e in _entry_points().items()}
    return outside.get(kind, kind.__module__.rpartition(".")[2])


def _only_rule(module: Any, where: str) -> type[Rule]:
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Rule) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise SpecError(f"{where} needs exactly one subclass of Rule; it has {len(found)}.")
    return found[0]


def rule(name: str, **params: Any) -> Rule:
    """A rule by name, with parameters.

    Examples
    --------
    >>> rule("ff", negatives="hard").negatives
    'hard'
    """
    variant = parse(name)
    return build(Variant(variant.name, {**variant.params, **params}, variant.network_of))


def build(variant: Variant) -> Rule:
    """The rule of a variant; SpecError names an unknown parameter and the known ones."""
    kind = rule_class(variant.name)
    known = {f.name: f for f in fields(kind)}
    params = dict(variant.params)
    for name, value in variant.params.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            has = ", ".join(known) or "none"
            raise SpecError(f"{variant.name} has no parameter {name!r} (it has: {has}).{hint}")
        default = known[name].default
        if value is None and isinstance(default, str):
            params[name] = value = "none"  # the word, where words are meant: norm=none
        if not _fits(value, default):
            raise SpecError(
                f"{variant.name} needs {name} like {_text(default)}; got {_text(value)}."
            )
    return kind(**params)


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if value is None:
        return default is None
    if isinstance(default, float) or default is None:
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


def parse(text: str) -> Variant:
    """``name[param=value,...]@other`` -> Variant, with names in full.

    Examples
    --------
    >>> parse("ff[negatives=hard,peer=0.1]").label
    'forward_forward[negatives=hard,peer=0.1]'
    """
    whole, (text, at, other) = text, text.partition("@")
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", text)
    if not match:
        raise SpecError(f"{whole!r} is no rule. Type for instance: dfa  or  dfa[scale=2]")
    name, inside = match.groups()
    params = dict(_assignment(part) for part in inside.split(",") if part) if inside else {}
    if at and "@" in other:
        raise SpecError(f"{whole!r} names more than one network. Type for instance: backprop@ff")
    return Variant(_full(name), params, parse(other).label if at else "")


def _full(name: str) -> str:
    if name == REFERENCE or name.endswith(".py"):
        return name
    rule_class(name)
    return short_names().get(name, name)


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets: ``"a,b[c=1,d=2]"`` -> ["a", "b[c=1,d=2]"]."""
    return [p.strip() for p in re.split(r",(?![^\[]*\])", text) if p.strip()]


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"{text!r} needs the form name=value.")
    return name.strip(), literal(value.strip())


def literal(text: str) -> Any:
    """true, false, none, numbers; anything else stays a string."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float, str)) else text


def _text(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "none"}.get(value, str(value))
        if (value is None or isinstance(value, bool))
        else str(value)
    )


def describe(name: str, **params: Any) -> dict[str, Any]:
    """What `fflearn rules --json` says of a rule; channels and optimizer may depend on parameters."""
    kind, made = rule_class(name), rule(name, **params)
    order = sorted(made.channels, key=_rank)
    transport = [c.transport for c in order if c.transport != "no"]
    doc = (kind.__doc__ or "").strip().splitlines()
    return {
        "name": short_names().get(name, name),
        "kind": "rule",
        "summary": doc[0] if doc else "",
        "short": list(kind.short),
        "channels": [c.value for c in order],
        "weight_transport": transport[-1] if transport else "no",
        "citation": kind.citation,
        "parameters": {f.name: f.default for f in fields(kind)},
        "variants": {label: dict(params) for label, params in kind.variants.items()},
        "optimizer": dict(made.optimizer),
    }


def _rank(channel: Channel) -> int:
    return list(Channel).index(channel)
