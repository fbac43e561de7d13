"""The checks catch rules that cheat: each wrong rule below fails the check named beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from fflearn import checks, locality, registry
from fflearn.base import Channel, Rule, Update
from fflearn.checks import BRANCHES, CHAIN, bench
from fflearn.errors import LocalityError, SpecError

SMUGGLED: dict[int, np.ndarray] = {}


@dataclass(frozen=True)
class Fine(Rule):
    """Feedback alignment, to be spoiled below."""

    channels: ClassVar = frozenset({Channel.FEEDBACK})

    def __init__(self, **settings: Any):
        if settings:
            raise SpecError(f"it has no {sorted(settings)}")

    def init(self, v, key, shared):
        return {} if v.is_input else v.draw_weights(key.fold("B"))

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error)
        bus.update()
        return {"loss": out.loss.mean()}

    def feedback(self, v, dy):
        v.state["da"] = da = v.act_vjp(v.trace, dy)
        return None if v.is_input else self.down(v, da)

    def down(self, v, da):
        return v.input_vjp(v.trace, da, v.aux)

    def update(self, v, s):
        return Update(v.param_vjp(v.trace, v.state["da"]))


class ReadsWeights(Fine):
    """Transposes its weights behind the contract's back."""

    def down(self, v, da):
        return da @ v.params["W"].T


class KeepsACopy(Fine):
    """Copies its weights while it may read them, to transpose them later."""

    def forward(self, v, m, s):
        v.state["copy"] = v.params["W"].copy()
        return super().forward(v, m, s)

    def down(self, v, da):
        return da @ v.state["copy"].T


class KeepsACopyInBlocks(Fine):
    """Copies the second matrix of its block, to transpose it later."""

    def forward(self, v, m, s):
        v.state["copy"] = {
            n: w.copy() if n == "1.W" else v.aux[n] for n, w in v.params.items() if n in v.aux
        }
        return super().forward(v, m, s)

    def down(self, v, da):
        return v.input_vjp(v.trace, da, v.state["copy"])


class Smuggles(Fine):
    """Hands weights to the layer below through a global."""

    def forward(self, v, m, s):
        SMUGGLED[v.index] = v.params["W"]
        return super().forward(v, m, s)

    def update(self, v, s):
        g = v.param_vjp(v.trace, v.state["da"])
        above = SMUGGLED.get(v.index + 1)
        return Update(g if above is None else {**g, "b": g["b"] + 1e-3 * above.sum(1)})


class Claims(Fine):
    """Declares a transport that it does not use."""

    channels: ClassVar = frozenset({Channel.TRANSPOSE})

    def down(self, v, da):
        return v.input_vjp(v.trace, da, v.aux)


class Overdeclares(Fine):
    """Declares a broadcast that nothing reads."""

    channels: ClassVar = frozenset({Channel.FEEDBACK, Channel.ERROR})


class Zeros(Fine):
    """Returns zeros instead of nothing."""

    def update(self, v, s):
        g = v.param_vjp(v.trace, v.state["da"])
        return Update({**g, "b": 0 * g["b"]})


class Doubles(Fine):
    """Computes in float64 whatever the network's precision."""

    def update(self, v, s):
        g = v.param_vjp(v.trace, v.state["da"])
        return Update({**g, "b": g["b"].astype(np.float64)})


class Divides(Fine):
    """Divides by the activity of silent units."""

    def update(self, v, s):
        with np.errstate(all="ignore"):
            return Update({"b": v.trace.y.mean(0) / np.abs(v.trace.y).max(0)})


class OwnMean(Fine):
    """Takes the batch mean itself, past the sample weights."""

    def update(self, v, s):
        return Update({"b": v.state["da"].mean(0)})


class WritesBatch(Fine):
    """Scales the batch in place."""

    def step(self, bus, batch):
        batch.x[...] *= 0.5
        return super().step(bus, batch)


class Draws(Fine):
    """Draws numbers from a generator with a state."""

    source: ClassVar = np.random.default_rng(0)

    def update(self, v, s):
        return Update({"b": self.source.normal(size=v.params["b"].shape).astype(v.trace.y.dtype)})


class Mixes(Fine):
    """Centres its scores over the samples that happen to come together."""

    def predict(self, bus, x, by):
        out = bus.forward(x)
        return out - out.mean(0)


class Swallows(Fine):
    """Takes any setting."""

    def __init__(self, **settings: Any):
        pass


class Silent(Fine):
    """Reports nothing."""

    def step(self, bus, batch):
        return {n: v for n, v in super().step(bus, batch).items() if n != "loss"}


