"""What setup.cfg installs is what lies in the folders; the checkout runs as it lies."""

from __future__ import annotations

import configparser
import doctest
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"fflearn": "fflearn", "fflearn.rules": "rules", "fflearn.gpu": "gpu"}
OPTIONAL = {"cupy", "dask", "flwr", "matplotlib", "onnx", "optuna", "pooch", "torch"}
EXTRAS = """all data docs export federated gpu gpu-compile gpu12 lint mutation plot sweep test
torch"""


def files_on_disk() -> dict[str, Path]:
    """Every module, by the path it has once installed; links of "make lint" are not followed."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                inside = path.relative_to(ROOT / folder).as_posix()
                found[f"{package.replace('.', '/')}/{inside}"] = path
    return found


def packages_on_disk() -> set[str]:
    names = (Path(name) for name in files_on_disk())
    return {".".join(n.parent.parts) for n in names if n.name == "__init__.py"}


def modules() -> list[str]:
    names = [name.removesuffix(".py").replace("/", ".") for name in files_on_disk()]
    return sorted(n.removesuffix(".__init__") for n in names if not n.endswith("__main__"))


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def python(code: str, cwd: Path, path: str = "") -> str:
    """What a fresh interpreter prints."""
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- what is listed -------------------------------------------------------------------------


def test_setup_cfg_lists_every_package():
    assert set(setup_cfg()["options"]["packages"].split()) == packages_on_disk()


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in files_on_disk().values()}
    assert [f for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_extras_are_the_documented_ones():
    assert set(setup_cfg()["options.extras_require"]) == set(EXTRAS.split())


def test_the_core_requires_no_more_than_five_packages():
    names = {line.partition(">")[0] for line in setup_cfg()["options"]["install_requires"].split()}
    assert names == {"numpy", "numba", "scikit-learn", "safetensors", "tqdm"}


def test_pytest_options_need_no_plugin():
    options = setup_cfg()["tool:pytest"]
    assert set(options["addopts"].split()) == {"-ra", "--strict-markers"}
    assert "timeout" not in options


def test_test_files_have_names_of_their_own():
    # pytest imports them by bare file name: two alike in different folders stop the run.
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, n in counts.items() if n > 1] == []


def test_citation_file_names_this_version():
    import fflearn

    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {fflearn.__version__}" in lines


# ---- the checkout as it lies ----------------------------------------------------------------

NO_FINDERS = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
"""


@pytest.mark.parametrize("inside", [True, False])
def test_checkout_imports_with_nothing_installed(tmp_path, inside):
    code = NO_FINDERS + "import fflearn.rules, fflearn.gpu; print(fflearn.rules.__file__)"
    out = python(code, ROOT) if inside else python(code, tmp_path, str(ROOT))
    assert Path(out).resolve() == ROOT / "rules" / "__init__.py"


def test_import_is_quick_and_leaves_heavy_packages_alone():
    code = """
import sys, time
start = time.perf_counter()
import fflearn
print(time.perf_counter() - start, *sorted(sys.modules))
"""
    seconds = []
    for _ in range(5):
        first, *loaded = python(code, ROOT).split()
        assert not {"torch", "sklearn", "numba", "cupy", "scipy", "matplotlib"} & set(loaded)
        seconds.append(float(first))
    assert min(seconds) < 1


@pytest.mark.parametrize("name", modules())
def test_doctests(name):
    # By import name: pytest --doctest-modules would import rules/dfa.py a second time, as rules.dfa.
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
    assert doctest.testmod(module).failed == 0


# ---- what is built --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> str:
    """A folder with a setuptools that knows License-Expression; "" where one is installed."""
    try:
        if int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77:
            return ""
    except importlib.metadata.PackageNotFoundError:
        pass
    pytest.importorskip("pip")
    folder = str(tmp_path_factory.mktemp("backend"))
    command = [sys.executable, "-m", "pip", "-q", "install", "--target", folder, "setuptools>=77"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no setuptools >= 77 here, and none to be had: {done.stderr[-300:]}")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout, so that build/ does not land in it."""
    folder = tmp_path_factory.mktemp("source") / "fflearn"
    litter = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=litter)
    for link in (folder / "fflearn" / "rules", folder / "fflearn" / "gpu"):
        link.unlink(missing_ok=True)
    return folder


def wheel_of(folder: Path, backend: str, out: Path) -> Path:
    """The wheel that pip builds from a source folder."""
    pytest.importorskip("pip")
    command = ["-m", "pip", "wheel", "-q", ".", "--no-deps", "--no-build-isolation", "-w"]
    env = {**os.environ, "PYTHONPATH": backend}
    done = subprocess.run(
        [sys.executable, *command, str(out)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = out.glob("*.whl")
    return wheel


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def wheel(source, backend, tmp_path_factory) -> Path:
    return wheel_of(source, backend, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_wheel_holds_every_module(wheel):
    files = [name for name in contents(wheel) if ".dist-info/" not in name]
    data = ["fflearn/py.typed", "fflearn/report/sort.js", "fflearn/report/style.css"]
    assert files == sorted([*files_on_disk(), *data])
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("/LICENSE") for name in contents(wheel))


@pytest.mark.slow
def test_sdist_rebuilds_to_the_same_wheel(wheel, source, backend, tmp_path):
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    python(code, source, backend)
    [archive] = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    [folder] = (tmp_path / "unpacked").iterdir()
    assert (folder / "tests" / "conftest.py").is_file()
    assert (folder / "constraints.txt").is_file()
    assert contents(wheel_of(folder, backend, tmp_path / "wheel")) == contents(wheel)


@pytest.mark.slow
def test_installed_package_imports(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import fflearn.rules, fflearn.gpu, fflearn.cli; print(fflearn.rules.__file__)"
    out = python(NO_FINDERS + code, tmp_path, str(site))
    assert Path(out) == site / "fflearn" / "rules" / "__init__.py"
    # In the checkout's root the checkout itself comes first, and must be whole.
    out = python(NO_FINDERS + code, ROOT, str(site))
    assert Path(out).resolve() == ROOT / "rules" / "__init__.py"
