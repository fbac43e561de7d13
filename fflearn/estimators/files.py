"""A fitted estimator in a .safetensors file: arrays, and JSON beside them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.base import Rule
from fflearn.errors import CheckpointError
from fflearn.networks import Network
from fflearn.registry import Variant
from fflearn.training import restored


def save(estimator: Any, path: Any) -> None:
    """See `LocalEstimator.save`."""
    state = estimator.state_.copy()
    params = estimator.get_params(deep=False)
    fitted = {n: v for n, v in vars(estimator).items() if n.endswith("_") and n != "state_"}
    state.meta["estimator"] = {
        "kind": type(estimator).__name__,
        "params": {n: _written(n, v) for n, v in params.items()},
        "fitted": {n: _written(n, v) for n, v in fitted.items()},
    }
    state.save(path)


def load(kind: Any, path: Any) -> Any:
    """See `LocalEstimator.load`."""
    _, state = restored(path)
    held = state.meta.pop("estimator", None)
    if not isinstance(held, dict) or held.get("kind") != kind.__name__:
        found = held.get("kind") if isinstance(held, dict) else "a training run"
        raise CheckpointError(f"{path} holds {found}, no {kind.__name__}.")
    try:
        estimator = kind(**{n: _read(v) for n, v in held["params"].items()})
        for name, value in held["fitted"].items():
            if not name.endswith("_") or name.startswith("_"):
                raise ValueError(name)
            setattr(estimator, name, _read(value))
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CheckpointError(f"{path} is damaged: its description of the estimator ({e}).") from e
    estimator.state_ = state
    return estimator


def _written(name: str, value: Any) -> Any:
    """A parameter or attribute as JSON holds it; CheckpointError where it cannot."""
    if isinstance(value, Rule):
        value = Variant(registry.name_of(value), value.settings()).label
    if isinstance(value, Network):
        value = value.spec()
    if isinstance(value, np.ndarray):
        dtype = "object" if value.dtype == object else value.dtype.str
        value = {"array": value.tolist(), "dtype": dtype}
    elif isinstance(value, dict):
        value = {"dict": [[_plain(k), _plain(v)] for k, v in value.items()]}
    elif isinstance(value, tuple):
        value = {"tuple": [_plain(v) for v in value]}
    elif isinstance(value, list):
        value = [_plain(v) for v in value]
    value = _plain(value)
    try:
        json.dumps(value)
    except TypeError:
        raise CheckpointError(
            f"{name}={value!r} cannot be written to a file without code. Give plain numbers and "
            f"text (random_state a whole number), or use pickle."
        ) from None
    return value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _read(value: Any) -> Any:
    """What `_written` wrote."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(value["array"], value["dtype"])
    return dict(value["dict"]) if "dict" in value else tuple(value["tuple"])
