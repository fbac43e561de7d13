"""Linear probes and similarity of representations."""

from __future__ import annotations

import numpy as np
import pytest

import fflearn
from fflearn import representations
from fflearn.emergence import activities
from fflearn.errors import ShapeError
from fflearn.random import Key
from fflearn.representations import cka, linear_probe, similarity


def noise(*shape: int, tag: str = "a") -> np.ndarray:
    return Key(0).fold(tag).normal(shape, np.float64)


def test_cka_ignores_rotation_and_scale_and_the_mean():
    x = noise(50, 8)
    turn = np.linalg.qr(noise(8, 8, tag="t"))[0]
    assert cka(x, 7 * x @ turn + 3) == pytest.approx(1)
    assert cka(x, x[:, :, None]) == pytest.approx(1)
    assert cka(x, x * np.array([10.0] + [1] * 7)) < 0.9  # one unit scaled is another thing


def test_cka_by_hand():
    # Rank one: (x.y)^2 / (x.x y.y) of the centred columns, here their squared correlation.
    x, y = noise(30, 1), noise(30, 1, tag="b") + 0.5 * noise(30, 1)
    assert cka(x, y) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2)
    assert cka(x, np.zeros_like(x)) == 0


def test_cka_is_that_of_the_samples_kernels():
    x, y = noise(20, 6), noise(20, 9, tag="b")
    h = np.eye(20) - 1 / 20
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    assert cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_cka_needs_the_same_samples():
    with pytest.raises(ShapeError, match="same samples"):
        cka(np.ones((3, 2)), np.ones((4, 2)))


def test_a_probe_reads_what_is_linear_and_nothing_else():
    x = noise(600, 2)
    linear, crossed = (x @ [2.0, -1.0] > 0).astype(int), (x[:, 0] * x[:, 1] > 0).astype(int)
    assert linear_probe(x[:400], linear[:400], x[400:], linear[400:]) > 0.95
    assert linear_probe(x[:400], crossed[:400], x[400:], crossed[400:]) < 0.65


def test_a_probe_is_scored_on_samples_it_has_not_seen():
    x, y = noise(40, 60), (noise(40, tag="y") > 0).astype(int)
    assert linear_probe(x[:20], y[:20], x[:20], y[:20]) == 1
    assert linear_probe(x[:20], y[:20], x[20:], y[20:]) < 0.9


def test_more_units_than_samples_give_the_ridge_regression_of_the_book(monkeypatch):
    """Hastie, Tibshirani & Friedman (2009), "The elements of statistical learning", eq. 3.44."""
    monkeypatch.setattr(representations, "RIDGE", 0.5)  # as strong as it takes to show
    x, z = noise(24, 40), noise(300, 40, tag="z")
    y, y_test = np.arange(24) % 3, (z[:, :3]).argmax(axis=1)
    x[:, :3] += 2 * np.eye(3)[y]
    mean, hot = x.mean(axis=0), np.eye(3)[y]
    ridge = 0.5 * ((x - mean) ** 2).mean() * 24
    w = np.linalg.inv((x - mean).T @ (x - mean) + ridge * np.eye(40)) @ (x - mean).T @ (hot - 1 / 3)
    expected = (((z - mean) @ w).argmax(axis=1) == y_test).mean()
    assert linear_probe(x, y, z, y_test) == expected > 0.5
    assert cka(x, x @ noise(40, 9)) == pytest.approx(cka(x @ noise(40, 9), x))


def test_trained_layers_are_read_better_than_drawn_ones_and_agree_with_themselves():
    net = "dense 64 relu | dense 32 relu | dense 10"
    trained = fflearn.train(net, "backprop", "digits", epochs=4)
    engine, data = trained.engine, trained.data
    drawn, hot = engine.init(5), np.eye(10, dtype=np.float32)
    found = {}
    for name, state in (("trained", trained.state), ("drawn", drawn)):
        train = activities(engine, state, data.x_train, hot[data.y_train])
        test = activities(engine, state, data.x_test, hot[data.y_test])
        found[name] = linear_probe(train[1], data.y_train, test[1], data.y_test)
    assert found["trained"] > found["drawn"] + 0.02
    x, y = data.x_test[:200], hot[data.y_test[:200]]
    table, rows, columns = similarity(engine, trained.state, engine, drawn, x, y)
    assert table.shape == (3, 3) and rows == columns == [0, 1, 2]
    itself, *_ = similarity(engine, drawn, engine, drawn, x, y)
    assert np.diag(itself) == pytest.approx(np.ones(3)) and itself[0, 2] < 0.99
