"""Numbers to predict: arrays, tables, splits, batches and scores."""

import numpy as np
import pytest

from fflearn.data import DataSet, load
from fflearn.data.scores import of_numbers
from fflearn.errors import DataError

X = np.linspace(0, 1, 40).reshape(20, 2)
Y = np.linspace(-3, 4, 20)


def sample_of(x: np.ndarray) -> np.ndarray:
    """Which rows of X these are."""
    return np.argmin(np.abs(X.astype(np.float32)[:, 0] - x[:, :1]), axis=1)


# ---- what makes it regression ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "task", "columns"),
    [
        (Y, "", 1),
        (Y.astype(np.float32)[:, None], "", 1),
        (np.stack([Y, Y**2, np.arange(20.0)], 1), "", 3),
        (np.arange(20), "regression", 1),
        (np.arange(20.0).reshape(10, 2).repeat(2, 0), "regression", 2),
        (np.arange(20) > 9, "regression", 1),
    ],
)
def test_numbers_keep_their_values_and_their_sample(y, task, columns):
    data = load((X, y), task=task)
    assert data.task == "regression" and data.n_classes == columns and data.classes == ()
    assert (len(data.x_train), len(data.x_test)) == (16, 4)
    assert data.notes == ("test part: a fifth, drawn from a constant",)
    for x, kept in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert kept.dtype == np.float32 and kept.shape == (len(x), columns)
        expected = np.asarray(y, np.float32).reshape(20, -1)[sample_of(x)]
        np.testing.assert_array_equal(kept, expected)
    assert "task='regression'" in repr(data) and load(data) is data is load(data, task="regression")


@pytest.mark.parametrize("y", [np.arange(20) % 3, (np.arange(20) % 3) * 2.0, ["a", "b"] * 10])
def test_whole_numbers_and_text_are_classes_unless_told(y):
    assert load((X, y)).task == load((X, y), task="classification").task == "classification"


def test_one_fraction_in_either_part_is_enough():
    whole = np.arange(10.0) % 2
    for parts in ((whole, whole + 0.5), (whole + 0.5, whole)):
        data = load((X[:10], parts[0], X[10:], parts[1]))
        assert data.task == "regression"
        np.testing.assert_array_equal(data.y_train[:, 0], parts[0])
        np.testing.assert_array_equal(data.y_test[:, 0], parts[1])


BAD = {
    "fractions as classes": ((X, Y), "classification", "whole numbers as labels"),
    "text": ((X, ["a", "b"] * 10), "regression", "needs numbers"),
    "nan": ((X, np.where(Y > 0, np.nan, Y)), "", r"finite float32 numbers as targets; got nan"),
    "infinite": ((X, np.where(Y > 0, np.inf, Y)), "", r"inf at \(9,\)"),
    "beyond float32": ((X, Y * 1e300), "regression", "finite float32"),
    "three axes": ((X, Y.reshape(20, 1, 1)), "regression", r"y.reshape\(len\(y\), -1\)"),
    "lengths": ((X, Y[:-1]), "", "20 samples and 19 labels"),
    "all alike": ((X, Y * 0 + 0.5), "", "numbers that differ"),
    "columns": ((X, Y, X, np.stack([Y, Y], 1)), "", "n_classes = 1 numbers per sample; got 2"),
    "one sample": ((X[:1], Y[:1]), "regression", "differ"),
    "unknown task": ((X, Y), "regress", "one of classification, regression; got 'regress'"),
}


@pytest.mark.parametrize("arrays, task, message", BAD.values(), ids=BAD)
def test_what_cannot_be_learned_from_is_told(arrays, task, message):
    with pytest.raises(DataError, match=message):
        load(arrays, task=task)


@pytest.mark.parametrize("name", ["digits", "copy"])
def test_data_of_another_task_is_told(name):
    with pytest.raises(
        DataError, match=f"{name} is data for classification; got task='regression'"
    ):
        load(name, task="regression")
    with pytest.raises(DataError, match="adding is data for regression"):
        load("adding", task="classification")


def test_classes_that_are_all_different_may_be_numbers():
    with pytest.raises(DataError, match="to predict numbers, type task=regression"):
        load((X, np.arange(20)))


# ---- files ----------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    def write(head: str, y=Y):
        path = tmp_path / "table.csv"
        rows = [f"{a:.9f},{b:.9f},{v}" for (a, b), v in zip(X, y, strict=True)]
        path.write_text("\n".join([*([head] if head else []), *rows]))
        return path

    return write


@pytest.mark.parametrize("head", ["u,v,target", "u,v,Y", "u,v,label"])
def test_a_named_column_of_fractions_is_predicted(table, head):
    data = load(table(head))
    assert data.task == "regression" and data.name == "table" and data.in_shape == (2,)
    np.testing.assert_allclose(data.y_test[:, 0], Y[sample_of(data.x_test)], rtol=1e-6)


