"""Native kernels of a tape give the bits of what they stand for, at sizes and layouts of all kinds."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

from fflearn import kernels
from fflearn.base import Batch, Product
from fflearn.kernels import lowering
from fflearn.random import Key
from fflearn.state import State
from fflearn.tape.program import Program
from fflearn.tape.record import SETTINGS, Recording, inputs, noted
from fflearn.tape.traced import SHARED, Recorder, TracedKernels, concrete

K = kernels.load("numba")
MATRICES = [(1, 1, 1), (3, 5, 7), (32, 64, 128), (33, 17, 10), (130, 70, 300)]
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 127, 128, 129, 130, 255, 257, 1000, 4097, 8192]


def arrays(seed: int, **shapes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}


def repeated(f: Any, given: list[dict[str, Any]], step: int = 3) -> tuple[Program, list[Any]]:
    """f(k, step, lr, **arrays) recorded on the first arrays, and run on the others."""

    def batch(named: dict[str, Any]) -> Batch:
        x = np.zeros((1, 1), np.float32)
        return Batch(x, x, {n: a.copy(order="K") for n, a in named.items()})

    rec = Recorder()
    traced = {
        n: rec.outside(n, a.copy(order="K"), SHARED) for n, a in inputs(batch(given[0])).items()
    }
    now = rec.outside("step", step, SHARED), rec.outside(SETTINGS[1], 0.1, SHARED)
    named = {n: traced[f"side.{n}"] for n in given[0]}
    found = flat(f(TracedKernels(K, rec), *now, **named))
    state = State([], [], [], 0, 0)
    program = Program(Recording(rec.ops, noted(found)), state, batch(given[0]), K)
    runs = [program(step + i, (0.0, 0.1 + i, 0.0), batch(named)) for i, named in enumerate(given)]
    assert same(concrete(found), runs[0])
    return program, runs


def flat(found: Any) -> dict[str, Any]:
    parts = found if isinstance(found, (tuple, list)) else [found]
    return {str(i): part for i, part in enumerate(parts)}


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        type(a) is type(two[n])
        and np.asarray(a).tobytes() == np.asarray(two[n]).tobytes()
        and np.shape(a) == np.shape(two[n])
        for n, a in one.items()
    )


def rows(program: Program) -> bool:
    """Whether all of it is native: one call."""
    (only,) = program.calls if len(program.calls) == 1 else (None,)
    return getattr(only, "func", None) is lowering.native.run


def check(f: Any, shapes: dict[str, Any], native: bool = True) -> None:
    given = [arrays(seed, **shapes) for seed in range(3)]
    with K.running(1):
        expected = [
            flat(f(K, 3 + i, 0.1 + i, **{n: a.copy() for n, a in named.items()}))
            for i, named in enumerate(given)
        ]
        program, runs = repeated(f, given)
    for want, got in zip(expected, runs, strict=True):
        assert same(want, got), shapes
    assert rows(program) == native


def of(name: str, *more: Any) -> Any:
    return lambda k, step, lr, **a: getattr(k, name)(*a.values(), *more)


def updated(f: Any) -> Any:
    """An update in place, seen as what is there afterwards; the arrays are the tape's own."""

    def run(k: Any, step: Any, lr: Any, **a: Any) -> Any:
        own = {n: v + np.float32(0) if n in "wmv" else v for n, v in a.items()}
        f(k, step, lr, own)
        return [own[n] for n in own if n in "wmv"]

    return run


