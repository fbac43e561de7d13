"""Who may import whom, and what no file does.  Read from the sources; nothing is imported.

Each check is a function from a syntax tree to complaints, so that it is tested on a few lines
of wrong code as well as on the package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("fflearn", "rules", "gpu")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(parent.is_symlink() for parent in path.parents)
}
RULES = [name for name in FILES if name.startswith("rules/") and name != "rules/__init__.py"]

A_RULE_MAY_IMPORT = (
    "__future__",
    "dataclasses",
    "fflearn.base",
    "fflearn.errors",
    "fflearn.labels",
    "fflearn.networks",
    "fflearn.objectives",
    "fflearn.topology",
    "fflearn.units",
    "math",
    "numpy",
    "typing",
)
# package: the only files that import it
KEPT_TO = {
    "cupy": ("gpu/",),
    "distributed": ("fflearn/cluster.py",),
    "flwr": ("fflearn/federated.py",),
    "numba": ("fflearn/kernels/", "gpu/"),
    "optuna": ("fflearn/tuning.py",),
    "torch": ("fflearn/torch/", "gpu/"),
}
# The registry turns names into objects; nothing else asks what something is called.
MAY_COMPARE_NAMES = ("fflearn/registry.py",)
NAMES = {Path(name).stem for name in RULES} | {
    *("numpy", "numba", "cupy", "torch", "cpu", "cuda", "gpu", "reference")
}
NAMES |= {name.replace("_", "-") for name in NAMES}


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"), name)


def imports(top: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Full dotted names; relative imports begin with a dot."""
    for node in ast.walk(top):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node) for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


def told(complaints: list[tuple[ast.AST, str]]) -> list[str]:
    return [f"line {node.lineno}: {text}" for node, text in complaints]


# ---- imports ----------------------------------------------------------------------------------


def kept_imports(name: str, top: ast.Module) -> list[str]:
    """Packages imported outside the files they are kept to."""
    return told(
        [
            (node, f"imports {package}")
            for module, node in imports(top)
            for package, places in KEPT_TO.items()
            if within(module, (package,)) and not name.startswith(places)
        ]
    )


def upward_imports(name: str, top: ast.Module) -> list[str]:
    """The engine finds rules and the GPU by name, through the registry, and imports neither."""
    upper = ("fflearn.rules", "fflearn.gpu", "rules", "gpu")
    mine = ("fflearn." + name.partition("/")[0],)  # gpu/ imports fflearn.gpu
    listing = ("fflearn.rules",) if name == "fflearn/registry.py" else ()  # asks it for names()
    return told(
        [
            (node, f"imports {module}")
            for module, node in imports(top)
            if within(module, upper) and not within(module, mine) and module not in listing
        ]
    )


def early_torch(name: str, top: ast.Module) -> list[str]:
    """In gpu/, PyTorch is imported on request, inside a function."""
    lazy = {
        id(node)
        for function in ast.walk(top)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    return told(
        [
            (node, f"imports {module} at the top")
            for module, node in imports(top)
            if within(module, ("torch",)) and id(node) not in lazy
        ]
    )


def relative_imports(name: str, top: ast.Module) -> list[str]:
    """rules/ and gpu/ have another name on disk than once imported: only full names work."""
    return told([(n, f"imports {m}") for m, n in imports(top) if m.startswith(".")])


def rule_imports(name: str, top: ast.Module) -> list[str]:
    return told([(n, f"imports {m}") for m, n in imports(top) if not within(m, A_RULE_MAY_IMPORT)])


# ---- names and randomness -----------------------------------------------------------------------


def constants(node: ast.expr) -> Iterator[str]:
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    for item in items:
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            yield item.value


def compared_names(name: str, top: ast.Module) -> list[str]:
    """Comparisons and match cases with the name of a rule or a backend."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(top):
        values: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            equal = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
            values = [node.left, *node.comparators] if equal else node.comparators
        elif isinstance(node, ast.MatchValue):
            values = [node.value]
        found += [
            (node, f"asks for {text!r}")
            for value in values
            for text in constants(value)
            if text in NAMES
        ]
    return told(found)


DRAWING = ("numpy.random", "cupy.random", "random", "secrets")


def randomness(name: str, top: ast.Module) -> list[str]:
    """Random numbers come from fflearn.random.Key; scikit-learn's splits name their random_state."""
    found: list[tuple[ast.AST, str]] = []
    found += [(node, f"imports {m}") for m, node in imports(top) if within(m, DRAWING)]
    arrays = {"np", "numpy", "cp", "cupy", "xp"}
    for node in ast.walk(top):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "random"
            and isinstance(node.value, ast.Name)
            and node.value.id in arrays
        ):
            found.append((node, f"uses {ast.unparse(node)}"))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            given = {k.arg: k.value for k in node.keywords}
            state = given.get("random_state")
            missing = state is None or (isinstance(state, ast.Constant) and state.value is None)
            if called == "train_test_split" and missing:
                found.append((node, "splits without a random_state"))
    return told(found)


