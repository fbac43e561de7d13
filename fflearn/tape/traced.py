"""Arrays that write down what is done with them: the recording of one step.

A `Traced` holds a value and computes with it at once, so a recorded step is a step; beside it a
`Recorder` notes each operation.  Shapes, dtypes and layouts are those that NumPy gave: nothing
is inferred.  A view costs no operation: where a result lies in memory that is already known, it
is that memory seen through another `Ref`.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fflearn.errors import LocalityError, RecordError

SHARED = -1  # owner of what every layer may read: the step's number, the settings, sample weights
INSTEAD = (
    "Write NumPy operators instead, bus.settle for a loop that stops on a value, np.where for a "
    "choice between values, Rule.variant for structure that changes; or run the rule op by op: "
    'Engine(..., mode="eager"), FFLEARN_EAGER=1.'
)


class Buffer:
    """A block of memory of the step, which refs look into.

    Attributes
    ----------
    index : int
        In order of appearance: the same in every recording of a step.
    nbytes : int
    home : str
        Where it lies outside the step ("params/0/W", "batch.x"); "" if it is the step's own.
    """

    __slots__ = ("at", "home", "index", "nbytes")

    def __init__(self, index: int, nbytes: int, home: str = ""):
        self.index, self.nbytes, self.home = index, nbytes, home
        self.at: Any = None  # set by the program: a flat array of bytes

    def __repr__(self) -> str:
        return f"{self.home or 'buffer'}#{self.index}"


class Ref(NamedTuple):
    """A value of the step: an array in a buffer, a NumPy scalar in one, or a Python object."""

    buffer: Buffer
    kind: str  # "array", "scalar" or "object"
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dtype: Any = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def same(self, other: Ref) -> bool:
        """Whether both name the same place in two recordings of a step."""
        return self.buffer.index == other.buffer.index and self[1:] == other[1:]


class Op:
    """One operation: a function, what it reads and writes, and the layer whose hook made it."""

    __slots__ = ("args", "fn", "kwargs", "layer", "outs", "writes")

    def __init__(
        self, fn: Any, args: tuple, kwargs: dict, outs: list, writes: list, layer: int | None
    ):
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.outs, self.writes, self.layer = outs, writes, layer

    def reads(self) -> list[Ref]:
        """Every ref among the arguments."""
        return leaves((self.args, self.kwargs), Ref)

    def __repr__(self) -> str:
        return f"{name_of(self.fn)} of layer {self.layer}"


class Named:
    """A method or attribute by name, as a function of the object: equal where names are."""

    __slots__ = ("attribute", "name")

    def __init__(self, name: str, attribute: bool = False):
        self.name, self.attribute = name, attribute

    def __call__(self, of: Any, *args: Any, **kwargs: Any) -> Any:
        found = getattr(of, self.name)
        return found if self.attribute else found(*args, **kwargs)


named = cache(Named)


class Kernel:
    """A kernel of the backend by name."""

    __slots__ = ("fn", "name", "writes")

    def __init__(self, kernels: Any, name: str):
        self.name, self.fn = name, getattr(kernels, name)
        self.writes: tuple[int, ...] = kernels.writes.get(name, ())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)


def name_of(fn: Any) -> str:
    """What a message calls a function."""
    if isinstance(fn, Kernel):
        return f"the kernel {fn.name}"
    if isinstance(fn, Named):
        return f"an array's {fn.name}"
    return getattr(fn, "__name__", None) or repr(fn)


# ---- nests of containers ------------------------------------------------------------------------


def mapped(f: Callable[[Any], Any], kind: type, item: Any) -> Any:
    """The nest with f of every item of a kind; containers without one stay themselves."""
    if isinstance(item, kind):
        return f(item)
    if isinstance(item, (tuple, list)) and not isinstance(item, Ref):
        parts = [mapped(f, kind, part) for part in item]
        if all(a is b for a, b in zip(parts, item, strict=True)):
            return item
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    if isinstance(item, slice):
        return slice(*(mapped(f, kind, i) for i in (item.start, item.stop, item.step)))
    if isinstance(item, Mapping):
        found = {n: mapped(f, kind, value) for n, value in item.items()}
        return item if all(found[n] is item[n] for n in item) else found
    return item


def leaves(item: Any, kind: type) -> list[Any]:
    """Every item of a kind in a nest, in order."""
    found: list[Any] = []
    mapped(lambda leaf: found.append(leaf) or leaf, kind, item)  # type: ignore[func-returns-value]
    return found


def concrete(item: Any) -> Any:
    """The nest with values in the place of `Traced`."""
    return mapped(lambda t: t._value, Traced, item)


def handed(item: Any, owner: int | None) -> Any:
    """The nest as another owner's: what only the Bus does."""

    def give(t: Traced) -> Traced:
        return t if t._owner in (owner, SHARED) else Traced(t._rec, t._value, t._ref, owner)

    return mapped(give, Traced, item)


