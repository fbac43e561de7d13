"""Repeated steps have the bits of the rule's own code: layers, objectives, optimizers, schedules.

That every rule does is among the checks (`fflearn.checks.repeats_its_steps`), run on each.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from fflearn import layers, objectives, registry, rules
from fflearn.base import Batch, Rule, Update
from fflearn.checks import same_bits
from fflearn.engine import MODES, Engine
from fflearn.errors import FFLearnError, ShapeError, SpecError
from fflearn.layers.dense import Dense
from fflearn.optim import OPTIMIZERS, optimizer
from fflearn.state import load
from fflearn.tape.record import own as own_memory

ROWS, CLASSES = 6, 3
NET = "dense 17 relu | dense 13 tanh | dense 3"
RULES = [
    (name, label) for name in rules.names() for label in ["", *registry.rule_class(name).variants]
]


def made(name: str, label: str) -> Any:
    return registry.rule(name, **(registry.rule_class(name).variants[label] if label else {}))


def batch(seed: int, rows: int = ROWS, inputs: int = 11) -> Batch:
    rng = np.random.default_rng(seed)
    y = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, rows)]
    return Batch(rng.normal(size=(rows, inputs)).astype(np.float32), y)


def engines(net: Any = NET, rule: Any = None, shape: Any = (11,), **options: Any) -> list[Engine]:
    """One engine in each mode; where steps are recorded, none may be left to eager mode."""
    found = []
    for mode in MODES:
        own = rule or registry.rule("backprop")
        found.append(Engine(net, own, shape, CLASSES, mode=mode, **options))
        if found[-1].tapes is not None:
            found[-1].tapes.strict = True
    return found


def told(found: tuple[dict[str, Any], Any]) -> Any:
    info, ledger = found
    return [(n, np.asarray(a).tobytes()) for n, a in info.items()], vars(ledger)


def compare(made: list[Engine], batches: list[Batch]) -> None:
    tape, eager = made
    states = [engine.init(0) for engine in made]
    for i, b in enumerate(batches):
        assert told(tape.step(states[0], b)) == told(eager.step(states[1], b)), f"step {i}"
        assert same_bits(*states) is None, f"step {i}: {same_bits(*states)}"


def repeats(engine: Engine) -> int:
    """How many kinds of steps it repeats without the rule's code."""
    return len(engine.tapes._programs)


# ---- layers, objectives --------------------------------------------------------------------------

KINDS = layers.names()


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind):
    """Every kind of layer, with rules in turn, so that a few meet each and each meets a few."""
    tried, at = 0, KINDS.index(kind)
    for example, shape in layers.load(kind).examples():
        met = 0
        for name, label in RULES[7 * at % len(RULES) :] + RULES:
            if met == 5:
                break
            rng, batches = np.random.default_rng(5), []
            for _ in range(3):
                x, side = example.example_batch(rng, ROWS, shape)
                y = np.eye(CLASSES)[rng.integers(0, CLASSES, ROWS)]
                batches.append(Batch(np.asarray(x, np.float32), y.astype(np.float32), side))
            backend = "numba" if tried % 2 else "reference"
            try:
                pair = engines([example, Dense(CLASSES)], made(name, label), shape, backend=backend)
                pair[0].init(0)
            except (SpecError, ShapeError):
                continue
            compare(pair, batches)
            tried, met = tried + 1, met + 1
    assert tried


@pytest.mark.parametrize("name", objectives.names())
def test_objectives(name):
    tried = 0
    for rule in RULES:
        try:
            pair = engines(rule=made(*rule), objective=name)
        except SpecError:
            continue
        compare(pair, [batch(i) for i in range(3)])
        tried += 1
        if tried == 3:
            return
    assert tried or not objectives.load(name)().at_output


# ---- optimizers, schedules, what changes from step to step ----------------------------------------

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"momentum": 0.0}, {"momentum": 0.9}],
    "adam": [{}],
    "adamw": [{}],
}


@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("rule", ["dfa", "pfa"])
def test_optimizers_rates_and_decay_that_change_in_every_step(name, backend, rule):
    decays: list[Any] = [0.0, 0.01, (0.0, 0.1)]
    for own, decay in itertools.product(SETTINGS.get(name, [{}]), decays):
        chosen = optimizer(name, lr=0.05, schedule="warmup:1+cosine", weight_decay=decay, **own)
        pair = engines(rule=registry.rule(rule), optimizer=chosen, horizon=(3, 2), backend=backend)
        compare(pair, [batch(i) for i in range(6)])
        assert repeats(pair[0]) == 1


