"""Sparsity and ensembles: known values, planted ensembles, and activity as training shows it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from fflearn.base import ALONE, Update
from fflearn.checks import bench, same_bits
from fflearn.emergence import activities, ensembles, hoyer, sharing
from fflearn.probes import PROBES
from fflearn.registry import rule


def test_hoyers_sparsity_by_hand():
    y = np.array([[0, 0, 5, 0], [3, 3, 3, 3], [4, 0, 0, 3], [0, 0, 0, 0.0]])
    found = hoyer(y)
    np.testing.assert_allclose(found[:3], [1, 0, (2 - 7 / 5) / 1], atol=1e-15)
    assert np.isnan(found[3])
    np.testing.assert_allclose(hoyer(-1e-3 * y)[:3], found[:3], atol=1e-12)
    probe, sent = PROBES["hoyer_sparsity"], SimpleNamespace(y=y.reshape(2, 2, 4))  # places, too
    assert probe(SimpleNamespace(traces={"x": sent}), Update(), None) == pytest.approx(1.6 / 3)
    assert probe(SimpleNamespace(traces={}), Update(), None) is None
    sent.y = 0 * y
    assert probe(SimpleNamespace(traces={"x": sent}), Update(), None) is None


def test_hoyers_sparsity_of_half_silent_gaussian_units():
    # |y|_1 / |y|_2 of n rectified normals: n / sqrt(2 pi) over sqrt(n / 2).
    y = np.maximum(np.random.default_rng(0).normal(size=(50, 4000)), 0)
    root = np.sqrt(4000)
    np.testing.assert_allclose(
        hoyer(y).mean(), (root - root / np.sqrt(np.pi)) / (root - 1), rtol=5e-3
    )


def planted(rng, n_classes=10, each=20, units=300, rows=600):
    labels = rng.integers(0, n_classes, rows)
    members = np.zeros((n_classes, units), bool)
    for c in range(n_classes):
        members[c, c * each : (c + 1) * each] = True
    return np.abs(rng.normal(size=(rows, units))) + 4 * members[labels], labels, members


def test_planted_ensembles_are_found():
    y, labels, members = planted(np.random.default_rng(0))
    found = ensembles(y, labels, 10)
    right = (found & members).sum()
    assert right / found.sum() >= 0.95 and right / members.sum() >= 0.95
    np.testing.assert_array_equal(sharing(members), 20 * np.eye(10, dtype=int))


def test_ensembles_by_hand():
    # Category means of the units: (6, 2, 1), (0, 0, 3), (0, 0, 0), (1, 1, 1).
    labels = np.array([0, 1, 2, 0])
    y = np.array([[8, 0, 0, 1], [2, 0, 0, 1], [1, 3, 0, 1], [4, 0, 0, 1.0]])
    # Unit 0: 6 against 1.5, so three times as much again; class 1 and 2 fall short.
    expected = [[True, False, False, False], [False] * 4, [False, True, False, False]]
    np.testing.assert_array_equal(ensembles(y, labels, 3), expected)
    stricter = [[False] * 4, [False] * 4, [False, True, False, False]]
    np.testing.assert_array_equal(ensembles(y, labels, 3, excess=3.0), stricter)


def test_a_category_without_samples_has_no_units_and_does_not_count():
    y, labels, _ = planted(np.random.default_rng(1))
    kept = labels != 4
    with_it, without = (ensembles(y[kept], labels[kept], n) for n in (10, 12))
    assert not with_it[4].any() and not without[[4, 10, 11]].any()
    np.testing.assert_array_equal(with_it, without[:10])
    # The other categories' mean is over those that are there: a ninth of the sum, not a tenth.
    mean = [y[labels == c].mean(0) for c in range(10) if c != 4]
    others = (sum(mean) - mean[0]) / 8
    np.testing.assert_array_equal(with_it[0], mean[0] - others > others)


def test_shared_units_are_counted_once_and_alike_from_both_sides():
    members = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(sharing(members), [[3, 2, 0], [2, 3, 0], [0, 0, 0]])


@pytest.mark.parametrize("name", ["backprop", "forward_forward", "ff[collaboration=all]"])
def test_activity_is_that_of_the_samples_with_their_own_labels(name):
    engine, state, batch = bench(partial(rule, name), "dense 17 relu | dense 13 relu")
    before = state.copy()
    found = activities(engine, state, batch.x, batch.y)
    x = batch.x if name == "backprop" else np.c_[batch.x, batch.y]
    for i in range(2):
        x = engine.net.leaves[i].forward(engine.kernels, state.params[i], x, ALONE).y
        np.testing.assert_allclose(found[i], x, rtol=1e-12)
    assert same_bits(before, state) is None


def test_samples_are_taken_in_parts():
    engine, state, _ = bench(partial(rule, "backprop"), "dense 17 relu")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2300, 11)), np.eye(3)[rng.integers(0, 3, 2300)]
    whole = activities(engine, state, x, y)[0]
    assert whole.shape == (2300, 17)
    np.testing.assert_allclose(whole[2290:], activities(engine, state, x[2290:], y[2290:])[0])
