"""Sign symmetry: the angles of its feedback weights, whose signs follow the weights."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.bus import Bus
from fflearn.checks import bench, learned
from fflearn.engine import Engine
from fflearn.errors import LocalityError, SpecError
from fflearn.random import Key
from fflearn.registry import rule

KINDS = ("uniform", "fixed_random", "batch_random")


def feedback_weights(engine, state, batch, layer: int = 1) -> np.ndarray:
    seen: list[Bus] = []

    class Seen(Bus):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self)

    engine.updates(state, batch, Seen)
    return engine.rule.feedback_weights(seen[0]._views[layer])["W"]


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))))


# cos = E|w| / sqrt(E w^2) for uSF, (E|w|)^2 / E w^2 for the others: with sqrt(3)/2 for uniform
# and sqrt(2/pi) for Gaussian weights.
@pytest.mark.parametrize(
    ("magnitudes", "draw", "angle"),
    [
        ("uniform", "xavier", 30.0),
        ("uniform", "lecun", 37.1),
        ("fixed_random", "xavier", 41.4),
        ("fixed_random", "lecun", 50.5),
        ("batch_random", "xavier", 41.4),
        ("batch_random", "lecun", 50.5),
    ],
)
def test_the_angle_between_feedback_and_forward_weights(magnitudes, draw, angle):
    hidden = f"dense 400 relu | dense 500 relu draw={draw}"
    engine, state, batch = bench(lambda: rule("sf", magnitudes=magnitudes), hidden, rows=1)
    m, w = feedback_weights(engine, state, batch), state.params[1]["W"]
    assert degrees(m, w) == pytest.approx(angle, abs=0.25)
    assert (np.sign(m) == np.sign(w)).all()


@pytest.mark.parametrize("magnitudes", KINDS)
def test_signs_follow_the_weights_after_updates(magnitudes):
    engine, state, batch = bench(lambda: rule("sf", magnitudes=magnitudes))
    before = np.sign(state.params[1]["W"])
    for _ in range(50):
        engine.step(state, batch)
    w = state.params[1]["W"]
    assert (np.sign(w) != before).any()
    assert (np.sign(feedback_weights(engine, state, batch)) == np.sign(w)).all()


@pytest.mark.parametrize("magnitudes", KINDS)
def test_only_batch_random_draws_anew_in_every_step(magnitudes):
    engine, state, batch = bench(lambda: rule("sf", magnitudes=magnitudes))
    first, again = (feedback_weights(engine, state, batch) for _ in range(2))
    assert (first == again).all()  # within a step it is one matrix
    state.step = 1
    later = feedback_weights(engine, state, batch)
    assert (first == later).all() == (magnitudes != "batch_random")


@pytest.mark.parametrize("magnitudes", KINDS)
def test_only_fixed_random_keeps_arrays_and_only_where_messages_go_down(magnitudes):
    state = bench(lambda: rule("sf", magnitudes=magnitudes)).state
    kept = ["W"] if magnitudes == "fixed_random" else []
    assert [list(slots) for slots in state.aux] == [[], kept, kept, kept]


def test_where_all_weights_have_the_initial_size_it_is_backprop():
    found = []
    for name in ("usf", "backprop"):
        engine, state, batch = bench(lambda name=name: rule(name))
        for spec, layer, slots in zip(engine.specs, engine.net.leaves, state.params, strict=True):
            slots["W"] = layer.weight_std(spec.in_shape)["W"] * np.sign(slots["W"])
        found.append(dict(learned(engine, engine.updates(state, batch))))
    for path, g in found[0].items():
        np.testing.assert_allclose(g, found[1][path], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "convolution", ["conv 6 relu stride=2", "conv 6 tanh groups=2 kernel=2 padding=0"]
)
def test_so_it_is_in_a_convolution(convolution):
    """uSF's feedback kernels have the convolution's own geometry, stride and groups included."""
    net = f"conv 4 tanh | {convolution} | flatten | dense 3"
    batch = Batch(Key(0).normal((5, 6, 7, 2), np.float64), np.eye(3)[[0, 1, 2, 0, 1]])
    found = []
    for name in ("usf", "backprop"):
        engine = Engine(net, rule(name), (6, 7, 2), 3, dtype="float64")
        state = engine.init(0)
        found.append(dict(learned(engine, engine.updates(state, batch))))
        for spec, layer, slots in zip(engine.specs, engine.net.leaves, state.params, strict=True):
            for w in layer.weights:
                slots[w] = layer.weight_std(spec.in_shape)[w] * np.sign(slots[w])
        found.append(dict(learned(engine, engine.updates(state, batch))))
    drawn, equal, exact_drawn, exact = found
    for path, g in exact.items():
        np.testing.assert_allclose(equal[path], g, rtol=1e-12, atol=1e-14, err_msg=path)
    assert not np.allclose(drawn["0/grads/W"], exact_drawn["0/grads/W"], rtol=1e-2)


def test_a_step_computed_by_hand():
    # As for backprop (x = 2, e = (5, -6), W2 = (1, -1) up to its size); Glorot's deviation for a
    # (1, 2) matrix is sqrt(2/3), so dy1 = 11 sqrt(2/3), whatever the sizes in W2.
    net = "dense 1 | dense 2 draw=xavier"
    engine = Engine(net, rule("usf"), (1,), 2, objective="mse", dtype="float64")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"] = 3, [[1, -1]]
    first, _ = engine.updates(state, Batch(np.array([[2.0]]), np.array([[1.0, 0.0]])))
    np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), [[22 * np.sqrt(2 / 3)]])


def test_wrong_use_is_told():
    with pytest.raises(SpecError, match="uniform, batch_random, fixed_random; got 'big'"):
        rule("sf", magnitudes="big")

    class Undeclared(type(rule("sf"))):
        channels = frozenset()

    engine, state, batch = bench(Undeclared)
    with pytest.raises(LocalityError, match="Channel.SIGN"):
        engine.step(state, batch)
