"""What the official data files are called, where they lie and what they hash to.

The checksums tell a broken download from a good one, and a changed file from the official one.
MD5 does for that: it is what torchvision and the CIFAR-10 page publish.
"""

from typing import NamedTuple

__all__ = ["SOURCES", "Official", "Source"]


class Official(NamedTuple):
    """One published file.

    Parameters
    ----------
    name : str
        File name, as published.
    md5 : str
        Of the file.
    raw_md5 : str
        Of its content once decompressed, where known: a file that was compressed anew, or not
        at all, is then still recognised.
    """

    name: str
    md5: str
    raw_md5: str = ""


class Source(NamedTuple):
    """One data set: its files, the base URLs that have them (best first), its class names."""

    name: str
    files: tuple[Official, ...]
    mirrors: tuple[str, ...]
    classes: tuple[str, ...] = ()


def _idx(*sums: tuple[str, str]) -> tuple[Official, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(Official(f"{n}-ubyte.gz", *pair) for n, pair in zip(names, sums, strict=True))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ALL = (
    Source(
        "mnist",
        _idx(
            ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
        # yann.lecun.com, where they came from, has answered 403 or 404 since 2020.
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        tuple("0123456789"),
    ),
    Source(
        "fashion-mnist",
        _idx(
            ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        _words("T-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot"),
    ),
    Source(
        "kmnist",
        _idx(
            ("bdb82020997e1d708af4cf47b453dcf7", ""),
            ("e144d726b3acfaa3e44228e80efcd344", ""),
            ("5c965bf0a639b31b8f53240b1b52f4d7", ""),
            ("7320c461ea6c1c855c0b718fb2a4b134", ""),
        ),
        (
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        ),
        _words("o ki su tsu na ha ma ya re wo"),
    ),
    Source(
        "cifar10",
        (Official("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
        ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        _words("airplane automobile bird cat deer dog frog horse ship truck"),
    ),
    Source(
        "shakespeare",
        (Official("input.txt", "6fb458f1232090904fb40fe944165e91"),),
        ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
