"""Group normalisation: a group of channels of one sample shares mean and variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fflearn.errors import ShapeError, SpecError
from fflearn.layers import Layer
from fflearn.layers.layer_norm import LayerNorm


@dataclass(frozen=True)
class GroupNorm(LayerNorm):
    """As `LayerNorm`, mean and variance over all places and the channels of one group.

    Batch normalisation's stand-in where samples must not see each other.

    Parameters
    ----------
    groups : int
        Parts into which the channels are divided; 1 normalises the whole sample.
    each_place : bool
        Whether every place has a mean and a variance of its own, as in `LayerNorm`.

    References
    ----------
    Wu, He (2018), "Group normalization", arXiv:1803.08494, eq. 7.
    """

    groups: int = 8
    each_place: bool = False

    kind: ClassVar[str] = "group_norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1:
            raise SpecError(f"group_norm needs groups to be 1 or more; got {self.groups!r}.")

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        images = [(cls("tanh", groups=2), (3, 2, 6)), (cls(groups=1), (2, 2, 3))]
        images += [(cls(affine=False, groups=2, each_place=True), (3, 2, 6))]
        return [*images, (cls("relu", groups=3), (9,))]

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if super().out_shape(in_shape)[-1] % self.groups:
            raise ShapeError(
                f"{self.spec()!r} needs channels that divide into {self.groups} groups; its input "
                f"has {in_shape[-1]}. Change groups."
            )
        return in_shape

    def keeps_apart(self, in_shape: tuple[int, ...]) -> tuple[bool, int]:
        return self.each_place, self.groups

    def _rows(self, x: Any) -> Any:
        """(B, *places, C) -> (B groups, places C / groups), or (B places groups, C / groups)."""
        if self.each_place:
            return x.reshape(-1, x.shape[-1] // self.groups)
        apart = x.reshape(len(x), -1, self.groups, x.shape[-1] // self.groups)
        return apart.swapaxes(1, 2).reshape(len(x) * self.groups, -1)

    def _shaped(self, rows: Any, shape: tuple[int, ...]) -> Any:
        if self.each_place:
            return rows.reshape(shape)
        apart = rows.reshape(shape[0], self.groups, -1, shape[-1] // self.groups)
        return apart.swapaxes(1, 2).reshape(shape)
