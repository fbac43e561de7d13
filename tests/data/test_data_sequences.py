"""Sequences: images by rows, the copy task and the adding problem."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from fflearn.data import AddingTask, CopyTask, load
from fflearn.errors import DataError


def test_digits_by_rows_are_the_digits():
    rows, images = load("row-digits"), load("digits")
    assert rows.in_shape == (8, 8) and rows.name == "row-digits" and rows.n_classes == 10
    assert (rows.x_train == images.x_train[..., 0]).all()
    assert (rows.x_test == images.x_test[..., 0]).all() and (rows.y_test == images.y_test).all()
    assert rows.sha256 != images.sha256


@pytest.mark.filterwarnings("ignore:mnist")
def test_mnist_by_rows_reads_the_users_files(user_folder):
    (user_folder / "mnist").mkdir()
    images = np.arange(2 * 784).astype(np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", np.array([0, 9], np.uint8))):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(
                n.to_bytes(4, "big") for n in array.shape
            )
            path = user_folder / "mnist" / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
    data = load("row-mnist")
    assert data.in_shape == (28, 28) and data.name == "row-mnist"
    np.testing.assert_allclose(data.x_test[1] * 255, images[1], rtol=1e-6)


def test_row_mnist_without_files_lists_them(cache):
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz"):
        load("row-mnist", download=False)


# ---- the copy task --------------------------------------------------------------------------------


def test_a_sample_shows_symbols_then_asks_for_them():
    data = CopyTask(symbols=3, length=2, delay=4)
    batch = data.batches(16, seed=0).batch(0)
    assert data.in_shape == (8, 5) and data.n_classes == 4 and len(data.classes) == 4
    assert batch.x.shape == (16, 8, 5) and batch.x.dtype == np.float32
    assert (batch.x.sum(-1) == 1).all()
    ids = batch.x.argmax(-1)
    blank, go = 3, 4
    assert (ids[:, :2] < 3).all()  # what to remember
    assert (ids[:, 2:6] == blank).all()
    assert (ids[:, 6] == go).all() and (ids[:, 7] == blank).all()
    assert (batch.y[:, :6] == blank).all() and (batch.y[:, 6:] == ids[:, :2]).all()
    assert batch.y.dtype.kind == "i" and set(ids[:, 0]) == {0, 1, 2}


def test_a_batch_is_a_function_of_the_seed_and_the_step():
    data = load("copy")
    one, two = data.batches(8, seed=1), data.batches(8, seed=2)
    later = one.batch(9)
    assert one.steps_per_epoch == 256 and one.batch_size == 8
    assert (one.batch(9).x == later.x).all() and (one.batch(9).y == later.y).all()
    assert (data.batches(8, seed=1).batch(9).x == later.x).all()
    assert len({one.batch(step).x.tobytes() for step in range(300)}) == 300
    assert (two.batch(9).x != later.x).any()


def test_score_counts_the_asked_symbols_alone():
    data = CopyTask(symbols=4, length=3, delay=2, test_n=50)
    seen = []

    def perfect(x, side=None):
        seen.append(x)
        scores = np.zeros((*x.shape[:2], 5))
        scores[:, 5:, :4] = x[:, :3, :4]
        return scores

    assert data.score(perfect) == {"accuracy": 1.0, "sequence_accuracy": 1.0}
    assert next(iter(data.score(perfect))) == "accuracy"
    assert seen[0].shape == (50, *data.in_shape) and (seen[0] == seen[1]).all()

    def last_wrong(x, side=None):
        scores = perfect(x)
        scores[:, -1] = np.roll(scores[:, -1], 1, axis=-1)
        return scores

    assert data.score(last_wrong) == {"accuracy": pytest.approx(2 / 3), "sequence_accuracy": 0.0}
    blanks = data.score(lambda x: np.eye(5)[np.full(x.shape[:2], 4)])
    assert blanks["accuracy"] == 0.0


def test_test_training_and_validation_samples_differ():
    data = CopyTask(test_n=8)
    inner = data.split_validation()
    seen = []
    for part in (data, inner, inner.split_validation()):
        part.score(lambda x: seen.append(x) or np.zeros((8, 20, 9)))
    seen.append(data.batches(8, seed=0).batch(0).x)
    assert len({x.tobytes() for x in seen}) == 4
    assert (inner.batches(8, 0).batch(3).x == data.batches(8, 0).batch(3).x).all()
    assert inner.name == "copy-validation" and "copy" in inner.notes[-1]
    assert inner.sha256 != data.sha256 == CopyTask(test_n=8).sha256
    assert CopyTask(delay=11).sha256 != CopyTask().sha256
    assert (data.test_n, data.n_train) == (8, 2048) and load(data) is data


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"symbols": 1}, "symbols of 2 or more; got 1"),
        ({"length": 0}, "length of 1 or more; got 0"),
        ({"delay": -1}, "delay of 0 or more; got -1"),
        ({"test_n": 0}, "test_n of 1 or more"),
    ],
)
def test_tasks_that_make_no_sense_are_told(changes, told):
    with pytest.raises(DataError, match=told):
        CopyTask(**changes)


@pytest.mark.parametrize("size", [0, 2049, True])
def test_wrong_batches_are_told(size):
    with pytest.raises(DataError, match="batch_size in 1 .. 2048"):
        CopyTask().batches(size, 0)
    with pytest.raises(DataError, match="step of 0 or more; got -1"):
        CopyTask().batches(4, 0).batch(-1)


# ---- the adding problem ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 10])
def test_a_sum_is_of_one_number_in_each_half(length):
    data = AddingTask(length=length)
    batch = data.batches(400, seed=0).batch(0)
    x, y = batch.x, batch.y
    assert x.shape == (400, length, 2) and y.shape == (400, 1) and data.in_shape == (length, 2)
    assert x.dtype == y.dtype == np.float32 and (data.task, data.n_classes) == ("regression", 1)
    marks, half = x[..., 1], length // 2
    assert set(np.unique(marks)) <= {0, 1}
    assert (marks[:, :half].sum(1) == 1).all() and (marks[:, half:].sum(1) == 1).all()
    assert (marks.sum(0) > 0).all()  # every step is marked somewhere
    for i in range(400):
        first, second = np.flatnonzero(marks[i])
        assert y[i, 0] == x[i, first, 0] + x[i, second, 0]
    values = x[..., 0]
    assert 0 <= values.min() and values.max() < 1 and abs(values.mean() - 0.5) < 0.05
    one, other = np.argmax(marks[:, :half], 1), np.argmax(marks[:, half:], 1)
    if length == 10:  # drawn apart: all pairs of places occur
        assert len(set(zip(one.tolist(), other.tolist(), strict=True))) == 25


def test_the_adding_problem_is_drawn_like_the_copy_task():
    data = load("adding")
    assert data.in_shape == (50, 2) and data.name == "adding" and data.classes == ("sum",)
    one = data.batches(8, seed=1)
    assert (one.batch(9).x == data.batches(8, seed=1).batch(9).x).all()
    assert (one.batch(9).x != data.batches(8, seed=2).batch(9).x).any()
    assert len({one.batch(step).x.tobytes() for step in range(50)}) == 50
    seen = []
    for part in (data, data.split_validation()):
        part.score(lambda x, side=None: seen.append(x) or np.ones((512, 1)))
    assert (seen[0] != seen[1]).any() and data.split_validation().task == "regression"
    assert AddingTask(length=60).sha256 != data.sha256 == AddingTask().sha256
    with pytest.raises(DataError, match="the adding task needs length of 2 or more; got 1"):
        AddingTask(length=1)


def test_predicting_the_mean_scores_nothing():
    data = AddingTask(test_n=20_000)
    found = data.score(lambda x, side=None: np.ones((len(x), 1)))
    assert tuple(found) == data.measures and abs(found["r2"]) < 1e-3
    assert found["rmse"] == pytest.approx(np.sqrt(1 / 6), rel=0.02)
    sums = data.score(lambda x, side=None: (x[..., 0] * x[..., 1]).sum(1, keepdims=True))
    assert sums["r2"] == 1 and sums["mae"] == 0
