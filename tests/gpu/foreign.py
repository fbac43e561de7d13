"""A stand-in for a device's arrays: they never mix with the host's, and every read is counted.

Not one GPU is needed to see whether a step would run on one: CuPy refuses to combine its arrays
with NumPy's and to become one of them unasked, and so does `Foreign`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fflearn import random
from fflearn.kernels.reference import Kernels

# What CuPy 14.2 takes of each function, in order; NumPy takes more, and has more functions.
LIKE = "dtype order subok shape"
TAKES = {
    name: arguments.split()
    for name, arguments in {
        "argmax": "a axis dtype out keepdims",
        "argsort": "a axis kind",
        "broadcast_to": "array shape",
        "clip": "a a_min a_max out",
        "concatenate": "tup axis out dtype casting",
        "cumsum": "a axis dtype out",
        "diagonal": "a offset axis1 axis2",
        "empty_like": f"prototype {LIKE}",
        "full_like": f"a fill_value {LIKE}",
        "iscomplexobj": "x",
        "isin": "element test_elements assume_unique invert",
        "max": "a axis out keepdims",
        "may_share_memory": "a b max_work",
        "mean": "a axis dtype out keepdims",
        "moveaxis": "a source destination",
        "ndim": "a",
        "ones_like": f"a {LIKE}",
        "ravel": "a order",
        "repeat": "a repeats axis",
        "result_type": "",
        "roll": "a shift axis",
        "shape": "a",
        "size": "a axis",
        "sort": "a axis kind",
        "split": "ary indices_or_sections axis",
        "stack": "tup axis out dtype casting",
        "sum": "a axis dtype out keepdims",
        "take": "a indices axis out",
        "tile": "A reps",
        "unpackbits": "a axis bitorder",
        "where": "condition x y",
        "zeros_like": f"a {LIKE}",
    }.items()
}
OF_UFUNCS = {"out", "dtype", "casting"}
OF_METHODS = {
    "astype": {"order", "casting", "subok", "copy", "dtype"},
    "copy": {"order"},
    "view": set(),
    "sort": {"axis", "kind"},
    **{name: {"axis", "dtype", "out", "keepdims"} for name in ("mean", "sum", "prod")},
    **{name: {"axis", "out", "keepdims"} for name in ("max", "min", "any", "all")},
}


class Foreign(np.lib.mixins.NDArrayOperatorsMixin):
    """An array somewhere else, with NumPy's functions and operators as CuPy has them."""

    def __init__(self, there: Any):
        self.there = np.asarray(there)

    # What copies to the host, and would make a GPU wait.
    def get(self) -> np.ndarray:
        return self.there

    def set(self, value: np.ndarray) -> None:
        self.there[...] = value

    def __float__(self) -> float:
        return float(self.there)

    def __bool__(self) -> bool:
        return bool(self.there)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs.keys() - OF_UFUNCS:
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method} with {sorted(kwargs)}")
        return _wrapped(ufunc(*_there(inputs), **_there(kwargs)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        takes = TAKES.get(function.__name__)
        if takes is None or kwargs.keys() - set(takes) or (takes and len(args) > len(takes)):
            raise TypeError(f"CuPy has no {function.__name__} with {len(args)}, {sorted(kwargs)}")
        return _wrapped(function(*_there(args), **_there(kwargs)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.there, name)
        if not callable(value):
            return _wrapped(value) if name != "base" else None
        known = OF_METHODS.get(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            if known is not None and kwargs.keys() - known:
                raise TypeError(f"CuPy's arrays have no {name} with {sorted(kwargs)}")
            return _wrapped(value(*_there(args), **_there(kwargs)))

        return method

    def __len__(self) -> int:
        return len(self.there)

    def __getitem__(self, at: Any) -> Any:
        return Foreign(self.there[_there(at)])

    def __setitem__(self, at: Any, value: Any) -> None:
        self.there[_there(at)] = _there(value)

    def __iter__(self) -> Any:
        return (Foreign(row) for row in self.there)


def _there(value: Any) -> Any:
    if isinstance(value, Foreign):
        return value.there
    if isinstance(value, np.ndarray):
        raise TypeError(f"an array of the host, {value.shape}, among a device's")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_there, value))
    if isinstance(value, dict):
        return {n: _there(v) for n, v in value.items()}
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return Foreign(value)
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], np.ndarray):
        return type(value)(map(_wrapped, value))
    return value


class ForeignKernels(Kernels):
    """The reference on foreign arrays: what it computes, and what it refuses."""

    name = "foreign"
    on_host = False

    def steps(self, engine: Any) -> Any:
        return SimpleNamespace(step=engine._op_by_op, why="")

    def asarray(self, a: Any, dtype: Any = None) -> Any:
        return Foreign(np.ascontiguousarray(a.there if isinstance(a, Foreign) else a, dtype))

    def host(self, a: Any) -> np.ndarray:
        return a.get()

    def side(self, a: Any) -> Any:
        return Foreign(a.toarray())

    def constant(self, a: Any) -> Any:
        return Foreign(a)

    def ndtri(self, p: Any) -> Any:
        return Foreign(super().ndtri(p.there))

    def erfc(self, a: Any) -> Any:
        return Foreign(super().erfc(a.there))

    def sum_by_id(self, ids: Any, rows: Any, n: int) -> Any:
        return Foreign(super().sum_by_id(ids.there, rows.there, n))

    def random_words(self, static: int, step: int, n: int) -> Any:
        return Foreign(random.words(static, step, n))

    def uniform(self, static: int, step: int, shape: Any, dtype: Any = np.float32) -> Any:
        return Foreign(random.uniform(static, step, shape, dtype))

    def normal(self, static: int, step: int, shape: Any, dtype: Any = np.float32) -> Any:
        return Foreign(random.normal(static, step, shape, dtype))