def cases() -> dict[str, list[tuple[Any, dict[str, Any]]]]:
    found: dict[str, list[tuple[Any, dict[str, Any]]]] = {}

    def add(name: str, f: Any, **shapes: Any) -> None:
        found.setdefault(name, []).append((f, shapes))

    for m, n, r in MATRICES:
        add("matmul", of("matmul"), a=(m, r), b=(r, n))
        add("matmul_tn", of("matmul_tn"), a=(r, m), b=(r, n))
        add("matmul_nt", of("matmul_nt"), a=(m, r), b=(n, r))
        add("matmul", lambda k, step, lr, a, b: k.matmul(a.T, b[:, ::2]), a=(r, m), b=(r, n))
        for act in ("relu", "hardsigmoid", "identity"):
            add("dense", of("dense", act), x=(m, r), W=(r, n), b=(n,))
        add("dense", lambda k, s, lr, x, W, z: k.dense(x, W, None, "relu", z), x=(m, r), W=(r, n),
            z=(m, n))  # fmt: skip
        add("colmean", of("colmean", m), da=(m, n))
        for act in ("relu", "hardsigmoid", "identity"):
            add("dense", lambda k, s, lr, x, W, act=act: k.dense(x, W, None, act, None, False)[1],
                x=(m, r), W=(r, n))  # fmt: skip
        for kind in ("relu", "hardsigmoid"):
            add("act", of("act", kind), a=(m, n))
            add("act", lambda k, s, lr, a, kind=kind: k.act(own := a + 1, kind, own), a=(m, n))
        for kind in ("relu", "hardsigmoid", "tanh", "sigmoid"):
            add("act_vjp", of("act_vjp", kind), dy=(m, n), a=(m, n), y=(m, n))
            add("act_vjp", lambda k, s, lr, d, y, kind=kind: k.act_vjp(own := d + 1, None, y, kind, own),
                d=(m, n), y=(m, n))  # fmt: skip
        for kind in ("rms", "unit"):
            add("normalize", of("normalize", kind), x=(m, n))
            add("normalize_vjp", of("normalize_vjp", kind), dn=(m, n), x=(m, n), n=(m, n))
            add("normalize_jvp", of("normalize_jvp", kind), dn=(m, n), x=(m, n), n=(m, n))
        add("softmax_ce", of("softmax_ce"), z=(m, n), y=(m, n))
        for kind in ("ssq", "neg_ssq", "msq", "l2", "lin"):
            add("goodness", of("goodness", kind), y=(m, n))
            add("goodness_vjp", of("goodness_vjp", kind), dg=(m,), y=(m, n))
        add("logistic", of("logistic", 0.3, 2.0), g=(m,), phase=(m,))
        add(
            "formed", lambda k, s, lr, x, da: k.formed(Product(x, da, len(da))), x=(m, r), da=(m, n)
        )

        def sgd(k, step, lr, a, kept=True, formed=False, momentum=0.9):
            g = a["g"] if formed else Product(a["x"], a["da"], len(a["x"]))
            k.sgd(a["w"], g, a["m"] if kept else None, lr, momentum if kept else 0.0, lr * 0.5)

        def adam(k, step, lr, a, formed=False, decoupled=False):
            g = a["g"] if formed else Product(a["x"], a["da"], len(a["x"]))
            k.adam(a["w"], g, a["m"], abs_of(a["v"]), lr, 0.9, 0.99, 1e-8, lr, decoupled, step)

        product = {"x": (r, m), "da": (r, n)}
        for kept in (True, False):
            held = {"w": (m, n)} | ({"m": (m, n)} if kept else {})
            add("sgd", updated(lambda *a, k=kept: sgd(*a, kept=k)), **held, **product)
            add("sgd", updated(lambda *a, k=kept: sgd(*a, kept=k, formed=True)), **held, g=(m, n))
        held = {"w": (m, n), "m": (m, n), "v": (m, n)}
        for decoupled in (False, True):
            add("adam", updated(lambda *a, d=decoupled: adam(*a, decoupled=d)), **held, **product)
            add("adam", updated(lambda *a, d=decoupled: adam(*a, True, d)), **held, g=(m, n))
    for size in SIZES:
        for draw in ("uniform", "normal"):
            add(draw, drawn(draw, size), a=(1,))
        add("random_words", drawn("words", size), a=(1,))
        add("uniform", drawn("rademacher", size), a=(1,))
    return found


def abs_of(v):
    v *= v
    return v


def drawn(draw: str, size: int) -> Any:
    return lambda k, step, lr, a: getattr(Key(7).fold("n").using(k).at(step), draw)(size)


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_kernels(name):
    for f, shapes in CASES[name]:
        check(f, shapes)


def test_every_kernel_that_has_a_native_form_is_tested():
    assert set(CASES) == set(lowering.KERNELS)


ELEMENTWISE = {
    "vectors": lambda f, a, b: f(a, b),
    "a number": lambda f, a, b: f(a, 0.3),
    "from a number": lambda f, a, b: f(0.3, b),
    "a whole number": lambda f, a, b: f(a, 3),
    "rows": lambda f, a, b: f(a, b[0]),
    "columns": lambda f, a, b: f(a[:, :1], b),
    "a column each": lambda f, a, b: f(a, b.sum(1, keepdims=True)),
    "parts": lambda f, a, b: f(a[1:, ::3], b[:-1, ::3]),
    "turned": lambda f, a, b: f(a.T, b.T),
    "one turned": lambda f, a, b: f(a[:5, :5].T, b[:5, :5]),
    "backwards": lambda f, a, b: f(a[::-1], b[:, ::-1]),
    "scalars": lambda f, a, b: f(a[0, 0], b[1, 2]),
    "blocks": lambda f, a, b: f(a.reshape(-1, 3, 4)[:, None], b.reshape(-1, 3, 4)),
    "a constant": lambda f, a, b: f(a, np.arange(12, dtype=np.float32) + 1),
}


@pytest.mark.parametrize("how", ELEMENTWISE)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
def test_arithmetic(name, how):
    f = getattr(operator, name)
    check(lambda k, step, lr, a, b: ELEMENTWISE[how](f, a, b), {"a": (9, 12), "b": (9, 12)})


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv"])
def test_arithmetic_in_place(name):
    def run(k, step, lr, a, b):
        own = a * 2
        own = getattr(operator, name)(own, b)
        own = getattr(operator, name)(own, own.T) if own.shape == own.T.shape else own
        return own

    check(run, {"a": (9, 12), "b": (12,)})


