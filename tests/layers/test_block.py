"""Several layers as one."""

from __future__ import annotations

import numpy as np

from fflearn.base import Key
from fflearn.layers.block import Block
from fflearn.layers.dense import Dense
from fflearn.topology import Sequential


def test_equal_layers_of_a_block_start_unlike():
    p = Block(Sequential((Dense(7, "tanh"), Dense(7, "tanh")))).init(Key(0), (7,), np.float64)
    assert not np.isclose(p["0.W"], p["1.W"]).any()
