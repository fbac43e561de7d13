"""Forward-Forward: its local gradient by autograd, its samples, its head, its predictions."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fflearn import locality
from fflearn.base import Batch, Channel, Env, Shown
from fflearn.bus import Bus
from fflearn.checks import bench, learned, same_bits, samples
from fflearn.data import load as load_data
from fflearn.engine import Engine
from fflearn.errors import LocalityError, SettingsWarning, ShapeError, SpecError
from fflearn.labels import embedding
from fflearn.objectives.goodness import loss
from fflearn.optim import optimizer
from fflearn.registry import rule

# What is tested with a peer and msq is a derivative; that they make poor settings is advised.
pytestmark = pytest.mark.filterwarnings("ignore:forward_forward.goodness=msq")
HIDDEN = "dense 17 relu | dense 13 tanh | dense 12 gelu"


def made(hidden: str = HIDDEN, **settings):
    return bench(lambda: rule("ff", **{"negatives": "wrong", **settings}), hidden)


def laid_out(t):
    """The trace with its rows laid out, where they shared samples."""
    return t._replace(x=t.x.whole) if isinstance(t.x, Shown) else t


def heard(engine, state, batch):
    """Per layer: its traces when it learned, the phases it was sent, its update."""
    seen: dict = {}

    class Hears(Bus):
        def _call(self, hook, v, *args):
            traces = {name: laid_out(t) for name, t in v.traces.items()}
            out = super()._call(hook, v, *args)
            if hook == "update":
                phase = args[0].phase if "x" in traces and not v.is_output else None
                seen[v.index] = traces, phase, out
            return out

    engine.updates(state, batch, Hears)
    return seen


# ---- the local gradient ---------------------------------------------------------------------------

OBJECTIVES = [
    {"goodness": g, "norm": n, "theta": theta, "temperature": t}
    for g in ("ssq", "msq", "l2")
    for n in ("rms", "unit")
    for theta, t in ((0.7, 1.0), (2.0, 3.0))
]


@pytest.mark.torch
@pytest.mark.parametrize("negatives", ["wrong", "all_wrong", "hard"])
@pytest.mark.parametrize("peer", [0.0, 0.3])
@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda s: "-".join(map(str, s.values())))
def test_updates_are_autograd_of_each_layers_own_loss(settings, peer, negatives):
    torch = pytest.importorskip("torch")
    engine, state, batch = made(**settings, peer=peer, negatives=negatives)
    for slots in state.params[:3]:
        slots["b"] = np.linspace(-0.5, 0.5, slots["b"].size)
    act = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}
    seen = heard(engine, state, batch)
    for i in range(3):
        traces, phase, update = seen[i]
        w, b = (torch.tensor(state.params[i][n], requires_grad=True) for n in "Wb")
        x, phase = torch.tensor(traces["x"].x), torch.tensor(phase)
        squares = (x**2).sum(1, keepdim=True)
        n = x / ((squares / x.shape[1] if settings["norm"] == "rms" else squares).sqrt() + 1e-8)
        a = n @ w + b
        y = act[engine.net.leaves[i].activation](a)
        good = {"ssq": (y**2).sum(1), "msq": (y**2).mean(1), "l2": (y**2).sum(1).sqrt()}
        u = -phase * (good[settings["goodness"]] - settings["theta"]) / settings["temperature"]
        loss = torch.logaddexp(u, 0 * u)  # torch's softplus is only piecewise so
        total = (loss[phase > 0].mean() + loss[phase < 0].mean()) / 2
        if peer:
            mean = 0.9 * 0.5 + 0.1 * y[phase > 0].mean(0).detach()
            total = total + peer * (a[phase > 0] * (mean - mean.mean())).sum(1).mean()
            np.testing.assert_allclose(update.aux_assign["mean_activity"], mean, rtol=1e-12)
        total.backward()
        ours = {name: engine.kernels.formed(g) for name, g in update.grads.items()}
        for name, t in (("W", w), ("b", b)):
            g = t.grad.numpy()
            assert np.linalg.norm(ours[name] - g) <= 1e-10 * np.linalg.norm(g), (i, name)


COLLABORATING = [
    {"loss": name, "goodness": goodness, "temperature": t, "collaboration": with_it, "gamma": 0.7}
    for name, goodness, t in (
        ("logistic", "ssq", 2.0),
        ("symba", "msq", 0.25),
        ("margin", "ssq", 3.0),
        ("softmax", "l2", 0.5),
    )
    for with_it in ("none", "all", "below")
]


@pytest.mark.torch
@pytest.mark.parametrize("negatives", ["wrong", "all_wrong", "hybrid"])
@pytest.mark.parametrize("settings", COLLABORATING, ids=lambda s: "-".join(map(str, s.values())))
def test_updates_are_autograd_of_other_losses_with_the_goodness_of_others_held(settings, negatives):
    torch = pytest.importorskip("torch")
    engine, state, batch = made(**settings, theta=0.9, peer=0.0, negatives=negatives)
    act = {"relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu}
    seen, params, good = heard(engine, state, batch), [], []
    for i in range(3):
        x = torch.tensor(seen[i][0]["x"].x)
        w, b = (torch.tensor(state.params[i][n], requires_grad=True) for n in "Wb")
        n = x / ((x**2).mean(1, keepdim=True).sqrt() + 1e-8)
        y = act[engine.net.leaves[i].activation](n @ w + b)
        kinds = {"ssq": (y**2).sum(1), "msq": (y**2).mean(1), "l2": (y**2).sum(1).sqrt()}
        good.append(kinds[settings["goodness"]] - 0.9)
        params.append((w, b))
    for i in range(3):
        those = {"none": [], "all": [j for j in range(3) if j != i], "below": list(range(i))}
        held = sum((good[j].detach() for j in those[settings["collaboration"]]), 0 * good[i])
        u, phase = (good[i] + 0.7 * held).reshape(-1, 7), seen[i][1].reshape(-1, 7)
        objective = loss(
            settings["loss"], settings["temperature"]
        )  # tests/objectives has its proof
        du = objective(engine.kernels, u.detach().numpy(), phase)[1] / u.numel()
        grads = torch.autograd.grad(u, params[i], torch.tensor(du), retain_graph=True)
        update = seen[i][2]
        for name, g in zip("Wb", grads, strict=True):
            ours, g = engine.kernels.formed(update.grads[name]), g.numpy()
            assert np.linalg.norm(ours - g) <= 1e-10 * np.linalg.norm(g), (i, name)
            assert np.linalg.norm(g) > 0, "nothing to compare"


def test_a_step_computed_by_hand():
    # One unit; x = 3 and one label place of two, so n = (3, 1, 0) / r, r^2 = 10/3 (rms norm).
    # W = (1, 1, 0), b = 0: a = y = 4/r for the right label and 3/r for the wrong one, which
    # writes to the other place.  g = 4.8 and 2.7; theta = 1; u = -3.8 and 1.7.
    engine = Engine("dense 1 relu | dense 2", rule("ff", peer=0.0), (1,), 2, dtype="float64")
    state = engine.init(0)
    state.params[0]["W"] = [[1], [1], [0]]
    first, head = engine.updates(state, Batch(np.array([[3.0]]), np.array([[1.0, 0.0]])))
    r = np.sqrt(10 / 3)
    pos = -1 / (1 + np.exp(3.8)) * 2 * (4 / r)
    neg = 1 / (1 + np.exp(-1.7)) * 2 * (3 / r)
    expected = [[(pos * 3 + neg * 3) / r / 2], [pos / r / 2], [neg / r / 2]]
    np.testing.assert_allclose(engine.kernels.formed(first.grads["W"]), expected, rtol=1e-7)
    np.testing.assert_allclose(first.grads["b"], [(pos + neg) / 2], rtol=1e-7)
    # Head: neutral label (1/2, 1/2), zero weights, so the error is (-1/2, 1/2); n is 1.
    np.testing.assert_allclose(engine.kernels.formed(head.grads["W"]), [[-0.5, 0.5]], rtol=1e-7)


def test_no_gradient_flows_into_the_layer_below():
    engine, state, batch = made()
    before = dict(learned(engine, engine.updates(state, batch)))
    for above in state.params[1:]:
        above["W"] = 3 * above["W"] + 1
    after = dict(learned(engine, engine.updates(state, batch)))
    for path in [p for p in before if p[0] in "012"]:
        same = (before[path] == after[path]).all()
        assert same == path.startswith("0/"), path  # the first layer cannot tell


@pytest.mark.parametrize("units", [500, 1000])
def test_the_first_mean_logit_is_minus_half_the_units(units):
    # rms-normalised input and Lecun's draw: a is N(0, 1), so E relu(a)^2 = 1/2 against theta = d.
    logits = []
    for seed in range(6):
        engine, state, batch = bench(
            lambda: rule("ff"), f"dense {units} relu | dense {units} relu", seed=seed
        )
        seen = heard(engine, state, batch)
        logits.append([((seen[i][0]["x"].y ** 2).sum(1) - units).mean() for i in range(2)])
    np.testing.assert_allclose(np.mean(logits, 0), -units / 2, rtol=0.1)


# ---- half the batch each --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"negatives": "wrong"},
        {"negatives": "hard", "goodness": "l2", "norm": "unit", "label": "overlay"},
        {"negatives": "wrong", "collaboration": "all", "head": False},
        {"negatives": "hybrid"},
    ],
    ids=str,
)
def test_half_and_half_of_the_same_samples_is_every_sample_both_ways(settings):
    found = []
    for pairs in ("full", "half"):
        engine, state, batch = made(pairs=pairs, peer=0.3, **settings)
        if pairs == "half":
            batch = Batch(np.r_[batch.x, batch.x], np.r_[batch.y, batch.y])
        found.append(dict(learned(engine, engine.updates(state, batch))))
    for path, g in found[0].items():
        np.testing.assert_allclose(found[1][path], g, rtol=1e-9, atol=1e-13, err_msg=path)


def test_of_an_odd_batch_the_positives_are_one_more_and_nobody_is_shown_twice():
    engine, state, batch = made(pairs="half")
    traces, phase, _ = heard(engine, state, batch)[0]
    np.testing.assert_array_equal(phase, [1, 1, 1, 1, -1, -1, -1])
    shown, y = traces["x"].x, batch.y
    np.testing.assert_array_equal(shown[:, :11], batch.x)
    np.testing.assert_array_equal(shown[:4, 11:], y[:4])
    assert (shown[4:, 11:].sum(1) == 1).all() and not (shown[4:, 11:] * y[4:]).any()
    uneven = batch._replace(weight=np.arange(1.0, 8.0))
    for some in (uneven, Batch(batch.x[:1], y[:1]), Batch(batch.x[:2], y[:2])):
        engine.step(state, some)
    assert state.first_bad() is None
    ledgers = [made(pairs=p, head=False)[0] for p in ("half", "full")]
    half, full = (e.step(e.init(0), batch)[1].forward_passes for e in ledgers)
    assert (half, full) == (1, 2)


# ---- layer collaboration --------------------------------------------------------------------------


def after_steps(dtype: str, backend: str, hidden: str = HIDDEN, **settings):
    make = partial(rule, "ff", **settings)
    engine, state, batch = bench(make, hidden, dtype=dtype, backend=backend)
    infos = [engine.step(state, batch)[0] for _ in range(10)]
    return state, [{n: float(value) for n, value in info.items()} for info in infos]


@pytest.mark.parametrize("with_it", ["all", "below"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_without_weight_collaboration_is_plain_forward_forward_bit_for_bit(with_it, dtype, backend):
    for settings in ({}, {"loss": "symba", "negatives": "all_wrong"}, {"negatives": "hybrid"}):
        plain, infos = after_steps(dtype, backend, **settings)
        settings |= {"collaboration": with_it, "gamma": 0.0}
        alike, others = after_steps(dtype, backend, **settings)
        assert same_bits(plain, alike) is None and infos == others
        collaborating, _ = after_steps(dtype, backend, **(settings | {"gamma": 1.0}))
        assert same_bits(plain, collaborating) is not None


def test_the_lowest_layer_has_nobody_below():
    updates = {}
    for with_it in ("none", "below", "all"):
        engine, state, batch = made(collaboration=with_it)
        found = dict(learned(engine, engine.updates(state, batch)))
        updates[with_it] = {path: g for path, g in found.items() if path.startswith(("0/", "1/"))}
    for path, plain in updates["none"].items():
        first = path.startswith("0/")
        assert (updates["below"][path] == plain).all() == (first or "aux" in path), path
        assert (updates["all"][path] == plain).all() == ("aux" in path), path


def test_greedy_collaboration_goes_by_the_layers_below():
    settings = {"order": "greedy", "negatives": "wrong", "peer": 0.0}
    found = {}
    for with_it in ("none", "below"):
        greedy = rule("ff", collaboration=with_it, **settings)
        engine = Engine(f"{HIDDEN} | dense 3", greedy, (11,), 3, horizon=(1, 12))
        state, batch = engine.init(0), samples(7, 3)
        for _ in range(5):
            engine.step(state, batch)
        found[with_it] = state
    pairs = zip(found["none"].params, found["below"].params, strict=True)
    same = [(a["W"] == b["W"]).all() for a, b in pairs]
    assert same[:3] == [True, False, True]  # of three steps, two steps and none


def test_collaborating_layers_are_scored_together():
    for with_it in ("none", "all"):
        engine, state, batch = made(collaboration=with_it)
        total = 0
        for label in np.eye(3):
            x, found = np.c_[batch.x, np.tile(label, (7, 1))], []
            for i in range(3):
                x = engine.net.leaves[i].forward(engine.kernels, state.params[i], x, Env()).y
                found.append((x**2).sum(1))
            total = total + np.outer(sum(found[0 if with_it == "all" else 1 :]), label)
        scores = engine.predict(state, batch.x, "goodness")
        np.testing.assert_allclose(scores, total, rtol=1e-10)


def test_collaboration_costs_one_number_per_row_and_layer():
    engine, state, batch = made(collaboration="all", head=False)
    _, ledger = engine.step(state, batch)
    assert engine.rule.channels == {Channel.PHASE, Channel.GOODNESS}
    assert ledger.per_sample()["goodness"] == 2 * 3 * 3  # rows, layers read, by as many


# ---- unsupervised ---------------------------------------------------------------------------------


def test_without_labels_hidden_layers_learn_from_inputs_alone():
    found = []
    for labels in ([0, 1, 2, 0, 1, 2, 0], [2, 2, 1, 0, 0, 1, 1]):
        engine, state, batch = made(negatives="hybrid")
        batch = batch._replace(y=np.eye(3)[labels])
        found.append(dict(learned(engine, engine.updates(state, batch))))
    heads = {f"{s.index}/" for s in engine.specs if s.is_output}
    for path, g in found[0].items():
        assert (g == found[1][path]).all() == (path[:2] not in heads), path


def test_hybrids_stand_beside_their_samples_and_differ_from_step_to_step():
    engine, state, batch = made(negatives="hybrid")
    assert engine.specs[0].in_shape == (11,)
    drawn = []
    for step in range(3):
        state.step = step
        traces, phase, _ = heard(engine, state, batch)[0]
        x = traces["x"].x
        np.testing.assert_array_equal(x[:7], batch.x)
        of_either = (x[7:] == batch.x) | (x[7:] == np.roll(batch.x, 1, 0))
        assert of_either.all() and (x[7:] != batch.x).any()
        np.testing.assert_array_equal(phase, np.repeat([1, -1], 7))
        drawn.append(x[7:].tobytes())
    assert len(set(drawn)) == 3


def test_the_head_of_an_unsupervised_network_reads_the_plain_input():
    engine, state, batch = made("dense 17 relu", negatives="hybrid")
    assert engine.rule.predictors == ("softmax",)
    state.params[1]["W"] = np.cos(np.arange(51.0)).reshape(17, 3)

    def unit(x):
        return x / (np.sqrt((x**2).mean(1, keepdims=True)) + 1e-8)

    h = np.maximum(unit(batch.x) @ state.params[0]["W"] + state.params[0]["b"], 0)
    logits = unit(h) @ state.params[1]["W"]
    np.testing.assert_allclose(engine.predict(state, batch.x), logits, rtol=1e-10)


def test_the_first_layer_tells_digits_from_hybrids_after_200_steps():
    net, data = "dense 64 relu | dense 10", load_data("digits")
    engine = Engine(net, rule("ff", negatives="hybrid"), (8, 8, 1), 10)
    state, batches = engine.init(0), data.batches(32, 0)
    held, right = Batch(data.x_test, np.eye(10)[data.y_test]), []
    for steps in (0, 200):
        for step in range(steps):
            engine.step(state, batches.batch(step))
        y = heard(engine, state, held)[0][0]["x"].y
        real, hybrid = (y**2).sum(1).reshape(2, -1)
        right.append((real > hybrid).mean())
    assert right[0] < 0.6 and right[1] > 0.75


# ---- schedules and peer normalisation -------------------------------------------------------------


@pytest.mark.parametrize("head", [True, False])
def test_greedy_trains_one_layer_per_stage(head):
    greedy = rule("ff", order="greedy", negatives="wrong", head=head)
    engine = Engine(f"{HIDDEN} | dense 3", greedy, (11,), 3, horizon=(1, 12))
    state, batch, stages = engine.init(0), samples(7, 3), []
    for _ in range(12):
        before = state.copy()
        engine.step(state, batch)
        pairs = enumerate(zip(state.params, before.params, strict=True))
        stages.append([i for i, (a, b) in pairs if (a["W"] != b["W"]).any()])
    if head:
        assert stages[:9] == [[0]] * 3 + [[1]] * 3 + [[2]] * 3
        assert all(set(s) <= {3, 4} and s for s in stages[9:])
    else:
        assert stages == [[0]] * 4 + [[1]] * 4 + [[2]] * 4


@pytest.mark.parametrize(("peer", "revives"), [(0.3, True), (0.0, False)])
def test_peer_normalisation_revives_a_silent_unit(peer, revives):
    engine = Engine(
        "dense 30 relu | dense 3", rule("ff", peer=peer), (11,), 3, optimizer("adam", lr=0.02)
    )
    state, batch = engine.init(0), samples(50, 3)
    state.params[0]["b"][0] = -5

    def alive() -> float:
        return heard(engine, state, batch)[0][0]["x"].y[:, 0].max()

    assert alive() == 0
    for _ in range(300):
        engine.step(state, batch)
    assert (alive() > 0) == revives


def test_a_sample_of_weight_three_is_the_sample_three_times():
    """In the mean activity that peer normalisation holds, too."""
    engine, state, batch = made(peer=0.3, negatives="all_wrong")
    times = np.array([1, 3, 1, 2, 1, 1, 1])
    found = [
        dict(learned(engine, engine.updates(state, some)))
        for some in (
            batch._replace(weight=times.astype(float)),
            Batch(np.repeat(batch.x, times, axis=0), np.repeat(batch.y, times, axis=0)),
        )
    ]
    assert "0/aux_assign/mean_activity" in found[0]
    for path, g in found[0].items():
        np.testing.assert_allclose(found[1][path], g, rtol=1e-9, atol=1e-13, err_msg=path)


def test_peer_normalisation_without_the_goodness_it_is_made_for_comes_with_advice():
    for params, warned in [
        ({"goodness": "msq"}, True),
        ({"goodness": "msq", "peer": 0.0}, False),
        ({}, False),
    ]:
        assert ("Add peer=0" in rule("ff", **params).advise(None)) == warned
    with pytest.warns(SettingsWarning, match="drowns"):
        Engine("dense 5 relu | dense 3", rule("ff", goodness="msq"), (11,), 3)


# ---- the head -------------------------------------------------------------------------------------


def test_the_head_reads_normalised_activity_and_does_not_teach_the_layers_below():
    engine, state, batch = made(head_lr=10.0)
    heads = [spec.index for spec in engine.specs if spec.is_output]
    seen = heard(engine, state, batch)
    for i in heads:
        n = seen[i][0]["neutral"].inner
        np.testing.assert_allclose(np.sqrt((n**2).mean(1)), 1, rtol=1e-6)
    without, other, _ = made(head=False)
    for _ in range(5):
        engine.step(state, batch)
        without.step(other, batch)
    hidden = [i for i, spec in enumerate(engine.specs) if not spec.is_output]
    for i, j in zip(hidden, range(3), strict=True):
        assert (state.params[i]["W"] == other.params[j]["W"]).all()


def test_the_heads_settings_are_factors_on_the_optimizers():
    for head_lr, moves in ((1.0, True), (0.0, False)):
        engine, state, batch = made(head_lr=head_lr)
        before = state.copy()
        engine.step(state, batch)
        for spec, now, then in zip(engine.specs, state.params, before.params, strict=True):
            assert (now["W"] != then["W"]).any() == (moves or not spec.is_output)


def test_the_heads_weight_decay_is_a_factor_too():
    def after(factor: float):
        engine, _, batch = made(head_weight_decay=factor)
        engine.optimizer = optimizer("adamw", lr=0.1, weight_decay=0.5)
        state = engine.init(0)
        for _ in range(2):  # the head starts at zero: nothing decays in the first step
            engine.step(state, batch)
        return engine, state

    (engine, plain), (_, without) = after(1.0), after(0.0)
    for spec, a, b in zip(engine.specs, plain.params, without.params, strict=True):
        assert (a["W"] == b["W"]).all() != spec.is_output


def test_the_neutral_pass_leaves_no_trace_in_hidden_layers():
    engine, state, batch = made(negatives="hard")
    for i, (traces, _, _) in heard(engine, state, batch).items():
        assert ("neutral" in traces) == engine.specs[i].is_output


def test_the_heads_logits_are_those_of_an_even_label():
    engine, state, batch = made("dense 17 relu", strength=2.0)
    state.params[1]["W"] = np.cos(np.arange(51.0)).reshape(17, 3)
    x = np.c_[batch.x, np.full((7, 3), 2 / 3)]

    def unit(x):
        return x / (np.sqrt((x**2).mean(1, keepdims=True)) + 1e-8)

    h = np.maximum(unit(x) @ state.params[0]["W"] + state.params[0]["b"], 0)
    logits = unit(h) @ state.params[1]["W"]
    np.testing.assert_allclose(engine.predict(state, batch.x, "softmax"), logits, rtol=1e-10)


def test_the_head_reads_all_hidden_layers_but_the_first_of_three():
    engine, _, _ = made()
    assert engine.net.spec().count("dense 3 norm=rms") == 2
    tops = [layer for layer, s in zip(engine.net.leaves, engine.specs, strict=True) if s.is_output]
    assert sorted(layer.bias for layer in tops) == [False, True]  # logits are summed: one bias
    two, _, _ = made("dense 17 relu | dense 13 relu")
    assert sum(s.is_output for s in two.specs) == 2
    assert all(not layer.spec().startswith("dense 3") for layer in made(head=False)[0].net.leaves)


def test_hard_negatives_follow_the_heads_mistakes_and_are_never_true():
    engine, state, batch = made(negatives="hard", label="append")
    for i, spec in enumerate(engine.specs):
        if spec.is_output and "b" in state.params[i]:
            state.params[i]["b"] = [0, 0, 50]  # the head believes in class 2 whatever it sees
    x = heard(engine, state, batch)[0][0]["x"].x
    right, wrong = x[:7, -3:], x[7:, -3:]
    assert (right == batch.y).all()
    assert (right * wrong).sum() == 0
    assert (wrong[batch.y[:, 2] == 0].argmax(1) == 2).all()


@pytest.mark.parametrize("negatives", ["wrong", "all_wrong"])
def test_right_and_wrong_labels_stand_on_the_same_samples(negatives):
    engine, state, batch = made(negatives=negatives, label="append")
    traces, phase, _ = heard(engine, state, batch)[0]
    x, blocks = traces["x"].x, {"wrong": 2, "all_wrong": 3}[negatives]
    np.testing.assert_array_equal(x[:, :-3], np.tile(batch.x, (blocks, 1)))
    np.testing.assert_array_equal(phase, np.repeat([1, -1], [7, 7 * (blocks - 1)]))
    right = (x[:, -3:] * np.tile(batch.y, (blocks, 1))).sum(1)
    np.testing.assert_array_equal(right, phase > 0)


def test_wrong_labels_are_drawn_anew_in_every_step():
    engine, state, batch = made(negatives="wrong", label="append")
    drawn = []
    for step in range(5):
        state.step = step
        drawn.append(heard(engine, state, batch)[0][0]["x"].x[7:, -3:].tobytes())
    assert len(set(drawn)) == 5


# ---- layers without parameters --------------------------------------------------------------------

POOLED = "conv 5 relu | max_pool | conv 4 relu | avg_pool | dense 6 relu | dropout 0.1 | dense 3"


def pooled(**settings):
    """A network with pooling on images of 8 x 8, one step from training."""
    engine = Engine(POOLED, rule("ff", **settings), (8, 8, 1), 3, dtype="float64", horizon=(1, 8))
    rng = np.random.default_rng(1)
    batch = Batch(rng.normal(size=(5, 8, 8, 1)), np.eye(3)[[0, 1, 2, 1, 0]])
    return engine, engine.init(0), batch


def test_what_has_no_parameters_belongs_to_the_layer_below():
    engine, state, batch = pooled()
    # The head reads what the second and third of the learning layers end in, after the pooling.
    assert engine.net.spec() == (
        "conv 5 relu norm=rms draw=lecun | max_pool | conv 4 relu norm=rms draw=lecun | avg_pool"
        " | residual(dense 6 relu norm=rms draw=lecun | dropout 0.1"
        " | dense 3 norm=rms draw=zeros; dense 3 norm=rms bias=false draw=zeros)"
    )
    info, _ = engine.step(state, batch)
    assert {n for n in info if n.startswith("loss/")} == {"loss/0", "loss/2", "loss/4"}
    assert [bool(slots) for slots in state.aux] == [True, False, True, False, True, *[False] * 3]


def test_goodness_is_that_of_the_layers_that_learn():
    engine, state, batch = pooled()
    scores, total = engine.predict(state, batch.x, "goodness"), 0
    embed, k = embedding("overlay", (8, 8, 1), 3, 1.0), engine.kernels
    for label in np.eye(3):
        x, found = embed(batch.x, np.tile(label, (5, 1))), []
        for i in (0, 1, 2, 3, 4):
            x = engine.net.leaves[i].forward(k, state.params[i], x, Env()).y
            found.append((x.reshape(5, -1) ** 2).sum(1))
        total = total + np.outer(found[2] + found[4], label)  # all but the first that learns
    np.testing.assert_allclose(scores, total, rtol=1e-10)


def test_greedy_spends_no_time_on_layers_without_parameters():
    engine, state, batch = pooled(order="greedy", negatives="wrong")
    stages = []
    for _ in range(8):
        before = state.copy()
        engine.step(state, batch)
        pairs = enumerate(zip(state.params, before.params, strict=True))
        stages.append([i for i, (a, b) in pairs if any((a[n] != b[n]).any() for n in a)])
    assert stages[:6] == [[0], [0], [2], [2], [4], [4]]
    assert all(set(s) == {6, 7} for s in stages[6:])


def test_greedy_goes_through_a_residual_of_images():
    net = "conv 4 relu | residual(conv 4 relu | conv 4 relu) | dense 3"
    engine = Engine(net, rule("ff", order="greedy"), (6, 5, 2), 3, horizon=(1, 4))
    state, batch = (
        engine.init(0),
        Batch(np.cos(np.arange(240.0)).reshape(4, 6, 5, 2), np.eye(3)[[0, 1, 2, 1]]),
    )
    for _ in range(4):
        engine.step(state, batch)
    assert state.first_bad() is None


@pytest.mark.parametrize(
    ("net", "in_shape", "fed"),
    [
        ("conv 6 relu | dense 3", (4, 4, 1), (4, 4, 1)),  # 16 pixels: too few to spare, but kept
        ("max_pool | dense 5 relu | dense 3", (4, 4, 1), (4, 4, 1)),
        ("dense 6 relu | dense 3", (4, 4, 1), (19,)),
        ("flatten | dense 6 relu | dense 3", (4, 4, 1), (19,)),
        ("dense 6 relu places=1 | dense 3", (4, 5), (4, 5)),
        ("residual(conv 2 relu; conv 2 relu) | dense 3", (4, 4, 1), (4, 4, 1)),
    ],
)
def test_labels_are_written_so_that_the_first_layer_can_read_them(net, in_shape, fed):
    engine = Engine(net, rule("ff"), in_shape, 3)
    assert {s.in_shape for s in engine.specs if s.is_input} == {fed}
    rng, state = np.random.default_rng(0), engine.init(0)
    batch = Batch(rng.normal(size=(6, *in_shape)), np.eye(3)[[0, 1, 2, 0, 1, 2]])
    engine.step(state, batch)
    for by in engine.rule.predictors:
        assert engine.predict(state, batch.x, by).shape == (6, 3)


# ---- prediction and labels ------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [HIDDEN, "dense 17 relu | dense 13 relu", "dense 17 relu"])
def test_prediction_by_goodness_is_the_loop_over_labels(hidden):
    engine, state, batch = made(hidden)
    scores = engine.predict(state, batch.x, "goodness")
    layers = [i for i, spec in enumerate(engine.specs) if not spec.is_output]
    for label in range(3):
        x, total = np.c_[batch.x, np.tile(np.eye(3)[label], (7, 1))], 0
        for depth, i in enumerate(layers):
            n = x / (np.sqrt((x**2).mean(1, keepdims=True)) + 1e-8)
            a = n @ state.params[i]["W"] + state.params[i]["b"]
            x = engine.kernels.act(a, engine.net.leaves[i].activation)
            if depth > 0 or len(layers) <= 2:
                total = total + (x**2).sum(1)
        np.testing.assert_allclose(scores[:, label], total, rtol=1e-10)


def test_prediction_depends_neither_on_order_nor_on_rows_per_sweep():
    engine, state, batch = made()
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    for by in ("goodness", "softmax"):
        scores = engine.predict(state, batch.x, by)
        np.testing.assert_allclose(engine.predict(state, batch.x[order], by), scores[order])
        np.testing.assert_allclose(engine.predict(state, batch.x, by, rows=3), scores, rtol=1e-12)


def test_labels_cannot_leak_into_prediction():
    class Peeks(type(rule("ff"))):
        def predict(self, bus, x, by):
            return bus.readout(super().predict(bus, x, "softmax")).error

    engine, state, batch = bench(Peeks, HIDDEN)
    with pytest.raises(LocalityError, match="no label to read out while predicting"):
        engine.predict(state, batch.x)
    with pytest.raises(SpecError, match="'logits' is no way to predict"):
        engine.predict(state, batch.x, "logits")


@pytest.mark.parametrize("label", ["auto", "overlay", "append", "channel"])
def test_every_label_embedding_trains(label):
    engine = Engine("dense 9 relu | dense 3", rule("ff", label=label), (4, 4, 2), 3)
    state, labels = engine.init(0), np.array([0, 1, 2, 1])
    batch = Batch(np.cos(np.arange(128.0)).reshape(4, 4, 4, 2), np.eye(3)[labels])
    before = state.copy()
    engine.step(state, batch)
    assert engine.specs[0].in_shape == embedding(label, (4, 4, 2), 3, 1.0).shape((4, 4, 2), 3)
    assert same_bits(before, state) and state.first_bad() is None
    assert engine.predict(state, batch.x).shape == (4, 3)


SETTINGS = [
    {"negatives": "all_wrong"},
    {"negatives": "hard"},
    {"negatives": "wrong", "order": "greedy"},
    {"negatives": "wrong", "head": False, "peer": 0.0},
    {"goodness": "l2", "norm": "unit", "temperature": 2.0, "label": "overlay"},
    {"loss": "margin", "negatives": "all_wrong", "collaboration": "all", "head": False},
    {
        "loss": "softmax",
        "goodness": "msq",
        "peer": 0.0,
        "negatives": "all_wrong",
        "collaboration": "below",
    },
    {"negatives": "hybrid", "order": "greedy", "collaboration": "below", "loss": "symba"},
]


@pytest.mark.parametrize("check", locality.ALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_check_holds_with_other_settings(settings, check):
    check(partial(rule, "ff", **settings))


# ---- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"goodness": "cube"}, "one of ssq, msq, l2"),
        ({"goodness": "l2"}, "Use one of rms.ssq"),
        ({"order": "random"}, "one of simultaneous, greedy; got .random"),
        ({"negatives": "hard", "head": False}, "they need head=true"),
        ({"negatives": "hard", "order": "greedy"}, "they need head=true"),
        ({"negatives": "none"}, "unknown negatives"),
        ({"negatives": "hybrid", "head": False}, "hybrid need head=true"),
        ({"loss": "hinge"}, "unknown loss over goodness 'hinge'"),
        ({"pairs": "third"}, "pairs to be one of full, half; got 'third'"),
        ({"pairs": "half", "loss": "symba"}, "nothing to compare. Use loss=logistic"),
        ({"pairs": "half", "negatives": "all_wrong"}, "one negative per sample, or pairs=full"),
        ({"temperature": 0.0}, "needs a temperature above 0"),
        ({"collaboration": "above"}, "collaboration to be one of none, all, below; got 'above'"),
        ({"collaboration": "all", "order": "greedy"}, "Use collaboration=below"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("ff", **settings)


def test_networks_that_do_not_fit_are_told():
    with pytest.raises(SpecError, match="needs a hidden layer"):
        Engine("dense 3", rule("ff"), (11,), 3)
    with pytest.raises(ShapeError, match="one output per class"):
        Engine("dense 5 relu | dense 4", rule("ff"), (11,), 3)
    with pytest.raises(SpecError, match="only 2 places. Use label=append"):
        Engine("dense 5 relu | dense 3", rule("ff", label="overlay"), (2,), 3)
    with pytest.raises(SpecError, match="'channel' needs images"):
        Engine("dense 5 relu | dense 3", rule("ff", label="channel"), (11,), 3)
    with pytest.raises(SpecError, match="cannot normalise"):
        Engine("block(dense 5 relu) | dense 3", rule("ff"), (11,), 3)
    for net in ("max_pool | dense 3", "flatten | act relu | dense 3", "conv 3 | max_pool"):
        with pytest.raises(SpecError, match=r"a hidden layer that learns.*got '" + net[:4]):
            Engine(net, rule("ff"), (6, 6, 1), 3)
    with pytest.raises(SpecError, match=r"layer '0 conv.*9 values over .* only 4 places"):
        Engine("conv 5 relu | dense 9", rule("ff"), (2, 2, 1), 9)
    for kind in ("graph_conv", "sage"):
        with pytest.raises(SpecError, match=f"{kind} 5 relu' mixes samples"):
            Engine(f"{kind} 5 relu | {kind} 3", rule("ff"), (11,), 3)
    with pytest.raises(ShapeError, match="ForwardForward feeds '0 conv .*the shape"):
        Engine("conv 5 relu | dense 3", rule("ff", label="append"), (6, 6, 1), 3)
    with pytest.raises(ShapeError, match="would feed '0 conv .* and both read the network's input"):
        net = "residual(conv 5 relu | dense 5 relu; dense 5 relu) | dense 3"
        Engine(net, rule("ff"), (6, 6, 1), 3)
    with pytest.raises(SpecError, match="one label per sample; the network ends in '0 dense"):
        net = "dense 5 relu places=1 | dense 3 places=1"
        Engine(net, rule("ff"), (6, 4), 3).init(0)
