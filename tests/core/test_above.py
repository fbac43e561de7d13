"""What lies above a layer: the order of its readers, joined messages, and matrices of a rule's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from fflearn.base import Channel, Rule, Update
from fflearn.checks import BRANCHES, bench, learned
from fflearn.engine import Engine

ENDS = "dense 4 | residual(dense 4 tanh | residual(dense 6 | dense 4); dense 4)"


@dataclass(frozen=True)
class SendsItsOutput(Rule):
    """Every layer sends its own output down, and learns a matrix from each one above to itself."""

    channels: ClassVar = frozenset({Channel.FEEDBACK})

    def init(self, v, key, shared):
        n = v.out_shape[0]
        return {f"D{i}": np.zeros((m, n)) for i, (m,) in enumerate(v.above)}

    def plastic(self, v, owned):
        return tuple(owned)

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(())
        bus.update()
        return {"loss": bus.mean(out.loss)}

    def feedback(self, v, m):
        v.state["above"] = m
        return (v.trace.y,)

    def update(self, v, s):
        above, own = v.state["above"], v.trace.y
        return Update({}, {f"D{i}": v.product(y, own) for i, y in enumerate(above)})


@pytest.mark.parametrize(
    ("net", "above"),
    [
        ("dense 5 | dense 4 | dense 3", [((4,),), ((3,),), ()]),
        (f"{ENDS} | dense 3", [((4,), (4,)), ((3,), (6,)), ((4,),), ((3,),), ((3,),), ()]),
        ("dense 4 | residual(dense 4) | dense 3", [((3,), (4,)), ((3,),), ()]),
    ],
)
def test_the_layers_above_are_those_that_read_this_one_top_first(net, above):
    engine = Engine(net, SendsItsOutput(), (2,), 3)
    assert [spec.above for spec in engine.specs] == above


def test_layers_of_different_widths_above_one_are_each_heard():
    engine, state, batch = bench(SendsItsOutput, BRANCHES)
    p, x = [slots.readable for slots in state.params], batch.x
    relu = [np.maximum(x @ p[0]["W"], 0)]
    both = relu[0] + np.tanh(relu[0] @ p[1]["W"])
    readers = [both @ p[4]["W"], np.maximum(both @ p[2]["W"], 0), np.tanh(relu[0] @ p[1]["W"])]
    found = dict(learned(engine, engine.updates(state, batch)))
    assert engine.specs[0].above == ((13,), (9,), (17,))
    for i, y in enumerate(readers):
        np.testing.assert_allclose(found[f"0/aux_grads/D{i}"], y.T @ relu[0] / len(x), rtol=1e-12)
    _, ledger = engine.step(state, batch)
    # Layers 2 and 4 read the sum of 0 and 1, layer 1 reads 0; 3 reads 2; the output 3 and 4.
    assert ledger.per_sample()["feedback"] == 17 + 9 + 13 + 13 + 3


def test_a_matrix_of_the_rules_own_gets_the_weighted_mean_of_its_samples():
    engine, state, batch = bench(SendsItsOutput, "dense 5 tanh")
    weight = np.array([0, 1, 2, 0, 1, 0.5, 3])
    y = np.tanh(batch.x @ state.params[0]["W"])
    z = y @ state.params[1]["W"]
    found = dict(learned(engine, engine.updates(state, batch._replace(weight=weight))))
    expected = (weight[:, None] * z).T @ y / weight.sum()
    np.testing.assert_allclose(found["0/aux_grads/D0"], expected, rtol=1e-12)


def test_places_of_a_sample_add_up():
    @dataclass(frozen=True)
    class Places(SendsItsOutput):
        def init(self, v, key, shared):
            return {} if v.is_output else {"M": np.zeros((5, 2))}

        def step(self, bus, batch):
            out = bus.readout(bus.forward(batch.x))
            bus.update()
            return {"loss": bus.mean(out.loss)}

        def update(self, v, s):
            y = v.trace.y
            return Update() if v.is_output else Update({}, {"M": v.product(y, y[..., :2])})

    engine = Engine("dense 5 places=1 | dense 3", Places(), (4, 6), 3, dtype="float64")
    state, rng = engine.init(0), np.random.default_rng(0)
    from fflearn.base import Batch

    batch = Batch(rng.normal(size=(3, 4, 6)), np.eye(3), {}, np.array([1.0, 0.0, 2.0]))
    y = batch.x @ state.params[0]["W"]
    expected = sum(w * y[i].T @ y[i][:, :2] for i, w in enumerate(batch.weight)) / 3
    found = dict(learned(engine, engine.updates(state, batch)))
    np.testing.assert_allclose(found["0/aux_grads/M"], expected, rtol=1e-12)
