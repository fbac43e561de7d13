"""Random numbers, by Philox: the draws of `fflearn.random`, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from fflearn import random
from fflearn.gpu.arrays import Arrays
from fflearn.kernels import scalars
from fflearn.kernels.reference import Array

philox = register_jitable(scalars.philox)
unit32 = register_jitable(scalars.unit32)
unit64 = register_jitable(scalars.unit64)


@register_jitable
def block_words(block, static, step):
    """The four words of a block."""
    return philox(
        block & scalars.LOW,
        block >> scalars.HALF,
        step & scalars.LOW,
        step >> scalars.HALF,
        static & scalars.LOW,
        static >> scalars.HALF,
    )


@register_jitable
def box_muller(w0, w1):
    """Two normal numbers from two words, in float64: see `fflearn.random.normal`."""
    radius = math.sqrt(-2.0 * math.log((np.float64(w0) + 1.0) * scalars.WORD_UNIT))
    angle = scalars.TWO_PI * (np.float64(w1) * scalars.WORD_UNIT)
    return radius * math.cos(angle), radius * math.sin(angle)


def kernels(real: Any) -> dict[str, tuple[Callable[..., None], str]]:
    """As `fflearn.gpu.table.kernels`."""

    def words(static, counter, out, n):
        for block in range(cuda.grid(1), (n + 3) // 4, cuda.gridsize(1)):
            w = block_words(np.uint64(block), static, counter[0])
            for j in range(4):
                if 4 * block + j < n:
                    out[4 * block + j] = w[j]

    def uniform(static, counter, out, n):
        if real is np.float32:
            for block in range(cuda.grid(1), (n + 3) // 4, cuda.gridsize(1)):
                w = block_words(np.uint64(block), static, counter[0])
                for j in range(4):
                    if 4 * block + j < n:
                        out[4 * block + j] = unit32(w[j])
        else:
            for block in range(cuda.grid(1), (n + 1) // 2, cuda.gridsize(1)):
                w = block_words(np.uint64(block), static, counter[0])
                out[2 * block] = unit64(w[0], w[1])
                if 2 * block + 1 < n:
                    out[2 * block + 1] = unit64(w[2], w[3])

    def normal(static, counter, out, n):
        for block in range(cuda.grid(1), (n + 3) // 4, cuda.gridsize(1)):
            w = block_words(np.uint64(block), static, counter[0])
            for pair in range(2):
                at = 4 * block + 2 * pair
                if at < n:
                    first, second = box_muller(w[2 * pair], w[2 * pair + 1])
                    out[at] = first
                    if at + 1 < n:
                        out[at + 1] = second

    return {
        "words": (words, "uUWi"),
        "uniform": (uniform, "uUpi"),
        "normal": (normal, "uUpi"),
    }


class Draws(Arrays):
    """Methods of `Kernels` that launch these."""

    def random_words(self, static: int, step: Any, n: int) -> Array:
        return self._draw("words", static, step, n, np.dtype(np.uint32))

    def uniform(self, static: int, step: Any, shape: random.Shape, dtype=np.float32) -> Array:
        return self._draw("uniform", static, step, shape, random.real(dtype))

    def normal(self, static: int, step: Any, shape: random.Shape, dtype=np.float32) -> Array:
        return self._draw("normal", static, step, shape, random.real(dtype))

    def _draw(self, kernel: str, static: int, step: Any, shape: Any, dtype: np.dtype) -> Array:
        counter = step if hasattr(step, "dtype") else self.asarray(np.array([step], np.uint64))
        out = self.xp.empty(shape, dtype)
        real = np.float64 if dtype == np.float64 else np.float32
        self._each(kernel, out, static, counter, out, out.size, real=real)
        return out