@pytest.mark.parametrize("form", ["a part", "one array", "columns first"])
@pytest.mark.parametrize("rule", ["dfa", "forward_forward"])
def test_batches_that_share_memory_are_repeated_from_their_values(form, rule):
    """A batch may be a part of the data, and its targets its inputs: the next one's are not."""
    pair, batches = engines(rule=registry.rule(rule), shape=(CLASSES,)), []
    for i in range(5):
        b = batch(i, inputs=CLASSES)
        data = np.concatenate([b.x + 1, b.x, b.x - 1])
        x = data[ROWS : 2 * ROWS] if form == "a part" else b.x
        if form == "one array" and i < 3:
            x = b.y
        elif form == "columns first":
            x = np.asfortranarray(x)
        batches.append(Batch(x, b.y))
    states = [engine.init(0) for engine in pair]
    for b in batches:  # of a part the ledger counts all, where it is no copy
        one, two = (engine.step(s, b)[0] for engine, s in zip(pair, states, strict=True))
        assert one == two and same_bits(*states) is None
    assert repeats(pair[0]) == 1


def test_inputs_that_are_no_arrays_share_memory_with_none():
    sparse = sp.eye(4, format="csr")
    found = own_memory({"side.A": sparse, "batch.x": (x := np.ones(3)), "side.B": x})
    assert found["side.A"] is sparse and found["batch.x"] is x and found["side.B"] is not x


@pytest.mark.parametrize("mode", MODES)
def test_batches_in_other_dress_are_taken_as_they_are(mode):
    """float64, Fortran order, steps in memory, other byte orders, lists: the values alone count."""
    engine = Engine(NET, registry.rule("dfa"), (11,), CLASSES, mode=mode)
    one, two = engine.init(0), engine.init(0)
    for i in range(12):
        b = batch(i)
        dress = (
            lambda a: a,
            np.asfortranarray,
            lambda a: a.astype(float),
            lambda a: np.repeat(a, 2, 1)[:, ::2],
            lambda a: a.astype(">f4"),
            lambda a: a.tolist(),
        )[i % 6]
        expected = told(engine.step(one, b))
        assert told(engine.step(two, Batch(dress(b.x), dress(b.y)))) == expected, f"step {i}"
        assert same_bits(one, two) is None, f"step {i}"


@pytest.mark.parametrize("mode", MODES)
def test_what_is_wrong_is_told_after_many_right_steps_too(mode):
    engine = Engine(NET, registry.rule("dfa"), (11,), CLASSES, mode=mode)
    state, right = engine.init(0), batch(0)
    for _ in range(4):
        engine.step(state, right)
        engine.step(state, right._replace(weight=np.ones(ROWS)))
    before = state.copy()
    for wrong in (
        right._replace(x=right.x[:, 1:]),
        right._replace(x=right.x[:-1]),
        right._replace(x=right.x[:0], y=right.y[:0]),
        right._replace(y=right.y[:, 1:]),
        right._replace(y=right.y.argmax(1)),
        right._replace(weight=-np.ones(ROWS)),
        right._replace(weight=np.full(ROWS, np.nan)),
        right._replace(x=None),
    ):
        with pytest.raises(FFLearnError):
            engine.step(state, wrong)
        assert same_bits(state, before) is None and state.step == before.step


@pytest.mark.parametrize("mode", MODES)
def test_settings_that_change_between_steps(mode):
    """Rates that a user sets anew, and those of a step that is gone back to."""
    engine = Engine(NET, registry.rule("dfa"), (11,), CLASSES, optimizer("sgd", lr=0.1), mode=mode)
    state = engine.init(0)
    for lr in (0.1, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.0):
        engine.optimizer = optimizer("sgd", lr=lr)
        before = state.copy()
        (expected,) = (u for i, u in enumerate(engine.updates(state, batch(1))) if not i)
        engine.step(state, batch(1))
        g = engine.kernels.formed(expected.grads["W"])
        np.testing.assert_allclose(
            state.params[0]["W"], before.params[0]["W"] - np.float32(lr) * g, rtol=1e-5, atol=1e-7
        )


