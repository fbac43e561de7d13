"""Threads, the choice of a backend, and where compiled code is kept."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fflearn import kernels
from fflearn.errors import BackendUnavailable
from fflearn.kernels import jit

ROOT = Path(__file__).parent.parent.parent


def run(code, *arguments, **variables):
    """Standard output of a fresh Python with these environment variables."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    if "FFLEARN_CACHE" in variables:
        env.pop("NUMBA_CACHE_DIR", None)  # it goes first
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- threads ----------------------------------------------------------------------------------
def test_running_restores_threads(k):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def pools():
        blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
        return [c.num_threads for c in blas.lib_controllers]

    before = pools()
    with pytest.raises(KeyError), k.running(2):
        assert set(pools()) <= {1}
        raise KeyError
    assert pools() == before


def test_running_beside_another_holds_blas_until_the_last_leaves(k):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def pools():
        blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
        return [c.num_threads for c in blas.lib_controllers]

    with threadpoolctl.threadpool_limits(2, "blas"), ThreadPoolExecutor(1) as another:
        before = pools()
        first, second = k.running(1), k.running(1)
        first.__enter__()
        another.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert set(pools()) == {1}
        another.submit(second.__exit__, None, None, None).result()
        assert pools() == before == [2] * len(before)


THREADS = """
import numba
from fflearn import kernels
k = kernels.load("numba")
seen = [numba.get_num_threads()]
try:
    with k.running(1):
        seen.append(numba.get_num_threads())
        with k.running(1):
            seen.append(numba.get_num_threads())
            with k.running(2):
                seen.append(numba.get_num_threads())
            seen.append(numba.get_num_threads())
        seen.append(numba.get_num_threads())
        raise KeyError
except KeyError:
    seen.append(numba.get_num_threads())
with k.running(2), k.running(1):
    seen.append(numba.get_num_threads())
with k.running(1):
    seen.append(numba.get_num_threads())
print(*seen)
"""


def test_running_restores_the_threads_of_compiled_loops():
    assert run(THREADS, NUMBA_NUM_THREADS="2") == "2 1 1 2 1 1 2 1 1"


FIRST_STEP = """
import numpy as np
from fflearn import kernels
from fflearn.kernels import team
k, a = kernels.load("numba"), np.ones((700, 700), np.float32)
before = k.matmul(a, a), int(team._team[0])
with k.running(2):
    after = k.matmul(a, a), int(team._team[0])
print((before[0] == after[0]).all(), before[1] == 0, after[1] != 0)
"""


def test_no_thread_is_started_before_a_step():
    """A process may fork until then."""
    assert run(FIRST_STEP) == "True True True"


