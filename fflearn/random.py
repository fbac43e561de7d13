"""Counter-based randomness: a draw is a function of its key, its step and the element's index.

There is no generator state.  A `Key` names a stream by a path (``Key(seed).fold("layer", 2)``),
which is hashed to the 64-bit *static* part, and carries a 64-bit *step*, the counter.  The two
are kept apart so that a recorded step can hold the static part as a constant and read the counter
from memory.  Element i (row-major) of any draw depends on (static, step, i) only: a longer draw
starts with the shorter one, and every backend makes the same words.

Philox layout: counter (block_lo, block_hi, step_lo, step_hi), key (static_lo, static_hi); word i
is word i % 4 of block i // 4.
"""

import functools
import hashlib
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from fflearn.kernels import scalars

if TYPE_CHECKING:
    from fflearn.kernels.reference import Kernels

__all__ = ["Key", "normal", "uniform", "words"]

Shape = int | tuple[int, ...]

# Blocks made at a time: the working set of the rounds stays in the L2 cache.
_BLOCKS = 1 << 13


def words(static: int, step: int, n: int) -> np.ndarray:
    """Return the first n words of a stream.

    Parameters
    ----------
    static, step : int
        The two halves of a key, each in [0, 2**64).
    n : int
        How many words.

    Returns
    -------
    ndarray of uint32, shape (n,)
    """
    return _drawn(static, step, n, np.uint32, lambda w: w)


