"""The Bus: channels that were not declared, sums and forks, settling, tangents, counting."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from fflearn.base import NO_A, Batch, Channel, Rule, Update
from fflearn.checks import BRANCHES, CHAIN, bench, learned, same_bits
from fflearn.engine import Engine
from fflearn.errors import LocalityError
from fflearn.optim import optimizer
from fflearn.registry import rule


@dataclass(frozen=True)
class Toy(Rule):
    """Learns the output layer alone; the tests make it break the contract."""

    op_by_op: ClassVar = "the tests look at values"
    channels: ClassVar = frozenset()
    act: ClassVar[Any] = None  # what the test does with the bus after the read-out

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        type(self).act(bus, batch, out)
        return {"loss": out.loss.mean()}

    def update(self, v, s):
        return Update(v.param_vjp(v.trace, s.top)) if v.is_output else Update()


def toy(act, *channels: Channel, **hooks):
    """A Toy that does ``act(bus, batch, out)`` and has other hooks."""
    names = {"act": staticmethod(act), "channels": frozenset(channels), **hooks}
    return type("Toy", (Toy,), names)


def refused(made, told: str, hidden: str = CHAIN) -> None:
    engine, state, batch = bench(made, hidden)
    with pytest.raises(LocalityError, match=told):
        engine.step(state, batch)


# ---- channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["phase", "scalar", "loss", "target", "error", "input"])
def test_an_undeclared_broadcast_is_refused_and_named(name):
    def act(bus, batch, out):
        arrays = {"target": batch.y, "error": out.error, "input": batch.x}
        value = {**arrays, "scalar": bus.mean(out.loss)}.get(name, out.loss)
        bus.update(top=out.error, **{name: value})

    refused(toy(act), f"broadcast '{name}', but declares no channel. Add Channel.{name.upper()}")
    engine, state, batch = bench(toy(act, Channel(name)))
    engine.step(state, batch)


def test_a_broadcast_without_a_channel_of_that_name_is_refused():
    def act(bus, batch, out):
        bus.update(weights=out.error)

    refused(toy(act, *Channel), "broadcast 'weights', but there is no such channel; there are: ph")


@pytest.mark.parametrize("name", ["error", "target", "input"])
def test_a_channel_carries_what_its_name_says(name):
    def act(bus, batch, out):
        right = {"error": out.error, "target": batch.y, "input": batch.x}[name]
        bus.update(**{name: right * 1})

    refused(toy(act, Channel(name)), f"the broadcast '{name}' must be the array that the bus")


@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
def test_learning_within_the_sweep_down_has_the_bits_of_learning_after_it(hidden):
    class After(type(rule("backprop"))):
        def step(self, bus, batch):
            out = bus.readout(bus.forward(batch.x))
            bus.feedback(out.error)
            bus.update()
            return {"loss": bus.mean(out.loss)}

    now, then = bench(lambda: rule("backprop"), hidden), bench(After, hidden)
    for engine, state, batch in (now, then):
        ledgers = [engine.step(state, batch)[1] for _ in range(4)]
        assert all(ledger.transposes == ledgers[0].transposes for ledger in ledgers)
    assert same_bits(now.state, then.state) is None
    peaks = [b.engine.step(b.state, b.batch)[1].peak_bytes for b in (now, then)]
    assert peaks[0] < peaks[1]


def test_a_layer_that_has_learned_in_the_sweep_down_keeps_nothing():
    seen = []

    class Watch(type(rule("backprop"))):
        op_by_op = "the test looks at traces"

        def step(self, bus, batch):
            out = bus.readout(bus.forward(batch.x))
            bus.feedback(out.error, update=True)
            seen.extend(len(v.traces) + len(v.state) for v in bus._views)
            return {"loss": bus.mean(out.loss)}

    engine, state, batch = bench(Watch)
    engine.step(state, batch)
    assert seen == [0] * len(engine.specs)


# ---- what traces keep -----------------------------------------------------------------------------


def reading(field: str, *kept: str):
    """A rule that reads a field of its traces, and says that it keeps some."""

    def update(self, v, s):
        v.report("seen", getattr(v.trace, field).sum())
        return Toy.update(self, v, s)

    def act(bus, batch, out):
        bus.update(top=out.error)

    return toy(act, update=update, **({"keeps": frozenset(kept)} if kept else {}))


@pytest.mark.parametrize("mode", ["eager", "tape"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
def test_a_pre_activation_that_is_not_declared_is_not_there(activation, mode):
    net = f"dense 5 {activation}"
    told = 'read \'a\' of a trace, which it does not keep. Declare .*{"x", "a"}'
    engine, state, batch = bench(reading("a"), net, mode=mode)
    with pytest.raises(LocalityError, match=told):
        engine.step(state, batch)
    engine, state, batch = bench(reading("a", "x", "a"), net, mode=mode)
    assert np.isfinite(engine.step(state, batch)[0]["seen/0"])


def test_the_input_of_a_norm_can_be_left_out():
    engine, state, batch = bench(reading("x", "a"), "dense 5 relu norm=rms")
    with pytest.raises(LocalityError, match="read 'x' of a trace"):
        engine.step(state, batch)
    engine, state, batch = bench(reading("x"), "dense 5 relu norm=rms")
    engine.step(state, batch)


@pytest.mark.parametrize("use", [
    lambda a: a + 1, lambda a: 1 - a, lambda a: np.ones(3) * a, np.exp, np.asarray, len, abs,
    lambda a: a[0], lambda a: a.mean(),
])  # fmt: skip
def test_whatever_uses_what_was_not_kept_is_told(use):
    with pytest.raises(LocalityError, match="read 'a' of a trace"):
        use(NO_A)


def test_an_undeclared_message_down_is_refused():
    def act(bus, batch, out):
        bus.feedback(out.error)

    hooks = {"feedback": lambda self, v, m: m @ np.ones((m.shape[1], v.in_shape[0]))}
    refused(toy(act, **hooks), "sent a message down from '3 dense 3', but declares no channel")
    engine, state, batch = bench(toy(act, Channel.FEEDBACK, **hooks))
    engine.step(state, batch)


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (lambda self, v, m: v.input_vjp(v.trace, m), "Channel.TRANSPOSE"),
        (lambda self, v, m: v.input_vjp(v.trace, m, v.params), "Channel.TRANSPOSE"),
        (lambda self, v, m: v.input_vjp(v.trace, m, v.signs()), "Channel.SIGN"),
    ],
)
def test_weights_are_not_for_the_way_down(hook, told):
    def act(bus, batch, out):
        bus.feedback(out.error)

    refused(toy(act, Channel.FEEDBACK, feedback=hook), told)


def test_an_undeclared_tangent_is_refused():
    def fire(self, v, m, s):
        v.traces[m.name] = t = v.forward(m.x)
        return m._replace(x=t.y, tangent=t.y)

    refused(toy(lambda *_: None, forward=fire), "sent a tangent up, but declares no channel")


def test_a_signal_that_was_not_sent_cannot_be_read():
    def act(bus, batch, out):
        bus.update(target=batch.y)

    told = "'0 dense 17 tanh' read the signal 'error', which it was not sent; sent: .'target'."
    refused(toy(act, Channel.TARGET, update=lambda self, v, s: Update({"b": s.error})), told)


@pytest.mark.parametrize(("name", "ndim"), [("scalar", 0), ("loss", 1), ("phase", 1)])
def test_a_channel_carries_no_more_than_its_shape(name, ndim):
    def act(bus, batch, out):
        bus.update(**{name: out.error})

    refused(toy(act, Channel(name)), f"the broadcast '{name}' must be an array with {ndim} axes")


def test_each_hands_over_words_and_declared_signals_alone():
    def smuggle(bus, batch, out):
        bus.each(bus.rule.take, out.error)

    def undeclared(bus, batch, out):
        bus.each(bus.rule.take, error=out.error)

    def take(self, v, s, *args):
        v.state["taken"] = s.error

    refused(toy(smuggle, take=take), "bus.each hands layers plain words")
    refused(toy(undeclared, take=take), "broadcast 'error', but declares no channel")
    engine, state, batch = bench(toy(undeclared, Channel.ERROR, take=take))
    _, ledger = engine.step(state, batch)
    assert ledger.floats["error", 0] == batch.y.size


def test_gathered_goodness_is_one_number_per_sample_and_layer():
    def act(bus, batch, out):
        total = bus.gather(bus.rule.length)
        assert total.shape == (len(batch.x), len(bus.specs))
        bus.update(goodness=total)

    def length(self, v):
        return (v.trace.y**2).sum(1)

    hooks = {
        "length": length,
        "update": lambda self, v, s: Update({"b": s.goodness.sum(0)[:1] * v.params["b"]}),
    }
    refused(toy(act, **hooks), "gathered a number per sample from every layer, but declares")
    engine, state, batch = bench(toy(act, Channel.GOODNESS, **hooks))
    _, ledger = engine.step(state, batch)
    assert ledger.floats["goodness", 0] == len(batch.x) * len(engine.specs)

    def length(self, v):
        return v.trace.y

    hooks["length"] = length
    refused(toy(act, Channel.GOODNESS, **hooks), "the channel goodness carries one number per")


def test_own_weights_cannot_be_left_in_the_way_down():
    def act(bus, batch, out):
        bus.feedback(out.error)

    hooks = {"feedback": lambda self, v, m: v.input_vjp(v.trace, m, {})}
    refused(toy(act, Channel.FEEDBACK, **hooks), "left its own forward weights in input_vjp")


def test_the_mean_weighs_samples():
    seen = []

    def act(bus, batch, out):
        seen.append((float(bus.mean(out.loss)), out.loss))

    engine, state, batch = bench(toy(act))
    engine.step(state, batch)
    weight = np.arange(len(batch.x), dtype=float)
    engine.step(state, batch._replace(weight=weight))
    assert seen[0][0] == pytest.approx(seen[0][1].mean(), rel=1e-12)
    assert seen[1][0] == pytest.approx(np.average(seen[1][1], weights=weight), rel=1e-12)


def test_a_stacked_pass_is_compared_and_averaged_sample_by_sample():
    seen = []

    def act(bus, batch, out):
        again = bus.readout(bus.forward(np.concatenate([batch.x] * 3)))
        np.testing.assert_allclose(again.error, np.tile(out.error, (3, 1)))
        shifted = again.loss + np.repeat([0.0, 1.0, 5.0], len(batch.x))
        seen.append((float(bus.mean(shifted)), float(bus.mean(out.loss))))

    engine, state, batch = bench(toy(act, update=lambda self, v, s: Update()))
    for weight in (None, np.arange(len(batch.x), dtype=float)):
        engine.step(state, batch._replace(weight=weight))
        stacked, plain = seen.pop()
        assert stacked == pytest.approx(plain + 2, rel=1e-12)


def test_reading_many_layers_is_for_prediction_only():
    def act(bus, batch, out):
        bus.collect(lambda v: v.params["W"])

    refused(toy(act, *Channel), "for prediction only")


def test_hooks_cannot_write_to_what_they_read():
    def act(bus, batch, out):
        bus.each(bus.rule.scribble)

    def scribble(self, v, s):
        v.params["W"][...] = 0

    engine, state, batch = bench(toy(act, scribble=scribble))
    with pytest.raises(ValueError, match="read-only"):
        engine.step(state, batch)


def test_each_runs_a_method_in_every_layer_without_a_message():
    seen = []

    def act(bus, batch, out):
        bus.each(bus.rule.note, "tag")

    def note(self, v, s, tag):
        seen.append((v.index, tag, v.depth))

    engine, state, batch = bench(toy(act, note=note))
    engine.step(state, batch)
    assert seen == [(i, "tag", 4) for i in range(4)]


def test_a_rules_array_has_momentum_of_its_own():
    # The parameter W and the rule's array W go different ways; neither may see the other's buffer.
    hooks = {
        "init": lambda self, v, key, shared: {"W": np.zeros(v.params["W"].shape)},
        "plastic": lambda self, v, owned: ("W",),
        "update": lambda self, v, s: Update(
            {"W": np.ones(v.params["W"].shape)}, {"W": -2 * np.ones(v.params["W"].shape)}
        ),
    }
    engine, _, batch = bench(toy(lambda bus, batch, out: bus.update(), **hooks))
    engine.optimizer = optimizer("sgd", lr=0.1, momentum=0.5)
    state = engine.init(0)
    start = state.copy()
    for _ in range(2):
        engine.step(state, batch)
    for now, then, owned in zip(state.params, start.params, state.aux, strict=True):
        np.testing.assert_allclose(now["W"], then["W"] - 0.1 * (1 + 1.5))
        np.testing.assert_allclose(owned["W"], 2 * 0.1 * (1 + 1.5))


# ---- sums and forks -------------------------------------------------------------------------------


def test_a_message_is_copied_at_a_sum_and_added_at_a_fork_by_hand():
    # y1 = 2 x;  y2 = 3 y1 + y1 = 4 y1;  logits = (y2, -y2).  For x = 1: y2 = 8, target (7, 0),
    # error (1, -8), so the message at the sum is 9; at the fork 3 * 9 + 9 = 36.
    net = "dense 1 bias=false | residual(dense 1 bias=false) | dense 2 bias=false"
    engine = Engine(net, rule("backprop"), (1,), 2, objective="mse", dtype="float64")
    state = engine.init(0)
    for i, w in enumerate([[[2.0]], [[3.0]], [[1.0, -1.0]]]):
        state.params[i]["W"] = w
    assert (engine.predict(state, [[1.0]]) == [[8, -8]]).all()
    found = engine.updates(state, Batch([[1.0]], [[7.0, 0.0]]))
    w = [engine.kernels.formed(u.grads["W"]).tolist() for u in found]
    assert w == [[[36.0]], [[18.0]], [[8.0, -64.0]]]


def test_a_network_that_ends_in_a_sum_has_two_output_layers():
    net = "dense 5 tanh | residual(dense 3; dense 3)"
    engine = Engine(net, rule("dfa"), (4,), 3, dtype="float64")
    assert [s.is_output for s in engine.specs] == [False, True, True]
    state = engine.init(0)
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(6, 4)), np.eye(3)[[0, 1, 2, 0, 1, 2]])
    hidden = np.tanh(batch.x @ state.params[0]["W"])
    scores = engine.predict(state, batch.x)
    np.testing.assert_allclose(scores, hidden @ (state.params[1]["W"] + state.params[2]["W"]))
    _, *tops = dict(enumerate(engine.updates(state, batch))).values()
    a, b = (engine.kernels.formed(u.grads["W"]) for u in tops)
    np.testing.assert_array_equal(a, b)


# ---- settling -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settling(Rule):
    """Predictive coding: minimises 1/2 sum |s_l - f(s_{l-1})|^2 + 1/2 |s_L - target|^2."""

    op_by_op: ClassVar = "the tests look at values"
    channels: ClassVar = frozenset({Channel.TRANSPOSE})
    steps: int = 500
    tol: float = 1e-12
    rate: float = 0.2

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.each(self.start)

        def top():
            return batch.y - bus.top("s")

        sweeps = bus.settle(batch.x, top, self.steps, self.tol).sweeps
        bus.update()
        return {"loss": out.loss.mean(), "sweeps": np.asarray(sweeps)}

    def start(self, v, s):
        v.state["s"], v.state["e"] = v.trace.y, np.zeros_like(v.trace.y)

    def feedback(self, v, m):
        return v.input_vjp(v.trace, v.act_vjp(v.trace, v.state["e"]))

    def relax(self, v, below, above):
        v.traces["x"] = t = v.forward(below)
        v.state["e"] = e = v.state["s"] - t.y
        v.state["s"] = v.state["s"] + self.rate * (above - e)

    def update(self, v, s):
        return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, -v.state["e"])))


@pytest.mark.parametrize(
    "hidden", ["dense 7 tanh | dense 5 tanh", "dense 6 tanh | residual(dense 6 tanh)"]
)
def test_settling_reaches_the_minimum_of_the_energy(hidden):
    states: list[np.ndarray] = []

    class Watched(Settling):
        def update(self, v, s):
            states.append(v.state["s"])
            return super().update(v, s)

    engine, state, batch = bench(Watched, hidden)
    info, _ = engine.step(state.copy(), batch)
    assert 20 < info["sweeps"] < 500

    def energy(s):
        value, total, own = {-1: batch.x}, 0.0, iter(s)
        for i, (leaf, sources) in enumerate(engine.net.nodes):
            if leaf is None:
                value[i] = value[sources[0]] + value[sources[1]]
                continue
            p = state.params[leaf]
            a = value[sources[0]] @ p["W"] + p["b"]
            value[i] = next(own)
            y = np.tanh(a) if engine.net.leaves[leaf].activation == "tanh" else a
            total += 0.5 * ((value[i] - y) ** 2).sum()
        return total + 0.5 * ((value[i] - batch.y) ** 2).sum()

    for layer, s in enumerate(states):
        for at in np.ndindex(2, 2):
            moved = [[x.copy() for x in states] for _ in range(2)]
            moved[0][layer][at] += 1e-5
            moved[1][layer][at] -= 1e-5
            assert abs(energy(moved[0]) - energy(moved[1])) / 2e-5 < 1e-8, (layer, s.shape)


def test_settling_counts_its_sweeps():
    for steps, tol, expected in ((7, 0.0, 7), (1, 0.0, 1), (50, 1e9, 1)):
        engine, state, batch = bench(partial(Settling, steps, tol))
        assert engine.step(state, batch)[0]["sweeps"] == expected
    _, ledger = engine.step(state, batch)
    # One forward and one settling sweep: three layers read 17, 13 and 12 numbers in each.
    assert ledger.per_sample() == {"activity": 2 * 42, "transpose": 42}


def test_settling_takes_fifty_sweeps_unless_told():
    class Unhurried(Settling):
        def step(self, bus, batch):
            bus.readout(bus.forward(batch.x))
            bus.each(self.start)
            sweeps = bus.settle(batch.x, lambda: batch.y - bus.top("s")).sweeps
            return {"loss": np.zeros(()), "sweeps": np.asarray(sweeps)}

    engine, state, batch = bench(Unhurried)
    assert engine.step(state, batch)[0]["sweeps"] == 50


# ---- tangents -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardGradient(Rule):
    """u random, as large as the parameters; grad = (d loss / d u) u."""

    channels: ClassVar = frozenset({Channel.TANGENT, Channel.SCALAR})

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        slope = (out.error * bus.tangent).sum(1).mean()
        bus.update(scalar=np.asarray(slope))
        return {"loss": out.loss.mean(), "slope": slope}

    def forward(self, v, m, s):
        t = v.forward(m.x)
        return m._replace(x=t.y, tangent=v.jvp(t, m.tangent, v.noise_like_params("u")))

    def update(self, v, s):
        return Update({n: s.scalar * u for n, u in v.noise_like_params("u").items()})


@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES, "block(dense 9 tanh | dense 7 gelu)"])
def test_a_tangent_carries_the_directional_derivative(hidden):
    engine, state, batch = bench(ForwardGradient, hidden)
    exact, _, _ = bench(lambda: rule("backprop"), hidden)
    gradient = dict(learned(exact, exact.updates(state, batch)))
    ours = dict(learned(engine, engine.updates(state, batch)))
    info, ledger = engine.step(state, batch)
    slope = float(info["slope"])
    directions = {path: g / slope for path, g in ours.items()}
    assert slope == pytest.approx(
        sum((gradient[p] * u).sum() for p, u in directions.items()), 1e-10
    )
    if hidden == CHAIN:
        assert ledger.per_sample() == {"activity": 42, "tangent": 45, "scalar": 4 / 7}


def test_noise_is_drawn_for_each_parameter_and_again_the_same():
    def act(bus, batch, out):
        bus.each(bus.rule.note)

    def note(self, v, s):
        u, again = (v.noise_like_params("u") for _ in range(2))
        assert all((u[n] == again[n]).all() for n in u)
        assert not np.isclose(u["W"].ravel()[: u["b"].size], u["b"]).any()

    engine, state, batch = bench(toy(act, note=note))
    engine.step(state, batch)


def test_noise_of_signs_is_one_per_parameter_too():
    def act(bus, batch, out):
        bus.each(bus.rule.note)

    def note(self, v, s):
        u = v.noise_like_params("u", "rademacher")
        assert {n: a.shape for n, a in u.items()} == {n: a.shape for n, a in v.params.items()}
        assert all(set(np.unique(a)) == {-1.0, 1.0} for a in u.values())

    engine, state, batch = bench(toy(act, note=note))
    engine.step(state, batch)


def test_the_bus_knows_how_many_numbers_each_layer_learns():
    def act(bus, batch, out):
        assert bus.sizes == (11 * 5 + 5, 0, 2 * 5, 5 * 3 + 3)  # running statistics are not learned

    engine, state, batch = bench(toy(act), "dense 5 | act relu | batch_norm")
    engine.step(state, batch)


def test_rows_that_have_their_weights_already_are_not_weighed_again():
    def act(bus, batch, out):
        bus.each(bus.rule.note)

    def note(self, v, s):
        da = np.ones_like(v.trace.y)
        plain, weighed = (v.param_vjp(v.trace, da, weighted=w)["b"] for w in (True, False))
        np.testing.assert_allclose(plain, 1.0)
        np.testing.assert_allclose(weighed, 1.0)
        da[0] = 3.0
        np.testing.assert_allclose(v.param_vjp(v.trace, da, weighted=True)["b"], 1 + 2 / 7)
        np.testing.assert_allclose(v.param_vjp(v.trace, da)["b"], 1.0)  # the first weighs nothing

    engine, state, batch = bench(toy(act, note=note))
    engine.step(state, batch._replace(weight=np.arange(7.0)))


# ---- counting -------------------------------------------------------------------------------------


def test_a_signal_is_counted_in_every_sweep_that_sends_it_and_once_in_each():
    def act(bus, batch, out):
        for _ in range(3):
            bus.each(bus.rule.hear, scalar=np.ones(()))

    def hear(self, v, s):
        assert s.scalar == s.scalar == 1

    engine, state, batch = bench(toy(act, Channel.SCALAR, hear=hear))
    _, ledger = engine.step(state, batch)
    assert {n for (c, _), n in ledger.floats.items() if c == "scalar"} == {3}


@pytest.mark.parametrize(
    ("name", "per_sample", "transposes", "passes"),
    [
        # CHAIN on 11 inputs and 3 classes reads 17 + 13 + 12 = 42 numbers above its first layer.
        ("backprop", {"activity": 42, "transpose": 42}, 3, 1),
        ("fa", {"activity": 42, "feedback": 42}, 0, 1),
        ("usf", {"activity": 42, "sign": 42}, 0, 1),
        ("dfa", {"activity": 42, "error": 3 * 3}, 0, 1),
        ("frozen", {"activity": 42}, 0, 1),
        # Two layers above the first, positive and negative: 2 (17 + 13), and 2 phases a layer.
        ("ff[negatives=wrong,head=false]", {"activity": 60, "phase": 6}, 0, 2),
    ],
)
def test_the_ledger_by_hand(name, per_sample, transposes, passes):
    engine, state, batch = bench(lambda: rule(name))
    _, ledger = engine.step(state, batch)
    assert ledger.per_sample() == per_sample
    assert (ledger.transposes, ledger.forward_passes) == (transposes, passes)
    assert engine.step(state, batch)[1] is ledger  # counted once for a shape of batch


def test_a_signal_counts_once_however_often_a_layer_reads_it():
    def act(bus, batch, out):
        bus.update(error=out.error)

    def update(self, v, s):
        return Update({"b": s.error.sum() + s.error.sum() + v.params["b"]})

    engine, state, batch = bench(toy(act, Channel.ERROR, update=update))
    assert engine.step(state, batch)[1].per_sample() == {"activity": 42, "error": 4 * 3}


def test_a_message_down_counts_as_the_strongest_channel_declared():
    def act(bus, batch, out):
        bus.feedback(out.error)

    hook = {"feedback": lambda self, v, m: v.input_vjp(v.trace, m)}
    made = toy(act, Channel.FEEDBACK, Channel.SIGN, Channel.TRANSPOSE, **hook)
    engine, state, batch = bench(made)
    assert engine.step(state, batch)[1].per_sample() == {"activity": 42, "transpose": 42}


def peak(name: str, depth: int) -> int:
    net = " | ".join(["dense 64 relu"] * depth + ["dense 4"])
    engine = Engine(net, rule(name), (60,), 4)
    state = engine.init(0)
    batch = Batch(np.ones((32, 60)), np.eye(4)[np.arange(32) % 4])
    return engine.step(state, batch)[1].peak_bytes


def test_learning_while_firing_needs_memory_for_one_layer_only():
    ff = "ff[negatives=wrong,head=false]"
    shallow, deep = peak(ff, 2), peak(ff, 16)
    assert deep <= 1.1 * shallow
    assert peak("backprop", 16) - peak("backprop", 2) == 14 * 32 * 64 * 4  # an activity a layer
    assert deep < peak("backprop", 16) / 2


def test_the_peak_by_hand():
    # 5 rows of float64.  Backprop on 4-3-2, as the output layer learns: input 4, activity of the
    # hidden layer 3, logits 2, error 2, the message for below 3; and the bias gradient.
    engine = Engine("dense 3 tanh | dense 2", rule("backprop"), (4,), 2, dtype="float64")
    batch = Batch(np.ones((5, 4)), np.eye(2)[[0, 1, 0, 1, 0]])
    found = engine.step(engine.init(0), batch)[1].peak_bytes
    assert found == 8 * (5 * (4 + 3 + 2 + 2 + 3) + 2)


@pytest.mark.parametrize(
    ("hidden", "floats"),
    [
        # The second layer: its input and its activity; the first layer's input is gone.
        ("dense 40 tanh | dense 70 tanh | dense 20 tanh", 40 + 70),
        # gelu's slope needs the pre-activation.
        ("dense 40 tanh | dense 70 gelu | dense 20 tanh", 40 + 70 + 70),
        # The last layer of the body: 30 + 40, and 40 that wait for the sum.
        ("dense 40 tanh | residual(dense 30 tanh | dense 40 tanh)", 30 + 40 + 40),
    ],
)
def test_the_peak_of_learning_while_firing_by_hand(hidden, floats):
    class Fires(Toy):
        def step(self, bus, batch):
            bus.forward(batch.x, update=True)
            return {"loss": np.zeros(())}

        def update(self, v, s):
            return Update()

    engine, state, batch = bench(Fires, hidden)
    assert engine.step(state, batch)[1].peak_bytes == 8 * len(batch.x) * floats


@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
def test_output_layers_can_wait_for_their_error_while_hidden_ones_learn(hidden):
    class Waits(Toy):
        channels: ClassVar = frozenset({Channel.TARGET})

        def step(self, bus, batch):
            found = bus.forward(batch.x, update="hidden", target=batch.y)
            bus.update(only="output", top=bus.readout(found).error)
            return {"loss": np.zeros(())}

        def update(self, v, s):
            dy = s.top if v.is_output else np.ones_like(v.trace.y) * s.target[:, :1]
            return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, dy)))

    class Together(Waits):
        def step(self, bus, batch):
            out = bus.readout(bus.forward(batch.x))
            bus.update(target=batch.y, top=out.error)
            return {"loss": np.zeros(())}

    engine, state, batch = bench(Waits, hidden)
    other, same, _ = bench(Together, hidden)
    seen: list[int] = []
    engine.probes = {"n": lambda v, u: float(seen.append(v.spec.index) or len(u.grads))}
    for _ in range(2):
        engine.step(state, batch)
        other.step(same, batch)
    assert same_bits(state, same) is None
    assert sorted(seen) == sorted(2 * list(range(len(engine.specs))))  # each once a step


@pytest.mark.parametrize(
    ("hidden", "floats"),
    [
        ("dense 40 tanh | dense 70 tanh | dense 20 tanh", 70),
        ("dense 40 tanh | residual(dense 30 tanh | dense 40 tanh)", 40 + 40),
    ],
)
def test_activity_without_a_trace_is_alive_until_its_last_reader(hidden, floats):
    class Passes(Toy):
        def step(self, bus, batch):
            bus.forward(batch.x)
            return {"loss": np.zeros(())}

        def forward(self, v, m, s):
            return m._replace(x=v.forward(m.x).y)

    engine, state, batch = bench(Passes, hidden)
    assert engine.step(state, batch)[1].peak_bytes == 8 * len(batch.x) * floats


def test_messages_are_alive_until_they_are_read():
    def act(bus, batch, out):
        bus.feedback(out.error)

    hook = {"feedback": lambda self, v, m: np.zeros((len(m), *v.in_shape))}
    engine, state, batch = bench(toy(act, Channel.FEEDBACK, **hook))
    # Traces: the input 11, activities of 17, 13 and 12, the logits 3; the longest message, 17.
    floats = 11 + (17 + 13 + 12) + 3 + 17
    batch = batch._replace(x=batch.x.copy())  # no view of a longer draw
    assert engine.step(state, batch)[1].peak_bytes == 8 * len(batch.x) * floats


# ---- sample weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["backprop", "fa", "dfa", "usf", "frozen"])
@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
def test_a_weight_is_a_number_of_repetitions(name, hidden):
    engine, state, batch = bench(lambda: rule(name), hidden)
    times = np.array([1, 3, 0, 2, 1, 0, 2])
    again = Batch(np.repeat(batch.x, times, 0), np.repeat(batch.y, times, 0))
    weighted = dict(learned(engine, engine.updates(state, batch._replace(weight=times))))
    for path, g in learned(engine, engine.updates(state, again)):
        np.testing.assert_allclose(weighted[path], g, rtol=1e-12, atol=1e-15, err_msg=path)
    both = batch._replace(weight=times), again
    told = [float(engine.step(state.copy(), b)[0]["loss"]) for b in both]
    assert told[0] == pytest.approx(told[1], rel=1e-12)


@pytest.mark.parametrize("name", ["backprop", "dfa", "ff[negatives=wrong]"])
def test_a_weight_of_zero_is_absence(name):
    engine, state, batch = bench(lambda: rule(name))
    weight = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 0.0])
    fewer = Batch(batch.x[:-1], batch.y[:-1], weight=weight[:-1])
    with_it = dict(learned(engine, engine.updates(state, batch._replace(weight=weight))))
    for path, g in learned(engine, engine.updates(state, fewer)):
        np.testing.assert_allclose(with_it[path], g, rtol=1e-12, atol=1e-15, err_msg=path)