# ---- values -------------------------------------------------------------------------------------

# Functions whose result follows from shapes and dtypes, and may steer a hook.
ABOUT_SHAPES = frozenset(
    {
        *(np.shape, np.ndim, np.size, np.iscomplexobj, np.isrealobj, np.result_type),
        *(np.can_cast, np.may_share_memory, np.shares_memory),
    }
)
FACTS = frozenset({"shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides", "flags"})
OF_VALUES = frozenset({"item", "tolist", "tobytes", "tofile", "dump", "dumps", "data", "ctypes"})
IN_PLACE = frozenset({"sort", "partition", "put", "resize", "setflags", "setfield", "byteswap"})


class Traced:
    """A value of a step that is being recorded."""

    __slots__ = ("_owner", "_rec", "_ref", "_value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, rec: Recorder, value: Any, ref: Ref, owner: int | None):
        self._rec, self._value, self._ref, self._owner = rec, value, ref, owner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in OF_VALUES or name in IN_PLACE:
            raise RecordError(_needs_value(f".{name}"))
        value = getattr(self._value, name)
        if name in FACTS:
            return value
        if callable(value):
            return lambda *args, **kwargs: self._rec.call(named(name), self, *args, **kwargs)
        return self._rec.call(named(name, True), self)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        fn = ufunc if method == "__call__" else _ufunc_method(ufunc, method)
        writes = leaves(kwargs.get("out"), Traced) + ([args[0]] if method == "at" else [])
        return self._rec.call(fn, *args, writes=writes, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return self._rec.call(func, *args, writes=leaves(kwargs.get("out"), Traced), **kwargs)

    def __len__(self) -> int:
        return len(self._value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self._value)))

    def __getitem__(self, at: Any) -> Any:
        return self._rec.call(operator.getitem, self, at)

    def __setitem__(self, at: Any, value: Any) -> None:
        self._rec.call(operator.setitem, self, at, value, writes=[self])

    def fill(self, value: Any) -> None:
        """As of an array."""
        self[...] = value

    def __repr__(self) -> str:
        return f"Traced({self._ref}, owner {self._owner})"


@cache
def _ufunc_method(ufunc: Any, method: str) -> Any:
    return getattr(ufunc, method)


def _needs_value(what: str) -> str:
    return f"{what} needs a value, but this step is recorded once and then repeated. {INSTEAD}"


def _refused(what: str) -> Callable[..., Any]:
    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        raise RecordError(_needs_value(what))

    return method


for _name, _what in {
    "bool": "a branch (if, while, and, or, min, max)",
    **{n: f"{n}()" for n in ("int", "float", "complex")},
    "index": "a count (range, a shape, a Python index)",
    "array": "np.asarray",
    "contains": "in",
}.items():
    setattr(Traced, f"__{_name}__", _refused(_what))


def _operator(name: str, reflected: bool = False) -> Callable[..., Any]:
    fn = getattr(operator, name)

    def method(self: Traced, other: Any) -> Any:
        return self._rec.call(fn, other, self) if reflected else self._rec.call(fn, self, other)

    return method