def _drawn(
    static: int, step: int, n: int, dtype: DTypeLike, made: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """n numbers that ``made`` makes of as many words, (m,) of (m,) for a few words at a time."""
    u = np.uint64
    k0, k1 = u(static & 0xFFFFFFFF), u(static >> 32)
    c2, c3 = u(step & 0xFFFFFFFF), u(step >> 32)
    blocks = -(-n // 4)
    out = np.empty((blocks, 4), dtype)
    for start in range(0, blocks, _BLOCKS):
        block = np.arange(start, min(start + _BLOCKS, blocks), dtype=u)
        c0, c1 = block & scalars.LOW, block >> scalars.HALF
        w = np.stack(scalars.philox(c0, c1, c2, c3, k0, k1), axis=1).astype(np.uint32)
        out[start : start + len(block)] = made(w.reshape(-1)).reshape(-1, 4)
    return out.reshape(-1)[:n]


def uniform(static: int, step: int, shape: Shape, dtype=np.float32) -> np.ndarray:
    """Return uniform numbers in [0, 1).

    float32: ``(w_i >> 8) * 2**-24``.  float64: 53 bits of words 2i and 2i + 1.
    """
    n = size(shape)
    if real(dtype) == np.float32:
        u = _drawn(static, step, n, dtype, lambda w: scalars.unit32(w.astype(np.uint64)))
    else:
        w = words(static, step, 2 * n).astype(np.uint64)
        u = scalars.unit64(w[0::2], w[1::2])
    return u.astype(dtype, copy=False).reshape(shape)


def normal(static: int, step: int, shape: Shape, dtype=np.float32) -> np.ndarray:
    """Return standard normal numbers.

    Box-Muller on words (2j, 2j + 1), with u1 = (w + 1) 2**-32 in (0, 1] and u2 = w' 2**-32:
    elements 2j and 2j + 1 are sqrt(-2 ln u1) times cos(2 pi u2) and sin(2 pi u2).  Computed in
    float64 and rounded once, so that float32 draws are the rounded float64 draws.  The largest
    magnitude is sqrt(64 ln 2) = 6.66.
    """
    return _drawn(static, step, size(shape), real(dtype), _box_muller).reshape(shape)


def _box_muller(w: np.ndarray) -> np.ndarray:
    w = w.astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((w[0::2] + 1.0) * scalars.WORD_UNIT))
    angle = scalars.TWO_PI * (w[1::2] * scalars.WORD_UNIT)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


@functools.lru_cache(maxsize=32)
def sobol_bits(points: int, n: int) -> np.ndarray:
    """The first Sobol points in n dimensions times 2**32, uint32 (points, n).

    Dimensions beyond the 21201 that have directions use the first ones again.
    """
    from scipy.stats import qmc

    if points < 1 or points & (points - 1):
        raise ValueError(f"Sobol points need to be a power of 2; got {points}.")
    drawn = qmc.Sobol(min(n, qmc.Sobol.MAXDIM), scramble=False, bits=32)
    bits = (drawn.random(points) / scalars.WORD_UNIT).astype(np.uint32)
    return bits[:, np.arange(n) % bits.shape[1]]


def size(shape: Shape) -> int:
    """Number of elements of a shape."""
    return shape if isinstance(shape, int) else math.prod(shape)


def real(dtype) -> np.dtype:
    """The dtype, if it is one a draw can have."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"a random draw needs dtype float32 or float64; got {dtype}.")
    return dtype


@functools.lru_cache(maxsize=1 << 14)
def _static(seed: int, path: tuple) -> int:
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _tag(tag: str | int) -> str | int:
    # np.int64(3), True and 3 must name the same stream: repr() would tell them apart.
    return tag if isinstance(tag, str) else int(operator.index(tag))


@dataclass(frozen=True)
class Key:
    """The name of a random stream: an immutable path and a step.

    Parameters
    ----------
    seed : int
        Root of the path; any integer.
    path : tuple of str or int
        What `fold` has added.
    step : int
        The counter, in [0, 2**64).  Set it with `at`.
    k : Kernels, optional
        Who makes the numbers; None is NumPy.  Never part of the stream's identity.

    Examples
    --------
    >>> key = Key(0).fold("layer", 2)
    >>> key.at(5).uniform(3).shape
    (3,)
    >>> bool((key.at(5).words(8)[:3] == key.at(5).words(3)).all())
    True
    """

    seed: int
    path: tuple[str | int, ...] = ()
    step: int = 0
    k: "Kernels | None" = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", int(operator.index(self.seed)))
        if hasattr(self.step, "__array_function__"):  # in memory, read whenever a draw is made
            return
        object.__setattr__(self, "step", int(operator.index(self.step)))
        if not 0 <= self.step < 1 << 64:
            raise ValueError(f"Key needs a step in [0, 2**64); got {self.step}.")

    def fold(self, *tags: str | int) -> "Key":
        """The key whose path is this one's, then the tags."""
        return self._changed(path=self.path + tuple(map(_tag, tags)))

    def at(self, step: int) -> "Key":
        """The same stream at another step."""
        return Key(self.seed, self.path, step, self.k)

    def using(self, k: "Kernels | None") -> "Key":
        """The same stream, made by another backend."""
        return self._changed(k=k)

    def _changed(self, **fields: object) -> "Key":
        # As dataclasses.replace, without checking again what was checked: keys are made often.
        key = object.__new__(Key)
        key.__dict__.update(self.__dict__)
        key.__dict__.update(fields)
        return key

    def static(self) -> int:
        """The 64-bit hash of the path (blake2b); the step has no part in it."""
        return _static(self.seed, self.path)

    def words(self, n: int) -> np.ndarray:
        """Random words, uint32 (n,)."""
        draw = words if self.k is None else self.k.random_words
        return draw(self.static(), self.step, n)

    def uniform(self, shape: Shape, dtype=np.float32) -> np.ndarray:
        """Uniform numbers in [0, 1)."""
        draw = uniform if self.k is None else self.k.uniform
        return draw(self.static(), self.step, shape, dtype)

    def normal(self, shape: Shape, dtype=np.float32) -> np.ndarray:
        """Standard normal numbers."""
        draw = normal if self.k is None else self.k.normal
        return draw(self.static(), self.step, shape, dtype)

    def sobol(self, points: int, rows: int, n: int, dtype=np.float32) -> np.ndarray:
        """Standard normal numbers that fill n dimensions more evenly than independent ones.

        The first ``points`` Sobol points, a power of 2, through the inverse normal distribution.
        Each row gets them with a random digital shift of its own, by which every number is as
        good as normal, and rows are independent; the points of one row are not.

        Returns
        -------
        ndarray, shape (points, rows, n)

        References
        ----------
        Sobol' (1967), USSR Comput. Math. Math. Phys. 7(4); directions of Joe, Kuo (2008), SIAM J.
        Sci. Comput. 30(5).  Digital shift: L'Ecuyer, Lemieux (2002), "Recent advances in
        randomized quasi-Monte Carlo methods", sec. 2.
        """
        from fflearn.kernels.reference import Kernels  # which imports this module

        k = self.k or Kernels()
        shift = self.words(rows * n).reshape(rows, n)
        bits = k.constant(sobol_bits(points, n)[:, None]) ^ shift
        return k.ndtri((bits + 0.5) * scalars.WORD_UNIT).astype(real(dtype))

    def rademacher(self, shape: Shape, dtype=np.float32) -> np.ndarray:
        """-1 or +1 with equal probability: element i is bit i % 32 of word i // 32."""
        n = size(shape)
        octets = self.words(-(-n // 32)).astype("<u4", copy=False).view(np.uint8)
        bits = np.unpackbits(octets, bitorder="little")[:n].astype(real(dtype))
        return (2 * bits - 1).reshape(shape)

    def integers(self, high: int, shape: Shape) -> np.ndarray:
        """Integers in [0, high), int64: (w * high) >> 32, so a bias of at most high / 2**32."""
        if not 0 < high <= 1 << 32:
            raise ValueError(f"Key.integers needs high in [1, 2**32]; got {high}.")
        w = self.words(size(shape)).astype(np.uint64)
        return ((w * np.uint64(high)) >> scalars.HALF).astype(np.int64).reshape(shape)

    def permutation(self, n: int) -> np.ndarray:
        """A random order of 0 .. n - 1, int64 (n,): the stable argsort of n 64-bit draws."""
        draws = self.words(2 * n).astype("<u4", copy=False).view("<u8")
        return np.argsort(draws, kind="stable")
