"""The documentation: pages exist, links resolve, examples run, tables agree with the code."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

from fflearn import registry, rules
from fflearn.base import Channel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {p.relative_to(ROOT).as_posix(): p for p in sorted(DOCS.rglob("*.md"))}
PAGES |= {p.name: p for p in [ROOT / "README.md"] if p.is_file()}
GENERATED = {DOCS / "results.md"}  # written by a script, not there in every checkout


def without_code(text: str) -> str:
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path, text: str) -> list[str]:
    found = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target in GENERATED:
            continue
        if (
            not target.exists()
            or anchor
            and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            found.append(link)
    return found


def examples(text: str) -> list[str]:
    blocks = re.findall(r"^```(?:python|pycon)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if ">>>" in block]


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_resolve(name):
    assert broken(PAGES[name], PAGES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", PAGES)
def test_examples_run(name):
    text = PAGES[name].read_text(encoding="utf-8")
    for block in examples(text):
        test = doctest.DocTestParser().get_doctest(block, {}, name, name, 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test).failed == 0, block


def test_the_checks_object_to_wrong_pages():
    page = DOCS / "page.md"
    assert broken(page, "[a](nowhere.md) and [b](architecture.md#no-such-heading)") == [
        "nowhere.md",
        "architecture.md#no-such-heading",
    ]
    assert broken(page, "[a](architecture.md#channels), `[c](code.md)`, [d](https://e.org)") == []
    assert examples("```python\n>>> 1 + 1\n2\n```\n") and not examples("```python\n1 + 1\n```\n")


# ---- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rules.names())
def test_every_rule_has_a_page_that_says_what_the_class_says(name):
    page = DOCS / "rules" / f"{name}.md"
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    text = page.read_text(encoding="utf-8")
    kind = registry.rule_class(name)
    assert text.startswith(f"# {name}\n")
    (reads,) = re.findall(r"^\| reads \| (.*?) \|$", text, re.MULTILINE)
    named = {c for c in Channel if f"`{c.name}`" in reads}
    assert named == kind().channels, f"the row 'reads' names {named}"
    for parameter in registry.describe(name)["parameters"]:
        assert f"`{parameter}`" in text, f"{page.name} does not mention {parameter}"
    assert f"tests/rules/test_{name}.py" in text
    assert "**Limits.**" in text and "**Reference" in text


def test_every_page_of_a_rule_has_its_rule():
    assert {p.stem for p in (DOCS / "rules").glob("*.md")} == set(rules.names())


# ---- the tables of docs/architecture.md ----------------------------------------------------------

ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")


def test_the_table_of_channels_is_the_enumeration():
    rows = re.findall(r"^\| `([A-Z]+)` \|.*\| (no|sign|yes) \|$", ARCHITECTURE, re.MULTILINE)
    assert rows == [(c.name, c.transport) for c in Channel]


def table() -> tuple[dict[str, int], dict[str, set[str]]]:
    """The row of each module, and the modules it makes one sum with."""
    level: dict[str, int] = {}
    joined: dict[str, set[str]] = {}
    for row, entries in re.findall(r"^ ?(\d+)  ([a-z_+ ]+)$", ARCHITECTURE, re.MULTILINE):
        for entry in entries.split():
            for module in entry.split("+"):
                level[module], joined[module] = int(row), set(entry.split("+"))
    return level, joined


def modules() -> dict[str, list[Path]]:
    """Parts of the package that the table ranks: modules and folders."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "fflearn").rglob("*.py")):
        within = path.relative_to(ROOT / "fflearn").parts
        if within != ("__init__.py",) and not any(p.is_symlink() for p in path.parents):
            found.setdefault(within[0].removesuffix(".py"), []).append(path)
    for folder in ("rules", "gpu"):
        found[folder] = sorted((ROOT / folder).glob("*.py"))
    return found


def imported(path: Path) -> set[str]:
    """Parts of fflearn that a file imports, other than for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("fflearn.")}
    return found - {"__version__"}


def test_the_table_of_imports_ranks_what_is_there():
    assert set(table()[0]) == set(modules())


@pytest.mark.parametrize("name", modules())
def test_imports_point_down_the_table(name):
    level, joined = table()
    assert name in level, f"docs/architecture.md has no row for {name}"
    for path in modules()[name]:
        for other in imported(path) & level.keys():
            ok = other in joined[name] or level[other] < level[name]
            assert ok, f"{path.relative_to(ROOT)} imports {other}, which is not below {name}"
