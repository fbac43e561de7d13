"""Do the tests notice deliberate faults?  ``python -m benchmarks.mutation`` or ``make mutants``.

Each mutant is one small fault put into a throw-away copy of the checkout; the tests that guard the
file must then fail.  There are two kinds:

* by hand, ``tests/mutation/*.toml``: the pitfalls of each rule's specification, one
  ``[[mutant]]`` entry each with ``file``, ``find`` (text that occurs exactly once in it),
  ``replace``, ``why``, and optionally ``tests``;
* mechanical: a fixed sample of what the operators of Cosmic Ray (``OPERATORS`` below) make of the
  files in ``tests/mutation/plan.toml``.  There are never fewer of them than by hand.

Mechanical mutants that no test can notice are declared in ``tests/mutation/equivalent.toml`` with
the reason, checked to be still there, and left out of the sample.

``plan.toml`` says which tests guard which file, in stages: the next is run only if a mutant outlived
the one before.  Exit status: 0; 1 if too few mutants are killed; 2 if the check could not be made.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "tests/mutation"
SECONDS = 30  # that tests may take beyond five times what they take without a fault
RESERVED = ("plan.toml", "equivalent.toml")

# One list for each family; a file's sample takes the families in turn.  Left out are replacements
# that only raise a TypeError on floats (+ to <<), which any test kills.
OPERATORS = {
    "arithmetic": """Add_Sub Sub_Add Mul_Div Div_Mul Mul_Add Add_Mul Pow_Mul FloorDiv_Mul
        Mod_FloorDiv BitAnd_BitOr BitOr_BitAnd LShift_RShift RShift_LShift""",
    "comparison": """Eq_NotEq NotEq_Eq Lt_LtE LtE_Lt Gt_GtE GtE_Gt Lt_GtE GtE_Lt Gt_LtE LtE_Gt
        Is_IsNot IsNot_Is""",
    "sign": "Delete_USub Delete_Not Delete_Invert",
    "number": "NumberReplacer",
    "logic": "AddNot ReplaceAndWithOr ReplaceOrWithAnd ReplaceTrueWithFalse ReplaceFalseWithTrue",
    "loop": "ZeroIterationForLoop ReplaceBreakWithContinue ReplaceContinueWithBreak",
}
PREFIXES = {
    "arithmetic": "ReplaceBinaryOperator_",
    "comparison": "ReplaceComparisonOperator_",
    "sign": "ReplaceUnaryOperator_",
}


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
                names = [name.format(stem=Path(file).stem) for name in target["tests"]]
                return tuple((name,) for name in names if (root / name).exists())
        return ()


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


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    status: str  # "killed", "timeout" (killed, too) or "survived"
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status != "survived"


# ---- reading ------------------------------------------------------------------------------------


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


# ---- mechanical mutants ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A position that an operator could change; the change is made only when it is wanted."""

    file: str
    family: str
    operator: str
    occurrence: int
    line: int
    where: str
    content: str
    nth: int  # among equal operators on equal lines in one scope

    @property
    def rank(self) -> str:
        """An order that looks random, and that edits elsewhere in the file leave as it is."""
        key = (self.file, self.where, self.content, self.operator, self.nth)
        return hashlib.sha256(repr(key).encode()).hexdigest()


def operators() -> dict[str, tuple[str, Any]]:
    """Family and Cosmic Ray operator, by name."""
    try:
        from cosmic_ray.plugins import get_operator
    except ImportError as error:
        raise Mistake("mechanical mutants need: pip install -e '.[mutation]'") from error
    return {
        name: (family, get_operator(f"core/{PREFIXES.get(family, '')}{name}")())
        for family, names in OPERATORS.items()
        for name in names.split()
    }


Span = tuple[tuple[int, int], tuple[int, int]]


