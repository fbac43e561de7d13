"""A weight is a number of repetitions: how samples are merged, and cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from fflearn.estimators.samples import Samples
from fflearn.random import Key

RNG = np.random.default_rng(0)


def samples(n=23, weight=None, y=None):
    x = RNG.normal(size=(n, 3))
    y = RNG.integers(0, 3, n) if y is None else y
    return Samples(x, y, np.ones(n) if weight is None else weight, (3,), 3)


def repeated(s, times):
    at = np.repeat(np.arange(len(s.y)), times)
    return Samples(s.x[at], s.y[at], np.ones(len(at)), s.shape, s.n_classes)


def shuffled(s):
    return s.part(RNG.permutation(len(s.y)))


# ---- merging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [None, RNG.normal(size=(23, 2))])
def test_repetitions_and_weights_become_the_same_samples(y):
    times = RNG.integers(1, 5, 23)
    s = samples(weight=times.astype(float), y=y)
    a, b = shuffled(s).merged(False), shuffled(repeated(s, times)).merged(False)
    for mine, theirs in ((a.x, b.x), (a.y, b.y), (a.weight, b.weight)):
        np.testing.assert_array_equal(mine, theirs)
    assert len(a.y) == 23 and a.total == times.sum()


def test_only_what_is_equal_is_merged():
    x = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0], [0.0, 1.0 + 1e-15], [1.0, 0.0]])
    s = Samples(x, np.array([0, 0, 1, 0, 0]), np.array([1.0, 2.0, 4.0, 8.0, 16.0]), (2,), 2)
    m = s.merged(keep_order=True)
    assert m.weight.tolist() == [
        3.0,
        4.0,
        8.0,
        16.0,
    ]  # -0.0 is 0.0; another class is another sample
    assert m.y.tolist() == [0, 1, 0, 0]


def test_the_order_given_is_kept_where_asked_for():
    s = samples()
    np.testing.assert_array_equal(s.merged(keep_order=True).x, s.x)
    assert (s.merged(keep_order=False).x != s.x).any()


def test_merging_looks_at_all_rows_dense_or_sparse():
    s = samples(n=2500)
    again = Samples(np.tile(s.x, (2, 1)), np.tile(s.y, 2), np.ones(5000), (3,), 3)
    merged = again.merged(False)
    assert len(merged.y) == 2500 and (merged.weight == 2).all()
    thin = Samples(sparse.csr_array(again.x), again.y, again.weight, (3,), 3).merged(False)
    np.testing.assert_array_equal(thin.x.toarray(), merged.x)


# ---- batches --------------------------------------------------------------------------------------


def rows_of(s, batch):
    """Which of the samples are in a batch."""
    return [int(np.flatnonzero((s.x == row).all(axis=1))[0]) for row in batch.x]


@pytest.mark.parametrize("size", [1, 4, 7, 22, 23, 100])
def test_an_epoch_gives_each_sample_its_weight_and_each_batch_the_same(size):
    s = samples(weight=RNG.exponential(size=23) ** 3)
    found, totals = np.zeros(23), []
    for batch, total in s.batches(size, Key(1)):
        np.add.at(found, rows_of(s, batch), batch.weight)
        assert total == pytest.approx(batch.weight.sum()) and (batch.weight > 0).all()
        totals.append(total)
    np.testing.assert_allclose(found, s.weight, rtol=0, atol=1e-14 * s.total)  # of running sums
    assert len(totals) == s.steps(size) == -(-23 // size)
    np.testing.assert_allclose(totals, s.total / len(totals), rtol=1e-12)


def test_equal_weights_are_no_weights():
    s = samples(weight=np.full(23, 2.5))
    found = list(s.batches(10, Key(1)))
    assert [len(b.x) for b, _ in found] == [10, 10, 3]
    assert all(b.weight is None for b, _ in found)
    assert [w for _, w in found] == [25.0, 25.0, 7.5]
    assert sorted(i for b, _ in found for i in rows_of(s, b)) == list(range(23))


def test_a_batch_holds_the_targets_of_its_samples():
    numbers = samples(y=RNG.normal(size=(23, 2)), weight=RNG.uniform(0.5, 1, 23))
    classes = samples(weight=RNG.uniform(0.5, 1, 23))
    for batch, _ in numbers.batches(5, Key(2)):
        np.testing.assert_array_equal(batch.y, numbers.y[rows_of(numbers, batch)])
    for batch, _ in classes.batches(5, Key(2)):
        np.testing.assert_array_equal(batch.y.argmax(1), classes.y[rows_of(classes, batch)])
        assert (batch.y.sum(1) == 1).all()


def test_every_epoch_has_an_order_of_its_own_and_none_without_a_key():
    s = samples()

    def first(key):
        return rows_of(s, next(iter(s.batches(23, key)))[0])

    assert first(Key(0).at(0)) != first(Key(0).at(1)) != first(None) == list(range(23))


def test_samples_take_the_shape_of_the_network():
    s = Samples(np.arange(24.0).reshape(2, 12), np.array([0, 1]), np.ones(2), (2, 3, 2), 2)
    ((batch, _),) = s.batches(2, None)
    np.testing.assert_array_equal(batch.x, np.arange(24.0).reshape(2, 2, 3, 2))
