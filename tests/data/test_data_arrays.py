"""Tuples of arrays and .npz files."""

import numpy as np
import pytest

from fflearn.data import load
from fflearn.errors import DataError

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

X = np.linspace(0, 1, 40).reshape(20, 2)
Y = np.arange(20) % 2
IMAGES = (np.arange(20 * 4 * 5) % 256).astype(np.uint8).reshape(20, 4, 5)


@pytest.mark.parametrize(
    "labels, classes",
    [
        (Y, ("0", "1")),
        (Y * 2 - 1, ("-1", "1")),
        (Y * 5.0 + 5, ("5", "10")),
        (Y.astype(bool), ("0", "1")),
        (np.array(["b", "a"])[Y], ("a", "b")),
        (np.array(["b", "a"], object)[Y], ("a", "b")),
    ],
)
def test_labels_are_numbered_in_order(labels, classes):
    data = load((X, labels))
    assert data.classes == classes and data.n_classes == 2 and data.name == "arrays"
    whole = load((X, labels, X, labels))
    assert (np.array(classes)[whole.y_train] == [c for c in np.array(classes)[whole.y_test]]).all()


def test_x_and_y_are_split_into_four_fifths_and_a_fifth():
    data = load((X, Y))
    assert len(data.x_train) == 16 and np.bincount(data.y_test).tolist() == [2, 2]
    both = np.concatenate([data.x_train, data.x_test])
    np.testing.assert_array_equal(np.sort(both, axis=0), X.astype(np.float32))


def test_a_given_split_is_kept():
    data = load((X[:12], Y[:12], X[12:], Y[12:]))
    np.testing.assert_array_equal(data.x_test, X[12:].astype(np.float32))
    assert data.notes == ()


def test_images_as_bytes_come_to_the_unit_interval():
    data = load((IMAGES, Y, IMAGES, Y))
    assert data.in_shape == (4, 5, 1) and data.notes == ("x: bytes divided by 255",)
    np.testing.assert_array_equal(data.x_train[..., 0], IMAGES / np.float32(255))
    assert load((IMAGES[..., None], Y)).in_shape == (4, 5, 1)
    flat = load((IMAGES.reshape(20, 20), Y, IMAGES.reshape(20, 20), Y))
    assert flat.x_train.max() == 255  # bytes in a table are a feature like any other


BAD_TUPLES = {
    "one array": ((X,), "got 1 arrays"),
    "three": ((X, Y, X), "got 3 arrays"),
    "empty": ((X[:0], Y[:0]), "at least one sample"),
    "two axes of labels": ((X, np.eye(2)[Y]), "argmax"),
    "half a label missing": ((X, np.where(Y, 1.0, np.nan)), "whole numbers"),
    "mixed labels": ((X, Y, X, Y.astype(str)), "needs numbers"),
    "numbers and text in one": ((X, np.array([0, "a"] * 10, object)), "dtype object"),
    "lengths": ((X, Y[:-1]), "20 samples and 19 labels"),
    "nan": ((np.where(X == 0, np.nan, X), Y), r"nan at \(0, 0\)"),
    "all alike": ((X, Y * 0), "two classes"),
    "all different": ((X, np.arange(20)), "at least two samples"),
}


@pytest.mark.parametrize("arrays, message", BAD_TUPLES.values(), ids=BAD_TUPLES.keys())
def test_bad_arrays_are_refused(arrays, message):
    with pytest.raises(DataError, match=message):
        load(arrays)


def test_npz_of_either_kind_equals_the_tuple(tmp_path):
    np.savez(tmp_path / "whole.npz", x=X, y=Y)
    np.savez_compressed(
        tmp_path / "split.npz", x_train=X, y_train=Y, x_test=X[:6], y_test=Y[:6], comment="hello"
    )
    assert load(tmp_path / "whole.npz").sha256 == load((X, Y)).sha256
    assert load(str(tmp_path / "split.npz")).sha256 == load((X, Y, X[:6], Y[:6])).sha256
    assert load(tmp_path / "split.npz").name == "split"


class Bomb:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "data.npz", tmp_path / "trace"
    np.savez(path, x=np.array([Bomb(trace)] * 4, object), y=Y[:4], allow_pickle=True)
    with pytest.raises(DataError, match="plain arrays"):
        load(path)
    import pickle

    path.write_bytes(pickle.dumps({"x": Bomb(trace), "y": Y}))
    with pytest.raises(DataError, match="plain arrays"):
        load(path)
    assert not trace.exists()


def test_other_names_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=X, y=Y)
    with pytest.raises(DataError, match="got images, y in"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file", b"PK\x03\x04" + bytes(50)])
def test_no_zip_file_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="a.npz"):
        load(tmp_path / "a.npz")


def test_a_bare_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match="zip file"):
        load(tmp_path / "a.npz")


@given(cut=st.integers(0, 1200), bit=st.integers(0, 9000))
def test_a_damaged_npz_gives_the_data_or_a_data_error(tmp_path_factory, cut, bit):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez_compressed(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content[: max(len(content) - cut, 0)] if cut % 2 else content)
    try:
        load(path)
    except DataError:
        pass
