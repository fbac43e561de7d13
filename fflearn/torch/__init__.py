"""The same networks in PyTorch.  Every other module of this folder imports torch at the top."""

from __future__ import annotations

from typing import Any

from fflearn.errors import MissingExtra


def required(what: str) -> Any:
    """The package torch, for ``what``.

    Raises
    ------
    MissingExtra
        It is not installed; the message says what to type.
    """
    try:
        import torch
    except ImportError as e:
        raise MissingExtra.of("torch", "torch", what) from e
    return torch