SIDE_BY_SIDE = """
import threading
import numba, numpy as np
from fflearn import Batch, Engine, pipeline, registry
from fflearn.errors import BackendUnavailable
rng = np.random.default_rng(0)
x, y = rng.normal(size=(128, 512)).astype("f"), np.eye(10, dtype="f")[rng.integers(0, 10, 128)]
found = []
def train(steps=4):
    engine = Engine("dense 512 relu | dense 10", registry.rule("dfa"), (512,), 10, threads=2)
    state = engine.init(0)
    for _ in range(steps):
        engine.step(state, Batch(x, y))
    found.append(state.params[0]["W"].tobytes())
    return engine, state
threads = [threading.Thread(target=train) for _ in range(3)]
for t in threads: t.start()
for t in threads: t.join()
try:
    pipeline.run(*train(), [Batch(x, y)] * 2)
    refused = "runs"
except BackendUnavailable as error:
    refused = "tbb" in str(error)
print(numba.threading_layer(), len(found), len(set(found)), refused)
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_steps_on_several_threads(layer):
    """Numba's work queue ends the process when two threads are in it: there they take turns."""
    told = run(SIDE_BY_SIDE, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2").split()
    if told[0] != layer:
        pytest.skip(f"Numba has {told[0]} here, not {layer}")
    assert told == [layer, "4", "1", "True" if layer == "workqueue" else "runs"]


DIGEST = """
import hashlib, sys
sys.path.insert(0, sys.argv[3])
import numpy as np
import test_every_kernel as t
from fflearn import kernels
k, h = kernels.load(sys.argv[1]), hashlib.sha256()
with k.running(int(sys.argv[2])):
    for name, cases in sorted(t.CASES.items()):
        for args in cases(np.random.default_rng(0), np.float32):
            for out in t.results(k, name, args):
                h.update(np.ascontiguousarray(out).tobytes())
print(h.hexdigest())
"""


def test_bits_do_not_depend_on_threads(k):
    """Each number of threads in its own process, with BLAS pools of that size too."""
    one, two = (
        run(
            DIGEST,
            *(k.name, threads, str(Path(__file__).parent)),
            NUMBA_NUM_THREADS="2",
            OPENBLAS_NUM_THREADS=threads,
        )
        for threads in ("1", "2")
    )
    assert len(one) == 64
    assert one == two


# ---- choosing a backend -------------------------------------------------------------------------
@pytest.mark.parametrize("name", kernels.names())
def test_backend_is_available(name):
    try:
        assert kernels.load(name).name == name
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_load_names_what_it_knows():
    with pytest.raises(ValueError, match="reference, numba, cuda"):
        kernels.load("abacus")
    assert kernels.load("reference").name == "reference"


def test_cuda_says_what_to_install(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda package: None)
    with pytest.raises(BackendUnavailable, match=r'cupy.*pip install "fflearn\[gpu\]"'):
        kernels.load("cuda")


def test_import_stays_light():
    """`import fflearn.random` and the reference kernels must not bring in numba or scipy."""
    assert not run(
        "import sys; import fflearn.random; from fflearn import kernels;"
        "kernels.load('reference'); print(*{'numba', 'scipy', 'torch'} & set(sys.modules))"
    )


# ---- where the compiled code is kept ------------------------------------------------------------
COMPILE = """
import numba, numpy as np
before = numba.config.CACHE_DIR
from fflearn import kernels
from fflearn.kernels import jit
kernels.load("numba").colmean(np.ones((2, 2), np.float32), 2.0)
assert numba.config.CACHE_DIR == before
print(jit.cache_folder(), sum(path.suffix == ".nbc" for path in jit.cache_folder().rglob("*")))
"""


def test_cache_folder_follows_the_environment(tmp_path):
    name = f"numba-{jit.digest()}"
    for variable, where in (("FFLEARN_CACHE", tmp_path / "a"), ("NUMBA_CACHE_DIR", tmp_path / "b")):
        folder, files = run(COMPILE, **{variable: str(where)}).split()
        assert folder == str(where / name) and int(files) > 0


def test_cache_that_cannot_be_written_is_a_temporary_folder(tmp_path):
    (tmp_path / "file").touch()
    folder, files = run(COMPILE, FFLEARN_CACHE=str(tmp_path / "file" / "under")).split()
    assert int(files) > 0
    assert not Path(folder).exists()


def test_digest_changes_with_a_source_that_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "_HERE", tmp_path)
    digests = []
    for name, text in [("scalars", "a = 1"), ("scalars", "a = 2"), ("reference", "a = 3")]:
        (tmp_path / f"{name}.py").write_text(text)
        digests.append(jit.digest())
    assert digests[0] != digests[1] == digests[2]


def test_what_the_digest_leaves_out_holds_nothing_compiled():
    folder = Path(jit.__file__).parent
    left_out = {name.removesuffix(".py") for name in jit.NEVER_COMPILED}
    for path in folder.glob("*.py"):
        text = path.read_text()
        if path.stem in left_out:
            assert not re.search(r"@(kernel|register_jitable|intrinsic|numba|njit)", text), path
        else:
            read = re.findall(r"fflearn\.kernels\.(\w+)", text)
            read += re.findall(r"from fflearn\.kernels import (.*)", text)
            assert not left_out & set(", ".join(read).split(", ")), path


def test_read_only_views_are_not_compiled_for_again():
    """A rule sees the state through read-only views, another type to Numba."""
    k = kernels.load("numba")
    from fflearn.kernels import compiled

    da = np.ones((3, 4), np.float32)
    k.colmean(da, 3.0)
    before = len(compiled.colmean.signatures)
    view = da[:]
    view.flags.writeable = False
    k.colmean(view, 3.0)
    assert len(compiled.colmean.signatures) == before
    assert not view.flags.writeable


TOGETHER = """
import threading
from pathlib import Path
from fflearn.kernels import jit, native
ready = threading.Barrier(4)
def compile_one(kernel):
    ready.wait()
    kernel.address
made = [native.fill, native.copy, native.mean64, native.from_double]
threads = [threading.Thread(target=compile_one, args=(kernel,)) for kernel in made]
for t in threads: t.start()
for t in threads: t.join()
print(jit.CONFIG.CACHE_DIR == "", sum(len(list(jit.cache_folder().rglob(f"native.{k.name}-*.nbi"))) for k in made))
"""


def test_threads_that_compile_keep_it_in_the_same_folder(tmp_path):
    assert run(TOGETHER, FFLEARN_CACHE=str(tmp_path)) == "True 4"
