"""The reference path: the same network trained by PyTorch's autograd, from the same weights.

It is the outside witness that our backpropagation is right, and the yardstick of `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.base import Batch, Env, Key, Ledger, Update
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.networks import Network
from fflearn.optim import Optimizer
from fflearn.state import State
from fflearn.torch import required


def describe() -> dict[str, Any]:
    """What `fflearn rules --json` says of this path; the keys of `registry.describe`."""
    return {
        **registry.describe("backprop"),
        "name": registry.REFERENCE,
        "kind": "reference",
        "summary": "Backpropagation by PyTorch's autograd: the reference for every rule.",
        "short": [],
        "citation": "Paszke et al. (2019), arXiv:1912.01703",
    }


class TorchEngine:
    """Trains a network by PyTorch autograd, with the interface of `fflearn.engine.Engine`.

    The state is the one our own backpropagation would start from, and torch's tensors share its
    memory: parameters and moments can be saved, restored and resumed as everywhere else.

    Parameters
    ----------
    net, in_shape, n_classes, optimizer, objective, dtype, threads, horizon, task
        As of `Engine`.

    Raises
    ------
    MissingExtra
        PyTorch is not installed.
    SpecError
        A layer, objective or optimizer that has no counterpart here.

    Notes
    -----
    The ledger's channels are those of our backpropagation on the same network.  Its
    ``peak_bytes`` is measured: what autograd saves for the backward pass (every storage once,
    parameters left out), plus the gradients; both are alive when the backward pass ends at the
    input.  Transient buffers inside an operation are not seen.
    """

    def __init__(
        self,
        net: Network | str | list[Any],
        in_shape: tuple[int, ...],
        n_classes: int,
        optimizer: Optimizer | None = None,
        objective: Any = "softmax_cross_entropy",
        dtype: str = "float32",
        threads: int = 1,
        horizon: tuple[int, int] | None = None,
        task: str = "classification",
    ):
        self._torch = required(f"the rule {registry.REFERENCE!r}")
        from fflearn.torch.layers import through

        self._through = through
        # Only draws the first weights, checks, and counts; the slow kernels do for that.
        self._twin = twin = Engine(
            net,
            registry.rule("backprop"),
            in_shape,
            n_classes,
            optimizer,
            objective,
            "reference",
            dtype,
            threads,
            horizon,
            task,
        )
        self.net, self.rule, self.specs = twin.net, twin.rule, twin.specs
        self.in_shape = twin.in_shape
        self.out_shape, self.n_classes, self.dtype = twin.out_shape, n_classes, dtype
        self.threads, self.given, self.backend = threads, twin.given, "torch"
        self.optimizer, self.objective, self.task = twin.optimizer, twin.objective, task
        self.settings_at = twin.settings_at
        self._loss = _known(LOSSES, self.objective.kind, "objective")
        self._new_optimizer = _known(OPTIMIZERS, self.optimizer.name, "optimizer")
        self._counted: dict[Any, Ledger] = {}
        self._bound: tuple[State, list[dict[str, Any]], Any] | None = None

    @property
    def horizon(self) -> tuple[int, int] | None:
        """Steps per epoch and epochs, for schedules."""
        return self._twin.horizon

    @horizon.setter
    def horizon(self, value: tuple[int, int] | None) -> None:
        self._twin.horizon = value

    def init(self, seed: int) -> State:
        """The state `Engine` would start backpropagation from."""
        return self._twin.init(seed)

    def step(self, state: State, batch: Batch) -> tuple[dict[str, Any], Ledger]:
        """Learn from one batch: changes ``state`` in place; returns info and ledger."""
        program = (np.shape(batch.x), batch.weight is None)
        if program not in self._counted:
            self._counted[program] = self._count(state, batch)
        _, lr, weight_decay = self._twin.settings_at(state.step)
        params, optimizer = self._bind(state)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, weight_decay
        for of_one in optimizer.state.values():
            if "step" in of_one:
                of_one["step"].fill_(state.step)
        with self.running():
            optimizer.zero_grad()
            loss = self._loss_of(params, state, batch)
            loss.backward()
            optimizer.step()
        state.step += 1
        return {"loss": loss.detach().numpy()}, self._counted[program]

    def updates(self, state: State, batch: Batch) -> list[Update]:
        """The gradient of every layer, without changing the state."""
        params, optimizer = self._bind(state)
        with self.running():
            optimizer.zero_grad()
            self._loss_of(_apart(params), state, batch).backward()
        # A block's head is no part of the output, and has no gradient.
        found = [
            Update({n: t.grad.numpy().copy() for n, t in p.items() if t.grad is not None})
            for p in params
        ]
        optimizer.zero_grad()
        return found

    def predict(
        self,
        state: State,
        x: Any,
        by: str = "",
        rows: int = 1000,
        side: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Scores (N, *net_out) for samples (N, *in)."""
        if by not in ("", *self.rule.predictors):
            raise SpecError(f"{by!r} is no way to predict here; known: {self.rule.predictors}.")
        x, (params, _) = self._twin._checked_x(x), self._bind(state)
        env, rows = Env(side or {}, None, False), len(x) if side else rows
        with self.running(), self._torch.no_grad():
            parts = [
                self._output(params, self._tensor(x[i : i + rows]), env).numpy()
                for i in range(0, len(x), rows)
            ]
        return np.concatenate(parts)

    # -- inside ----------------------------------------------------------------------------------
    def _bind(self, state: State) -> tuple[list[dict[str, Any]], Any]:
        """Tensors and an optimizer on the memory of ``state``, made once for a run."""
        if self._bound is None or self._bound[0] is not state:
            params = [
                {
                    n: self._torch.from_numpy(a).requires_grad_(n not in layer.buffers)
                    for n, a in slots.items()
                }
                for slots, layer in zip(state.params, self.net.leaves, strict=True)
            ]
            flat = [t for p in params for t in p.values() if t.requires_grad]
            optimizer = self._new_optimizer(self._torch, flat, self.optimizer)
            for p, opt in zip(params, state.opt, strict=True):
                for name, t in p.items():
                    moments = {
                        MOMENTS[self.optimizer.name][slot[0]]: self._torch.from_numpy(a)
                        for slot, a in opt.items()
                        if slot[2:] == name
                    }
                    if "exp_avg" in moments:
                        moments["step"] = self._torch.tensor(0.0)
                    if moments:
                        optimizer.state[t] = moments
            self._bound = state, params, optimizer
        return self._bound[1], self._bound[2]

    def _loss_of(self, params: list[dict[str, Any]], state: State, batch: Batch) -> Any:
        """The (weighted) batch mean of the loss."""
        x, y, side, weight = self._twin.checked_batch(batch)
        env = Env(side, Key(state.seed).at(state.step).fold("step", "env"), True)
        output = self._output(params, self._tensor(x), env)
        loss = _over_places(self._torch, self._loss, output, self._tensor(y))
        if weight is None:
            return loss.mean()
        return (self._tensor((weight / weight.sum()).astype(self.dtype)) * loss).sum()

    def _output(self, params: list[dict[str, Any]], x: Any, env: Env) -> Any:
        return self._through(self.net.nodes, self.net.leaves, params, x, env)

    def _count(self, state: State, batch: Batch) -> Ledger:
        own = {a.ctypes.data for a in state.arrays().values()}
        saved: dict[int, int] = {}

        def pack(t: Any) -> Any:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return t

        _, counted = self._twin.step(state.copy(), batch)
        params, _ = self._bind(state)
        with self._torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            self._loss_of(_apart(params), state, batch)
        gradients = sum(t.nbytes for p in params for t in p.values() if t.requires_grad)
        return replace(counted, peak_bytes=sum(saved.values()) + gradients)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context for many steps, as `Engine.running`."""
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _tensor(self, a: np.ndarray) -> Any:
        # torch warns of read-only memory, although nothing here writes to a batch.
        return self._torch.from_numpy(a if a.flags.writeable else a.copy())


def _apart(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same parameters with copies of the buffers, which a forward in training moves."""
    return [{n: t if t.requires_grad else t.clone() for n, t in p.items()} for p in params]


