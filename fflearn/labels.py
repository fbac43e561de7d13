"""How a rule that learns from inputs alone shows labels to the network, right ones and wrong.

Label embeddings write a one-hot label (B, C) into the input (B, *in); negatives choose labels
that are never the true one.  Without labels, hybrids of two samples are the negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Key, Shape, Shown
from fflearn.errors import SpecError


@dataclass(frozen=True)
class Overlay:
    """Write the label over the first C features; of an image, over its first C pixels.

    All channels of a pixel get the same value.  Hinton (2022), arXiv:2212.13345, sec. 3.3.
    """

    strength: float = 1.0
    name: ClassVar[str] = "overlay"

    def shape(self, in_shape: Shape, n_classes: int) -> Shape:
        """Shape of an embedded sample."""
        if math.prod(in_shape[:2]) < n_classes:
            raise SpecError(
                f"the label embedding 'overlay' writes {n_classes} values over the input, which "
                f"has only {math.prod(in_shape[:2])} places. Use label=append."
            )
        return in_shape

    def __call__(self, x: Any, y: Any) -> Any:
        """(B, *in) and (B, C) -> (B, *in)."""
        return self.shown(x, y).whole

    def shown(self, x: Any, y: Any) -> Shown:
        """(B, *in) and (r B, C) -> (r B, *in), of which rows share all but the label."""
        channels = x.shape[-1] if x.ndim == 4 else 1
        value = np.repeat((self.strength * y).astype(x.dtype), channels, axis=1)
        flat, c = x.reshape(len(x), -1), value.shape[1]
        blank = np.zeros_like(flat[:, :c])
        return Shown(np.concatenate([blank, flat[:, c:]], axis=1).reshape(x.shape), value, 0)


@dataclass(frozen=True)
class Append:
    """Append the label to the flattened input: (B, *in) -> (B, n_in + C)."""

    strength: float = 1.0
    name: ClassVar[str] = "append"

    def shape(self, in_shape: Shape, n_classes: int) -> Shape:
        """Shape of an embedded sample."""
        return (math.prod(in_shape) + n_classes,)

    def __call__(self, x: Any, y: Any) -> Any:
        """(B, *in) and (B, C) -> (B, n_in + C)."""
        return self.shown(x, y).whole

    def shown(self, x: Any, y: Any) -> Shown:
        """(B, *in) and (r B, C) -> (r B, n_in + C), of which rows share all but the label."""
        flat, value = x.reshape(len(x), -1), (self.strength * y).astype(x.dtype)
        blank = np.zeros_like(flat, shape=(len(x), y.shape[1]))
        return Shown(np.concatenate([flat, blank], axis=1), value, flat.shape[1])


@dataclass(frozen=True)
class LabelChannel:
    """Append one channel to an image: class c lights up the c-th of C bands of rows.

    (B, H, W, channels) -> (B, H, W, channels + 1).  A fixed pattern; nothing is learned.
    """

    strength: float = 1.0
    name: ClassVar[str] = "channel"

    def shape(self, in_shape: Shape, n_classes: int) -> Shape:
        """Shape of an embedded sample."""
        if len(in_shape) != 3 or math.prod(in_shape[:2]) < n_classes:
            raise SpecError(
                f"the label embedding 'channel' needs images (H, W, channels) of at least "
                f"{n_classes} pixels; got samples of shape {in_shape}. Use label=append."
            )
        return (*in_shape[:2], in_shape[2] + 1)

    def __call__(self, x: Any, y: Any) -> Any:
        """(B, H, W, channels) and (B, C) -> (B, H, W, channels + 1)."""
        (n, h, w, _), c = x.shape, y.shape[1]
        pixels = np.bincount(np.arange(h * w) * c // (h * w)).tolist()  # of each class's band
        plane = np.repeat(self.strength * y, pixels, axis=1).reshape(n, h, w, 1)
        return np.concatenate([x, plane], axis=3, dtype=x.dtype)

    def shown(self, x: Any, y: Any) -> Any:
        """(B, H, W, channels) and (r B, C) -> (r B, H, W, channels + 1)."""
        return self(np.concatenate([x] * (len(y) // len(x))), y)


EMBEDDINGS = {e.name: e for e in (Overlay, Append, LabelChannel)}


def embedding(name: str, in_shape: Shape, n_classes: int, strength: float) -> Any:
    """A label embedding by name.

    "auto" overlays images that can spare the pixels (at least 16 per class) and appends
    otherwise: writing over the features of a small or non-image input would destroy them.
    """
    if name == "auto":
        image = len(in_shape) == 3 and math.prod(in_shape[:2]) >= 16 * n_classes
        name = "overlay" if image else "append"
    if name not in EMBEDDINGS:
        known = ", ".join(["auto", *EMBEDDINGS])
        raise SpecError(f"unknown label embedding {name!r}; known: {known}.")
    return EMBEDDINGS[name](strength)


@dataclass(frozen=True)
class Wrong:
    """One label per sample, uniform over the wrong ones, drawn anew in every step."""

    name: ClassVar[str] = "wrong"
    needs_head: ClassVar[bool] = False

    def per_sample(self, n_classes: int) -> int:
        """How many negatives each sample gets."""
        return 1

    def __call__(self, k: Any, y: Any, logits: Any, key: Key) -> Any:
        """True labels (B, C) one-hot -> wrong labels (r B, C) one-hot, in r blocks of B rows."""
        return k.sample_wrong(y, key.uniform((len(y),), np.float64))


@dataclass(frozen=True)
class AllWrong:
    """Every wrong label of every sample: C - 1 negatives each."""

    name: ClassVar[str] = "all_wrong"
    needs_head: ClassVar[bool] = False

    def per_sample(self, n_classes: int) -> int:
        """How many negatives each sample gets."""
        return n_classes - 1

    def __call__(self, k: Any, y: Any, logits: Any, key: Key) -> Any:
        """True labels (B, C) one-hot -> all wrong labels (r B, C), in r blocks of B rows."""
        return np.concatenate([np.roll(y, shift, axis=1) for shift in range(1, y.shape[1])])


@dataclass(frozen=True)
class Hard:
    """One wrong label per sample, drawn from the softmax head's own belief in the wrong ones."""

    name: ClassVar[str] = "hard"
    needs_head: ClassVar[bool] = True

    def per_sample(self, n_classes: int) -> int:
        """How many negatives each sample gets."""
        return 1

    def __call__(self, k: Any, y: Any, logits: Any, key: Key) -> Any:
        """True labels and logits under the neutral label, both (B, C) -> wrong labels (B, C)."""
        return k.sample_softmax_wrong(logits, y, key.uniform((len(y),), np.float64))