def _in_place(name: str) -> Callable[..., Any]:
    fn, plain = getattr(operator, f"i{name}"), getattr(operator, name)

    def method(self: Traced, other: Any) -> Any:
        if self._ref.kind != "array":  # Python and NumPy scalars are never changed
            return self._rec.call(plain, self, other)
        return self._rec.call(fn, self, other, writes=[self])

    return method


def _unary(name: str) -> Callable[..., Any]:
    fn = getattr(operator, name)
    return lambda self: self._rec.call(fn, self)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Traced, f"__{_name}__", _operator(_name))
    setattr(Traced, f"__r{_name}__", _operator(_name, reflected=True))
    setattr(Traced, f"__i{_name}__", _in_place(_name))
for _name in ("and_", "or_", "xor", "lshift", "rshift"):
    setattr(Traced, f"__{_name.strip('_')}__", _operator(_name))
    setattr(Traced, f"__r{_name.strip('_')}__", _operator(_name, reflected=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Traced, f"__{_name}__", _operator(_name))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(Traced, f"__{_name}__", _unary(_name))


# ---- recording ----------------------------------------------------------------------------------


class Recorder:
    """Runs operations and notes them.

    Attributes
    ----------
    ops : list of Op
    layer : int or None
        In whose hook we are; None is the schedule and the Bus.
    count : int
        Buffers so far.
    """

    def __init__(self) -> None:
        self.ops: list[Any] = []
        self.layer: int | None = None
        self.count = 0
        self._known: dict[int, tuple[Buffer, Any]] = {}  # id of an array that owns memory -> buffer

    # -- values that come from outside ------------------------------------------------------------
    def outside(self, home: str, value: Any, owner: int | None) -> Traced:
        """An array or a Python object that the step finds when it begins."""
        if isinstance(value, np.ndarray):
            return Traced(self, value, self._place(value, home), owner)
        return Traced(self, value, Ref(self._buffer(0, home), "object"), owner)

    @contextmanager
    def inside(self, layer: int | None):
        """A hook of a layer."""
        before, self.layer = self.layer, layer
        try:
            yield
        finally:
            self.layer = before

    # -- operations --------------------------------------------------------------------------------
    def call(
        self, fn: Any, *args: Any, writes: Sequence[Traced] = (), whole: bool = False, **kwargs: Any
    ) -> Any:
        """``fn(*args, **kwargs)``, noted.

        ``writes`` are changed in place.  With ``whole`` the result is one object, whatever it is.
        """
        read = leaves((args, kwargs), Traced)
        self._own(fn, read)
        result = fn(*concrete(args), **concrete(kwargs))
        outs: list[Any] = []
        if whole:
            outs.append(Ref(self._buffer(0), "object"))
            wrapped: Any = Traced(self, result, outs[0], self.layer)
        elif fn in ABOUT_SHAPES:
            return result
        else:
            plain = any(t._ref.kind != "object" for t in read)
            wrapped = self._wrapped(fn, result, outs, plain)
        if writes or any(out is not None for out in outs):
            places = [t._ref for t in writes]
            self.ops.append(Op(fn, noted(args), noted(kwargs), outs, places, self.layer))
        return wrapped

    def loop(self, op: Any, sweeps: int, change: float) -> tuple[Traced, Traced]:
        """Note a loop: how many sweeps it took here, and the change of the last."""
        op.outs = [Ref(self._buffer(0), "object"), Ref(self._buffer(0), "object")]
        op.writes = [r for inner in op.ops for r in inner.writes]
        self.ops.append(op)
        first, second = op.outs
        return Traced(self, sweeps, first, self.layer), Traced(self, change, second, self.layer)

    def kernel(self, kernel: Kernel, *args: Any, **kwargs: Any) -> Any:
        """A kernel, noted; of numbers that are no part of the step, its plain result."""
        if not leaves((args, kwargs), Traced):
            return kernel(*args, **kwargs)
        writes = [a for i, a in enumerate(args) if i in kernel.writes and isinstance(a, Traced)]
        return self.call(kernel, *args, writes=writes, **kwargs)

    def whole(self, t: Traced) -> Traced:
        """All the memory that an array looks into, flat."""
        base = root(t._value) if t._ref.kind == "array" else None
        if base is None or not (base.flags.c_contiguous or base.flags.f_contiguous):
            raise RecordError(
                "what a settling sweep changes needs to be arrays, in memory without gaps; a number "
                "is none. Let relax keep sums with keepdims=True, or a .copy()."
            )
        flat = base.ravel(order="K")
        return Traced(self, flat, self._place(flat), t._owner)

    def inner(self, whole: Traced, like: Traced) -> Traced:
        """The part of an array that another is of its own, with the same owner."""
        shape, strides, dtype = like._ref[3:]
        value = np.ndarray(shape, dtype, whole._value, like._ref.offset, strides)
        return Traced(self, value, like._ref._replace(buffer=whole._ref.buffer), like._owner)

    def _own(self, fn: Any, read: list[Traced]) -> None:
        if self.layer is None:
            return
        for t in read:
            if t._owner not in (self.layer, SHARED):
                whose = "the schedule" if t._owner is None else f"layer {t._owner}"
                raise LocalityError(
                    f"layer {self.layer} used an array of {whose} in {name_of(fn)}, which it was "
                    f"not sent: only the Bus carries arrays. Send it on a declared channel."
                )

    def _wrapped(self, fn: Any, result: Any, outs: list[Any], plain: bool) -> Any:
        """The result with its arrays traced; ``outs`` gets a ref of each new one, None of a view."""
        if isinstance(result, (tuple, list)):
            parts = [self._wrapped(fn, part, outs, plain) for part in result]
            if hasattr(result, "_fields"):
                return type(result)(*parts)
            return type(result)(parts)
        if isinstance(result, np.ndarray):
            before = self.count
            ref = self._place(result)
            own = {out.buffer for out in outs if out is not None}  # parts may share memory
            new = self.count > before or ref.buffer in own
            outs.append(ref if new and ref not in outs else None)
        elif isinstance(result, np.generic):
            ref = Ref(self._buffer(result.nbytes), "scalar", 0, (), (), result.dtype)
            outs.append(ref)
        elif result is None:
            return None
        elif plain and isinstance(result, (bool, int, float, complex, str)):
            raise RecordError(_needs_value(f"what {name_of(fn)} gives"))
        else:
            ref = Ref(self._buffer(0), "object")
            outs.append(ref)
        return Traced(self, result, ref, self.layer)

    # -- memory ------------------------------------------------------------------------------------
    def _buffer(self, nbytes: int, home: str = "") -> Buffer:
        self.count += 1
        return Buffer(self.count, nbytes, home)

    def _place(self, value: np.ndarray, home: str = "") -> Ref:
        """Where an array lies: in memory that is known, else in a buffer that becomes so."""
        base = root(value)
        if id(base) in self._known:
            buffer = self._known[id(base)][0]
        else:
            buffer = self._buffer(base.nbytes, home)
            at = id(base)
            # Memory that nobody can reach any more is another's soon.
            gone = weakref.ref(base, lambda _: self._known.pop(at, None))
            self._known[at] = (buffer, gone)
        offset = address(value) - address(base)
        return Ref(buffer, "array", offset, value.shape, value.strides, value.dtype)


def noted(item: Any) -> Any:
    """Arguments as an `Op` keeps them: refs, and copies of arrays that are no part of the step."""
    refs = mapped(lambda t: t._ref, Traced, item)
    return mapped(lambda a: a.copy(order="K"), np.ndarray, refs)


def root(a: np.ndarray) -> np.ndarray:
    """The array that owns the memory, or the first one that NumPy knows of."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a


def address(a: np.ndarray) -> int:
    """Of the first element."""
    return a.__array_interface__["data"][0]


class TracedKernels:
    """The backend's kernels, noted as they are called."""

    def __init__(self, kernels: Any, rec: Recorder):
        self.plain, self._rec = kernels, rec
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self.plain, name)
        if not callable(value):
            return value
        if name not in self._known:
            kernel = Kernel(self.plain, name)
            self._known[name] = lambda *args, **kwargs: self._rec.kernel(kernel, *args, **kwargs)
        return self._known[name]