def _known(table: Mapping[str, Any], kind: str, what: str) -> Any:
    if kind not in table:
        raise SpecError(
            f"the rule {registry.REFERENCE!r} has no {what} {kind!r}; it has {', '.join(table)}."
        )
    return table[kind]


# ---- objectives and optimizers as torch has them ---------------------------------------------------


def _over_places(torch: Any, core: Function, y: Any, t: Any) -> Any:
    """The mean of ``core`` over each sample's places, as of `objectives.over_places`: (B,)."""
    if t.shape != y.shape:  # ids
        t = torch.nn.functional.one_hot(t, y.shape[-1]).to(y.dtype)
    loss = core(torch, y, t)
    return loss.flatten(1).mean(1) if loss.ndim > 1 else loss


def _softmax_cross_entropy(torch: Any, y: Any, t: Any) -> Any:
    return -(t * torch.log_softmax(y, -1)).sum(-1)


def _mse(torch: Any, y: Any, t: Any) -> Any:
    return 0.5 * ((y - t) ** 2).sum(-1)


def _bce(torch: Any, y: Any, t: Any) -> Any:
    loss = torch.nn.functional.binary_cross_entropy_with_logits(y, t, reduction="none")
    return loss.sum(-1)


def _sgd(torch: Any, params: Any, o: Any) -> Any:
    return torch.optim.SGD(params, lr=o.lr, momentum=o.momentum)


def _adam(torch: Any, params: Any, o: Any) -> Any:
    return torch.optim.Adam(params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps)


def _adamw(torch: Any, params: Any, o: Any) -> Any:
    return torch.optim.AdamW(params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps)


Function = Callable[..., Any]
LOSSES: dict[str, Function] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "mse": _mse,
    "binary_cross_entropy": _bce,
}
OPTIMIZERS: dict[str, Function] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
# Our slot "m.W" holds torch's "momentum_buffer" or "exp_avg" of W.
_ADAM = {"m": "exp_avg", "v": "exp_avg_sq"}
MOMENTS = {"sgd": {"m": "momentum_buffer"}, "adam": _ADAM, "adamw": _ADAM}
