"""Every kind of layer as a function of torch's tensors, one function each; autograd does the rest.

Arrays are named and laid out as ours are: channels last, W (n_in, n_out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fflearn.base import Env
from fflearn.errors import SpecError
from fflearn.kernels.reference import EPS
from fflearn.layers.block import HEAD

Function = Callable[..., Any]


def through(nodes: Any, layers: Any, params: list[dict[str, Any]], x: Any, env: Env) -> Any:
    """The output of a network's nodes; ``params`` are by layer."""
    value = {-1: x}
    for i, (leaf, sources) in enumerate(nodes):
        if leaf is None:
            value[i] = value[sources[0]] + value[sources[1]]
        else:
            value[i] = apply(layers[leaf], params[leaf], value[sources[0]], env.inside(leaf))
    return value[len(nodes) - 1]


def apply(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    """The activity of one layer, (B, *in) -> (B, *out)."""
    return function_of(layer)(layer, p, x, env)


def function_of(layer: Any) -> Function:
    """The function of a layer's kind.

    Raises
    ------
    SpecError
        There is none here.
    """
    if layer.kind not in LAYERS:
        raise SpecError(
            f"fflearn.torch has no function for the layer {layer.spec()!r}; it has those for "
            f"{', '.join(LAYERS)}. Write one in fflearn/torch/layers.py."
        )
    return LAYERS[layer.kind]


def _dense(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    out = (*x.shape[: 1 + layer.places], layer.units)
    x = x.reshape(math.prod(out[:-1]), -1)
    if layer.norm != "none":
        x = normalize(x, layer.norm)
    a = x @ p["W"] if "b" not in p else torch.addmm(p["b"], x, p["W"])
    return ACTIVATIONS[layer.activation](a).reshape(out)


def _block(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    own: list[dict[str, Any]] = [{} for _ in layer.leaves]
    for path, t in p.items():
        index, _, name = path.partition(".")
        if index != HEAD:
            own[int(index)][name] = t
    return through(layer.nodes, layer.leaves, own, x, env)


def _embed(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    # 0 x: an id has the derivative 0, which autograd would call none at all.
    return p["E"][x.detach().round().long()] + 0 * x[..., None]


def _position(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    if layer.table == "learned":
        return x + p["P"]
    places, units = x.shape[1:]
    place = torch.arange(places, dtype=torch.float64, device=x.device)
    even = 2 * torch.arange((units + 1) // 2, dtype=torch.float64, device=x.device)
    angle = torch.outer(place, 10000.0 ** (-even / units))
    pairs = torch.stack([angle.sin(), angle.cos()], -1).reshape(places, -1)
    return x + pairs[:, :units].to(x.dtype)


def _attention(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    def heads(of: str) -> Any:
        return affine(x, of).unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    def affine(x: Any, of: str) -> Any:
        return functional.linear(x, p[f"W{of}"].T, p.get(f"b{of}"))

    attend = functional.scaled_dot_product_attention
    c = attend(heads("q"), heads("k"), heads("v"), is_causal=layer.causal)
    return affine(c.transpose(1, 2).flatten(2), "o")


def _graph_conv(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    n = x.reshape(len(x), -1)
    if layer.norm != "none":
        n = normalize(n, layer.norm)
    a = _spread(env.side["adjacency"], n @ p["W"])
    return ACTIVATIONS[layer.activation](a + p["b"] if "b" in p else a)


def _sage(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    n = x.reshape(len(x), -1)
    if layer.norm != "none":
        n = normalize(n, layer.norm)
    a = n @ p["W_self"] + _spread(env.side["neighbours"], n @ p["W_neigh"])
    return ACTIVATIONS[layer.activation](a + p["b"] if "b" in p else a)


def _spread(matrix: Any, rows: Any) -> Any:
    """matrix @ rows, for a tensor or a sparse matrix of SciPy's."""
    if isinstance(matrix, torch.Tensor):
        return matrix.to(rows.dtype) @ rows
    # By hand: torch's own sparse tensors have no storage that could be counted.
    coo = matrix.tocoo()
    to, source = (torch.from_numpy(at.astype(np.int64)) for at in (coo.row, coo.col))
    sent = torch.from_numpy(coo.data).to(rows.dtype)[:, None] * rows[source]
    return torch.zeros_like(rows).index_add(0, to, sent)


def _recurrent(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    cell, zx, found = CELLS[layer.kind], x @ p["Wx"] + p["b"], []
    h = c = x.new_zeros(len(x), layer.units)
    for at in range(x.shape[1]):
        if layer.credit == "step":
            h, c = h.detach(), c.detach()
        seen = h.detach() if layer.credit == "eprop" else h
        zh = seen @ p["Wh"]
        if layer.credit == "eprop" and zh.shape == h.shape:  # a self-connection is an own path
            zh = zh + (h - seen) * p["Wh"].diagonal().detach()
        h, c = cell(layer, zx[:, at], zh, h, c)
        found.append(h)
    return h if layer.last else torch.stack(found, 1)


def _rnn(layer: Any, zx: Any, zh: Any, h: Any, c: Any) -> Any:
    return ACTIVATIONS[layer.activation](zx + zh), c


def _gru(layer: Any, zx: Any, zh: Any, h: Any, c: Any) -> Any:
    (xr, xu, xn), (hr, hu, hn) = zx.chunk(3, 1), zh.chunk(3, 1)
    u = torch.sigmoid(xu + hu)
    return (1 - u) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + u * h, c


def _lstm(layer: Any, zx: Any, zh: Any, h: Any, c: Any) -> Any:
    i, f, g, o = (zx + zh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _conv(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    if layer.norm != "none":
        x = normalize(x.flatten(1), layer.norm).reshape(x.shape)
    a = functional.conv2d(
        x.permute(0, 3, 1, 2),
        p["W"].permute(3, 2, 0, 1),
        p.get("b"),
        layer.stride,
        layer.kernel // 2 if layer.padding == "same" else int(layer.padding),
        groups=layer.groups,
    )
    return ACTIVATIONS[layer.activation](a.permute(0, 2, 3, 1))


def _mix(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    a = torch.einsum("bpc,pq->bqc", x.flatten(1, -2), p["W"])
    if "b" in p:
        a = a + p["b"][:, None]
    return ACTIVATIONS[layer.activation](a).reshape(x.shape)


def _act(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    return ACTIVATIONS[layer.activation](x)


def _max_pool(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    pool = functional.max_pool2d
    return pool(x.permute(0, 3, 1, 2), layer.size, layer.stride or None).permute(0, 2, 3, 1)


def _avg_pool(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    if not layer.size:
        return x.flatten(1, -2).mean(1)
    pool = functional.avg_pool2d
    return pool(x.permute(0, 3, 1, 2), layer.size, layer.stride or None).permute(0, 2, 3, 1)


def _dropout(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    mask = layer.mask(x, env)  # the same key as ours: the same mask
    return x if mask is None else torch.where(torch.from_numpy(mask), x / (1 - layer.rate), 0)


def _batch_norm(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    """In training it moves the buffers in place, as torch does: `_apart` guards the state."""
    moving = p["mean"].detach(), p["var"].detach()
    rows = x.reshape(-1, x.shape[-1])
    a = torch.batch_norm(rows, p.get("g"), p.get("b"), *moving, env.train, 0.1, layer.eps, False)
    return ACTIVATIONS[layer.activation](a.reshape(x.shape))


def _layer_norm(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    a = functional.layer_norm(x, x.shape[-1:], p.get("g"), p.get("b"), layer.eps)
    return ACTIVATIONS[layer.activation](a)


def _rms_norm(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    a = p.get("g", 1) * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + layer.eps)
    return ACTIVATIONS[layer.activation](a)


def _group_norm(layer: Any, p: Mapping[str, Any], x: Any, env: Env) -> Any:
    # Channels last and an input without gradient: torch 2.13's backward crashes on the CPU.
    rows = x.reshape(-1, x.shape[-1]) if layer.each_place else x.movedim(-1, 1).contiguous()
    a = functional.group_norm(rows, layer.groups, p.get("g"), p.get("b"), layer.eps)
    a = a.reshape(x.shape) if layer.each_place else a.movedim(1, -1)
    return ACTIVATIONS[layer.activation](a)


def normalize(x: Any, kind: str) -> Any:
    """x over its length, or over its root mean square, along the last axis."""
    squares = (x * x).sum(-1, keepdim=True)
    if kind == "rms":
        squares = squares / x.shape[-1]
    live = squares > 0  # the root has no derivative at 0; a row of zeros gets none, as in ours
    radius = torch.where(live, squares, 1).sqrt()
    return torch.where(live, x / (radius + EPS), 0)


def _hardsigmoid(a: Any) -> Any:
    return functional.hardtanh(a, 0.0, 1.0)  # 0 at both kinks; clamp would give 1


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
    "flatten": lambda layer, p, x, env: x.flatten(1),
    "graph_conv": _graph_conv,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "mix": _mix,
    "position": _position,
    "rms_norm": _rms_norm,
    "sage": _sage,
    "step": lambda layer, p, x, env: (x > 0).to(x.dtype) + 0 * x,  # of derivative 0, not none
}
ACTIVATIONS: dict[str, Function] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": _hardsigmoid,
    "gelu": functional.gelu,
    "identity": lambda a: a,
}
