"""The embedding: a learned vector for each id of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import DataError, SpecError
from fflearn.layers import Layer


@dataclass(frozen=True)
class Embed(Layer):
    """``y[..., :] = E[id]``: ids (B, *places) -> (B, *places, units).

    Ids come as floats, because a network's input has the network's dtype; whole numbers are exact
    in float32 up to 2^24.  An id has no derivative: the message down is 0.

    Parameters
    ----------
    vocab : int
        Number of ids, 0 .. vocab - 1.
    units : int
        Length of each vector.
    std : float
        Standard deviation of the initial E (vocab, units).  1 is the size of what layers with
        unit-variance weights add to it; the 0.02 of Radford et al. (2019) goes with layers that
        start as small.

    Raises
    ------
    DataError
        An id outside the vocabulary, when it is met.
    """

    vocab: int
    units: int
    std: float = 1.0

    kind: ClassVar[str] = "embed"
    weights: ClassVar[tuple[str, ...]] = ("E",)
    words: ClassVar[tuple[str, ...]] = ("vocab", "units")

    def __post_init__(self) -> None:
        for name in self.words:
            n = getattr(self, name)
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise SpecError(f"embed needs a positive {name}; got {n!r}. Type embed 65 128")
        if not self.std > 0:
            raise SpecError(f"embed needs a std above 0; got {self.std!r}. Leave std out.")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        return [(cls(5, 3), (4,)), (cls(3, 4, std=0.5), (2, 3))]

    def example_batch(
        self, rng: Any, rows: int, in_shape: tuple[int, ...]
    ) -> tuple[Any, dict[str, Any]]:
        return rng.integers(self.vocab, size=(rows, *in_shape)).astype(np.float64), {}

    @property
    def linear(self) -> bool:
        return False

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*in_shape, self.units)

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        drawn = key.fold("E").normal((self.vocab, self.units), dtype) * self.std
        return {"E": drawn.astype(dtype, copy=False)}

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        return {"E": self.std}

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        ids = np.rint(x).astype(np.int64)
        # A negative index would silently count from the end of the table.
        ids = np.where(ids < 0, self.vocab, ids)
        try:
            a = np.take(p["E"], ids, axis=0)
        except IndexError:
            raise DataError(
                f"{self.spec()!r} needs ids in 0 .. {self.vocab - 1}; got {x.min():g} .. "
                f"{x.max():g}. Type embed N {self.units}, with N the size of the vocabulary."
            ) from None
        if noise is not None:
            a = a + noise
        return Trace(x, a, a, p, ids)

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        total = k.sum_by_id(t.inner.reshape(-1), da.reshape(-1, self.units), self.vocab)
        return {"E": total / len(da)}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        return np.zeros_like(t.x)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        return dp["E"][t.inner] if "E" in dp else np.zeros_like(t.y)
