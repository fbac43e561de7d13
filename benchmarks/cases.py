"""What is timed and measured: steps on a network, through the Engine, in a bare loop, in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import autograd, bare
from benchmarks.timing import Turn
from fflearn import registry
from fflearn.base import Batch, Key
from fflearn.engine import Engine
from fflearn.networks import network
from fflearn.optim import optimizer

FF = "forward_forward[head=false,negatives=wrong]"  # without a head nothing has to wait


def slow(name: str) -> Any:
    """An optimizer under which the network stays as it was drawn: a step costs always the same."""
    return optimizer(name, lr=1e-7)


@dataclass(frozen=True)
class Case:
    """A network with the shape of its data, and the name of an optimizer (see `slow`)."""

    net: str
    in_shape: tuple[int, ...]
    batch: int
    optimizer: str

    @property
    def classes(self) -> int:
        """How many outputs the network has."""
        return network(self.net).leaves[-1].units

    def data(self) -> Batch:
        """Standard normal samples with random labels."""
        key = Key(0)
        labels = key.fold("y").integers(self.classes, self.batch)
        x = key.fold("x").normal((self.batch, *self.in_shape))
        return Batch(x, np.eye(self.classes, dtype=x.dtype)[labels])

    def engine(self, rule: str, threads: int = 1) -> Engine:
        """The engine of a rule, written as on the command line."""
        built, own = registry.build(registry.parse(rule)), slow(self.optimizer)
        return Engine(self.net, built, self.in_shape, self.classes, own, threads=threads)


def engine_turn(case: Case, rule: str, threads: int) -> Turn:
    """Steps through `Engine.step`."""
    engine, batch = case.engine(rule, threads), case.data()
    state = engine.init(0)

    def turn(n: int) -> None:
        with engine.running():
            for _ in range(n):
                engine.step(state, batch)

    return turn


def bare_turn(case: Case, rule: str, threads: int) -> Turn:
    """The same steps as a loop over kernels."""
    engine = case.engine(rule, threads)
    step = bare.STEPS[rule](engine, engine.init(0), case.data())

    def turn(n: int) -> None:
        with engine.kernels.running(threads):
            for _ in range(n):
                step()

    return turn


def torch_turn(case: Case, threads: int) -> Turn:
    """PyTorch's backpropagation on the same network."""
    import torch

    engine = case.engine("backprop")
    step, _ = autograd.autograd_step(engine, engine.init(0), case.data())

    def turn(n: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(n):
            step()

    return turn