@pytest.mark.parametrize("head", ["", "u,v,price"])
def test_an_unnamed_column_of_fractions_is_asked_about(table, head):
    path = table(head)
    with pytest.raises(
        DataError, match=r"got -2.63\d* in row \d.*task=regression .*name the label"
    ):
        load(path)
    assert load(path, task="regression").task == "regression"
    with pytest.raises(DataError, match="whole numbers or text as labels"):
        load(table("u,v,label"), task="classification")


def test_a_column_of_whole_numbers_is_predicted_where_told(table):
    path = table("u,v,price", np.arange(20) + 7)
    assert sorted(load(path, task="regression").y_train[:, 0]) != list(range(16))
    assert load(path, task="regression").y_test.min() >= 7
    with pytest.raises(DataError, match="finite numbers as targets; got 'x' in row 3"):
        load(table("u,v,price", ["1", "x", *"0" * 18]), task="regression")


def test_an_npz_file_equals_the_tuple(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez(tmp_path / "b.npz", x=X, y=np.arange(20) % 4)
    assert load(tmp_path / "a.npz").sha256 == load((X, Y)).sha256
    whole = load(tmp_path / "b.npz", task="regression")
    assert whole.sha256 == load((X, np.arange(20) % 4), task="regression").sha256
    assert whole.sha256 != load(tmp_path / "b.npz").sha256


# ---- what training reads --------------------------------------------------------------------------


def test_batches_hold_the_numbers():
    data = load((X, np.stack([Y, 2 * Y], 1)))
    batches = data.batches(5, seed=3)
    parts = [batches.batch(step) for step in range(batches.steps_per_epoch)]
    assert [b.y.shape for b in parts] == [(5, 2)] * 3 + [(1, 2)]
    for b in parts:
        assert b.y.dtype == np.float32
        np.testing.assert_allclose(b.y[:, 0], Y[sample_of(b.x)], rtol=1e-6)
        np.testing.assert_allclose(b.y[:, 1], 2 * Y[sample_of(b.x)], rtol=1e-6)


def test_the_validation_part_is_a_tenth_and_has_no_test_samples():
    data = load((X, Y))
    inner = data.split_validation()
    assert (len(inner.x_train), len(inner.x_test), inner.task) == (14, 2, "regression")
    both = np.concatenate([inner.y_train, inner.y_test])
    np.testing.assert_array_equal(np.sort(both, 0), np.sort(data.y_train, 0))
    assert inner.sha256 == data.split_validation().sha256 != data.sha256


@pytest.mark.parametrize(
    ("shape", "y", "net", "measures"),
    [
        ((20, 2), Y, "mlp", ("r2", "rmse", "mae")),
        ((20, 2), np.arange(20) % 2, "mlp", ("accuracy",)),
        ((20, 2, 3, 1), np.arange(20) % 2, "mlp", ("accuracy",)),
        ((20, 4, 3), Y, "lstm", ("r2", "rmse", "mae")),
    ],
)
def test_data_say_what_suits_them(shape, y, net, measures):
    data = load((np.zeros(shape), y))
    assert data.net == net and data.measures == measures
    predicted = np.zeros((len(data.x_test), data.n_classes))
    assert set(measures) <= set(data.score(lambda x, side=None: predicted))
    assert next(iter(data.score(lambda x, side=None: predicted))) == measures[0]


# ---- scores ---------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for columns in (1, 3):
        targets = rng.normal(size=(50, columns)) * [1, 5, 20][:columns]
        found = targets + rng.normal(size=targets.shape)
        got = of_numbers(targets, found)
        assert got["r2"] == pytest.approx(metrics.r2_score(targets, found))
        assert got["rmse"] == pytest.approx(metrics.mean_squared_error(targets, found) ** 0.5)
        assert got["mae"] == pytest.approx(metrics.mean_absolute_error(targets, found))
        assert {type(v) for v in got.values()} == {float}
    flat = np.ones((4, 2)) * [1, 2]
    for found in (flat, flat + [0, 1], flat + 1):
        assert of_numbers(flat, found)["r2"] == metrics.r2_score(flat, found)


def test_scores_by_hand():
    # Mean 2, squares about it 4 + 0 + 4; errors 1, 0, -2.
    found = of_numbers(np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [2.0]]))
    assert found["r2"] == pytest.approx(1 - 5 / 8)
    assert found["rmse"] == pytest.approx(np.sqrt(5 / 3)) and found["mae"] == pytest.approx(1)
    data = DataSet("toy", X[:3], [0, 2, 4], X[:3], [0.0, 2.0, 4.0], 1, task="regression")
    scored = data.score(lambda x, side=None: np.array([[1.0], [2.0], [2.0]], np.float32))
    assert scored == pytest.approx(found)
