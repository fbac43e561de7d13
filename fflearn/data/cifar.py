"""CIFAR-10 in its binary version.

A batch file is 10 000 records of 3073 bytes: the label, then the 32 x 32 red, green and blue
planes.  The Python version of the data set is a pickle, which can run code: it is not read.
"""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from fflearn.data import fetch
from fflearn.data.dataset import DataSet, pixels_to_unit
from fflearn.data.official import SOURCES
from fflearn.errors import DataError

__all__ = ["load"]

_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = ("test_batch.bin",)
_RECORDS = 10_000
_RECORD = 1 + 3 * 32 * 32


def load(download: bool = True) -> DataSet:
    """Load CIFAR-10: 32 x 32 colour images of ten classes.

    FFLEARN_DATA may hold the folder cifar-10-batches-bin or the archive cifar-10-binary.tar.gz.

    Returns
    -------
    DataSet
        x (N, 32, 32, 3) in [0, 1], with the official split.

    Raises
    ------
    DataError
        Files not found, or not what they should be.
    MissingExtra
        They must be downloaded and pooch is not installed.
    """
    source = SOURCES["cifar10"]
    for folder in (root / _FOLDER for root in fetch.user_folders(source.name)):
        if folder.is_dir():
            # Checksums are published for the archive only.
            notes: tuple[str, ...] = ("read from unpacked files, which have no checksum",)
            files = _from_folder(folder)
            break
    else:
        (archive,), notes = fetch.find(source, download)
        files = _from_archive(archive)
    x_train, y_train = _decode(files, _TRAIN)
    x_test, y_test = _decode(files, _TEST)
    return DataSet(source.name, x_train, y_train, x_test, y_test, 10, notes, source.classes)


def _from_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in _TRAIN + _TEST:
        path = folder / name
        try:
            _check_size(path.stat().st_size, path)
            files[name] = path.read_bytes()
        except OSError as error:
            raise _wrong("a file that can be read", str(error), path) from error
    return files


def _from_archive(archive: Path) -> dict[str, bytes]:
    # Read in memory, by exact name: nothing is unpacked to disk, so no path can go astray.
    wanted = {f"{_FOLDER}/{name}": name for name in _TRAIN + _TEST}
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                stream = tar.extractfile(member) if name and member.isfile() else None
                if name and stream:
                    _check_size(member.size, f"{member.name} of {archive}")
                    files[name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise _wrong("a whole tar archive", str(error), archive) from error
    missing = sorted(set(wanted.values()) - set(files))
    if missing:
        raise _wrong(f"{_FOLDER}/{missing[0]}", "an archive without", archive)
    return files


def _decode(files: dict[str, bytes], names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    records = np.concatenate([np.frombuffer(files[name], np.uint8) for name in names])
    records = records.reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        name = names[at // _RECORDS]
        raise _wrong("labels in 0 .. 9", f"{labels[at]} at record {at % _RECORDS}", name)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return pixels_to_unit(np.ascontiguousarray(images)), labels


def _check_size(size: int, where: object) -> None:
    if size != _RECORDS * _RECORD:
        raise _wrong(f"{_RECORDS * _RECORD} bytes", str(size), where)


def _wrong(what: str, got: str, where: object) -> DataError:
    return DataError(
        f"CIFAR-10 (binary version) needs {what}; got {got} in {where}. Replace the file."
    )
