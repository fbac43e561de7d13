"""Kernels: the arithmetic of a step, one class per backend, chosen by name once.

`reference` (NumPy) is the definition; the others override what they do better.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fflearn.errors import BackendUnavailable, MissingExtra, SpecError

if TYPE_CHECKING:
    from fflearn.kernels.reference import Kernels

__all__ = ["check", "load", "names"]

# name -> module, what makes the kernels there, packages it needs beside the core's, its options
_BACKENDS = {
    "reference": ("fflearn.kernels.reference", "Kernels", (), ()),
    "numba": ("fflearn.kernels.cpu", "CpuKernels", (), ()),
    "cuda": ("fflearn.gpu", "load", ("cupy", "numba_cuda"), ("tf32", "bf16", "cudnn")),
}


def names() -> tuple[str, ...]:
    """Names `load` knows, the reference first; one may still be unavailable on this machine."""
    return tuple(_BACKENDS)


def check(name: str) -> None:
    """Raise SpecError unless `load` knows the name, and its options if it has any: "cuda:1:tf32"."""
    known, _, given = name.partition(":")
    if known not in _BACKENDS:
        raise SpecError(f"backend needs one of {', '.join(names())}; got {name!r}.")
    options = _BACKENDS[known][3]
    for option in given.split(":") if given else ():
        if not options:
            raise SpecError(f"the backend {known!r} has no options; got {name!r}.")
        if not option.isdecimal() and option not in options:
            raise SpecError(
                f"the backend {known!r} has no option {option!r}. Type for instance {known}:1 for "
                f"the second GPU, or one of {', '.join(f'{known}:{o}' for o in options)}."
            )


def load(name: str) -> "Kernels":
    """Return the kernels of a backend.

    Raises
    ------
    SpecError
        The name is not one of `names()`, or an option is unknown.
    BackendUnavailable
        Something the backend needs is missing; the message says what, and what to type.
    """
    check(name)
    known, *options = name.split(":")
    module, make, packages, _ = _BACKENDS[known]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise BackendUnavailable(
            f"the {known!r} kernels need {' and '.join(missing)}, not installed here. "
            "Type: pip install \"fflearn[gpu]\", or choose the 'numba' kernels."
        )
    try:
        return getattr(import_module(module), make)(*options)
    except MissingExtra:
        raise
    except ImportError as error:
        raise BackendUnavailable(
            f"the {known!r} kernels need {error.name}, which cannot be imported here ({error}). "
            "Type: pip install --upgrade fflearn, or choose the 'reference' kernels."
        ) from error
