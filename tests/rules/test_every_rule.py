"""Every rule in the folder, and each of its variants, against every check; none is exempt."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fflearn import locality, registry, rules
from fflearn.base import Channel
from fflearn.checks import BRANCHES, CHAIN, bench, same_bits

MADE = {
    f"{name}[{label}]" if label else name: partial(registry.rule, name, **settings)
    for name in rules.names()
    for label, settings in {"": {}, **registry.rule_class(name).variants}.items()
}


@pytest.mark.parametrize("check", locality.ALL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_every_rule(make, check):
    check(make)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_description_agrees_with_the_class(make):
    rule = make()
    assert rule.citation and (type(rule).__doc__ or "").strip()
    name = type(rule).__module__.rpartition(".")[2]
    described = registry.describe(name, **rule.settings())
    assert set(described["parameters"]) == set(rule.settings())
    assert described["channels"] == [c.value for c in Channel if c in rule.channels]
    transport = {c.transport for c in rule.channels} - {"no"}
    assert described["weight_transport"] == (max(transport, default="no"))


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_ten_steps_lower_what_the_rule_reports(make):
    engine, state, batch = bench(make, rows=29)
    losses = [engine.step(state, batch)[0]["loss"] for _ in range(10)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_first_default_step_does_not_replace_the_weights(make):
    engine, state, batch = bench(make)
    before = state.copy()
    engine.step(state, batch)
    for now, then in zip(state.params, before.params, strict=True):
        for name, w in then.items():
            if name.endswith("W") and w.any():  # a read-out may start at zero
                assert np.linalg.norm(now[name] - w) < np.linalg.norm(w)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("hidden", [CHAIN, BRANCHES])
def test_traces_that_keep_everything_teach_the_same(make, hidden):
    def keeping():
        rule = make()
        kind = type(rule)
        return type(
            kind.__name__, (kind,), {"keeps": frozenset({"x", "a"}), "__module__": kind.__module__}
        )(**rule.settings())

    (engine, state, batch), (other, same, _) = bench(make, hidden), bench(keeping, hidden)
    for _ in range(2):
        engine.step(state, batch)
        other.step(same, batch)
    assert same_bits(state, same) is None


def test_the_list_of_rules_is_the_folder():
    folder = {p.stem for where in rules.__path__ for p in Path(where).glob("*.py")}
    assert set(rules.names()) == folder - {"__init__"}
    assert len(MADE) >= len(rules.names())