# ---- rules --------------------------------------------------------------------------------------

NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}
LOOPHOLES = {"delattr", "eval", "exec", "globals", "locals", "open", "setattr", "vars"}
LOOPHOLES |= {"__import__", "input", "print"}
FREEZING = {"float", "frozenset", "int", "math.sqrt", "np.float32", "np.float64", "TypeVar"}


def private_attributes(name: str, top: ast.Module) -> list[str]:
    """Attributes with a leading underscore, but for a NamedTuple's and the class's own helpers."""
    found: list[tuple[ast.AST, str]] = []
    own: dict[int, set[str]] = {}
    for cls in ast.walk(top):
        if isinstance(cls, ast.ClassDef):
            defined = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
            own |= {id(node): defined for node in ast.walk(cls)}
    for node in ast.walk(top):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        helper = on_self and node.attr in own.get(id(node), ()) and node.attr[:2] != "__"
        checks = ast.unparse(node) == "super().__post_init__"
        if node.attr not in NAMED_TUPLE and not helper and not checks:
            found.append((node, f"touches {ast.unparse(node)}"))
    return told(found)


def immutable(node: ast.expr | None) -> bool:
    """Whether a constant's value can be seen to be immutable."""
    match node:
        case None | ast.Constant() | ast.Name() | ast.Attribute() | ast.Subscript():
            return True
        case ast.Tuple(elts=parts):
            return all(map(immutable, parts))
        case ast.UnaryOp(operand=part):
            return immutable(part)
        case ast.BinOp(left=left, right=right):
            return immutable(left) and immutable(right)
        case ast.Call(func=func):
            return ast.unparse(func) in FREEZING
    return False


