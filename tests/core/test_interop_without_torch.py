"""Where PyTorch is not installed, `fflearn.interop` says what to type."""

from __future__ import annotations

import sys

import pytest

from fflearn import interop
from fflearn.errors import MissingExtra


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (interop.to_torch, ("dense 3", [], (4,))),
        (interop.from_torch, (None, (4,))),
        (interop.load_torch, ("dense 3", [], (4,), None, None)),
    ],
)
def test_without_torch_it_says_what_to_type(monkeypatch, function, arguments):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r'fflearn\.interop needs torch.*"fflearn\[torch\]"'):
        function(*arguments)
