"""The rule in docs/adding-a-rule.md, taken from the page as it stands, works as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fflearn
from fflearn import locality
from fflearn.base import Batch, Channel
from fflearn.optim import optimizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-rule.md"
NET = "dense 32 tanh | dense 32 tanh | dense 10"
EPOCHS, ROWS = 10, 32


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's rule as a file."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (code,) = [block for block in blocks if "(Rule):" in block]
    file = tmp_path_factory.mktemp("my_rules") / "target_projection.py"
    file.write_text(code, encoding="utf-8")
    return str(file)


def engine_of(rule: str, net: str = NET, **options) -> fflearn.Engine:
    settings = optimizer("sgd", lr=0.05, momentum=0.9)
    return fflearn.Engine(net, fflearn.rule(rule), (8, 8, 1), 10, optimizer=settings, **options)


def accuracy(rule: str, seed: int) -> float:
    data, engine = fflearn.load_data("digits"), engine_of(rule)
    state, labels = engine.init(seed), np.eye(10, dtype=np.float32)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(data.x_train))
        for i in range(0, len(order), ROWS):
            rows = order[i : i + ROWS]
            engine.step(state, Batch(data.x_train[rows], labels[data.y_train[rows]]))
    return float((engine.predict(state, data.x_test).argmax(1) == data.y_test).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_the_frozen_control(path, seed):
    learned, control = accuracy(path, seed), accuracy("frozen", seed)
    assert learned > control + 0.04, (learned, control)


def test_every_check_passes(path):
    outcomes = locality.check(path)
    assert len(outcomes) > 10
    assert [o for o in outcomes if o[1] != "ok"] == []


def test_hidden_layers_learn_what_the_equation_says(path):
    engine = engine_of(path, dtype="float64", backend="reference")
    state = engine.init(0)
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 1))
    t = np.eye(10)[[0, 1, 2, 3, 3, 3]]
    hidden, second, top = engine.updates(state, Batch(x, t))
    p, rows = [s.readable for s in state.params], x.reshape(6, -1)
    y0 = np.tanh(rows @ p[0]["W"] + p[0]["b"])
    y1 = np.tanh(y0 @ p[1]["W"] + p[1]["b"])
    for update, below, y, aux in ((hidden, rows, y0, state.aux[0]), (second, y0, y1, state.aux[1])):
        da = (t @ aux["B"]) * (1 - y**2)
        np.testing.assert_allclose(engine.kernels.formed(update.grads["W"]), below.T @ da / 6)
        np.testing.assert_allclose(update.grads["b"], da.mean(0))
    z = np.exp(y1 @ p[2]["W"] + p[2]["b"])
    error = z / z.sum(1, keepdims=True) - t
    np.testing.assert_allclose(engine.kernels.formed(top.grads["W"]), y1.T @ error / 6)


def test_it_declares_the_label_alone_and_pays_for_it(path):
    engine = engine_of(path)
    x, y = np.ones((4, 8, 8, 1), np.float32), np.eye(10, dtype=np.float32)[:4]
    _, ledger = engine.step(engine.init(0), Batch(x, y))
    assert engine.rule.channels == {Channel.TARGET}
    # Two hidden layers read ten floats each; two layers read the 32 activities below them.
    assert ledger.per_sample() == {"target": 20, "activity": 64}
    assert ledger.transposes == 0