NEGATIVES = {n.name: n for n in (Wrong, AllWrong, Hard)}


def negatives(name: str) -> Any:
    """A way to draw negatives by name."""
    if name not in NEGATIVES:
        raise SpecError(f"unknown negatives {name!r}; known: {', '.join(NEGATIVES)}.")
    return NEGATIVES[name]()


def phases(like: Any, positives: int, negatives: int) -> Any:
    """+1 for the first rows, which go with their labels, and -1 for the others; typed as ``like``."""
    return np.concatenate(
        [np.ones_like(like, shape=positives), np.full_like(like, -1, shape=negatives)]
    )


# ---- what the network is shown --------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """Samples with labels written into them: the right one, wrong ones, or all of them evenly.

    Parameters
    ----------
    embed : Overlay, Append or LabelChannel
    draw : Wrong, AllWrong or Hard
    """

    embed: Any
    draw: Any

    def shape(self, in_shape: Shape, n_classes: int) -> Shape:
        """Shape of a sample as shown."""
        return self.embed.shape(in_shape, n_classes)

    def neutral(self, x: Any, n_classes: int) -> Any:
        """Samples (B, *in) that carry every label equally."""
        return self.embed(x, np.full_like(x, 1 / n_classes, shape=(len(x), n_classes)))

    def pairs(self, k: Any, x: Any, y: Any, logits: Any, key: Key) -> Any:
        """Samples with their labels (B, C), then r blocks of them with wrong ones: (1 + r) B rows."""
        return self.embed.shown(x, np.concatenate([y, self.draw(k, y, logits, key)]))

    def half(self, k: Any, x: Any, y: Any, logits: Any, key: Key) -> Any:
        """The first half of the samples with their labels, the others with a wrong one: B rows."""
        n = len(y) - len(y) // 2
        wrong = self.draw(k, y[n:], None if logits is None else logits[n:], key)
        return self.embed(x, np.concatenate([y[:n], wrong]))

    def each(self, x: Any, n_classes: int, k: Any) -> Any:
        """Samples with the first label, then with the second, and so on: C B rows."""
        labels = k.constant(np.eye(n_classes, dtype=x.dtype))
        return self.embed.shown(x, np.repeat(labels, len(x), axis=0))


@dataclass(frozen=True)
class Hybrid:
    """Parts of one sample and the rest of another: what is near fits, what is far does not.

        x_neg = m x_i + (1 - m) x_j,   m in {0, 1} in blobs, the same in all channels

    m is noise, blurred by (1, 2, 1) / 4 along each axis, around the ends, and cut at its mean: in
    an image of 28 x 28 ten times, in others so often that blobs are as large a part of the image.
    Without axes besides the features (B, n) it is not blurred.  j is the sample after i in the
    batch, which is in random order; a batch of one is its own negative.

    Hinton (2022), arXiv:2212.13345, sec. 3.2, who blurs random bits and does not say how often;
    of uniform noise, no value is ever equal to the mean.
    """

    name: ClassVar[str] = "hybrid"
    needs_head: ClassVar[bool] = False

    def per_sample(self, n_classes: int) -> int:
        """How many negatives each sample gets."""
        return 1

    def shape(self, in_shape: Shape, n_classes: int) -> Shape:
        """Shape of a sample as shown: no label is written into it."""
        return in_shape

    def neutral(self, x: Any, n_classes: int) -> Any:
        """Samples (B, *in) as they are shown without a label."""
        return x

    def pairs(self, k: Any, x: Any, y: Any, logits: Any, key: Key) -> Any:
        """Samples (B, *in) -> the samples, then their negatives: (2 B, *in)."""
        m = self.masks(k, x.shape, key)
        m = m.reshape(*m.shape, *[1] * (x.ndim - m.ndim))
        return np.concatenate([x, np.where(m, x, np.roll(x, 1, axis=0))])

    def half(self, k: Any, x: Any, y: Any, logits: Any, key: Key) -> Any:
        """The first half of the samples, and negatives of the others: (B, *in)."""
        n = len(x) - len(x) // 2
        return np.concatenate([x[:n], self.pairs(k, x[n:], y, logits, key)[len(x) - n :]])

    def masks(self, k: Any, shape: Shape, key: Key) -> Any:
        """m of samples of the shape (B, *places, channels), or (B, n): bool, without channels."""
        places = shape[1:-1]
        m = key.uniform((shape[0], *(places or shape[1:])))
        for axis, n in enumerate(places, start=1):
            once = (np.roll(np.eye(n), 1, axis=0) + np.roll(np.eye(n), -1, axis=0)) / 4
            once += np.eye(n) / 2
            times = max(1, round(10 * (min(places) / 28) ** 2))  # the blur's width is its root
            blur = np.linalg.matrix_power(once, times).astype(m.dtype)
            m = np.moveaxis(np.moveaxis(m, axis, -1) @ k.constant(blur), -1, axis)
        return m > 0.5
