"""DataSet: what it refuses, what it keeps, how it splits."""

import dataclasses

import numpy as np
import pytest

from fflearn.data import DataSet, load
from fflearn.data.dataset import stratified
from fflearn.data.scores import of_classes
from fflearn.errors import DataError, FFLearnError

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

X = np.linspace(0, 1, 24).reshape(12, 2)
Y = np.arange(12) % 3


def make(**changes) -> DataSet:
    fields = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "n_classes": 3}
    return DataSet("toy", **{**fields, **changes})


def with_value(value: float, dtype=np.float64) -> np.ndarray:
    x = X.astype(dtype)
    x[4, 1] = value
    return x


BAD = {
    "nan": ({"x_train": with_value(np.nan)}, r"nan at \(4, 1\) in x_train of toy"),
    "inf": ({"x_test": with_value(-np.inf)}, r"-inf at \(4, 1\) in x_test"),
    "too large for float32": ({"x_train": with_value(1e300)}, r"1e\+300 at \(4, 1\)"),
    "no samples": ({"x_train": X[:0], "y_train": Y[:0]}, "at least one sample"),
    "no features": ({"x_train": X[:, :0]}, "at least one sample"),
    "one axis": ({"x_train": X[:, 0]}, r"x.reshape\(-1, 1\)"),
    "fewer labels": ({"y_train": Y[:-1]}, "12 samples and 11 labels"),
    "other shape in the test part": ({"x_test": X[:, :1]}, r"\(2,\) and \(1,\)"),
    "text in x": ({"x_train": X.astype(str)}, "needs numbers"),
    "objects": ({"x_train": X.astype(object)}, "dtype object"),
    "complex": ({"x_train": X + 1j}, "complex128"),
    "ragged": ({"x_train": [[1.0], [1.0, 2.0]]}, "rows of different lengths"),
    "one-hot labels": ({"y_train": np.eye(3)[Y]}, r"y.argmax\(axis=1\)"),
    "label column": ({"y_train": Y[:, None]}, r"y.ravel\(\)"),
    "fractional label": ({"y_train": Y + 0.5}, "whole numbers"),
    "huge label": ({"y_train": Y * 1e300}, "whole numbers"),
    "nan label": ({"y_test": np.where(Y == 2, np.nan, Y)}, r"nan at \(2,\) in y_test"),
    "text label": ({"y_train": Y.astype(str)}, "needs numbers"),
    "label too large": ({"n_classes": 2}, r"labels in 0 .. 1; got 2 in y_train"),
    "negative label": ({"y_test": Y - 1}, "got -1 in y_test"),
    "one class": ({"y_train": Y * 0}, "only class 0"),
    "class names": ({"classes": ("a", "b")}, "3 class names; got 2"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD.keys())
def test_bad_data_is_refused(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        make(**changes)
    assert isinstance(caught.value, FFLearnError) and isinstance(caught.value, ValueError)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_arrays_become_float32_and_int64():
    data = make(x_train=np.asfortranarray(X), y_train=Y.astype(np.float32), y_test=list(Y))
    assert data.x_train.dtype == np.float32 and data.x_train.flags.c_contiguous
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.in_shape == (2,)
    np.testing.assert_array_equal(data.y_train, Y)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().n_classes = 4


def test_repr_is_one_line():
    assert repr(make()) == "DataSet('toy', 12 train, 12 test, in_shape=(2,), n_classes=3)"


def test_sha256_is_of_the_arrays_alone():
    data = make()
    assert data.sha256 == make(x_train=X.tolist(), notes=("other",)).sha256
    assert len(data.sha256) == 64
    changed = [
        make(x_train=with_value(0.5)),
        make(y_test=Y[::-1]),
        make(x_train=X[:, :, None], x_test=X[:, :, None]),
        dataclasses.replace(data, x_test=data.x_test[:6], y_test=data.y_test[:6]),
    ]
    assert len({data.sha256, *(d.sha256 for d in changed)}) == 5


def test_sha256_by_hand():
    import hashlib

    x, y = np.array([[0.0], [1.0]]), np.array([0, 1])
    part = b"<f4 (2, 1) " + bytes.fromhex("000000000000803f") + b"<i8 (2,) "
    part += (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    assert DataSet("toy", x, y, x, y, 2).sha256 == hashlib.sha256(part + part).hexdigest()


def test_the_validation_part_is_a_tenth_of_the_training_part():
    digits = load("digits")
    split = digits.split_validation()
    assert split.name == "digits-validation" and "training part of digits" in split.notes[-1]
    assert split.classes == digits.classes

    def rows(x):
        return {sample.tobytes() for sample in x}

    assert rows(split.x_train) | rows(split.x_test) == rows(digits.x_train)
    assert len(split.x_train) + len(split.x_test) == len(digits.x_train)
    assert not rows(split.x_train) & rows(split.x_test)
    share = np.bincount(split.y_test) / np.bincount(digits.y_train)
    np.testing.assert_allclose(share, 0.1, atol=0.5 / np.bincount(digits.y_train).min())


def test_a_split_is_always_the_same():
    digits = load("digits")
    assert digits.split_validation().sha256 == load("digits").split_validation().sha256


@given(
    labels=st.lists(st.integers(0, 4), min_size=5, max_size=60),
    share=st.sampled_from([0.1, 0.2, 0.5, 0.9]),
)
def test_stratified_takes_the_same_share_of_every_class(labels, share):
    y = np.array(labels)
    sizes = np.bincount(y, minlength=5)
    if sizes.max() < 2:
        with pytest.raises(DataError, match="at least two samples"):
            stratified(y, share, "test")
        return
    keep, held = stratified(y, share, "test")
    np.testing.assert_array_equal(np.sort(np.concatenate([keep, held])), np.arange(len(y)))
    for size, got in zip(sizes, np.bincount(y[held], minlength=5), strict=True):
        if size < 2:
            assert got == 0
        else:
            assert 1 <= got <= size - 1
            # to the nearest whole, unless all or none would then be held
            slack = max(0.5, 1 - share * size, 1 - (1 - share) * size) + 1e-9
            assert abs(got - share * size) <= slack


def test_the_draws_of_two_splits_differ():
    y = np.zeros(100, np.int64)
    assert set(stratified(y, 0.2, "test")[1]) != set(stratified(y, 0.2, "validation")[1])


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for n_classes in (2, 5):
        labels, found = rng.integers(0, n_classes, 200), rng.integers(0, n_classes, 200)
        got = of_classes(labels, found, n_classes)
        assert got["accuracy"] == pytest.approx(metrics.accuracy_score(labels, found))
        balanced = metrics.balanced_accuracy_score(labels, found)
        assert got["balanced_accuracy"] == pytest.approx(balanced)
        assert got["f1"] == pytest.approx(metrics.f1_score(labels, found, average="macro"))
