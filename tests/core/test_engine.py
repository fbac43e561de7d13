"""The engine: streams of randomness, what happens when, the ledger of each kind of step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fflearn.bus import Bus
from fflearn.checks import BRANCHES, bench, samples
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.optim import optimizer
from fflearn.registry import rule, rule_class

EQUAL = "dense 12 tanh | dense 12 tanh | dense 12 tanh"


def test_every_layer_purpose_and_step_has_a_stream_of_its_own():
    engine, state, batch = bench(lambda: rule("frozen"), EQUAL)
    streams: list[tuple[int, int]] = []

    class Listens(Bus):
        def __init__(self, *args):
            super().__init__(*args)
            keys = [self.key, *(k for v in self._views for k in (v.key, v.env.key))]
            streams.extend((k.static(), k.step) for k in keys)

    for step in range(3):
        state.step = step
        engine.updates(state, batch, Listens)
    assert len(set(streams)) == len(streams) == 3 * (1 + 2 * 4)


@pytest.mark.parametrize("name", ["fa", "sf[magnitudes=fixed_random]"])
def test_equal_layers_start_with_arrays_of_their_own(name):
    _, state, _ = bench(lambda: rule(name), EQUAL)
    for slots in (state.params, state.aux):
        assert not np.isclose(slots[1]["W"], slots[2]["W"]).any()


@pytest.mark.parametrize("name", ["backprop", "dfa", "ff[negatives=hard]", "ff[negatives=wrong]"])
def test_a_step_applies_what_all_layers_learn_from_one_state(name):
    # Also where layers learn as they fire: the layer above gets the activity from before.
    engine, state, batch = bench(lambda: rule(name), BRANCHES)
    engine.optimizer = optimizer("sgd", lr=0.1)
    state = engine.init(0)
    before = state.copy()
    found = engine.updates(state, batch)
    engine.step(state, batch)
    for then, now, update in zip(before.params, state.params, found, strict=True):
        for n, g in update.grads.items():
            np.testing.assert_allclose(now[n], then[n] - 0.1 * engine.kernels.formed(g), rtol=1e-12)


def test_schedules_move_within_an_epoch():
    cosine = optimizer("sgd", lr=0.2, schedule="cosine", weight_decay=(0.1, 0.3))
    engine = Engine("dense 3", rule("backprop"), (4,), 3, cosine, horizon=(4, 2))
    for step in range(8):
        rate = 0.1 * (1 + math.cos(math.pi * step / 8))
        assert engine.settings_at(step) == (step / 8, pytest.approx(rate), (0.1, 0.3)[step // 4])
    assert engine.settings_at(100)[0] == 1.0


def test_the_ledger_is_of_this_shape_of_batch_and_this_stage():
    engine, state, batch = bench(lambda: rule("ff[order=greedy]"))
    _, full = engine.step(state, batch)
    _, short = engine.step(state, samples(3, 3))
    assert (full.batch, short.batch) == (7, 3)
    assert full.per_sample() == short.per_sample()
    assert full.forward_passes == short.forward_passes
    state.step = 19  # the last of 10 steps an epoch, 2 epochs: the head learns
    assert engine.step(state, batch)[1].per_sample() != full.per_sample()


@pytest.mark.parametrize("kind", ["batch_norm", "block(dense 4 | batch_norm)"])
def test_a_rule_that_needs_samples_apart_is_refused_where_a_layer_mixes_them(kind):
    net = f"dense 5 | {kind} | dense 3"
    base = rule_class("frozen")
    apart = type("EachAlone", (base,), {"needs_apart": True})()
    with pytest.raises(SpecError, match=r"EachAlone .*'1 .*batch_norm"):
        Engine(net, apart, (4,), 3)
    Engine(net, base(), (4,), 3)
    Engine("dense 5 | layer_norm | dense 3", apart, (4,), 3)
