"""Where each of our arrays lies in the tensors of a torch module: one table for both directions.

A place is a view of the tensor with our order of axes: copying into it writes the module's
weights, copying out of it reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fflearn.errors import SpecError

Shape = tuple[int, ...]
Tensors = dict[str, np.ndarray]
Places = dict[str, tuple[str, np.ndarray]]  # our name -> the tensor's name, and the view


def places(layer: Any, tensors: Tensors, flat: Shape | None) -> Places:
    """Our arrays of one layer as views of its module's tensors.

    Parameters
    ----------
    layer : Layer
    tensors : dict of str to array
        The module's parameters and buffers.
    flat : tuple of int, or None
        The shape (*places, C) of a map that the layer reads flattened, channels first.
    """
    return PLACES.get(layer.kind, _same_names)(layer, tensors, flat)


def merged(layer: Any, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors that `places` takes: those that we have no array for are worked in, or left out.

    Returns
    -------
    tensors
    notes : list of str
        What was left out, because no output depends on it, or put in.

    Raises
    ------
    SpecError
        Something that does have an effect.
    """
    t, notes = dict(tensors), []
    if t.pop("num_batches_tracked", None) is not None:
        notes.append("num_batches_tracked, a count, is left out")
    if "in_proj_bias" in t and np.split(t["in_proj_bias"], 3)[1].any():
        notes.append("the keys' bias, one number for all scores of a query, is left out")
    if "weight_hh_l0" in t:  # torch adds a bias to x Wx and another to h Wh; ours is their sum
        none = np.zeros(len(t["weight_hh_l0"]), t["weight_hh_l0"].dtype)
        first, second = t.get("bias_ih_l0", none), t.pop("bias_hh_l0", none)
        if layer.kind == "gru" and second[2 * layer.units :].any():
            raise SpecError(
                "a GRU's bias_hh of the new value stands inside r (...), where fflearn has no "
                "bias. Give fflearn one with bias=False, or an LSTM."
            )
        if first is none:
            notes.append("there is no bias; here it is 0 at first, and learns")
        t["bias_ih_l0"] = first + second if second.any() else first  # + 0 would turn -0 into 0
    return t, notes


def _dense(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    return _with_bias(t, np.moveaxis(_channels_last(t["weight"], flat), 0, -1))


def _conv(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    return _with_bias(t, t["weight"].transpose(2, 3, 1, 0))  # (units, C, K, K) -> (K, K, C, units)


def _with_bias(t: Tensors, w: np.ndarray) -> Places:
    found = {"W": ("weight", w)}
    return {**found, "b": ("bias", t["bias"])} if "bias" in t else found


def _norm(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    if "g" in t:  # a module of our own
        return _same_names(layer, t, flat)
    names = {"g": "weight", "b": "bias", "mean": "running_mean", "var": "running_var"}
    return {o: (n, _channels_last(t[n], flat)) for o, n in names.items() if n in t}


def _embed(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    return {"E": ("weight", t["weight"])}


def _position(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    return {"P": ("weight", t["weight"])} if t else {}


def _attention(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    found = {"Wo": ("out_proj.weight", t["out_proj.weight"].T)}
    parts = zip("qkv", np.split(t["in_proj_weight"], 3), strict=True)
    found |= {f"W{of}": ("in_proj_weight", w.T) for of, w in parts}
    if "in_proj_bias" in t:
        q, _, v = np.split(t["in_proj_bias"], 3)
        found |= {"bq": ("in_proj_bias", q), "bv": ("in_proj_bias", v)}
        found["bo"] = ("out_proj.bias", t["out_proj.bias"])
    return found


def _recurrent(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    # The gates stand in the same order: i, f, g, o in an LSTM; r, u (torch's z), n in a GRU.
    return {
        "Wx": ("weight_ih_l0", t["weight_ih_l0"].T),
        "Wh": ("weight_hh_l0", t["weight_hh_l0"].T),
        "b": ("bias_ih_l0", t["bias_ih_l0"]),
    }


def _same_names(layer: Any, t: Tensors, flat: Shape | None) -> Places:
    return {name: (name, a) for name, a in t.items()}


def _channels_last(a: np.ndarray, flat: Shape | None) -> np.ndarray:
    """(..., C * places) -> (..., *places, C)."""
    if flat is None:
        return a
    apart = a.reshape(*a.shape[:-1], flat[-1], *flat[:-1])
    return np.moveaxis(apart, a.ndim - 1, -1)


PLACES: Mapping[str, Callable[[Any, Tensors, Shape | None], Places]] = {
    "attention": _attention,
    "batch_norm": _norm,
    "conv": _conv,
    "dense": _dense,
    "embed": _embed,
    "group_norm": _norm,
    "gru": _recurrent,
    "layer_norm": _norm,
    "lstm": _recurrent,
    "position": _position,
    "rms_norm": _norm,
    "rnn": _recurrent,
}
