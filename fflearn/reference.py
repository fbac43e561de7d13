"""The reference path: the same network trained by PyTorch's autograd, from the same weights.

It is the outside witness that our backpropagation is right, and the yardstick of `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.base import Batch, Env, Key, Ledger, Update
from fflearn.engine import Engine
from fflearn.errors import MissingExtra, SpecError
from fflearn.kernels.reference import EPS
from fflearn.networks import Network
from fflearn.optim import Optimizer
from fflearn.state import State


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
    net, in_shape, n_classes, optimizer, objective, dtype, threads, horizon
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
    ):
        self._torch = _torch()
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
        )
        self.net, self.rule, self.specs = twin.net, twin.rule, twin.specs
        self.in_shape = twin.in_shape
        self.out_shape, self.n_classes, self.dtype = twin.out_shape, n_classes, dtype
        self.threads, self.given, self.backend = threads, twin.given, "torch"
        self.optimizer, self.objective = twin.optimizer, twin.objective
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
        with self._running():
            optimizer.zero_grad()
            loss = self._loss_of(params, state, batch)
            loss.backward()
            optimizer.step()
        state.step += 1
        return {"loss": loss.detach().numpy()}, self._counted[program]

    def updates(self, state: State, batch: Batch) -> list[Update]:
        """The gradient of every layer, without changing the state."""
        params, optimizer = self._bind(state)
        with self._running():
            optimizer.zero_grad()
            self._loss_of(_apart(params), state, batch).backward()
        found = [
            Update({n: t.grad.numpy().copy() for n, t in p.items() if t.requires_grad})
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
        with self._running(), self._torch.no_grad():
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
        x, y, side, weight = self._twin._checked_batch(batch)
        env = Env(side, Key(state.seed).at(state.step).fold("step", "env"), True)
        output = self._output(params, self._tensor(x), env)
        loss = self._loss(self._torch, output, self._tensor(y))
        if weight is None:
            return loss.mean()
        return (self._tensor((weight / weight.sum()).astype(self.dtype)) * loss).sum()

    def _output(self, params: list[dict[str, Any]], x: Any, env: Env) -> Any:
        return _through(self._torch, self.net.nodes, self.net.leaves, params, x, env)

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
    def _running(self) -> Iterator[None]:
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


def _torch() -> Any:
    try:
        import torch
    except ImportError as e:
        raise MissingExtra.of("torch", "torch", "the rule 'torch'") from e
    return torch


def _known(table: Mapping[str, Any], kind: str, what: str) -> Any:
    if kind not in table:
        raise SpecError(
            f"the rule {registry.REFERENCE!r} has no {what} {kind!r}; it has {', '.join(table)}."
        )
    return table[kind]


# ---- layers, objectives and optimizers as torch has them ------------------------------------------


def _through(
    torch: Any, nodes: Any, layers: Any, params: list[dict[str, Any]], x: Any, env: Env
) -> Any:
    value = {-1: x}
    for i, (leaf, sources) in enumerate(nodes):
        if leaf is None:
            value[i] = value[sources[0]] + value[sources[1]]
        else:
            apply = _known(LAYERS, layers[leaf].kind, "layer")
            value[i] = apply(torch, layers[leaf], params[leaf], value[sources[0]], env.inside(leaf))
    return value[len(nodes) - 1]


def _dense(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    out = (*x.shape[: 1 + layer.places], layer.units)
    x = x.reshape(math.prod(out[:-1]), -1)
    if layer.norm != "none":
        x = _normalize(torch, x, layer.norm)
    a = x @ p["W"] if "b" not in p else torch.addmm(p["b"], x, p["W"])
    return ACTIVATIONS[layer.activation](torch, a).reshape(out)


def _block(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    own: list[dict[str, Any]] = [{} for _ in layer.leaves]
    for path, t in p.items():
        index, _, name = path.partition(".")
        own[int(index)][name] = t
    return _through(torch, layer.nodes, layer.leaves, own, x, env)


def _embed(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    # 0 x: an id has the derivative 0, which autograd would call none at all.
    return p["E"][x.detach().round().long()] + 0 * x[..., None]


def _position(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    if layer.table == "learned":
        return x + p["P"]
    places, units = x.shape[1:]
    even = 2 * torch.arange((units + 1) // 2, dtype=torch.float64)
    angle = torch.outer(torch.arange(places, dtype=torch.float64), 10000.0 ** (-even / units))
    pairs = torch.stack([angle.sin(), angle.cos()], -1).reshape(places, -1)
    return x + pairs[:, :units].to(x.dtype)


def _attention(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    def heads(of: str) -> Any:
        return affine(x, of).unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    def affine(x: Any, of: str) -> Any:
        return torch.nn.functional.linear(x, p[f"W{of}"].T, p.get(f"b{of}"))

    attend = torch.nn.functional.scaled_dot_product_attention
    c = attend(heads("q"), heads("k"), heads("v"), is_causal=layer.causal)
    return affine(c.transpose(1, 2).flatten(2), "o")


def _graph_conv(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    n = x.reshape(len(x), -1)
    if layer.norm != "none":
        n = _normalize(torch, n, layer.norm)
    a = _spread(torch, env.side["adjacency"], n @ p["W"])
    return ACTIVATIONS[layer.activation](torch, a + p["b"] if "b" in p else a)


def _sage(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    n = x.reshape(len(x), -1)
    if layer.norm != "none":
        n = _normalize(torch, n, layer.norm)
    a = n @ p["W_self"] + _spread(torch, env.side["neighbours"], n @ p["W_neigh"])
    return ACTIVATIONS[layer.activation](torch, a + p["b"] if "b" in p else a)


def _spread(torch: Any, matrix: Any, rows: Any) -> Any:
    """matrix @ rows; torch's own sparse tensors have no storage that could be counted."""
    coo = matrix.tocoo()
    to, source = (torch.from_numpy(at.astype(np.int64)) for at in (coo.row, coo.col))
    sent = torch.from_numpy(coo.data).to(rows.dtype)[:, None] * rows[source]
    return torch.zeros_like(rows).index_add(0, to, sent)


