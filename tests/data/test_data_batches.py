"""The order of samples: a function of seed and step."""

import numpy as np
import pytest

from fflearn.data import Batches, load
from fflearn.errors import DataError
from fflearn.random import Key

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

N = 25
DATA = load((np.arange(2 * N).reshape(N, 2), np.arange(N) % 2) * 2)


@given(batch_size=st.integers(1, N), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_uses_every_sample_once(batch_size, seed, epoch):
    batches = Batches(DATA, batch_size, seed)
    steps = batches.steps_per_epoch
    assert steps == -(-N // batch_size)
    parts = [batches.batch(epoch * steps + i) for i in range(steps)]
    x = np.concatenate([b.x for b in parts])
    np.testing.assert_array_equal(x, DATA.x_train[batches.order(epoch)])
    np.testing.assert_array_equal(np.sort(x, axis=0), DATA.x_train)
    labels = np.concatenate([b.y for b in parts])
    np.testing.assert_array_equal(labels, np.eye(2)[(x[:, 0] // 2 % 2).astype(int)])
    assert [len(b.y) for b in parts[:-1]] == [batch_size] * (steps - 1)


def test_the_order_differs_by_epoch_and_seed_and_repeats():
    first, again, other = (Batches(DATA, 4, seed) for seed in (0, 0, 1))
    orders = [tuple(b.order(epoch)) for b in (first, other) for epoch in range(3)]
    assert len(set(orders)) == 6
    assert [tuple(again.order(epoch)) for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    np.testing.assert_array_equal(first.order(7), Key(0).fold("order").at(7).permutation(N))


def test_the_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(Batches(DATA, 3, 5).order(2), Batches(DATA, 20, 5).order(2))


def test_any_step_can_be_asked_for_first():
    straight = Batches(DATA, 4, 3)
    parts = [straight.batch(step) for step in range(30)]
    for step in (29, 0, 15, 7):
        got = Batches(DATA, 4, 3).batch(step)
        np.testing.assert_array_equal(got.x, parts[step].x)
        np.testing.assert_array_equal(got.y, parts[step].y)


def test_a_batch_is_a_copy_and_the_order_is_read_only():
    batches = Batches(DATA, 4, 0)
    first = batches.batch(0)
    first.x[:], first.y[:] = -1, -1
    assert DATA.x_train.min() == 0 and DATA.y_train.min() == 0
    assert batches.batch(0).y.min() == 0
    with pytest.raises(ValueError, match="read-only"):
        batches.order(0)[0] = 1


@pytest.mark.parametrize("batch_size", [0, -1, N + 1, 2.0, "4", None, True, np.float32(3)])
def test_a_bad_batch_size_is_refused(batch_size):
    with pytest.raises(DataError, match="batch_size"):
        Batches(DATA, batch_size, 0)


def test_a_negative_step_is_refused():
    with pytest.raises(DataError, match="got -1"):
        Batches(DATA, 4, 0).batch(-1)