CAUGHT = [
    (ReadsWeights, locality.stays_local, "violation: undeclared weight transport into"),
    (Smuggles, locality.stays_local, "violation"),
    (Claims, locality.stays_local, "control failed"),
    (KeepsACopy, locality.keeps_no_copy_of_weights, "violation"),
    (ReadsWeights, locality.keeps_no_copy_of_weights, "violation"),
    (Overdeclares, checks.uses_what_it_declares, "declares ['error', 'feedback']"),
    (Zeros, checks.moves_what_it_learns, "exactly zero"),
    (Doubles, checks.works_in_both_precisions, "is float64 in a float32 network"),
    (Silent, checks.works_in_both_precisions, "no loss"),
    (Divides, checks.survives_dead_units, "not finite"),
    (OwnMean, checks.weighs_samples, "no effect"),
    (WritesBatch, checks.only_the_engine_writes, "wrote to the batch"),
    (Draws, checks.is_a_function_of_the_seed, "differs between two runs"),
    (Draws, checks.resumes_bit_exact, "after resuming"),
    (Mixes, checks.predicts_each_sample_alone, "which samples come together"),
    (Swallows, checks.refuses_unknown_settings, "does not exist"),
]


@pytest.mark.parametrize(("wrong", "check", "told"), CAUGHT)
def test_a_wrong_rule_is_caught(wrong, check, told):
    with pytest.raises(AssertionError, match=re.escape(told)):
        check(wrong)


@pytest.mark.parametrize("check", locality.ALL, ids=lambda c: c.__name__)
def test_a_right_rule_passes(check):
    check(Fine)


def test_an_undeclared_message_is_stopped_by_the_contract_itself():
    class Undeclared(Fine):
        channels: ClassVar = frozenset()

    engine, state, batch = bench(Undeclared)
    with pytest.raises(LocalityError, match="declares no channel"):
        engine.updates(state, batch)


def test_a_violation_names_the_layers_below_the_leak():
    report = locality.poison(bench(ReadsWeights))
    assert [v.finite for v in report.layers] == [False, False, False, True]
    assert report.depend == ["0 dense 17 tanh", "1 dense 13 relu", "2 dense 12 sigmoid"]
    assert report.verdict.endswith(", ".join(report.depend))


@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("backprop", "needs weight transport, and declares it"),
        ("sign_symmetry", "needs weight transport, and declares it"),
        ("fa", "local"),
        ("dfa", "local"),
        ("frozen", "local"),
        ("forward_forward", "local"),
    ],
)
def test_verdicts(name, verdict, hidden):
    assert locality.poison(bench(partial(registry.rule, name), hidden)).verdict == verdict


def test_a_blind_change_shows_in_backprop_alone():
    found = {
        name: locality.blind_change(bench(partial(registry.rule, name), rows=2)).depend
        for name in ("backprop", "sign_symmetry", "fa", "dfa", "frozen")
    }
    assert found["fa"] == found["dfa"] == found["frozen"] == []
    assert len(found["backprop"]) == len(found["sign_symmetry"]) == 3


def test_a_blind_change_looks_into_blocks():
    hidden = "block(dense 17 tanh | dense 16 tanh; dense 3) | block(dense 13 relu | dense 12 tanh)"
    tried = bench(Fine, hidden, rows=2)
    before = tried.state.copy()
    assert locality.blind_change(tried).depend == []
    assert checks.same_bits(before, tried.state) is None
    (found,) = locality.blind_change(bench(KeepsACopyInBlocks, hidden, rows=2)).depend
    assert found.startswith("0 block")


def test_poison_leaves_the_weights_as_they_were_even_after_an_error():
    _, state, _ = bench(Fine)
    before = state.copy()
    with pytest.raises(KeyError), locality.poisoned(state, {1}):
        assert np.isnan(state.params[0]["W"]).all() and np.isfinite(state.params[1]["W"]).all()
        raise KeyError
    assert checks.same_bits(before, state) is None


def test_check_lists_every_check_of_every_variant():
    found = locality.check("usf")
    assert len(found) == 3 * len(locality.ALL)
    assert {outcome for _, outcome in found} == {"ok"}
    assert "stays_local[brsf]" in {title for title, _ in found}


RULE_FILE = '''
from dataclasses import dataclass
from fflearn.base import Rule, Update

@dataclass(frozen=True)
class Mine(Rule):
    """Hebb."""
    rate: float = 1.0

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.update(top=out.error)
        return {"loss": out.loss.mean()}

    def update(self, v, s):
        da = s.top if v.is_output else BODY
        return Update(v.param_vjp(v.trace, da))
'''


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("v.trace.y * 2 - 1", {"ok"}),
        ("v.trace.y - v.trace.a", {"ok", "LocalityError"}),  # which it does not declare
        ("v.trace.y * s.error", {"ok", "LocalityError"}),
    ],
)
def test_check_runs_on_a_file(tmp_path, body, told):
    path = tmp_path / "mine.py"
    path.write_text(RULE_FILE.replace("BODY", body))
    found = locality.check(str(path))
    assert {outcome.partition(":")[0] for _, outcome in found} == told
