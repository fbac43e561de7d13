"""Probes: what they measure, and that they change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fflearn
from fflearn import probes, registry, representations
from fflearn.base import Batch, Rule, Update
from fflearn.bus import Bus
from fflearn.checks import bench, same_bits
from fflearn.data import DataSet, GraphData
from fflearn.errors import SpecError
from fflearn.probes import HELD, PROBES, SAMPLES, Held, Probing, exact_engine, known_probes
from fflearn.random import Key
from fflearn.registry import rule

NET = "dense 17 tanh | dense 12 relu"


def measured(name: str, *names: str, net: str = NET):
    engine, state, batch = bench(lambda: rule(name), net)
    return Probing(engine, batch, names or PROBES).measure(state)


class View:
    """As much of a LayerView as the functions read."""

    def __init__(self, y=None):
        self.k = type("K", (), {"formed": staticmethod(np.asarray)})
        self.traces = {} if y is None else {"x": type("T", (), {"y": np.asarray(y, float)})}


def of(name: str, u=(), g=(), y=None):
    grads = [Update({n: np.asarray(a, float) for n, a in dict(x).items()}) for x in (u, g)]
    return PROBES[name](View(y), *grads)


@pytest.mark.parametrize("degrees", [0, 60, 90, 180])
def test_angle_cosine_and_norm_by_hand(degrees):
    turn = math.radians(degrees)
    g = {"W": [[2.0, 0.0]], "b": [0.0]}
    u = {"W": [[5 * math.cos(turn), 5 * math.sin(turn)]], "b": [0.0]}
    assert of("gradient_angle", u, g) == pytest.approx(degrees, abs=1e-5)
    assert of("gradient_cosine", u, g) == pytest.approx(math.cos(turn), abs=1e-12)
    assert of("gradient_norm_ratio", u, g) == pytest.approx(2.5)


def test_signs_are_counted_where_the_gradient_is_not_zero():
    assert of("gradient_sign_agreement", {"W": [3, -1, 5, 0, 9]}, {"W": [1, 1, 2, 2, 0]}) == 0.5


def test_only_what_both_give_a_gradient_is_compared():
    assert of("gradient_cosine", {"W": [1, 0], "b": [7]}, {"W": [1, 0]}) == pytest.approx(1)
    for name in PROBES:
        assert of(name) is None
    assert of("gradient_cosine", {"W": [1, 0]}, {"b": [1, 0]}) is None
    assert of("gradient_angle", {"W": [0, 0]}, {"W": [1, 0]}) is None


def test_dead_units_are_silent_at_every_sample_and_place():
    y = np.zeros((3, 2, 4))
    y[0, 1, 0] = y[2, 0, 0] = y[1, 1, 3] = -0.1
    assert of("dead_units", y=y) == 0.5


def test_the_effective_rank_counts_equal_directions_and_ignores_the_mean():
    turn = np.linalg.qr(np.arange(25.0).reshape(5, 5) + np.diag([9, 5, 3, 2, 7]))[0]
    spread = np.concatenate([np.eye(5)[:3], -np.eye(5)[:3]]) @ turn
    assert of("effective_rank", y=spread + 100) == pytest.approx(3)
    assert of("effective_rank", y=np.ones((4, 5))) == 0
    two = np.concatenate([np.diag([3.0, 1.0]), -np.diag([3.0, 1.0])])  # p = 3/4, 1/4
    assert of("effective_rank", y=two) == pytest.approx(4 / 3**0.75)


def test_backprop_is_the_gradient_in_every_layer():
    found = measured("backprop")
    for layer in range(3):
        assert found[f"gradient_angle/{layer}"] == pytest.approx(0, abs=1e-5)
        assert found[f"gradient_norm_ratio/{layer}"] == pytest.approx(1)
        assert found[f"gradient_sign_agreement/{layer}"] == 1


def test_dfa_is_the_gradient_in_the_output_layer_alone():
    found = measured("dfa", "gradient_cosine")
    assert found["gradient_cosine/2"] == pytest.approx(1)
    assert abs(found["gradient_cosine/0"]) < 0.8


def test_what_a_rule_has_not_is_left_out_and_what_is_not_there_is_none():
    assert measured("dfa", "path_angle") == {}
    found = measured("pfa", "path_angle", "path_norm_ratio")
    assert found["path_angle/0"] is None and 60 < found["path_angle/1"] < 120
    assert measured("frozen", "gradient_angle")["gradient_angle/0"] is None
    assert {"feedback_angle", "path_angle", "path_norm_ratio"} <= set(known_probes())


def samples(engine, n: int = 60, tag: str = "x") -> DataSet:
    """Noise with labels that have nothing to do with it."""
    x = Key(1).fold(tag).normal((n, *engine.in_shape), np.float32)
    y = np.arange(n) % engine.n_classes
    return DataSet("noise", x[: n // 2], y[: n // 2], x[n // 2 :], y[n // 2 :], engine.n_classes)


@pytest.mark.parametrize("name", registry.names())
def test_every_rule_can_be_probed_and_nothing_changes(name):
    engine, state, batch = bench(lambda: rule(name), "dense 20 relu | dense 20 relu")
    before, probing = state.copy(), Probing(engine, batch, known_probes(), samples(engine))
    first = probing.measure(state)
    assert same_bits(before, state) is None and probing.measure(state) == first
    assert all(v is None or math.isfinite(v) for v in first.values())
    layers = [s.index for s in engine.specs if s.learns]
    for probe in ("linear_probe", "cka"):
        assert all(0 <= first[f"{probe}/{layer}"] <= 1 for layer in layers)
    relax = type(engine.rule).relax is not Rule.relax
    residuals = [first[f"relaxation_residual/{s.index}"] for s in engine.specs]
    assert any(r is not None for r in residuals) == relax


@pytest.mark.parametrize("name", registry.names())
def test_no_layer_is_shown_the_label_that_is_read_out_of_it(name):
    """Labels that are chance stay chance; a rule that writes them into its input is asked without."""
    engine, state, batch = bench(lambda: rule(name), "dense 20 relu | dense 20 relu")
    noise = samples(engine, 600)
    found = Probing(engine, batch, ["linear_probe", "cka"], noise).measure(state)
    chance, spread = 1 / engine.n_classes, math.sqrt((1 - 1 / engine.n_classes) / 300)
    for layer in (s.index for s in engine.specs if s.learns):
        assert found[f"linear_probe/{layer}"] < chance + 5 * spread
        assert found[f"cka/{layer}"] < 0.2


def test_what_layers_hold_is_read_on_the_same_held_out_samples_as_by_hand():
    run = fflearn.train("dense 24 relu | act relu | dense 10", "backprop", "digits", epochs=2)
    batch = run.data.batches(32, 0).batch(0)
    found = Probing(run.engine, batch, ["linear_probe", "cka"], run.data).measure(run.state)
    assert set(found) == {f"{p}/{layer}" for p in ("linear_probe", "cka") for layer in (0, 2)}
    hidden = [
        np.maximum(x.reshape(len(x), -1) @ run.state.params[0]["W"] + run.state.params[0]["b"], 0)
        for x in (run.data.x_train, run.data.x_test)
    ]
    order = Key(0).fold("probes").permutation(run.data.n_train)[:SAMPLES]
    y, y_test = run.data.y_train[order], run.data.y_test
    by_hand = representations.linear_probe(hidden[0][order], y, hidden[1], y_test)
    assert found["linear_probe/0"] == pytest.approx(by_hand, abs=2 / 359)
    assert found["linear_probe/0"] > 0.8
    alike = representations.cka(hidden[1], np.eye(10)[y_test])
    assert found["cka/0"] == pytest.approx(alike, abs=1e-4)


def test_cka_is_1_where_activity_is_the_label():
    y = np.array([0, 0, 2, 1, 2, 2])
    turn = np.linalg.qr(np.arange(9.0).reshape(3, 3) + np.diag([3, 1, 2]))[0]
    assert HELD["cka"](Held(None, y, 5 * np.eye(3)[y] @ turn + 1, y)) == pytest.approx(1)
    near = np.array([[0.0], [0.1], [2.0]])[y]  # two classes close: not equally far apart
    assert HELD["cka"](Held(None, y, near, y)) < 0.9
    numbers = np.array([[0.5], [1.0], [-2.0]])
    assert HELD["cka"](Held(None, numbers, -3 * numbers, numbers)) == pytest.approx(1)
    assert HELD["linear_probe"](Held(numbers, numbers, numbers, numbers)) is None


def test_the_residual_is_the_change_that_ends_the_last_settling(monkeypatch):
    ended, settle = [], Bus.settle

    def spy(self, *args, **named):
        ended.append(settle(self, *args, **named))
        return ended[-1]

    monkeypatch.setattr(Bus, "settle", spy)
    for more in ({"nudged_sweeps": 3}, {"nudged_sweeps": 9, "tol": 0.0}):
        engine, state, batch = bench(lambda m=more: rule("equilibrium_propagation", **m), NET)
        ended.clear()
        found = Probing(engine, batch, ["relaxation_residual"]).measure(state)
        free, nudged = ended
        values = [v for v in found.values() if v is not None]
        assert max(values) == nudged.change != free.change
        assert found["relaxation_residual/2"] is None and len(values) == 2  # the read-out has none


def test_only_what_is_compared_with_the_gradient_needs_backprop(monkeypatch):
    monkeypatch.setattr(probes, "exact_engine", None)
    engine, state, batch = bench(lambda: rule("pfa"), NET)
    asked = [*(PROBES.keys() - probes.GRADIENT.keys()), *HELD, "relaxation_residual", "path_angle"]
    found = Probing(engine, batch, asked, samples(engine)).measure(state)
    assert {n.partition("/")[0] for n in found} == set(asked)
    with pytest.raises(TypeError):
        Probing(engine, batch, ["gradient_cosine"])


def test_data_without_a_label_per_sample_are_left_out():
    y = np.arange(6) % 2
    parts = {"train": np.arange(3), "validation": np.arange(3, 4), "test": np.arange(4, 6)}
    edges = np.array([[0, 1], [2, 3], [4, 5]])
    graph = GraphData("ring", np.eye(6, dtype=np.float32), y, edges, n_classes=2, **parts)
    net, names = "graph_conv 4 relu | graph_conv 2", ["linear_probe", "dead_units"]
    run = fflearn.train(net, "dfa", graph, epochs=1, batch_size=3, probes=names)
    assert {n.partition("/")[0] for n in run.curves if "/" in n} == {"dead_units"}


def test_the_gradient_is_that_of_the_network_at_hand():
    """After training, with the weights as they are, and on the network as the rule adapted it."""
    engine, state, batch = bench(lambda: rule("single_forward"), NET)
    for _ in range(3):
        engine.step(state, batch)
    exact = exact_engine(engine)
    assert exact is not None and exact.net.spec() == engine.net.spec()
    found = Probing(engine, batch, ["gradient_cosine"]).measure(state)
    assert found["gradient_cosine/2"] == pytest.approx(1)  # its output layer learns the objective


def test_the_gradient_has_the_noise_of_the_same_step():
    net = "dense 17 tanh | dropout 0.5 | dense 12 relu"
    engine, state, batch = bench(lambda: rule("backprop"), net)
    for _ in range(3):
        engine.step(state, batch)
    found = Probing(engine, batch, ["gradient_cosine"]).measure(state)
    assert [found[f"gradient_cosine/{layer}"] for layer in (0, 2, 3)] == pytest.approx([1] * 3)


def test_the_reference_has_no_layers_to_look_into():
    pytest.importorskip("torch")
    run = fflearn.train(
        "dense 8 relu | dense 10", "torch", "digits", epochs=1, probes=["dead_units"]
    )
    assert not any("/" in name for name in run.curves)


def test_an_unknown_probe_is_named_before_training(tmp_path):
    engine, _, batch = bench(lambda: rule("dfa"), NET)
    with pytest.raises(SpecError, match=r"no probe 'angel'; there are: gradient_angle"):
        Probing(engine, batch, ["angel"])
    with pytest.raises(SpecError, match="no probe"):
        fflearn.compare(rules=["dfa"], seeds=[0], probes=["angel"], out=tmp_path)
    assert not (tmp_path / "records").exists() or not list((tmp_path / "records").iterdir())


# -- in a run --------------------------------------------------------------------------------------
def test_curves_of_probes_have_a_point_per_epoch_and_change_no_bit(tmp_path):
    options = {"epochs": 4, "evaluate_every": 2, "seed": 3}
    net = "dense 16 relu | dense 10"
    plain = fflearn.train(net, "dfa", "digits", **options)
    probes = ["gradient_angle", "dead_units", "linear_probe", "cka", "relaxation_residual"]
    run = fflearn.train(net, "dfa", "digits", probes=probes, **options)
    assert same_bits(plain.state, run.state) is None
    curve = run.curves["gradient_angle/0"]
    assert [a is None for a in curve] == [True, False, True, False]
    assert {len(c) for c in run.curves.values()} == {4}
    batch = run.data.batches(32, 3).batch(0)
    found = Probing(run.engine, Batch(batch.x, batch.y), ["gradient_angle"]).measure(run.state)
    assert curve[-1] == found["gradient_angle/0"]


def test_curves_of_probes_survive_a_resumption(tmp_path):
    options = {"epochs": 4, "seed": 1, "probes": ["gradient_angle"]}
    net = "dense 16 relu | dense 10"
    whole = fflearn.train(net, "dfa", "digits", **options)

    def stop(run):
        if run.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fflearn.train(net, "dfa", "digits", out=tmp_path, callbacks=[stop], **options)
    again = fflearn.train(net, "dfa", "digits", out=tmp_path, **options)
    assert again.curves["gradient_angle/0"] == whole.curves["gradient_angle/0"]


def test_a_record_holds_the_curves_and_the_angles_at_the_end():
    net = "dense 16 relu | dense 12 relu | dense 10"
    (record,) = fflearn.compare(
        rules=["pfa"], net=net, seeds=[0], epochs=2, probes=["path_angle", "gradient_angle"]
    )
    assert record["spec"]["probes"] == ("path_angle", "gradient_angle")
    assert len(record["curves"]["path_angle/1"]) == 2
    assert record["gradient_angles"].keys() == {"0", "1"}
    assert record["gradient_angles"]["1"] == record["curves"]["gradient_angle/1"][-1]
