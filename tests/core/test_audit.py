"""The audit: bit-identical for every rule, and every way to cheat is caught where it happens."""

from __future__ import annotations

import importlib
import importlib.util
import json

import numpy as np
import pytest

from fflearn import audit as audit_module
from fflearn import registry
from fflearn.audit import Audit, audit
from fflearn.checks import BRANCHES
from fflearn.cli import main

VARIANTS = [
    registry.Variant(name, settings).label
    for name in registry.names()
    for settings in ({}, *registry.rule_class(name).variants.values())
]


@pytest.mark.parametrize("rule", VARIANTS)
def test_every_rule_replays_to_the_bit_and_is_what_it_declares(rule):
    found = audit(rule)
    assert [layer.why for layer in found.layers] == [""] * len(found.layers)
    assert found.disagreements() == [] and found.cheating == [] and found.ok


@pytest.mark.parametrize("rule", ["backprop", "dfa", "equilibrium_propagation", "forward_forward"])
def test_branches_replay_too(rule):
    assert audit(rule, BRANCHES, rows=3).ok


# ---- what the table says ---------------------------------------------------------------------------


def test_the_table_of_backprop():
    found = audit("backprop")
    assert found.verdict() == {
        "weight transport": "yes",
        "backward pass": "yes",
        "phases": "1 forward",
        "stored activity": found.verdict()["stored activity"],
        "update locking": "yes",
        "autograd": "no",
    }
    # Updated on the way down: each layer above has fired, sent its message and learned before.
    assert [layer.delay for layer in found.layers] == [9, 6, 3, 0]
    assert [layer.messages_down for layer in found.layers] == [0, 1, 1, 1]
    assert [layer.reads_weights for layer in found.layers] == [True, True, True, False]


def test_layers_that_learn_as_they_fire_wait_for_nothing():
    found = audit("single_forward")
    assert {layer.delay for layer in found.layers} == {0}
    assert found.verdict()["update locking"] == "no"
    table = np.array([layer.influence for layer in found.layers])
    assert not np.triu(table, 1).any()  # nothing above a layer moves what it learns
    assert (np.tril(table) > 0)[np.tril_indices(4)].all()


def test_influence_through_the_error_is_seen():
    table = np.array([layer.influence for layer in audit("dfa").layers])
    assert (table > 0).all()


def test_influence_is_a_derivative(monkeypatch):
    """Of relative changes: how far the weights were moved is not in it."""
    smooth = "dense 9 tanh | dense 7 tanh"
    table = np.array([layer.influence for layer in audit("backprop", smooth).layers])
    monkeypatch.setattr(audit_module, "NUDGE", audit_module.NUDGE / 10)
    finer = np.array([layer.influence for layer in audit("backprop", smooth).layers])
    np.testing.assert_allclose(table, finer, rtol=0.01)


def test_signs_are_told_from_weights():
    assert audit("usf").verdict()["weight transport"] == "signs"
    assert audit("fa").verdict()["weight transport"] == "no"


def test_settling_is_a_phase():
    assert "settling" in audit("equilibrium_propagation").verdict()["phases"]


# ---- cheats ----------------------------------------------------------------------------------------
CHEAT = '''
"""A cheat."""
import os, sys, tempfile
from dataclasses import dataclass, field
import numpy as np
from fflearn.base import Channel, Rule, Update

{module}

@dataclass(frozen=True)
class Cheat(Rule):
    """Layer 1 learns from the weights of layer 2, that it should not know."""
    {fields}
    channels = frozenset({{Channel.ERROR}})

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.update(error=out.error, top=out.error)
        return {{"loss": bus.mean(out.loss)}}

    def forward(self, v, m, s):
        if v.index == 2:
            w = v.params["W"]
            {put}
        return super().forward(v, m, s)

    def update(self, v, s):
        if v.is_output:
            return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, s.top)))
        dy = v.trace.y * s.error[:, :1]
        if v.index == 1:
            {get}
            dy = dy + s.error[:, :1] * w.sum(1)
        return Update(v.param_vjp(v.trace, v.act_vjp(v.trace, dy)))
'''
FILE = 'os.path.join(tempfile.gettempdir(), f"fflearn-cheat-{os.getuid()}.npy")'
CHEATS = {
    "global": {"module": "BOX = {}", "put": "BOX[0] = w.copy()", "get": "w = BOX[0]"},
    "a little, where nothing is found in its place": {
        "module": "BOX = {0: np.zeros((13, 12))}",
        "put": "BOX[0] = 1e-6 * w",
        "get": "w = BOX[0]",
    },
    "closure": {
        "module": "def make():\n    box = {}\n    return box.__setitem__, box.__getitem__\nPUT, GET = make()",
        "put": "PUT(0, w.copy())",
        "get": "w = GET(0)",
    },
    "default argument": {
        "module": "def box(w=None, kept=[]):\n    if w is not None:\n        kept[:] = [w]\n    return kept[0]",
        "put": "box(w.copy())",
        "get": "w = box()",
    },
    "frame inspection": {
        "module": (
            "def bus():\n    f = sys._getframe(1)\n"
            "    while not hasattr(f.f_locals.get('self'), '_views'):\n        f = f.f_back\n"
            "    return f.f_locals['self']"
        ),
        "get": "w = bus()._views[2].params['W']",
    },
    "file": {"put": f"np.save({FILE}, w)", "get": f"w = np.load({FILE})"},
    "kept in an object between steps": {
        "fields": "box: dict = field(default_factory=dict)",
        "put": "self.box.setdefault('new', w); self.box['old'], self.box['new'] = self.box['new'], w.copy()",
        "get": "w = self.box['old']",
    },
    "environment variable": {
        "put": "os.environ['CHEAT'] = os.environ['CHEAT'] or ','.join(map(repr, w.ravel().tolist()))",
        "get": "w = np.array([float(x) for x in os.environ['CHEAT'].split(',')]).reshape(13, 12)",
    },
    "attribute of a module": {"put": "np.cheat = w.copy()", "get": "w = np.cheat"},
    "through the view's class": {
        "put": "type(v).cheat = w.copy()",
        "get": "w = type(v).cheat",
    },
}


