"""IDX files, the format of MNIST and of the sets made in its image.

A file is: two zero bytes, a type code (8: unsigned byte), the number of axes, one big-endian
32-bit length per axis, then the values, last axis fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from fflearn.data import fetch
from fflearn.data.dataset import DataSet, pixels_to_unit
from fflearn.data.official import SOURCES
from fflearn.errors import DataError

__all__ = ["load", "read"]

_GZIP = b"\x1f\x8b"
# Deflate cannot shrink further than this (RFC 1951: 258 bytes from two bits or so).
_MOST_PACKED = 1032


def load(name: str, download: bool = True) -> DataSet:
    """Load "mnist", "fashion-mnist" or "kmnist": 28 x 28 grey images of ten classes.

    Returns
    -------
    DataSet
        x (N, 28, 28, 1) in [0, 1], with the official split.

    Raises
    ------
    DataError
        Files not found, or not what they should be.
    MissingExtra
        They must be downloaded and pooch is not installed.
    """
    source = SOURCES[name]
    paths, notes = fetch.find(source, download)
    x_train, y_train = _pair(*paths[:2])
    x_test, y_test = _pair(*paths[2:])
    return DataSet(name, x_train, y_train, x_test, y_test, 10, notes, source.classes)


def _pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read(images_path, 3), read(labels_path, 1)
    if images.shape != (len(labels), 28, 28):
        expected = f"{len(labels)} images of 28 x 28, one per label"
        raise _wrong(images_path, expected, f"shape {images.shape}")
    return pixels_to_unit(images)[..., None], labels


def read(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or gzipped (told by content, not by name).

    Parameters
    ----------
    path : Path
    ndim : int
        Number of axes the file must have: 3 for images, 1 for labels.

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    DataError
        Wrong magic number, type or number of axes; an empty axis; fewer or more bytes than the
        header says; damaged gzip data.
    """
    try:
        with path.open("rb") as f:
            packed = f.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as f:
            shape = _shape(f.read(4 + 4 * ndim), ndim, path)
            n = math.prod(shape)
            # A header may promise terabytes: do not ask for that much memory.
            if n > path.stat().st_size * (_MOST_PACKED if packed else 1):
                raise _wrong(path, f"{n} values, as its header says", "a far shorter file")
            data, surplus = f.read(n), f.read(1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _wrong(path, "whole gzip data", str(error)) from error
    except OSError as error:
        raise _wrong(path, "a file that can be read", str(error)) from error
    if len(data) < n or surplus:
        got = "more" if surplus else str(len(data))
        raise _wrong(path, f"{n} values, as its header says", got)
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(header: bytes, ndim: int, path: Path) -> tuple[int, ...]:
    expected = bytes((0, 0, 8, ndim))
    if header[:4] != expected:
        raise _wrong(path, f"the magic number {expected.hex()}", header[:4].hex() or "nothing")
    if len(header) < 4 + 4 * ndim:
        raise _wrong(path, f"{ndim} axis lengths", f"{len(header) - 4} bytes")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if 0 in shape:
        raise _wrong(path, "at least one value", f"shape {shape}")
    return shape


def _wrong(path: Path, what: str, got: str) -> DataError:
    return DataError(f"an IDX file needs {what}; got {got} in {path}. Replace the file.")