def test_graphs_that_change_between_steps():
    """What is made of side data alone is made anew in each step."""
    rng, batches = np.random.default_rng(0), []
    for _ in range(7):
        a = sp.random(ROWS, ROWS, 0.5, "csr", np.float32, random_state=rng)
        batches.append(batch(0)._replace(side={"adjacency": a}))
    net = "graph_conv 8 relu | graph_conv 3"
    sgd = optimizer("sgd", lr=0.1)
    compare(engines(net, registry.rule("backprop"), optimizer=sgd), batches)


def test_short_batches_weights_and_probes_on_every_other_step():
    pair = engines(rule=registry.rule("dfa"))
    states, probes = [engine.init(0) for engine in pair], {"n": norm}
    for i in range(16):
        b = batch(i, 4 if i % 3 == 2 else ROWS)
        if i % 4 == 1:
            b = b._replace(weight=np.arange(1.0, len(b.x) + 1) + i)
        for engine in pair:
            engine.probes = probes if i % 2 else {}
        found = [told(e.step(s, b)) for e, s in zip(pair, states, strict=True)]
        assert found[0] == found[1] and same_bits(*states) is None, f"step {i}"
    assert repeats(pair[0]) > 2


def norm(v, u):
    """A probe that looks at values, draws, and runs the layer again."""
    noise = v.key.fold("probe").normal(v.trace.x.shape, v.trace.x.dtype)
    again = v.forward(v.trace.x + noise).y
    g = v.k.formed(u.grads["W"])
    return float(np.linalg.norm(g)) + float(again.sum()) if v.spec.index else None


norm.keeps = frozenset({"x"})


def test_a_loop_stops_where_it_stopped_in_the_rule():
    """Settling takes another number of sweeps in every step."""
    rule = registry.rule("equilibrium_propagation", free_sweeps=40, nudged_sweeps=9, tol=3e-3)
    net = "dense 9 hardsigmoid | dense 8 hardsigmoid | dense 3"
    pair = engines(net, rule, optimizer=optimizer("sgd", lr=0.3))
    states, sweeps = [engine.init(0) for engine in pair], []
    for i in range(9):
        b = batch(i)
        b = b._replace(x=b.x * (0.0 if i == 5 else 1 + i / 3))
        found = [e.step(s, b) for e, s in zip(pair, states, strict=True)]
        sweeps.append(int(found[1][0]["free_sweeps"]))
        assert found[0][0] == found[1][0] and same_bits(*states) is None, f"step {i}: {found}"
    assert len(set(sweeps[3:])) > 2, sweeps


@dataclass(frozen=True)
class Swaps(Rule):
    """Each sweep, a layer's two arrays change places."""

    sweeps: int = 5

    def step(self, bus, batch):
        bus.forward(batch.x)
        bus.settle(batch.x, None, self.sweeps)
        bus.update()
        return {"loss": bus.mean(batch.x.sum(1))}

    def forward(self, v, m, s):
        out = super().forward(v, m, s)
        v.state["s"], v.state["r"] = v.trace.y + 1, v.trace.y * 2
        return out

    def relax(self, v, below, above):
        v.state["s"], v.state["r"] = v.state["r"], v.state["s"]

    def feedback(self, v, m):
        return None

    def update(self, v, s):
        return Update(v.param_vjp(v.trace, v.state["s"] - 3 * v.state["r"]))


@pytest.mark.parametrize("sweeps", [1, 2, 4, 5])
def test_arrays_that_change_places_in_a_sweep(sweeps):
    pair = engines(rule=Swaps(sweeps))
    compare(pair, [batch(i) for i in range(4)])
    assert repeats(pair[0]) == 1


@pytest.mark.parametrize("tol", [0.0, 1e9])
def test_loops_of_all_sweeps_and_of_the_first_alone(tol):
    rule = registry.rule("equilibrium_propagation", free_sweeps=5, nudged_sweeps=1, tol=tol)
    pair = engines("dense 9 hardsigmoid | dense 3", rule)
    compare(pair, [batch(i) for i in range(4)])
    assert pair[0].step(pair[0].init(1), batch(0))[0]["free_sweeps"] == (1 if tol else 5)


