"""Steps in flight together: the bits of one after the other, or updates as old as was asked for."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fflearn import pipeline, registry, rules
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import DataError, SpecError
from fflearn.optim import optimizer

NET = "dense 12 tanh | dense 9 relu | dense 7 tanh | dense 3"
MADE = {
    f"{name}[{label}]" if label else name: partial(registry.rule, name, **settings)
    for name in rules.names()
    for label, settings in {"": {}, **registry.rule_class(name).variants}.items()
}


def made(rule, net=NET, **options):
    return Engine(
        net,
        rule,
        (5,),
        3,
        optimizer("sgd", lr=0.05, momentum=0.9),
        horizon=(4, 3),
        mode="eager",
        **options,
    )


def batches(n=8):
    rng = np.random.default_rng(2)
    for _ in range(n):
        yield Batch(
            rng.normal(size=(6, 5)).astype("f"), np.eye(3, dtype="f")[rng.integers(0, 3, 6)]
        )


@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_every_rule_has_the_bits_of_one_step_after_the_other_or_is_refused(make):
    engine = made(make())
    alone, together = engine.init(1), engine.init(1)
    try:
        infos = pipeline.run(engine, together, batches(), workers=3)
    except SpecError as e:
        assert type(make()).__name__ in str(e) and "overlap" in str(e)
        assert together.step == 0
        return
    for batch, info in zip(batches(), infos, strict=True):
        want, _ = engine.step(alone, batch)
        assert {n: float(v) for n, v in info.items()} == {n: float(v) for n, v in want.items()}
    assert together.step == alone.step == 8
    for path, a in alone.arrays().items():
        assert np.array_equal(a, together.arrays()[path]), path


def test_rules_whose_layers_are_independent_are_not_refused():
    for name in ("dfa", "drtp", "forward_forward[head=false]", "local_loss", "backprop"):
        rule = registry.build(registry.parse(name))
        assert len(pipeline.run(made(rule), made(rule).init(0), batches(3))) == 3


def test_with_staleness_a_layer_learns_from_weights_that_old():
    engine = made(registry.rule("dfa"))
    engine.optimizer = optimizer("sgd", lr=0.05)
    found = []
    for _ in range(2):
        state = engine.init(1)
        pipeline.run(engine, state, batches(3), workers=3, staleness=1)
        found.append(state)
    # W_3 = W_0 - lr (g_0(W_0) + g_1(W_0) + g_2(W_1)):  each step knows all but the last update.
    now, first = engine.init(1), engine.init(1)
    one, two, three = batches(3)
    engine.step(now, one)
    updates = [engine.updates(first, one), engine.updates(first, two), engine.updates(now, three)]
    for i, slots in enumerate(found[0].params):
        for name, w in slots.items():
            g = [engine.kernels.formed(u[i].grads[name]) for u in updates]
            want = first.params[i][name] - 0.05 * (g[0] + g[1] + g[2])
            assert np.allclose(w, want, atol=1e-6), (i, name)
    for path, a in found[0].arrays().items():
        assert np.array_equal(a, found[1].arrays()[path]), path


def test_what_cannot_overlap_is_refused_and_nothing_is_lost():
    engine = made(registry.rule("backprop"))
    state = engine.init(0)
    before = state.copy()
    for options, said in (
        ({"workers": 0}, "workers"),
        ({"workers": 2, "staleness": 2}, "workers=3"),
        ({"staleness": 1}, "more than once"),
    ):
        with pytest.raises(SpecError, match=said):
            pipeline.run(engine, state, batches(), **options)
    probed = made(registry.rule("dfa"), probes={"one": lambda v, u: 1.0})
    with pytest.raises(SpecError, match="probes"):
        pipeline.run(probed, state, batches())
    for path, a in before.arrays().items():
        assert np.array_equal(a, state.arrays()[path])


def test_an_error_in_a_step_reaches_the_caller():
    def broken():
        yield from batches(2)
        yield Batch(np.zeros((0, 5), "f"), np.zeros((0, 3), "f"))

    engine = made(registry.rule("dfa"))
    for staleness in (0, 1):
        with pytest.raises(DataError, match="no samples"):
            pipeline.run(engine, engine.init(0), broken(), staleness=staleness)
