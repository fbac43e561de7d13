"""Direct random target projection: identities, learning while firing, what it costs, wrong use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from fflearn.base import Batch, Readout
from fflearn.checks import BRANCHES, CHAIN, bench, learned, same_bits
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.objectives import Objective
from fflearn.optim import optimizer
from fflearn.registry import rule

LOSSES = ("linear", "l2", "l1")
IMAGES = "conv 4 tanh | max_pool | conv 5 relu | dense 6 sigmoid"


@dataclass(frozen=True)
class MinusTarget(Objective):
    """An error that is known before the output is: e = -t."""

    kind: ClassVar[str] = "minus_target"

    def __call__(self, k: Any, y: Any, target: Any) -> Readout:
        return Readout(-(y * target).sum(1), -target)


def engine_of(name: str, net: str, in_shape=(4, 6, 2), n_classes=3, **options) -> Engine:
    return Engine(net, rule(name), in_shape, n_classes, dtype="float64", **options)


def images(rows: int = 7) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(rng.normal(size=(rows, 4, 6, 2)), np.eye(3)[np.arange(rows) % 3])


# ---- the equations ------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["dense 9 tanh | dense 7 relu | dense 5 gelu", IMAGES])
def test_it_is_dfa_with_an_error_that_is_minus_the_target(net):
    found = []
    for name in ("drtp[bounded=false]", "dfa"):
        engine = engine_of(name, f"{net} | dense 3", objective=MinusTarget())
        state = engine.init(0)
        for slots in state.aux:
            for n in slots:
                slots[n] = np.cos(np.arange(slots[n].size)).reshape(slots[n].shape)
        found.append(dict(learned(engine, engine.updates(state, images()))))
    ours, direct = found
    assert ours.keys() == direct.keys()
    for path, g in direct.items():
        assert g.any()
        np.testing.assert_allclose(ours[path], g, rtol=1e-12, atol=1e-15, err_msg=path)


@pytest.mark.parametrize(("loss", "dy"), [("linear", -1.5), ("l2", -0.5), ("l1", -1)])
def test_a_step_computed_by_hand(loss, dy):
    # Hidden: x = 2, y = x / 2 = 1, z = 3/2; dW = x dy.
    # Output: logits (1, -1), label (1, 0), e = (0, -1); dW = y e.
    engine = engine_of(f"drtp[loss={loss}]", "dense 1 | dense 2", (1,), 2, objective="mse")
    state = engine.init(0)
    state.params[0]["W"], state.params[1]["W"], state.aux[0]["B"] = 0.5, [[1, -1]], [[1.5], [9]]
    batch = Batch(np.array([[2.0]]), np.array([[1.0, 0.0]]))
    first, second = engine.updates(state, batch)
    np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), [[2 * dy]])
    np.testing.assert_allclose(engine.kernels.formed(second.grads["W"]), [[0, -1]])
    _, ledger = engine.step(state, batch)
    assert ledger.per_sample() == {"activity": 1, "target": 2} and ledger.transposes == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
def test_every_hidden_update_is_the_slope_of_the_layers_own_loss(loss, hidden):
    engine, state, batch = bench(lambda: rule("drtp", loss=loss), hidden)

    def slope(v, u):
        """Of the mean loss by the first bias, from its definition."""

        def at(shift: float) -> float:
            b = v.params["b"] + shift * np.eye(len(v.params["b"]))[0]
            y, z = v.forward(v.trace.x, params={**v.params, "b": b}).y, batch.y @ v.aux["B"]
            return {"linear": -y * z, "l2": (y - z) ** 2 / 2, "l1": abs(y - z)}[loss].sum(1).mean()

        return 0.0 if v.is_output else (at(1e-6) - at(-1e-6)) / 2e-6

    found = engine.updates(state, batch)
    engine.probes = {"slope": slope}
    info, _ = engine.step(state, batch)
    for spec, u in zip(engine.specs, found, strict=True):
        if not spec.is_output:
            want = info[f"slope/{spec.index}"]
            assert u.grads["b"][0] == pytest.approx(want, rel=1e-6, abs=1e-9), spec.name


def test_a_linear_layer_reaches_the_least_squares_fit_of_its_targets():
    engine = engine_of(
        "drtp[loss=l2]", "dense 4 | dense 3", (2,), optimizer=optimizer("sgd", lr=0.5)
    )
    state, x = engine.init(0), np.random.default_rng(0).normal(size=(9, 2))
    batch = Batch(x, np.eye(3)[np.arange(9) % 3])
    for _ in range(400):
        engine.step(state, batch)
    inputs = np.concatenate([x, np.ones((9, 1))], 1)
    fit, *_ = np.linalg.lstsq(inputs, batch.y @ state.aux[0]["B"])
    np.testing.assert_allclose(state.params[0]["W"], fit[:2], rtol=1e-9)
    np.testing.assert_allclose(state.params[0]["b"], fit[2], rtol=1e-9)


@pytest.mark.parametrize(("bounded", "grows"), [("false", True), ("true", False)])
def test_the_signal_never_ends_so_only_bounded_units_stop(bounded, grows):
    net, sgd = "dense 8 relu | dense 3", optimizer("sgd", lr=0.3)
    engine = engine_of(f"drtp[bounded={bounded}]", net, optimizer=sgd)
    state, batch, sizes = engine.init(0), images(3), []
    for _ in range(6):
        sizes.append(np.linalg.norm(state.params[0]["W"]))
        for _ in range(50):
            engine.step(state, batch)
    assert (engine.predict(state, batch.x).argmax(1) == batch.y.argmax(1)).all()
    early, late = sizes[2] - sizes[1], sizes[5] - sizes[4]
    assert late == pytest.approx(early, rel=0.02) if grows else late < early / 2


# ---- learning while firing -----------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
def test_learning_before_the_layer_above_fires_is_learning_after(hidden):
    class Late(type(rule("drtp"))):
        def step(self, bus, batch):
            out = bus.readout(bus.forward(batch.x))
            bus.update(target=batch.y, top=out.error)
            return {"loss": bus.mean(out.loss)}

    engine, state, batch = bench(lambda: rule("drtp"), hidden)
    late, other, _ = bench(Late, hidden)
    for _ in range(3):
        engine.step(state, batch)
        late.step(other, batch)
    assert same_bits(state, other) is None


def test_memory_does_not_grow_with_depth():
    def peak(name: str, depth: int) -> int:
        engine, state, batch = bench(lambda: rule(name), " | ".join(["dense 40 tanh"] * depth))
        return engine.step(state, batch)[1].peak_bytes

    assert peak("drtp", 3) == peak("drtp", 12)
    assert peak("dfa", 12) > 3 * peak("drtp", 12)


# ---- places -------------------------------------------------------------------------------------


def test_the_label_of_a_place_reaches_that_place_alone():
    net = "dense 6 tanh places=1 | dense 4 places=1 | dense 3 places=1"
    rng = np.random.default_rng(0)
    ids = rng.integers(3, size=(5, 4))
    batch = Batch(rng.normal(size=(5, 4, 2)), np.eye(3)[ids])
    engine = engine_of("drtp", net, (4, 2))
    state = engine.init(0)
    shapes = [{n: a.shape for n, a in s.items()} for s in state.aux]
    assert shapes == [{"B": (3, 6)}, {"B": (3, 4)}, {}]
    found = dict(learned(engine, engine.updates(state, batch)))
    z = np.eye(3)[ids] @ state.aux[1]["B"]
    np.testing.assert_allclose(found["1/grads/b"], -z.sum(1).mean(0))
    by_id = dict(learned(engine, engine.updates(state, batch._replace(y=ids))))
    for path, g in found.items():
        np.testing.assert_allclose(by_id[path], g, rtol=1e-12, err_msg=path)


@pytest.mark.parametrize("name", ["drtp", "dfa"])
def test_places_that_the_output_does_not_have_are_refused(name):
    engine = engine_of(name, "conv 4 tanh | max_pool | conv 3 kernel=1")
    with pytest.raises(SpecError, match="'0 conv 4 tanh' needs to keep the places .2, 3. of the"):
        engine.init(0)


# ---- the network, the matrices, and wrong use -------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "half"), [("linear", 2 * (6 / 400) ** 0.5), ("l2", 2), ("l1", 2)])
def test_the_matrices_are_uniform_and_every_layer_draws_its_own(loss, half):
    state = bench(lambda: rule("drtp", loss=loss, scale=2.0), "dense 400 | dense 400", 5).state
    first, second, last = state.aux
    assert list(last) == []
    for b in (first["B"], second["B"]):
        assert 0.99 * half < abs(b).max() <= half
        assert b.std() == pytest.approx(half / np.sqrt(3), rel=0.05) and abs(b.mean()) < half / 20
    assert abs(np.corrcoef(first["B"].flat, second["B"].flat)[0, 1]) < 0.1


def test_units_without_a_bound_become_tanh_unless_told_otherwise():
    net = "conv 4 relu | act gelu | max_pool | dense 9 sigmoid | dense 3"
    trained = engine_of("drtp", net).net.spec()
    assert trained == "conv 4 tanh | act tanh | max_pool | dense 9 sigmoid | dense 3"
    assert engine_of("drtp[bounded=false]", net).net == engine_of("dfa", net).net


def test_the_matrices_stay_fixed():
    engine, state, batch = bench(lambda: rule("drtp"))
    engine.optimizer = optimizer("adamw", lr=0.1, weight_decay=0.5)
    before = state.copy()
    engine.step(state, batch)
    for now, then in zip(state.aux[:-1], before.aux[:-1], strict=True):
        assert (now["B"] == then["B"]).all()


def test_wrong_settings_are_told():
    with pytest.raises(SpecError, match="drtp needs loss to be one of linear, l2, l1; got 'l3'"):
        rule("drtp", loss="l3")
    with pytest.raises(SpecError, match="drtp has no parameter 'scala'.*Did you mean 'scale'"):
        rule("drtp", scala=1.0)
