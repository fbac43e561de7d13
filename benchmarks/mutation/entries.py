"""The plan, the mutants, and those written by hand."""

from __future__ import annotations

import ast
import difflib
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FOLDER = "tests/mutation"
RESERVED = ("plan.toml", "equivalent.toml")


class Mistake(Exception):
    """The check cannot be made as it is written down."""


@dataclass(frozen=True)
class Plan:
    """What to mutate mechanically, and which tests guard it."""

    targets: tuple[dict[str, Any], ...]
    sample: int
    threshold: float
    skip: tuple[str, ...] = ()  # functions left alone: they only make data for the tests

    def files(self, root: Path) -> list[str]:
        found = {p for t in self.targets for p in root.glob(t["files"]) if p.is_file()}
        return sorted(p.relative_to(root).as_posix() for p in found)

    def stages(self, root: Path, file: str) -> tuple[tuple[str, ...], ...]:
        """The tests that guard a file; those that do not exist are skipped."""
        for target in self.targets:
            if fnmatch(file, target["files"]):
                stages = (stage(root, s.format(stem=Path(file).stem)) for s in target["tests"])
                return tuple(s for s in stages if s)
        return ()


def stage(root: Path, line: str) -> tuple[str, ...]:
    """The paths in a line that exist, with pytest's -k if the line has one."""
    paths, _, words = line.partition(" -k ")
    found = tuple(path for path in paths.split() if (root / path).exists())
    return (*found, "-k", words) if found and words else found


@dataclass(frozen=True)
class Mutant:
    """One fault: the text of a whole file with one change in it."""

    kind: str  # "hand" or "mechanical"
    file: str
    line: int
    where: str  # the function or class around it
    before: str
    after: str
    why: str  # the pitfall, or the operator
    text: str = field(repr=False)
    stages: tuple[tuple[str, ...], ...] = ()
    chosen: bool = False  # the entry itself names its tests: run them all, slow ones too

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {self.where}: {self.why}"


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise Mistake(f"{path}: {error}") from error


def read_plan(root: Path) -> Plan:
    data = read_toml(root / FOLDER / "plan.toml")
    if not data:
        raise Mistake(f"there is no {FOLDER}/plan.toml in {root}")
    return Plan(
        tuple(data["target"]), data["sample"], data["threshold"], tuple(data.get("skip", ()))
    )


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Line number of the first change, and the lines that go and come."""
    old, new = before.splitlines(), after.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changes = [b for b in blocks if b[0] != "equal"]
    first, last = changes[0], changes[-1]
    gone, come = old[first[1] : last[2]], new[first[3] : last[4]]
    return first[1] + 1, "\n".join(s.strip() for s in gone), "\n".join(s.strip() for s in come)


def scope(top: ast.Module, line: int) -> str:
    """Dotted name of the innermost function or class around a line."""
    found = [
        node
        for node in ast.walk(top)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.lineno <= line <= (node.end_lineno or line)
    ]
    return ".".join(n.name for n in sorted(found, key=lambda n: n.lineno)) or "module"


def by_hand(root: Path, plan: Plan) -> list[Mutant]:
    """The mutants in tests/mutation/*.toml; every mistake in them is told at once."""
    mutants, mistakes = [], []
    for path in sorted((root / FOLDER).glob("*.toml")):
        if path.name in RESERVED:
            continue
        for number, entry in enumerate(read_toml(path).get("mutant", []), 1):
            try:
                mutants.append(hand_mutant(root, plan, entry))
            except Mistake as mistake:
                mistakes.append(f"{FOLDER}/{path.name}, entry {number}: {mistake}")
    if mistakes:
        raise Mistake("\n".join(mistakes))
    return mutants


def hand_mutant(root: Path, plan: Plan, entry: dict[str, Any]) -> Mutant:
    wanted, given = {"file", "find", "replace", "why"}, set(entry) - {"tests"}
    if given != wanted:
        raise Mistake(f"needs {', '.join(sorted(wanted))}; got {', '.join(sorted(given))}")
    file, find, replace = entry["file"], entry["find"], entry["replace"]
    if not (root / file).is_file():
        raise Mistake(f"there is no {file}")
    text = (root / file).read_text(encoding="utf-8")
    if text.count(find) != 1:
        raise Mistake(f"{find!r} must occur once in {file}; it occurs {text.count(find)} times")
    if find == replace:
        raise Mistake("find and replace are the same")
    mutated = text.replace(find, replace)
    try:
        ast.parse(mutated)
    except SyntaxError as error:
        raise Mistake(f"{file} is no Python any more: {error}") from error
    tests = entry.get("tests", [])
    missing = [t for t in tests if not (root / t.partition("::")[0]).exists()]
    if missing:
        raise Mistake(f"there is no {', '.join(missing)}")
    stages = (tuple(tests),) if tests else plan.stages(root, file)
    if not stages:
        raise Mistake(f"no tests are known to guard {file}: name them in tests = [...]")
    line, before, after = changed_lines(text, mutated)
    where = scope(ast.parse(text), line)
    return Mutant(
        "hand", file, line, where, before, after, entry["why"], mutated, stages, bool(tests)
    )
