"""A training step as PyTorch's users write it: the yardstick of time and memory.

`fflearn.reference` is the yardstick of numbers; it checks and counts in every step, which would
flatter the rules here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.layers.dense import Dense
from fflearn.optim import Adam
from fflearn.state import State

MISSING = "PyTorch is not installed, so there are no ratios to it: pip install fflearn[torch]"


def available() -> bool:
    """Whether PyTorch is installed."""
    return find_spec("torch") is not None


def autograd_step(engine: Engine, state: State, batch: Batch) -> tuple[Callable[[], Any], Any]:
    """A step of backpropagation on an engine's network, and the model that it trains.

    Parameters
    ----------
    engine : Engine
        Its network must be a chain of dense layers without norm; Adam and SGD have the engine's
        settings and PyTorch's fastest form ("fused").
    state : State
        The initial weights; they are copied.
    """
    import torch

    if not chain(engine):
        raise ValueError(f"autograd_step needs a chain of dense layers; got {engine.net.spec()}")
    acts = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid}
    acts |= {"identity": torch.nn.Identity, "gelu": torch.nn.GELU}
    modules: list[Any] = []
    for layer, p in zip(engine.net.leaves, state.params, strict=True):
        linear = torch.nn.Linear(*p["W"].shape, bias=layer.bias, dtype=getattr(torch, engine.dtype))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(p["W"].T))
            if layer.bias:
                linear.bias.copy_(torch.from_numpy(p["b"]))
        modules += (
            [linear] if layer.activation == "identity" else [linear, acts[layer.activation]()]
        )
    model = torch.nn.Sequential(*modules)
    o = engine.optimizer
    if isinstance(o, Adam):
        own = {"betas": (o.beta1, o.beta2), "eps": o.eps}
        optimizer: Any = torch.optim.Adam(model.parameters(), o.lr, fused=True, **own)
    else:
        optimizer = torch.optim.SGD(model.parameters(), o.lr, o.momentum, fused=True)
    x, labels = torch.from_numpy(batch.x), torch.from_numpy(batch.y.argmax(axis=1))

    def step() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    torch.set_num_threads(engine.threads)
    return step, model


def chain(engine: Engine) -> bool:
    """Whether the network is dense layers without norm, one after the other."""
    plain = all(isinstance(a, Dense) and a.norm == "none" for a in engine.net.leaves)
    return plain and len(engine.net.nodes) == len(engine.net.leaves)
