"""Text as a sequence of characters, each to be predicted from those before it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fflearn.data import fetch
from fflearn.data.crops import Crops
from fflearn.data.kind import Data
from fflearn.data.official import SOURCES
from fflearn.errors import DataError

__all__ = ["TextData", "from_text", "load", "load_shakespeare"]

# Characters that `score` predicts at a time: a bound on memory, without effect on the figures.
_AT_ONCE = 1 << 14

LENGTH = 128  # characters of a sample, where nothing else is said


@dataclass(frozen=True, eq=False, repr=False)
class TextData(Data):
    """A text by character ids, its beginning for training and its end for testing.

    Parameters
    ----------
    name : str
        What the record and the error messages call it.
    ids_train, ids_test : array of whole numbers, shapes (N,) and (M,)
        Two stretches of text, each longer than `length`; kept as int64.
    vocabulary : str
        Character i has the id i.
    length : int
        Characters T of a sample: the network's input is (T,), its output (T, len(vocabulary)).
    notes : tuple of str
        What a reader of the record should know about the data's origin.

    Raises
    ------
    DataError
        A part that is too short, an id outside the vocabulary, a vocabulary of one character or
        with one character twice.

    Examples
    --------
    >>> data = from_text("toy", "to be or not to be, that is the question. " * 4, length=8)
    >>> data
    TextData('toy', 151 train, 17 test characters, length=8, n_classes=15)
    >>> data.decode(data.batches(2, seed=0).batch(0).y[0])
    ' is the '
    """

    name: str
    ids_train: np.ndarray
    ids_test: np.ndarray
    vocabulary: str
    length: int = LENGTH
    notes: tuple[str, ...] = ()

    measures = ("accuracy", "perplexity")
    net = "gpt-nano width=64 depth=2 heads=2"

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise DataError(f"TextData needs a positive length; got {self.length!r}. Type 128.")
        if len(self.vocabulary) < 2 or len(set(self.vocabulary)) < len(self.vocabulary):
            raise DataError(
                f"TextData needs a vocabulary of at least two characters, each once; got "
                f"{self.vocabulary!r} in {self.name}."
            )
        for part in ("ids_train", "ids_test"):
            ids = np.ascontiguousarray(getattr(self, part), np.int64)
            if ids.ndim != 1 or len(ids) <= self.length:
                raise DataError(
                    f"TextData needs more than length = {self.length} characters in a row; got "
                    f"the shape {ids.shape} in {part} of {self.name}. Give more text, or a "
                    f"smaller length."
                )
            if ids.min() < 0 or ids.max() >= self.n_classes:
                raise DataError(
                    f"TextData needs ids in 0 .. {self.n_classes - 1}; got {ids.min()} .. "
                    f"{ids.max()} in {part} of {self.name}. Number the vocabulary from 0."
                )
            object.__setattr__(self, part, ids)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.length,)

    @property
    def n_classes(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    @property
    def classes(self) -> tuple[str, ...]:
        """The vocabulary, character by character."""
        return tuple(self.vocabulary)

    @property
    def n_train(self) -> int:
        """Samples that one epoch learns from."""
        return len(self.ids_train) // self.length

    @property
    def test_n(self) -> int:
        """Characters that `score` has predicted: all of the test part but its first."""
        return len(self.ids_test) - 1

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the vocabulary, the length and the ids."""
        digest = hashlib.sha256(repr((self.vocabulary, self.length)).encode())
        for ids in (self.ids_train, self.ids_test):
            digest.update(f" {len(ids)} ".encode())
            digest.update(ids.astype("<i8", copy=False).data)
        return digest.hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids of the characters of a text, int64; DataError names one that is not known."""
        table = {c: i for i, c in enumerate(self.vocabulary)}
        unknown = sorted(set(text) - set(table))
        if unknown:
            raise DataError(
                f"the text needs characters of {self.name}, which are {self.vocabulary!r}; got "
                f"{unknown[0]!r}. Leave it out."
            )
        return np.array([table[c] for c in text], np.int64)

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids."""
        return "".join(self.vocabulary[i] for i in ids)

    def at_length(self, length: int) -> TextData:
        """The same text in samples of another length."""
        return replace(self, length=length)

    def batches(self, batch_size: int, seed: int) -> Crops:
        """Random pieces of the training part."""
        return Crops(self, batch_size, seed)

    def split_validation(self) -> TextData:
        """Train on the first nine tenths of the training part, test on its last tenth."""
        train, held = _parts(self.ids_train)
        note = f"test part: the last tenth of the training part of {self.name}"
        return replace(
            self,
            name=f"{self.name}-validation",
            ids_train=train,
            ids_test=held,
            notes=(*self.notes, note),
        )

    def score(self, predict: Callable[..., np.ndarray]) -> dict[str, float]:
        """How well ``predict(x (R, T)) -> logits (R, T, C)`` foretells the test part.

        The test part is cut into consecutive windows; a window's first characters are predicted
        from few others.  The last window is moved back to the end of the text, and its characters
        that were predicted before do not count again.

        Returns
        -------
        dict
            "accuracy", per character; "loss", nats per character; "perplexity", exp(loss).
        """
        hits = nats = 0.0
        for x, y, new in self._windows():
            z = np.asarray(predict(x), np.float64)
            hits += ((z.argmax(-1) == y) & new).sum()
            z = z - z.max(-1, keepdims=True)
            own = np.take_along_axis(z, y[..., None], -1)[..., 0]
            nats += (np.where(new, np.log(np.exp(z).sum(-1)) - own, 0)).sum()
        loss = nats / self.test_n
        with np.errstate(over="ignore"):  # of a network that diverged: inf says so
            perplexity = float(np.exp(loss))
        found = {"accuracy": hits / self.test_n, "loss": loss, "perplexity": perplexity}
        return {name: float(value) for name, value in found.items()}

    def _windows(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """x float32, y int64 and what counts, bool, each (R, T), over the test part."""
        last = self.test_n - self.length
        starts = np.append(np.arange(0, last, self.length), last)
        rows = max(1, _AT_ONCE // self.length)
        for i in range(0, len(starts), rows):
            at = starts[i : i + rows, None] + np.arange(self.length)
            seen = np.arange(i, i + len(at))[:, None] * self.length
            yield self.ids_test[at].astype(np.float32), self.ids_test[at + 1], at >= seen

    def __repr__(self) -> str:
        return (
            f"TextData({self.name!r}, {len(self.ids_train)} train, {len(self.ids_test)} test "
            f"characters, length={self.length}, n_classes={self.n_classes})"
        )


def from_text(name: str, text: str, length: int = LENGTH, notes: tuple[str, ...] = ()) -> TextData:
    """A text as data: its first nine tenths for training, its last tenth for testing."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known, ids = np.unique(codes, return_inverse=True)
    train, test = _parts(ids)
    return TextData(name, train, test, "".join(map(chr, known.tolist())), length, notes)


def load(path: Path, length: int = LENGTH) -> TextData:
    """Load a .txt file in UTF-8, in samples of ``length`` characters.

    Raises
    ------
    DataError
        Not UTF-8, or too short.
    """
    return _read(path, path.stem, length)


def load_shakespeare(download: bool = True, length: int = LENGTH) -> TextData:
    """Load Tiny Shakespeare: a million characters of his plays, 65 different ones.

    References
    ----------
    A. Karpathy (2015), char-rnn, https://github.com/karpathy/char-rnn, data/tinyshakespeare.
    """
    source = SOURCES["shakespeare"]
    (path,), notes = fetch.find(source, download)
    return _read(path, source.name, length, notes)


def _read(path: Path, name: str, length: int, notes: tuple[str, ...] = ()) -> TextData:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"a text needs to be a file in UTF-8; got {error} in {path}. Save it as UTF-8."
        ) from error
    return from_text(name, text, length, notes)


def _parts(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first nine tenths and the rest, in the text's own order."""
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:]
