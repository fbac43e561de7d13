"""Direct feedback alignment: identities, the size and the sharing of B, wrong use."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.checks import bench, learned, same_bits, samples
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.random import Key
from fflearn.registry import rule


def test_with_one_hidden_layer_and_the_transposed_weights_it_is_backprop_and_fa():
    found = {}
    for name in ("dfa", "fa", "backprop"):
        engine, state, batch = bench(lambda name=name: rule(name), "dense 17 tanh")
        if name == "dfa":
            state.aux[0]["B"] = state.params[1]["W"].T
        if name == "fa":
            state.aux[1]["W"] = state.params[1]["W"]
        found[name] = dict(learned(engine, engine.updates(state, batch)))
    for path, g in found["backprop"].items():
        np.testing.assert_allclose(found["dfa"][path], g, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(found["fa"][path], g, rtol=1e-12, atol=1e-15)


def test_with_random_matrices_it_is_neither():
    found = []
    for name in ("dfa", "backprop"):
        engine, state, batch = bench(lambda name=name: rule(name))
        found.append(dict(learned(engine, engine.updates(state, batch))))
    for path, g in found[0].items():
        assert np.allclose(g, found[1][path]) == path.startswith("3/"), path


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("width", [64, 256, 1024])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_the_projected_error_has_the_same_size_at_every_width(width, n_classes, shared):
    engine = Engine(
        f"dense {width} | dense {n_classes}", rule("dfa", shared=shared), (3,), n_classes
    )
    e = np.cos(np.arange(n_classes))
    ratios = [
        np.linalg.norm(e @ engine.init(seed).aux[0]["B"]) / np.linalg.norm(e) for seed in range(20)
    ]
    assert np.mean(ratios) == pytest.approx(1 / np.sqrt(n_classes), rel=0.05)


def test_scale_is_a_factor_on_the_matrix():
    plain, doubled = (bench(lambda s=s: rule("dfa", scale=s)).state.aux[0]["B"] for s in (1.0, 2.0))
    np.testing.assert_allclose(doubled, 2 * plain)


def test_hidden_lr_is_a_factor_on_the_steps_of_hidden_layers_alone():
    steps = []
    for factor in (1.0, 0.25):
        engine, state, batch = bench(lambda f=factor: rule("dfa", hidden_lr=f))
        before = [{n: a.copy() for n, a in p.items()} for p in state.params]
        engine.step(state, batch)
        steps.append([p["W"] - b["W"] for p, b in zip(state.params, before, strict=True)])
    *hidden, (whole, same) = zip(*steps, strict=True)
    for full, quarter in hidden:
        np.testing.assert_allclose(quarter, full / 4, rtol=1e-10)
    np.testing.assert_array_equal(same, whole)
    with pytest.raises(SpecError, match="hidden_lr"):
        rule("dfa", hidden_lr=-1.0)


def test_layers_share_one_matrix_or_draw_their_own():
    def unscaled(shared: bool) -> list[np.ndarray]:
        state = bench(lambda: rule("dfa", shared=shared), "dense 17 | dense 13 | dense 12").state
        assert list(state.aux[-1]) == []
        return [s["B"] * np.sqrt(s["B"].size) for s in state.aux[:-1]]

    widest, *others = unscaled(True)
    for b in others:
        np.testing.assert_allclose(b, widest[:, : b.shape[1]], rtol=1e-12)
    widest, *others = unscaled(False)
    for b in others:
        assert not np.isclose(b, widest[:, : b.shape[1]]).any()


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_softmax_errors_span_one_dimension_less_than_classes(n_classes):
    engine, state, batch = bench(lambda: rule("dfa"), n_classes=n_classes, rows=31)
    e = engine.objective(engine.kernels, engine.predict(state, batch.x), batch.y).error
    assert np.linalg.matrix_rank(e @ state.aux[0]["B"]) == n_classes - 1


def test_a_step_computed_by_hand():
    # As for backprop (x = 2, a1 = 6, e = (5, -6)), with B = (1/2, 2)^T: dy1 = 5/2 - 12 = -9.5.
    engine = Engine("dense 1 | dense 2", rule("dfa"), (1,), 2, objective="mse", dtype="float64")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"], state.aux[0]["B"] = 3, [[1, -1]], [[0.5], [2]]
    batch = Batch(np.array([[2.0]]), np.array([[1.0, 0.0]]))
    first, second = engine.updates(state, batch)
    np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), [[-19]])
    np.testing.assert_allclose(engine.kernels.formed(second.grads["W"]), [[30, -36]])
    _, ledger = engine.step(state, batch)
    assert ledger.per_sample() == {"activity": 1, "error": 2} and ledger.transposes == 0


RECOMPUTED = [
    ("dense 17 tanh | dense 13 relu | dense 3", (11,)),
    ("dense 17 relu | residual(dense 9 relu | dense 17; dense 17) | dropout 0.4 | dense 3", (11,)),
    ("conv 4 relu | batch_norm | max_pool | flatten | dropout 0.3 | dense 5 | dense 3", (4, 4, 2)),
]


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize(("net", "in_shape"), RECOMPUTED)
def test_recomputed_it_learns_the_same_bits(net, in_shape, backend):
    x = Key(0).normal((7, *in_shape), np.float64)
    batch, states, peaks = Batch(x, np.eye(3)[[0, 1, 2, 0, 1, 2, 2]]), [], []
    for recompute in (False, True):
        engine = Engine(net, rule("dfa", recompute=recompute), in_shape, 3, backend=backend)
        state = engine.init(0)
        for _ in range(4):
            _, ledger = engine.step(state, batch)
        states.append(state)
        peaks.append((ledger.peak_bytes, ledger.forward_passes))
    assert same_bits(*states) is None
    (held, once), (fewer, twice) = peaks
    assert (once, twice) == (1, 2) and fewer < held


def test_recomputed_it_holds_as_much_at_any_depth():
    found = []
    for recompute in (True, False):
        for depth in (6, 24):
            net = " | ".join(["dense 30 relu"] * depth + ["dense 3"])
            engine = Engine(net, rule("dfa", recompute=recompute), (11,), 3)
            found.append(engine.step(engine.init(0), samples(7, 3))[1].peak_bytes)
    assert found[0] == found[1] and found[3] > 3 * found[2]


def test_wrong_settings_are_told():
    with pytest.raises(SpecError, match="dfa needs scale like 1.0; got big"):
        rule("dfa[scale=big]")
    with pytest.raises(SpecError, match="Did you mean 'shared'"):
        rule("dfa", shard=True)
