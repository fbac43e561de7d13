"""Mechanical mutants: what the operators of Cosmic Ray make of a file."""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.mutation.entries import FOLDER, Mistake, Mutant, Plan, changed_lines, scope

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
    """What no test can notice: annotations, decorators, imports, and what only words or raises an
    error that is not to happen (raise, assert, f-strings, the strict of a zip)."""
    nodes: list[ast.AST] = []
    for node in ast.walk(top):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert | ast.JoinedStr):
            nodes.append(node)
        if isinstance(node, ast.keyword) and node.arg == "strict":
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
