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
        Adam and SGD have its settings and PyTorch's fastest form ("fused").
    state : State
        The initial weights; a chain of dense layers gets a copy of them.
    """
    import torch

    model = dense_chain(engine, state) if chain(engine) else built(engine)
    o = engine.optimizer
    if isinstance(o, Adam):
        own = {"betas": (o.beta1, o.beta2), "eps": o.eps}
        optimizer: Any = torch.optim.Adam(model.parameters(), o.lr, fused=True, **own)
    else:
        optimizer = torch.optim.SGD(model.parameters(), o.lr, o.momentum, fused=True)
    x, labels = torch.from_numpy(batch.x), torch.from_numpy(batch.y.argmax(axis=1))
    if x.ndim == 4:  # images: our memory is what PyTorch calls channels-last
        x = x.permute(0, 3, 1, 2)

    def step() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    torch.set_num_threads(engine.threads)
    return step, model


def dense_chain(engine: Engine, state: State) -> Any:
    """A chain of dense layers as modules, with the same weights."""
    import torch

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
    return torch.nn.Sequential(*modules)


def built(engine: Engine) -> Any:
    """Any network as modules, channels-last, with weights of its own."""
    import torch

    from fflearn.torch.build import build

    model, _, _ = build(engine.net, engine.in_shape, engine.dtype)
    return model.to(memory_format=torch.channels_last)


def chain(engine: Engine) -> bool:
    """Whether the network is dense layers without norm, one after the other."""
    plain = all(isinstance(a, Dense) and a.norm == "none" for a in engine.net.leaves)
    return plain and len(engine.net.nodes) == len(engine.net.leaves)
