"""Product feedback alignment with a fixed matrix that is never formed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fflearn import kernels, locality
from fflearn.base import Batch
from fflearn.checks import samples
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.optim import SGD
from fflearn.random import Key
from fflearn.registry import rule

MATRICES = ("signs", "hadamard")
# units, groups, expansion; of 12 and 20 units "hadamard" takes a part of 16 and 32 columns
SIZES = [(16, 1, 1), (12, 1, 2), (20, 1, 3), (24, 2, 2), (1, 1, 2)]
K = kernels.load("reference")


def written_out(matrix: str, b: np.ndarray) -> np.ndarray:
    """B (n, m), entry by entry from its definition."""
    groups, blocks, n = b.shape
    wide = n
    while matrix == "hadamard" and wide & (wide - 1):
        wide += 1
    found = np.zeros((groups * n, b.size))
    for column, number in enumerate(b.ravel()):
        block, of_block = divmod(abs(int(number)) - 1, wide)
        group, again = divmod(block, blocks)
        for unit in range(n):
            if matrix == "signs":
                entry = (unit == of_block) / np.sqrt(blocks)
            else:
                entry = (-1) ** (unit & of_block).bit_count() / np.sqrt(blocks * n)
            found[group * n + unit, column] = np.sign(b[group, again, unit]) * entry
    return found


@pytest.mark.parametrize(("n", "groups", "expansion"), SIZES)
@pytest.mark.parametrize("matrix", MATRICES)
def test_products_are_those_with_the_matrix_written_out(matrix, n, groups, expansion):
    pfa = rule("pfa", matrix=matrix, expansion=expansion)
    b = pfa.structured(Key(3), n, groups)
    exact = written_out(matrix, b)
    x = Key(1).normal((5, 2, n), np.float64)
    z = Key(2).normal((5, 2, n * expansion), np.float64)
    np.testing.assert_allclose(pfa.into(K, x, b), x @ exact, rtol=0, atol=1e-13)
    np.testing.assert_allclose(pfa.back(K, z, b), z @ exact.T, rtol=0, atol=1e-13)
    assert exact.shape == (n, n * expansion) and b.size == n * expansion  # O(n) memory
    if matrix == "signs":
        assert ((exact != 0).sum(0) == 1).all() and ((exact != 0).sum(1) == expansion).all()
    across = exact.reshape(groups, n // groups, groups, -1).swapaxes(1, 2)
    for i in range(groups):
        for j in range(groups):
            assert across[i, j].any() == (i == j)


@pytest.mark.parametrize(("matrix", "n"), [("signs", 12), ("signs", 16), ("hadamard", 16)])
@pytest.mark.parametrize("expansion", [1, 3])
def test_rows_are_orthonormal(matrix, n, expansion):
    pfa = rule("pfa", matrix=matrix, expansion=expansion)
    b = written_out(matrix, pfa.structured(Key(0), n, 1))
    np.testing.assert_allclose(b @ b.T, np.eye(n), rtol=0, atol=1e-14)


def test_parts_of_a_transform_are_orthonormal_on_average():
    pfa, n, draws = rule("pfa", matrix="hadamard", expansion=2), 6, 400
    found = []
    for seed in range(draws):
        b = written_out("hadamard", pfa.structured(Key(seed), n, 1))
        found.append(b @ b.T)
    np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), 1)
    far = np.mean(found, 0) - np.eye(n)
    assert np.abs(far).max() < 5 * np.std(found, 0).max() / np.sqrt(draws)
    assert np.std(found, 0).max() > 0.1  # no draw is


@pytest.mark.parametrize(("n", "expansion"), [(100, 1), (100, 4), (70, 2), (128, 1)])
def test_the_angle_where_the_gap_is_gone(n, expansion):
    """Of N columns n are taken, r times: two rows overlap by sqrt((N - n) / ((N - 1) r n))."""
    engine = Engine(
        f"dense 256 | dense {n} | dense 3",
        rule("pfa", matrix="hadamard", expansion=expansion),
        (5,),
        3,
        dtype="float64",
    )
    state, y = engine.init(0), np.eye(3)[[0, 1]]
    b = written_out("hadamard", state.aux[1]["B.W"])
    state.aux[1]["R.W"] = state.params[1]["W"] @ b
    engine.probes = {"angle": engine.rule.path_angle}
    info, _ = engine.step(state, Batch(np.ones((2, 5)), y))
    spread = (128 - n) * (n - 1) / (127 * expansion * n)
    assert info["angle/1"] == pytest.approx(np.degrees(np.arctan(np.sqrt(spread))), abs=1)


NETS = {
    "dense": (
        "dense 20 relu | dense 16 tanh | residual(dense 16 relu) | dense 12 | dense 3",
        (11,),
    ),
    "conv": ("conv 4 relu | conv 6 tanh groups=2 | conv 8 relu | flatten | dense 3", (4, 5, 2)),
}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("kind", NETS)
def test_it_learns_what_it_would_with_the_matrix_written_out(kind, matrix):
    net, in_shape = NETS[kind]
    x = Key(0).normal((8, *in_shape), np.float64)
    batch, states, fixed = Batch(x, samples(8, 3).y), [], []
    for how in (matrix, "dense"):
        pfa = rule("pfa", matrix=how, expansion=2)
        optimizer = SGD(0.05, 0.02, momentum=0.9)
        engine = Engine(net, pfa, in_shape, 3, optimizer, backend="reference", dtype="float64")
        state = engine.init(0)
        if states:
            for mine, theirs in zip(state.aux, fixed, strict=True):
                for name in mine:
                    mine[name] = theirs[name]
        else:
            fixed = [
                {n: written_out(matrix, a) if n[0] == "B" else a.copy() for n, a in aux.items()}
                for aux in state.aux
            ]
        for _ in range(30):
            engine.step(state, batch)
        states.append(state)
    mine, theirs = (s.arrays() for s in states)
    for path, a in theirs.items():
        if "B." not in path:
            np.testing.assert_allclose(mine[path], a, rtol=0, atol=1e-11, err_msg=path)
    assert np.abs(mine["params/1/W"] - engine.init(0).arrays()["params/1/W"]).max() > 1e-3


@pytest.mark.parametrize("check", locality.ALL, ids=lambda c: c.__name__)
def test_every_check_holds(check):
    check(partial(rule, "pfa", matrix="hadamard", expansion=2))


def test_settings_that_do_not_fit_are_told():
    with pytest.raises(SpecError, match="one of dense, signs, hadamard; got 'fourier'"):
        rule("pfa", matrix="fourier")
    for other in ({"orthogonal": True}, {"collapsed": True}, {"density": 0.5}):
        with pytest.raises(SpecError, match="matrix=dense with orthogonal, density or collapsed"):
            rule("pfa", matrix="signs", **other)
