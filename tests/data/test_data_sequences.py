"""Sequences: images by rows, and the copy task."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from fflearn.data import CopyTask, load
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