def written(tmp_path, **parts: str) -> str:
    path = tmp_path / "cheat.py"
    filled = {"module": "", "fields": "", "put": "pass", **parts}
    path.write_text(CHEAT.format(**filled))
    return str(path)


@pytest.mark.parametrize("how", CHEATS)
def test_a_cheat_is_caught_at_exactly_the_layer_that_cheats(how, tmp_path, monkeypatch):
    monkeypatch.setenv("CHEAT", "")
    found = audit(written(tmp_path, **CHEATS[how]))
    # Where the way leads out of the process, who puts something there is caught as well.
    outside = ["2 dense 12 sigmoid"] if how in ("file", "environment variable") else []
    caught = [layer.name for layer in found.layers if not layer.replays]
    assert caught == found.cheating == ["1 dense 13 relu", *outside] and not found.ok


def test_the_same_rule_without_the_cheat_passes(tmp_path):
    found = audit(written(tmp_path, get="w = np.ones((13, 12))"))
    assert found.cheating == [] and found.ok, found


def test_an_error_channel_that_carries_something_else_is_refused(tmp_path):
    path = tmp_path / "cheat.py"
    text = CHEAT.format(module="", fields="", put="pass", get="w = np.ones((13, 12))")
    path.write_text(text.replace("error=out.error,", "error=out.error * 2,"))
    found = audit(str(path))
    assert "must be the array" in found.refused and not found.ok
    assert found.verdict().keys() == {"refused"}


DOWN = '''
"""A cheat."""
from dataclasses import dataclass
from fflearn.base import Channel, Rule, Update

@dataclass(frozen=True)
class Cheat(Rule):
    """Backprop that calls its weights feedback."""
    channels = frozenset({Channel.FEEDBACK})

    def step(self, bus, batch):
        out = bus.readout(bus.forward(batch.x))
        bus.feedback(out.error)
        bus.update()
        return {"loss": bus.mean(out.loss)}

    def feedback(self, v, m):
        v.state["da"] = v.act_vjp(v.trace, m)
        return SENT

    def update(self, v, s):
        return Update(v.param_vjp(v.trace, v.state["da"]))
'''


def test_own_weights_sent_down_a_feedback_channel(tmp_path):
    path = tmp_path / "cheat.py"
    path.write_text(DOWN.replace("SENT", 'v.state["da"] @ v.params["W"].T'))
    found = audit(str(path))
    assert found.cheating == ["0 dense 17 tanh", "1 dense 13 relu", "2 dense 12 sigmoid"]
    path.write_text(DOWN.replace("SENT", 'v.state["da"] @ (0.1 + 0 * v.params["W"].T)'))
    found = audit(str(path))  # times 0 is no use, but it is reading all the same: nan shows it
    assert found.cheating == ["0 dense 17 tanh", "1 dense 13 relu", "2 dense 12 sigmoid"]


@pytest.mark.torch
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="no torch to cheat with")
def test_autograd_inside_a_hook_is_seen(tmp_path):
    importlib.import_module("torch")  # that this process has it must not matter
    found = audit(written(tmp_path, get="import torch; w = np.ones((13, 12))"))
    assert found.autograd and not found.ok
    assert "automatic differentiation" in " ".join(found.disagreements())


# ---- the command -------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_fails_for_cheats(tmp_path, capsys):
    assert main(["audit", "dfa,backprop"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:2] == ["rule", "replay"]
    assert main(["audit", written(tmp_path, **CHEATS["global"])]) == 1
    assert "1 dense 13 relu" in capsys.readouterr().out


def test_json_holds_what_was_measured(capsys):
    assert main(["audit", "fa", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["rule"] == "fa" and found["ok"] and found["verdict"]["backward pass"] == "yes"
    assert len(found["layers"]) == 4 and len(found["layers"][0]["influence"]) == 4


def test_a_disagreement_is_told():
    measured = audit("dfa")
    lying = Audit(**{**vars(measured), "declared": ("error", "feedback")})
    assert not lying.ok and "backward pass" in " ".join(lying.disagreements())