def settings(line: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    """Whether this is a rule's table of words, variants or defaults, written out in plain values."""
    if not isinstance(line, ast.AnnAssign):
        return False
    if ast.unparse(line.target) not in ("choices", "variants", "optimizer"):
        return False
    plain = ast.Dict | ast.Constant | ast.Tuple | ast.UnaryOp | ast.USub | ast.Load
    return all(isinstance(node, plain) for node in ast.walk(line.value or line))


def mutable_globals(name: str, top: ast.Module) -> list[str]:
    """Values of a module or a class that one step could leave to the next."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(top):
        if isinstance(node, ast.Global | ast.Nonlocal):
            found.append((node, f"declares {', '.join(node.names)} global"))
        if isinstance(node, ast.Module | ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign | ast.AnnAssign | ast.AugAssign):
                    field = "field(" in ast.unparse(line) and isinstance(node, ast.ClassDef)
                    if not immutable(line.value) and not field and not settings(line):
                        found.append((line, f"holds {ast.unparse(line)}"))
    return told(found)


def unfrozen(name: str, top: ast.Module) -> list[str]:
    """Classes that are neither frozen dataclasses nor NamedTuples."""
    return told(
        [
            (cls, f"{cls.name} is no frozen dataclass")
            for cls in top.body
            if isinstance(cls, ast.ClassDef)
            and not any(
                isinstance(d, ast.Call) and "frozen=True" in map(ast.unparse, d.keywords)
                for d in cls.decorator_list
            )
            and "NamedTuple" not in map(ast.unparse, cls.bases)
        ]
    )


def loopholes(name: str, top: ast.Module) -> list[str]:
    """Ways around the other checks, and output."""
    return told(
        [
            (node, f"calls {node.func.id}")
            for node in ast.walk(top)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in LOOPHOLES
        ]
    )


# ---- the package --------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [kept_imports, upward_imports, randomness])
@pytest.mark.parametrize("name", FILES)
def test_every_file(name, check):
    assert check(name, tree(name)) == []


@pytest.mark.parametrize("name", [n for n in FILES if n not in MAY_COMPARE_NAMES])
def test_no_file_asks_for_the_name_of_a_rule_or_a_backend(name):
    assert compared_names(name, tree(name)) == []


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("rules/", "gpu/"))])
def test_folders_beside_the_package_import_by_full_name(name):
    assert relative_imports(name, tree(name)) == []


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("gpu/")])
def test_gpu_imports_torch_on_request(name):
    assert early_torch(name, tree(name)) == []


@pytest.mark.parametrize(
    "check", [rule_imports, private_attributes, mutable_globals, unfrozen, loopholes]
)
@pytest.mark.parametrize("name", RULES)
def test_every_rule(name, check):
    assert check(name, tree(name)) == []


# ---- the checks themselves: each must object to wrong code, and to nothing else ------------------

WRONG = [
    (kept_imports, "import torch"),
    (kept_imports, "from numba import njit"),
    (kept_imports, "def f():\n    import cupy.cuda"),
    (upward_imports, "from fflearn.rules.dfa import DFA"),
    (upward_imports, "from fflearn import rules"),
    (upward_imports, "import gpu"),
    (early_torch, "import torch"),
    (relative_imports, "from .dfa import DFA"),
    (rule_imports, "from fflearn.engine import Engine"),
    (rule_imports, "from fflearn import bus"),
    (rule_imports, "import os"),
    (upward_imports, "import fflearn.rules.dfa as registry"),
    (compared_names, "if kernels.name == 'numba': pass"),
    (compared_names, "y = name in ('cupy', 'other')"),
    (compared_names, "match name:\n    case 'torch': pass"),
    (randomness, "x = np.random.rand()"),
    (randomness, "from numpy import random"),
    (randomness, "import random"),
    (randomness, "train_test_split(x, y)"),
    (private_attributes, "v._engine"),
    (private_attributes, "self._cache"),
    (private_attributes, "object.__setattr__(self, 'x', 1)"),
    (mutable_globals, "CACHE = {}"),
    (mutable_globals, "B = np.zeros(3)"),
    (mutable_globals, "class A:\n    seen: ClassVar = []"),
    (mutable_globals, "class A:\n    variants: ClassVar = {'a': [1]}"),
    (mutable_globals, "def f():\n    global x"),
    (unfrozen, "@dataclass\nclass A: pass"),
    (loopholes, "vars(v)['x']"),
]
RIGHT = [
    (kept_imports, "import numpy.linalg"),
    (upward_imports, "from fflearn.base import Rule"),
    (early_torch, "def f():\n    import torch"),
    (relative_imports, "from fflearn.rules.dfa import DFA"),
    (rule_imports, "from fflearn.objectives.goodness import Goodness\nimport numpy as np"),
    (compared_names, "if 'cupy' in sys.modules or name == 'mean': pass"),
    (randomness, "from fflearn.random import Key\nself.random.normal()"),
    (randomness, "train_test_split(x, y, random_state=0)"),
    (
        private_attributes,
        "class A:\n    def _h(self): pass\n    def f(self, m): self._h(m._replace())",
    ),
    (
        mutable_globals,
        "A = (1, -2.0)\nclass B:\n    c: ClassVar = frozenset({1})\n    d: float = 0.1",
    ),
    (unfrozen, "@dataclass(frozen=True)\nclass A: pass\nclass B(NamedTuple): pass"),
    (loopholes, "len(x)"),
]


@pytest.mark.parametrize(("check", "code"), WRONG)
def test_wrong_code_is_told(check, code):
    assert check("fflearn/made_up.py", ast.parse(code))


@pytest.mark.parametrize(("check", "code"), RIGHT)
def test_right_code_passes(check, code):
    assert check("fflearn/made_up.py", ast.parse(code)) == []