MOVES = {
    "copy": lambda a, b: a.T.copy(),
    "as it lies": lambda a, b: a.T.copy(order="K"),
    "zeros": lambda a, b: (np.zeros_like(a), np.zeros_like(a, shape=(3, 2)), np.ones_like(b)),
    "full": lambda a, b: (np.full_like(a, 0.1), np.full_like(a, 3, shape=(2,))),
    "below": lambda a, b: np.concatenate([a, b, a[:2]]),
    "beside": lambda a, b: np.concatenate([a, b[:, 2:4], a], axis=1),
    "of three axes": lambda a, b: np.concatenate([a.reshape(9, 3, 4), b.reshape(9, 3, 4)], axis=-2),
    "stacked": lambda a, b: (np.stack([a, b]), np.stack([a[0], b[0]], axis=1)),
    "written": lambda a, b: written(a, b),
    "mean": lambda a, b: a.ravel().mean(dtype=np.float64).astype(a.dtype),
}


def written(a, b):
    own = a * 2
    own[...] = b[0]
    return own


@pytest.mark.parametrize("how", MOVES)
def test_moves(how):
    check(lambda k, step, lr, a, b: MOVES[how](a, b), {"a": (9, 12), "b": (9, 12)})


@pytest.mark.parametrize("size", SIZES)
def test_means_are_summed_in_numpys_order(size):
    check(lambda k, step, lr, a: a.mean(dtype=np.float64).astype(a.dtype), {"a": (size,)})


def test_a_long_mean_is_left_to_numpy():
    """Beyond a buffer of 8192 numbers it adds up the sums of buffers."""
    check(lambda k, step, lr, a: a.mean(dtype=np.float64) * 3, {"a": (8193 * 3,)}, native=False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_sums_over_all_and_over_axes(name, size):
    for shape in ((size,), (3, size), (size, 2), (size, 33), (size % 40 + 2, 130)):
        for axis in (None, 0, 1, -1, -2) if min(shape) > 1 and len(shape) > 1 else (None,):
            check(lambda k, s, lr, a, x=axis: getattr(a, name)(x), {"a": shape})
    check(lambda k, s, lr, a: getattr(a, name)(axis=1, keepdims=True), {"a": (3, size + 1)})


def test_signs_and_roots():
    check(lambda k, s, lr, a: (-a, abs(a), np.sqrt(np.absolute(a[1:]))), {"a": (7, 19)})


LEFT = {
    "float64": lambda k, step, lr, a, b: a.astype(np.float64) + b,
    "a strong number": lambda k, step, lr, a, b: a * np.float64(0.3),
    "four axes": lambda k, step, lr, a, b: a.reshape(3, 3, 3, 4).swapaxes(0, 2) + 1,
    "powers": lambda k, step, lr, a, b: a**2,
    "where": lambda k, step, lr, a, b: np.where(a > b, a, b),
    "tanh": lambda k, step, lr, a, b: k.dense(a, b.T.copy(), None, "tanh"),
    "sums of three axes": lambda k, step, lr, a, b: a.reshape(3, 3, 12).sum(1),
    "sums of parts": lambda k, step, lr, a, b: a[:, ::2].sum(0),
}


@pytest.mark.parametrize("how", LEFT)
def test_the_rest_is_called_from_python_with_the_same_bits(how):
    check(LEFT[how], {"a": (9, 12), "b": (9, 12)}, native=False)


def test_a_number_that_changes_is_read_in_every_step():
    def run(k, step, lr, a):
        k.sgd(a, a * 1, None, lr * 2, 0.0, 0.0)
        return a

    given = [arrays(0, a=(4, 3))] * 3
    _, runs = repeated(lambda k, s, lr, a: run(k, s, lr, a + 0), given)
    for i, found in enumerate(runs):
        own = given[0]["a"] + 0
        assert same(flat(run(K, 3 + i, 0.1 + i, own)), found)


def test_equal_work_on_numbers_is_done_once():
    def run(k, step, lr, a):
        for _ in range(5):
            k.adam(a, a * 1, a * 0, a * 0, lr * 1.0, 0.9, 0.99, 1e-8, 0.0, False, step + 1)
        return a

    program, _ = repeated(lambda k, s, lr, a: run(k, s, lr, a + 0), [arrays(0, a=(4, 3))])
    assert len(program._before) == 3  # the rate, the step, and Adam's scales


def test_buffers_share_memory_only_where_their_times_differ():
    def run(k, step, lr, a):
        for _ in range(20):
            a = a + 1
        return a

    program, _ = repeated(run, [arrays(0, a=(64, 64))])
    assert 2 * 64 * 64 * 4 <= program._arena.nbytes < 4 * 64 * 64 * 4


def test_what_nobody_reads_is_left_out():
    program, _ = repeated(lambda k, s, lr, a: ((a * 2).sum(), a + 1)[1], [arrays(0, a=(4, 3))])
    assert rows(program)


def test_a_constant_is_what_it_was_when_it_was_used():
    def run(k, step, lr, a):
        c = np.ones(12, np.float32)
        first = a + c
        c *= 5
        return first * 2, np.hypot(first, c)

    check(run, {"a": (9, 12)}, native=False)