def untouched(text: str, top: ast.Module) -> list[Span]:
    """What is not run, or only words a message: annotations, decorators, imports, raise, f-strings."""
    nodes: list[ast.AST] = []
    for node in ast.walk(top):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert | ast.JoinedStr):
            nodes.append(node)
        nodes += getattr(node, "decorator_list", [])
        nodes += [
            n for n in (getattr(node, "annotation", None), getattr(node, "returns", None)) if n
        ]
    lines = text.splitlines()

    def place(line: int, offset: int) -> tuple[int, int]:  # ast counts bytes, parso characters
        return line, len(lines[line - 1].encode()[:offset].decode())

    return [
        (place(n.lineno, n.col_offset), place(n.end_lineno, n.end_col_offset))  # type: ignore[attr-defined]
        for n in nodes
    ]


def places(root: Path, file: str) -> list[Place]:
    """Every position in a file that an operator could change."""
    from cosmic_ray.ast import ast_nodes, get_ast

    text = (root / file).read_text(encoding="utf-8")
    top, lines = ast.parse(text), text.splitlines()
    spans, nodes = untouched(text, top), list(ast_nodes(get_ast(text)))
    found: list[Place] = []
    seen: dict[tuple[str, str, str], int] = {}
    for name, (family, operator) in operators().items():
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(positions):
            if any(a <= start < b for a, b in spans):
                continue
            where, content = scope(top, start[0]), lines[start[0] - 1].strip()
            nth = seen[name, where, content] = seen.get((name, where, content), -1) + 1
            found.append(
                Place(file, family, name, occurrence, start[0], where, content, nth),
            )
    return found


class Plain(ast.NodeTransformer):
    """``not not x`` as ``x`` and ``not a == b`` as ``a != b``: two operators, but one fault."""

    pairs = ((ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Lt, ast.GtE))
    opposite = dict(pairs) | {b: a for a, b in pairs} | {ast.Gt: ast.LtE, ast.LtE: ast.Gt}

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        inner = node.operand
        if isinstance(node.op, ast.Not):
            if isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not):
                return inner.operand
            if isinstance(inner, ast.Compare) and len(inner.ops) == 1:
                ops: list[ast.cmpop] = [self.opposite[type(inner.ops[0])]()]
                return ast.Compare(inner.left, ops, inner.comparators)
        return node


def meaning(text: str) -> str:
    return ast.dump(Plain().visit(ast.parse(text)))


def mutate(root: Path, place: Place, stages: tuple[tuple[str, ...], ...]) -> Mutant | None:
    """The mutant at a place; None if it is no Python, or the same program."""
    from cosmic_ray.mutating import mutate_code

    text = (root / place.file).read_text(encoding="utf-8")
    mutated = mutate_code(text, operators()[place.operator][1], place.occurrence)
    if mutated is None:
        return None
    try:
        if meaning(mutated) == meaning(text):
            return None
    except SyntaxError:
        return None
    line, before, after = changed_lines(text, mutated)
    p, why = place, f"{place.operator}: {after.partition(chr(10))[0][:60]}"
    return Mutant("mechanical", p.file, line, p.where, before, after, why, mutated, stages)


def in_turn(groups: list[list[Any]]) -> Iterator[Any]:
    """The first of each, then the second of each, ..."""
    for row in itertools.zip_longest(*groups):
        yield from (item for item in row if item is not None)


def ordered(found: list[Place]) -> list[Place]:
    """The families in turn, each in its fixed order."""
    families: dict[str, list[Place]] = {}
    for place in sorted(found, key=lambda p: p.rank):
        families.setdefault(place.family, []).append(place)
    return list(in_turn(list(families.values())))


def mechanical(
    root: Path, plan: Plan, count: int, equivalents: list[dict[str, str]]
) -> list[Mutant]:
    """The sample: files in turn, so that each is hit; declared equivalents left out."""
    files = sorted(plan.files(root), key=lambda f: hashlib.sha256(f.encode()).hexdigest())
    bare = [file for file in files if not plan.stages(root, file)]
    if bare:
        raise Mistake(f"no tests guard {', '.join(bare)}: see {FOLDER}/plan.toml")
    found = {
        file: [p for p in places(root, file) if not any(fnmatch(p.where, s) for s in plan.skip)]
        for file in files
    }
    skip = {equivalent_key(e) for e in equivalents}
    check_equivalents(root, found, equivalents)
    sample: dict[tuple[str, str], Mutant] = {}
    for place in in_turn([ordered(found[file]) for file in files]):
        if len(sample) == count:
            break
        mutant = mutate(root, place, plan.stages(root, place.file))
        if mutant and (mutant.file, mutant.where, mutant.before, mutant.after) not in skip:
            sample.setdefault((mutant.file, meaning(mutant.text)), mutant)
    return sorted(sample.values(), key=lambda m: (m.file, m.line, m.why))


