"""IDX files, whole and damaged; MNIST from the user's folder."""

import gzip
import struct

import numpy as np
import pytest
from data_files import idx_bytes, mnist_files

from fflearn.data import idx, load
from fflearn.errors import DataError

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx_bytes(IMAGES)
PACKED = gzip.compress(GOOD)


@pytest.mark.parametrize("content", [GOOD, PACKED], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["a-ubyte", "a-ubyte.gz"])
def test_reads_plain_and_gzip_whatever_the_name(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    np.testing.assert_array_equal(idx.read(path, 3), IMAGES)


HUGE = bytes((0, 0, 8, 3)) + struct.pack(">3I", 1 << 31, 1 << 31, 1 << 31)
DAMAGED = {
    "empty": (b"", "magic number 00000803; got nothing"),
    "corrupt magic": (b"\x01" + GOOD[1:], "got 01000803"),
    "int32 values": (GOOD[:2] + b"\x0c" + GOOD[3:], "got 00000c03"),
    "labels in the place of images": (idx_bytes(np.arange(4)), "got 00000801"),
    "header cut": (GOOD[:9], "3 axis lengths; got 5 bytes"),
    "values cut": (GOOD[:-1], "24 values, as its header says; got 23"),
    "one value more": (GOOD + b"\0", "got more"),
    "no values": (idx_bytes(IMAGES[:0]), r"at least one value; got shape \(0, 3, 4\)"),
    "header of terabytes": (HUGE, "a far shorter file"),
    "gzip header of terabytes": (gzip.compress(HUGE), "a far shorter file"),
    "gzip cut": (PACKED[:-9], "whole gzip data"),
    "gzip checksum": (PACKED[:-8] + b"\0" * 8, "whole gzip data"),
    "gzip of nothing": (PACKED[:2], "whole gzip data"),
    "a web page": (b"<html>404 Not Found</html>", "magic number"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        idx.read(path, 3)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="can be read"):
        idx.read(tmp_path, 3)


@given(at=st.integers(0, len(PACKED) - 1), bit=st.integers(0, 7), packed=st.booleans())
def test_one_wrong_bit_gives_an_array_or_a_data_error(tmp_path_factory, at, bit, packed):
    content = bytearray(PACKED if packed else GOOD)
    content[at % len(content)] ^= 1 << bit
    path = tmp_path_factory.mktemp("bits") / "file"
    path.write_bytes(content)
    try:
        assert idx.read(path, 3).size == 24
    except DataError:
        pass


@pytest.mark.filterwarnings("ignore:mnist")
@pytest.mark.parametrize("flat", [False, True])
def test_mnist_from_the_users_folder(user_folder, flat):
    folder = user_folder if flat else user_folder / "mnist"
    folder.mkdir(exist_ok=True)
    for name, content in mnist_files().items():
        (folder / name).write_bytes(content)
    data = load("mnist")
    assert data.name == "mnist" and data.in_shape == (28, 28, 1)
    assert data.x_train.shape == (30, 28, 28, 1) and data.x_test.shape == (10, 28, 28, 1)
    np.testing.assert_array_equal(data.y_test, np.arange(10))
    np.testing.assert_array_equal(
        data.x_train[:, 5, 6, 0], np.arange(30, dtype=np.float32) / np.float32(255)
    )


@pytest.mark.filterwarnings("ignore:mnist")
@pytest.mark.parametrize(
    "name, array, message",
    [
        ("train-labels-idx1-ubyte.gz", np.arange(29) % 10, "29 images of 28 x 28"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((10, 28, 27)), r"shape \(10, 28, 27\)"),
        ("train-labels-idx1-ubyte.gz", np.arange(30) % 11, "labels in 0 .. 9; got 10 in y_train"),
    ],
)
def test_mnist_files_must_fit_together(user_folder, name, array, message):
    for file, content in {**mnist_files(), name: gzip.compress(idx_bytes(array))}.items():
        (user_folder / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load("mnist")