def test_structure_that_changes_over_training():
    rule = registry.rule("forward_forward", order="greedy")
    pair = engines(rule=rule, horizon=(4, 3))
    compare(pair, [batch(i) for i in range(12)])
    assert repeats(pair[0]) == 3


# ---- states ------------------------------------------------------------------------------------


def test_resuming_elsewhere_and_stepping_back(tmp_path):
    (engine, _), (again, eager) = (
        engines(rule=registry.rule("dfa")),
        engines(rule=registry.rule("dfa")),
    )
    state, other = engine.init(0), eager.init(0)
    for i in range(4):
        engine.step(state, batch(i))
        eager.step(other, batch(i))
    state.save(tmp_path / "s.safetensors")
    back, resumed = state.copy(), load(tmp_path / "s.safetensors")
    for i in range(4, 9):
        for e, s in ((engine, state), (again, resumed), (eager, other)):
            e.step(s, batch(i))
        engine.predict(state, batch(i).x)
    assert same_bits(state, other) is None and same_bits(resumed, other) is None
    state.restore(back)
    state.params[0]["W"] = state.params[0]["W"] * 2
    back.params[0]["W"] = back.params[0]["W"] * 2
    engine.step(state, batch(4))
    eager.step(back, batch(4))
    assert same_bits(state, back) is None


def test_two_states_of_one_engine():
    engine, eager = engines(rule=registry.rule("dfa"))
    states = [engine.init(seed) for seed in (0, 1)]
    others = [eager.init(seed) for seed in (0, 1)]
    for i in range(6):
        for mine, theirs in zip(states, others, strict=True):
            engine.step(mine, batch(i))
            eager.step(theirs, batch(i))
    assert all(same_bits(a, b) is None for a, b in zip(states, others, strict=True))


def test_an_engine_with_programs_can_be_copied_and_pickled():
    engine, eager = engines(rule=registry.rule("dfa"))
    state, other = engine.init(0), eager.init(0)
    for i in range(4):
        engine.step(state, batch(i))
        eager.step(other, batch(i))
    for twin in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        mine, theirs = state.copy(), other.copy()
        for i in range(4):
            twin.step(mine, batch(i))
            eager.step(theirs, batch(i))
        assert same_bits(mine, theirs) is None and twin.tapes._engine is twin


def test_kinds_of_steps_that_never_come_again_are_forgotten():
    from fflearn.tape import MOST

    engine, _ = engines(rule=registry.rule("dfa"))
    state = engine.init(0)
    for rows in range(2, MOST + 9):
        engine.step(state, batch(0, rows))
    assert len(engine.tapes._first) == MOST


def test_two_states_through_more_kinds_of_steps_than_are_kept():
    from fflearn.tape import MOST

    pair = engines(rule=registry.rule("dfa"))
    states = [[engine.init(seed) for seed in range(2)] for engine in pair]
    kinds = range(2, MOST + 5)
    for which, rows in [(0, r) for r in kinds for _ in range(3)] + [(1, r) for r in kinds[::-1]]:
        b = batch(rows, rows)
        one, two = (e.step(s[which], b) for e, s in zip(pair, states, strict=True))
        assert told(one) == told(two), (which, rows)
    for one, two in zip(*states, strict=True):
        assert same_bits(one, two) is None


def test_a_step_is_repeated_and_not_run_again(monkeypatch):
    """The tests above are not of eager mode against itself."""
    engine, _ = engines(rule=registry.rule("dfa"))
    state = engine.init(0)
    for i in range(2):
        engine.step(state, batch(i))
    monkeypatch.setattr(type(engine.rule), "step", None)
    before = state.copy()
    engine.step(state, batch(2))
    assert same_bits(state, before) is not None and repeats(engine) == 1


def test_where_the_environment_says_so_steps_run_eagerly(monkeypatch):
    monkeypatch.setenv("FFLEARN_EAGER", "1")
    assert Engine(NET, registry.rule("dfa"), (11,), 3).tapes is None
    assert Engine(NET, registry.rule("dfa"), (11,), 3, mode="tape").tapes is not None
    with pytest.raises(SpecError, match="mode needs one of tape, eager; got 'fast'"):
        Engine(NET, registry.rule("dfa"), (11,), 3, mode="fast")
