"""What a network needs and `torch.nn` has no module for; each is a few lines around what it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fflearn.base import Env
from fflearn.torch.layers import apply, normalize


class Own(nn.Module):
    """A layer of fflearn with its own arrays, for what torch.nn does not have.

    Parameters
    ----------
    layer : Layer
    arrays : mapping of str to Tensor
        Its parameters by name, in our layout.

    Notes
    -----
    What the layer reads besides x is given by name: ``module(x, adjacency=A)``, A (N, N) a
    tensor, dense or sparse.
    """

    def __init__(self, layer: Any, arrays: dict[str, torch.Tensor]):
        super().__init__()
        self.layer = layer
        for name, t in arrays.items():
            if name in layer.buffers:
                self.register_buffer(name, t)
            else:
                self.register_parameter(name, nn.Parameter(t))

    def forward(self, x: torch.Tensor, **side: Any) -> torch.Tensor:
        p = dict(self.named_parameters()) | dict(self.named_buffers())
        return apply(self.layer, p, x, Env(side, None, self.training))

    def extra_repr(self) -> str:
        return self.layer.spec()


class Chain(nn.Sequential):
    """As nn.Sequential; what comes besides x goes to every `Own` in it."""

    def forward(self, x: torch.Tensor, **side: Any) -> torch.Tensor:  # type: ignore[override]
        for module in self:
            x = _call(module, x, side)
        return x


class Block(Chain):
    """A ``block(...)``: for torch a chain, for fflearn one unit of locality."""


class Residual(nn.Module):
    """``body(x) + skip(x)``."""

    def __init__(self, body: nn.Module, skip: nn.Module):
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x: torch.Tensor, **side: Any) -> torch.Tensor:
        return _call(self.body, x, side) + _call(self.skip, x, side)


def _call(module: nn.Module, x: torch.Tensor, side: dict[str, Any]) -> torch.Tensor:
    return module(x, **side) if isinstance(module, Own | Chain | Residual) else module(x)


class MoveDim(nn.Module):
    """Channels to the front, (-1, 1), or to the back, (1, -1)."""

    def __init__(self, source: int, destination: int):
        super().__init__()
        self.source, self.destination = source, destination

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(self.source, self.destination)

    def extra_repr(self) -> str:
        return f"{self.source}, {self.destination}"


class Normalize(nn.Module):
    """Length normalisation, "rms" or "unit": of the last axis, or of the ``whole`` sample."""

    def __init__(self, kind: str, whole: bool = False):
        super().__init__()
        self.kind, self.whole = kind, whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1) if self.whole else x
        return normalize(rows, self.kind).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{self.kind!r}, whole={self.whole}"


class Recurrent(nn.Module):
    """An nn.RNN, nn.GRU or nn.LSTM (batch first) whose output is its states, (B, T, H), or the last."""

    def __init__(self, cell: nn.RNNBase, last: bool = True):
        super().__init__()
        self.cell, self.last = cell, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.cell(x)
        return states[:, -1] if self.last else states

    def extra_repr(self) -> str:
        return f"last={self.last}"


class SelfAttention(nn.Module):
    """An nn.MultiheadAttention (batch first) of a sequence with itself, (B, T, D) -> (B, T, D)."""

    def __init__(self, attention: nn.MultiheadAttention, causal: bool = True):
        super().__init__()
        self.attention, self.causal = attention, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = None
        if self.causal:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    def extra_repr(self) -> str:
        return f"causal={self.causal}"


class Position(nn.Module):
    """Learned positions: ``x`` (B, T, D) plus the table's row for each place."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table.weight[: x.shape[1]]
