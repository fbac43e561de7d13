"""Several layers as one."""

from __future__ import annotations

import numpy as np

from fflearn import kernels
from fflearn.base import Env, Key
from fflearn.layers.block import Block
from fflearn.layers.dense import Dense
from fflearn.topology import Residual, Sequential


def test_equal_layers_of_a_block_start_unlike():
    p = Block(Sequential((Dense(7, "tanh"), Dense(7, "tanh")))).init(Key(0), (7,), np.float64)
    assert not np.isclose(p["0.W"], p["1.W"]).any()


def test_messages_of_nested_sums_are_added_by_hand():
    # y = (2 x + x) + x = 4 x, so a message of 1 becomes 4.
    inner = Residual(Sequential((Dense(1, bias=False),)))
    block, k = Block(Sequential((Residual(Sequential((inner,))),))), kernels.load("reference")
    t = block.forward(k, {"0.W": np.array([[2.0]])}, np.array([[3.0]]), Env())
    assert t.y == [[12]]
    assert block.input_vjp(k, t, np.array([[1.0]])) == [[4]]