def _recurrent(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    cell, zx, found = CELLS[layer.kind], x @ p["Wx"] + p["b"], []
    h = c = x.new_zeros(len(x), layer.units)
    for at in range(x.shape[1]):
        if layer.credit == "step":
            h, c = h.detach(), c.detach()
        seen = h.detach() if layer.credit == "eprop" else h
        zh = seen @ p["Wh"]
        if layer.credit == "eprop" and zh.shape == h.shape:  # a self-connection is an own path
            zh = zh + (h - seen) * p["Wh"].diagonal().detach()
        h, c = cell(torch, layer, zx[:, at], zh, h, c)
        found.append(h)
    return h if layer.last else torch.stack(found, 1)


def _rnn(torch: Any, layer: Any, zx: Any, zh: Any, h: Any, c: Any) -> Any:
    return ACTIVATIONS[layer.activation](torch, zx + zh), c


def _gru(torch: Any, layer: Any, zx: Any, zh: Any, h: Any, c: Any) -> Any:
    (xr, xu, xn), (hr, hu, hn) = zx.chunk(3, 1), zh.chunk(3, 1)
    u = torch.sigmoid(xu + hu)
    return (1 - u) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + u * h, c


def _lstm(torch: Any, layer: Any, zx: Any, zh: Any, h: Any, c: Any) -> Any:
    i, f, g, o = (zx + zh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _conv(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    if layer.norm != "none":
        x = _normalize(torch, x.flatten(1), layer.norm).reshape(x.shape)
    a = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2),
        p["W"].permute(3, 2, 0, 1),
        p.get("b"),
        layer.stride,
        layer.kernel // 2 if layer.padding == "same" else int(layer.padding),
        groups=layer.groups,
    )
    return ACTIVATIONS[layer.activation](torch, a.permute(0, 2, 3, 1))


def _act(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    return ACTIVATIONS[layer.activation](torch, x)


def _max_pool(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    pool = torch.nn.functional.max_pool2d
    return pool(x.permute(0, 3, 1, 2), layer.size, layer.stride or None).permute(0, 2, 3, 1)


def _avg_pool(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    if not layer.size:
        return x.flatten(1, -2).mean(1)
    pool = torch.nn.functional.avg_pool2d
    return pool(x.permute(0, 3, 1, 2), layer.size, layer.stride or None).permute(0, 2, 3, 1)


def _dropout(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    mask = layer.mask(x, env)  # the same key as ours: the same mask
    return x if mask is None else torch.where(torch.from_numpy(mask), x / (1 - layer.rate), 0)


def _batch_norm(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    """In training it moves the buffers in place, as torch does: `_apart` guards the state."""
    moving = p["mean"].detach(), p["var"].detach()
    rows = x.reshape(-1, x.shape[-1])
    a = torch.batch_norm(rows, p["g"], p["b"], *moving, env.train, 0.1, layer.eps, False)
    return ACTIVATIONS[layer.activation](torch, a.reshape(x.shape))


def _layer_norm(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    a = torch.nn.functional.layer_norm(x, x.shape[-1:], p["g"], p["b"], layer.eps)
    return ACTIVATIONS[layer.activation](torch, a)


def _rms_norm(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    a = p["g"] * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + layer.eps)
    return ACTIVATIONS[layer.activation](torch, a)


def _group_norm(torch: Any, layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    norm = torch.nn.functional.group_norm
    a = norm(x.movedim(-1, 1), layer.groups, p["g"], p["b"], layer.eps).movedim(1, -1)
    return ACTIVATIONS[layer.activation](torch, a)


def _normalize(torch: Any, x: Any, kind: str) -> Any:
    squares = (x * x).sum(-1, keepdim=True)
    if kind == "rms":
        squares = squares / x.shape[-1]
    live = squares > 0  # the root has no derivative at 0; a row of zeros gets none, as in ours
    radius = torch.where(live, squares, 1).sqrt()
    return torch.where(live, x / (radius + EPS), 0)


def _hardsigmoid(torch: Any, a: Any) -> Any:
    return torch.nn.functional.hardtanh(a, 0.0, 1.0)  # 0 at both kinks; clamp would give 1


def _softmax_cross_entropy(torch: Any, y: Any, t: Any) -> Any:
    if t.shape != y.shape:  # ids
        t = torch.nn.functional.one_hot(t, y.shape[-1])
    loss = -(t * torch.log_softmax(y, -1)).sum(-1)
    return loss.flatten(1).mean(1) if loss.ndim > 1 else loss


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
CELLS: dict[str, Function] = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}
LAYERS: dict[str, Function] = {
    **{kind: _recurrent for kind in CELLS},
    "act": _act,
    "attention": _attention,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "block": _block,
    "conv": _conv,
    "dense": _dense,
    "dropout": _dropout,
    "embed": _embed,
    "flatten": lambda torch, layer, p, x, env: x.flatten(1),
    "graph_conv": _graph_conv,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "position": _position,
    "rms_norm": _rms_norm,
    "sage": _sage,
}
ACTIVATIONS: dict[str, Function] = {
    "relu": lambda torch, a: torch.relu(a),
    "tanh": lambda torch, a: torch.tanh(a),
    "sigmoid": lambda torch, a: torch.sigmoid(a),
    "hardsigmoid": _hardsigmoid,
    "gelu": lambda torch, a: torch.nn.functional.gelu(a),
    "identity": lambda torch, a: a,
}
LOSSES: dict[str, Function] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "mse": _mse,
    "binary_cross_entropy": _bce,
}
OPTIMIZERS: dict[str, Function] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
# Our slot "m.W" holds torch's "momentum_buffer" or "exp_avg" of W.
_ADAM = {"m": "exp_avg", "v": "exp_avg_sq"}
MOMENTS = {"sgd": {"m": "momentum_buffer"}, "adam": _ADAM, "adamw": _ADAM}