def equivalent_key(entry: dict[str, str]) -> tuple[str, str, str, str]:
    if set(entry) != {"file", "where", "before", "after", "why"}:
        raise Mistake(f"{FOLDER}/equivalent.toml: an entry needs file, where, before, after, why")
    return entry["file"], entry["where"], entry["before"], entry["after"]


def check_equivalents(
    root: Path, found: dict[str, list[Place]], equivalents: list[dict[str, str]]
) -> None:
    """Each entry must still be a mutant that the operators make."""
    for entry in equivalents:
        _, where, before, after = equivalent_key(entry)
        near = [
            place
            for place in found.get(entry["file"], [])
            if place.where == where and place.content in before.splitlines()
        ]
        made = (mutate(root, place, ()) for place in near)
        if not any(m and (m.before, m.after) == (before, after) for m in made):
            raise Mistake(
                f"{FOLDER}/equivalent.toml: no operator turns {before!r} into {after!r} in {where} "
                f"of {entry['file']} (any more). Delete the entry."
            )


# ---- running ------------------------------------------------------------------------------------


class Laboratory:
    """Throw-away copies of the checkout, one a job, and how long the tests take without a fault."""

    def __init__(self, root: Path, folder: Path, jobs: int, slow: bool) -> None:
        litter = ["__pycache__", ".git", ".venv", ".cache", ".hypothesis", ".*_cache"]
        litter += ["build", "dist", "*.egg-info"]
        self.copies: queue.Queue[Path] = queue.Queue()
        self.root, self.slow, self.jobs = root, slow, jobs
        for number in range(jobs):
            copy = folder / str(number)
            shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(*litter))
            self.copies.put(copy)
        self.times: dict[tuple[tuple[str, ...], str], float] = {}
        self.locks: dict[tuple[tuple[str, ...], str], threading.Lock] = {}
        self.guard = threading.Lock()

    def pytest(
        self, copy: Path, tests: tuple[str, ...], marks: str, limit: float | None
    ) -> tuple[int | None, str]:
        """Exit status of pytest (None: too slow) and what it printed."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m"]
        # No .pyc: a fault of the same length within a second would find the old one still valid.
        env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
        if self.jobs > 1:
            env.setdefault("OMP_NUM_THREADS", "1")
        process = subprocess.Popen(
            [*command, marks, *tests],
            cwd=copy,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, "too slow"
            raise
        return process.returncode, out

    def baseline(self, copy: Path, tests: tuple[str, ...], marks: str) -> float:
        """Seconds that these tests take, or 0 if there are none; they must pass without a fault."""
        key = tests, marks
        with self.guard:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self.times:
                start = time.perf_counter()
                status, out = self.pytest(copy, tests, marks, None)
                if status not in (0, 5):
                    tail = "\n".join(out.splitlines()[-25:])
                    raise Mistake(f"{' '.join(tests)} fails without any fault:\n{tail}")
                self.times[key] = time.perf_counter() - start if status == 0 else 0.0
        return self.times[key]

    def runs(self, mutant: Mutant) -> list[tuple[tuple[str, ...], str]]:
        """(tests, pytest's -m expression), in order."""
        if mutant.chosen:
            return [(mutant.stages[0], "")]
        quick = [(tests, "not slow") for tests in mutant.stages]
        return quick + [(tests, "slow") for tests in mutant.stages if self.slow]

    def try_out(self, mutant: Mutant) -> Result:
        copy = self.copies.get()
        start, ran = time.perf_counter(), False
        path = copy / mutant.file
        clean = path.read_bytes()
        try:
            for tests, marks in self.runs(mutant):
                usual = self.baseline(copy, tests, marks)
                if not usual:
                    continue
                ran = True
                path.write_text(mutant.text, encoding="utf-8")
                status, out = self.pytest(copy, tests, marks, SECONDS + 5 * usual)
                path.write_bytes(clean)
                if status in (3, 5):
                    raise Mistake(f"{mutant.name}: pytest ended with {status}:\n{out[-2000:]}")
                if status != 0:  # failures, errors while importing, a crash, or too slow
                    how = "timeout" if status is None else "killed"
                    return Result(mutant, how, time.perf_counter() - start)
            if not ran:
                raise Mistake(f"{mutant.name}: no test ran; wanted {mutant.stages}")
            return Result(mutant, "survived", time.perf_counter() - start)
        finally:
            path.write_bytes(clean)
            self.copies.put(copy)


def run(root: Path, mutants: list[Mutant], jobs: int, slow: bool) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        laboratory = Laboratory(root, Path(folder).resolve(), jobs, slow)
        try:
            for result in pool.map(laboratory.try_out, mutants):
                results.append(result)
                print(f"{result.status:9}{result.seconds:6.1f} s  {result.mutant.name}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


# ---- telling ------------------------------------------------------------------------------------


def show(mutant: Mutant) -> str:
    """A survivor, in a form that can be pasted into equivalent.toml."""
    values = {"file": mutant.file, "where": mutant.where}
    values |= {"before": mutant.before, "after": mutant.after}
    lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in values.items()]
    return "\n".join([f"# line {mutant.line}, {mutant.kind}: {mutant.why}", *lines])


def report(results: list[Result], equivalents: list[dict[str, str]]) -> float:
    """Print the summary; the percentage killed."""
    survivors = [r.mutant for r in results if not r.killed]
    if survivors:
        print("\nSurvived: write the test that notices")
        print("\n\n".join(map(show, survivors)))
    if equivalents:
        print("\nEquivalent, not counted")
        for entry in equivalents:
            print(f"  {entry['file']} {entry['where']}: {entry['after']}\n    {entry['why']}")
    print()
    share = 0.0
    for kind in ("hand", "mechanical", "all"):
        some = [r for r in results if kind in (r.mutant.kind, "all")]
        killed = sum(r.killed for r in some)
        slow = sum(r.status == "timeout" for r in some)
        share = 100 * killed / len(some) if some else 100.0
        print(f"{kind:12}{killed:4} of {len(some):4} killed ({slow} by time)  {share:6.1f} %")
    return share


def save(path: Path, results: list[Result], equivalents: list[dict[str, str]]) -> None:
    keys = ("kind", "file", "line", "where", "before", "after", "why")
    rows = [{k: getattr(r.mutant, k) for k in keys} | {"status": r.status} for r in results]
    data = {"mutants": rows, "equivalent": equivalents}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time (2)")
    parser.add_argument("--only", default="*", help="part of a mutant's name, * and ? allowed")
    parser.add_argument("--kind", choices=("hand", "mechanical"), help="only these")
    parser.add_argument("--sample", type=int, help="mechanical mutants (plan.toml says how many)")
    parser.add_argument("--slow", action="store_true", help="run tests marked slow on survivors")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (this one)")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> int:
    root = options.root.resolve()
    plan = read_plan(root)
    hand = by_hand(root, plan)
    equivalents = read_toml(root / FOLDER / "equivalent.toml").get("equivalent", [])
    mutants = [] if options.kind == "mechanical" else hand
    if options.kind != "hand":
        # At least half are mechanical, however many are written by hand.
        count = max(plan.sample, len(hand)) if options.sample is None else options.sample
        mutants = mutants + mechanical(root, plan, count, equivalents)
    mutants = [m for m in mutants if fnmatch(m.name, f"*{options.only}*")]
    if not mutants:
        raise Mistake(f"there is no mutant with {options.only!r} in its name (* means any)")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.kind:11} {mutant.name}\n    - {mutant.before}\n    + {mutant.after}")
        return 0
    results = run(root, mutants, options.jobs, options.slow)
    share = report(results, equivalents)
    if options.json:
        save(options.json, results, equivalents)
    return 0 if share >= plan.threshold else 1


def main(argv: list[str] | None = None) -> int:
    try:
        return check(arguments(argv))
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
