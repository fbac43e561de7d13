"""Every objective in the folder: its error is the slope of its loss, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import kernels, objectives
from fflearn.errors import SpecError
from fflearn.objectives.goodness import THRESHOLDS, Goodness, threshold

EXAMPLES = [
    (objective, target)
    for kind in objectives.names()
    for objective, target in objectives.load(kind).examples()
]
NAMED = {"ids": [str(o) for o, _ in EXAMPLES]}
BACKENDS = ("reference", "numba")


def drawn(target: str, rows: int = 7, n: int = 5, dtype="float64"):
    rng = np.random.default_rng(3)
    y = rng.normal(size=(rows, n))
    t = {
        "one-hot": np.eye(n)[rng.integers(0, n, rows)],
        "real": rng.normal(size=(rows, n)),
        "phase": rng.choice([-1.0, 1.0], rows),
    }[target]
    return y.astype(dtype), t.astype(dtype)


@pytest.mark.parametrize(("objective", "target"), EXAMPLES, **NAMED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_error_is_the_slope_of_the_loss(objective, target, backend):
    k, (y, t), h = kernels.load(backend), drawn(target), 1e-6
    out = objective(k, y, t)
    assert out.loss.shape == (7,) and out.error.shape == y.shape
    for unit in range(y.shape[1]):
        step = h * np.eye(5)[unit]
        slope = (objective(k, y + step, t).loss - objective(k, y - step, t).loss) / (2 * h)
        np.testing.assert_allclose(out.error[:, unit], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("objective", "target"), EXAMPLES, **NAMED)
def test_samples_do_not_mix_and_there_is_no_batch_mean(objective, target):
    k, (y, t) = kernels.load("reference"), drawn(target)
    whole = objective(k, y, t)
    for i in range(len(y)):
        one = objective(k, y[i : i + 1], t[i : i + 1])
        np.testing.assert_allclose(one.loss, whole.loss[i : i + 1], rtol=1e-14)
        np.testing.assert_allclose(one.error, whole.error[i : i + 1], rtol=1e-13)


@pytest.mark.parametrize(("objective", "target"), EXAMPLES, **NAMED)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_float32_is_kept_and_large_outputs_stay_finite(objective, target, backend, size):
    y, t = drawn(target, dtype="float32")
    out = objective(kernels.load(backend), np.float32(size) * y, t)
    assert out.loss.dtype == out.error.dtype == np.float32
    assert np.isfinite(out.loss).all() and np.isfinite(out.error).all()
    exact = objective(kernels.load("reference"), size * y.astype(float), t.astype(float))
    np.testing.assert_allclose(out.loss, exact.loss, rtol=1e-5, atol=1e-6)


def test_values_by_hand():
    k = kernels.load("reference")
    y, t = np.array([[np.log(3), 0.0]]), np.array([[1.0, 0.0]])
    ce = objectives.load("softmax_cross_entropy")()(k, y, t)
    np.testing.assert_allclose(ce.loss, [np.log(4 / 3)])
    np.testing.assert_allclose(ce.error, [[-1 / 4, 1 / 4]])
    bce = objectives.load("binary_cross_entropy")()(k, y, t)
    np.testing.assert_allclose(bce.loss, [np.log(4 / 3) + np.log(2)])
    np.testing.assert_allclose(bce.error, [[-1 / 4, 1 / 2]])
    mse = objectives.load("mse")()(k, np.array([[3.0, -1.0]]), t)
    np.testing.assert_allclose(mse.loss, [2.5])  # (4 + 1) / 2: with the half, summed
    np.testing.assert_allclose(mse.error, [[2, -1]])
    wrong = objectives.load("zero_one")()
    y2, t2 = np.array([[3.0, -1.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(wrong(k, y2, t2).loss, [0, 1])
    np.testing.assert_array_equal(wrong(k, y2[None], np.array([[0, 0]])).loss, [0.5])  # two places
    good = Goodness("ssq", theta=5.0, temperature=2.0)(k, np.array([[1.0, 2.0]]), np.array([-1.0]))
    np.testing.assert_allclose(good.loss, [np.log(2)])  # g = theta
    np.testing.assert_allclose(good.error, [[1 / 4 * 2 * 1, 1 / 4 * 2 * 2]])


AT_OUTPUT = [kind for kind in objectives.names() if objectives.load(kind).at_output]
SLOPED = [kind for kind in AT_OUTPUT if objectives.load(kind).slopes]


@pytest.mark.parametrize("kind", AT_OUTPUT)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_of_a_sample_is_the_mean_over_its_places(kind, backend):
    k, objective = kernels.load(backend), objectives.load(kind)()
    rng = np.random.default_rng(3)
    y, ids = rng.normal(size=(2, 3, 5)), rng.integers(0, 5, (2, 3))
    by_id, by_one_hot = objective(k, y, ids), objective(k, y, np.eye(5)[ids])
    on_a_grid = objective(k, y.reshape(2, 3, 1, 5), ids.reshape(2, 3, 1))
    assert on_a_grid.error.shape == (2, 3, 1, 5)
    for i in range(2):
        alone = objective(k, y[i], np.eye(5)[ids[i]])
        for out in (by_id, by_one_hot, on_a_grid):
            assert out.loss[i] == pytest.approx(alone.loss.mean(), rel=1e-12)
            np.testing.assert_allclose(out.error[i].reshape(3, 5), alone.error / 3, rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SLOPED)
def test_over_places_it_is_the_references(kind, dtype):
    pytest.importorskip("torch")
    from fflearn.base import Batch
    from fflearn.engine import Engine
    from fflearn.reference import TorchEngine
    from fflearn.registry import rule

    net, rng = "dense 6 tanh places=1 | dense 5 places=1", np.random.default_rng(0)
    x, ids = rng.normal(size=(4, 3, 2)), rng.integers(0, 5, (4, 3))
    ours = Engine(net, rule("backprop"), (3, 2), 5, objective=kind, dtype=dtype)
    theirs = TorchEngine(net, (3, 2), 5, objective=kind, dtype=dtype)
    near = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for y in (ids, np.eye(5)[ids]):
        batch, state = Batch(x, y), ours.init(0)
        pairs = zip(ours.updates(state, batch), theirs.updates(state, batch), strict=True)
        for mine, other in pairs:
            for name, g in mine.grads.items():
                np.testing.assert_allclose(ours.kernels.formed(g), other.grads[name], near, near)
        losses = [float(e.step(state.copy(), batch)[0]["loss"]) for e in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=near)


def test_only_those_that_compare_with_targets_stand_at_the_output():
    assert set(AT_OUTPUT) == set(objectives.names()) - {"goodness"}
    assert [kind for kind in AT_OUTPUT if not objectives.load(kind).classes] == ["mse"]


@pytest.mark.parametrize("kind", objectives.names())
def test_kinds_are_found_by_their_file(kind):
    assert objectives.load(kind).kind == kind


def test_wrong_settings_are_told():
    with pytest.raises(SpecError, match="unknown objective 'hinge'; known: binary_cross"):
        objectives.load("hinge")
    with pytest.raises(SpecError, match="one of ssq, msq, l2; got 'l1'"):
        Goodness("l1")
    for t in (0.0, -1.0, float("nan")):
        with pytest.raises(SpecError, match="temperature above 0"):
            Goodness(temperature=t)
    with pytest.raises(SpecError, match="has no threshold of its own"):
        threshold("none", "ssq", 3)


def test_thresholds():
    # Of sums and means of squares on inputs whose squares sum to their number (rms) or to 1 (unit).
    by_pair = {pair: threshold(*pair, 17) for pair in THRESHOLDS}
    expected = {("rms", "ssq"): 17, ("rms", "msq"): 1, ("unit", "ssq"): 2, ("unit", "msq"): 2}
    assert by_pair == {**expected, ("unit", "l2"): 3}
