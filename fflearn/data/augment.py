"""Training images moved about: a function of the seed, the epoch and the sample's index alone."""

import numpy as np

from fflearn.errors import DataError
from fflearn.random import Key

__all__ = ["AUGMENTATIONS", "Augment"]

AUGMENTATIONS = ("crop", "flip_crop")
PADDING = 4  # pixels of 0 around an image of which a part of the old size is cut


class Augment:
    """Random crops with padding 4 and, for "flip_crop", random horizontal flips.

    Sample i gets the same treatment wherever in an epoch it comes and whatever comes with it, and
    another one in each epoch: a run resumes from its step number alone.

    Parameters
    ----------
    how : str
        "crop", or "flip_crop": each image is also mirrored, left to right, with probability 1/2.
    seed : int
        Root of the draws.
    n : int
        Number of samples that an index may name.

    Raises
    ------
    DataError
        An unknown augmentation.

    References
    ----------
    He, Zhang, Ren, Sun (2016), arXiv:1512.03385, sec. 4.2, after Lee et al. (2015).
    """

    def __init__(self, how: str, seed: int, n: int) -> None:
        if how not in AUGMENTATIONS:
            raise DataError(
                f"augment needs one of {', '.join(AUGMENTATIONS)}; got {how!r}. Type flip_crop."
            )
        self.how, self.n = how, n
        self._key = Key(seed).fold("augment")
        self._cached: tuple[int, np.ndarray] | None = None

    def draws(self, epoch: int) -> np.ndarray:
        """Offset from the top and from the left in 0 .. 8, and flip 0 or 1: int64 (3, n)."""
        if self._cached is None or self._cached[0] != epoch:
            sizes = (2 * PADDING + 1, 2 * PADDING + 1, 2 if self.how == "flip_crop" else 1)
            found = [
                self._key.fold(tag).at(epoch).integers(size, (self.n,))
                for tag, size in zip(("top", "left", "flip"), sizes, strict=True)
            ]
            self._cached = (epoch, np.stack(found))
        return self._cached[1]

    def __call__(self, x: np.ndarray, epoch: int, index: np.ndarray) -> np.ndarray:
        """Images (B, H, W, C), whose places in the training part are ``index`` (B,), moved."""
        (b, h, w, c), p = x.shape, PADDING
        top, left, flip = self.draws(epoch)[:, index, None]
        padded = np.zeros((b, h + 2 * p, w + 2 * p, c), x.dtype)
        padded[:, p : p + h, p : p + w] = x
        across = np.arange(w)
        rows, columns = top + np.arange(h), left + np.where(flip, across[::-1], across)
        return padded[np.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
