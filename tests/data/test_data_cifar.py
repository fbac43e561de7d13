"""CIFAR-10's binary version: the unpacked folder and the archive, whole and damaged.

The official size, 10 000 records in a file, is lowered to 20 for these tests.
"""

import io
import tarfile

import numpy as np
import pytest

from fflearn.data import cifar, load
from fflearn.errors import DataError

RECORDS = 20
FOLDER = "cifar-10-batches-bin"


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    monkeypatch.setattr(cifar, "_RECORDS", RECORDS)


def batch_files() -> dict[str, bytes]:
    """Pixel (h, w, c) of every image is 64 c + 2 h + w; labels count up modulo 10."""
    h, w = np.indices((32, 32))
    image = np.stack([64 * c + 2 * h + w for c in range(3)]).astype(np.uint8)
    records = b"".join(bytes([i % 10]) + image.tobytes() for i in range(RECORDS))
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return dict.fromkeys(names, records)


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path, files, prefix=FOLDER):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(f"{prefix}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def check(data):
    assert data.in_shape == (32, 32, 3) and data.n_classes == 10
    assert len(data.x_train) == 5 * RECORDS and len(data.x_test) == RECORDS
    np.testing.assert_array_equal(data.y_test, np.arange(RECORDS) % 10)
    expected = np.array([64 * c + 2 * 3 + 7 for c in range(3)], np.float32) / np.float32(255)
    np.testing.assert_array_equal(data.x_train[13, 3, 7], expected)
    assert data.classes[3] == "cat"


@pytest.mark.parametrize("under", ["", "cifar10"])
def test_the_unpacked_folder(user_folder, under):
    write_folder(user_folder / under / FOLDER, batch_files())
    data = load("cifar10")
    check(data)
    assert data.notes == ("read from unpacked files, which have no checksum",)


@pytest.mark.parametrize("prefix", [FOLDER, f"./{FOLDER}"])
def test_the_archive_of_the_user_warns_and_notes(user_folder, prefix):
    write_archive(user_folder / "cifar-10-binary.tar.gz", batch_files(), prefix=prefix)
    with pytest.warns(UserWarning, match="c32a1d4ab5d03f1284b67883e8d87530"):
        data = load("cifar10")
    check(data)
    assert len(data.notes) == 1


GOOD = batch_files()
RECORD = GOOD["test_batch.bin"]
WRONG_LABEL = RECORD[: 3073 * 7] + b"\x0a" + RECORD[3073 * 7 + 1 :]
DAMAGED = {
    "short": ({**GOOD, "data_batch_2.bin": RECORD[:-1]}, "61460 bytes; got 61459"),
    "long": ({**GOOD, "test_batch.bin": RECORD + b"\0"}, "got 61461"),
    "empty": ({**GOOD, "test_batch.bin": b""}, "got 0"),
    "label": ({**GOOD, "data_batch_4.bin": WRONG_LABEL}, "got 10 at record 7 in data_batch_4.bin"),
    "missing": ({k: v for k, v in GOOD.items() if k != "data_batch_5.bin"}, "data_batch_5.bin"),
}


@pytest.mark.parametrize("files, message", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_folder(user_folder, files, message):
    write_folder(user_folder / FOLDER, files)
    with pytest.raises(DataError, match=message):
        load("cifar10")


@pytest.mark.filterwarnings("ignore:cifar10")
@pytest.mark.parametrize("files, message", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_member_of_the_archive(user_folder, files, message):
    write_archive(user_folder / "cifar-10-binary.tar.gz", files)
    with pytest.raises(DataError, match=message):
        load("cifar10")


@pytest.mark.filterwarnings("ignore:cifar10")
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -20])
def test_a_truncated_archive(user_folder, keep):
    path = user_folder / "cifar-10-binary.tar.gz"
    write_archive(path, batch_files())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="whole tar archive"):
        load("cifar10")


@pytest.mark.filterwarnings("ignore:cifar10")
def test_a_link_in_the_archive_is_not_followed(user_folder):
    with tarfile.open(user_folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in {"real": RECORD, **GOOD}.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            if name == "test_batch.bin":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "real", 0
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match="an archive without"):
        load("cifar10")
