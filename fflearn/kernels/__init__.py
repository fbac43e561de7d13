"""Kernels: the arithmetic of a step, one class per backend, chosen by name once.

`reference` (NumPy) is the definition; the others override what they do better.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fflearn.errors import BackendUnavailable, SpecError

if TYPE_CHECKING:
    from fflearn.kernels.reference import Kernels

__all__ = ["check", "load", "names"]

# name -> module and class
_BACKENDS = {
    "reference": ("fflearn.kernels.reference", "Kernels"),
    "numba": ("fflearn.kernels.cpu", "CpuKernels"),
}
_GPU_PACKAGES = ("cupy", "numba_cuda")
PRECISIONS = ("tf32", "bf16")


def names() -> tuple[str, ...]:
    """Names `load` knows, the reference first; one may still be unavailable on this machine."""
    return (*_BACKENDS, "cuda")


def check(name: str) -> None:
    """Raise SpecError unless `load` knows the name; "cuda" may have options, as "cuda:1:tf32"."""
    known, _, options = name.partition(":")
    if known not in names() or (options and known != "cuda"):
        raise SpecError(f"backend needs one of {', '.join(names())}; got {name!r}.")
    for option in options.split(":") if options else ():
        if not option.isdecimal() and option not in PRECISIONS:
            raise SpecError(
                f"the backend 'cuda' has no option {option!r}. Type for instance cuda:1 for the "
                f"second GPU, or cuda:tf32 for products of less precision: "
                f"{', '.join(PRECISIONS)}."
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
    if name not in _BACKENDS:
        return _cuda(name.split(":")[1:])
    module, kernels = _BACKENDS[name]
    try:
        return getattr(import_module(module), kernels)()
    except ImportError as error:
        raise BackendUnavailable(
            f"the {name!r} kernels need {error.name}, which cannot be imported here ({error}). "
            "Type: pip install --upgrade fflearn, or choose the 'reference' kernels."
        ) from error


def _cuda(options: list[str]) -> "Kernels":
    missing = [package for package in _GPU_PACKAGES if find_spec(package) is None]
    if missing:
        raise BackendUnavailable(
            f"the 'cuda' kernels need {' and '.join(missing)}, not installed here. "
            "Type: pip install \"fflearn[gpu]\", or choose the 'numba' kernels."
        )
    index = next((int(o) for o in options if o.isdecimal()), 0)
    precision = next((o for o in options if not o.isdecimal()), "")
    return import_module("fflearn.gpu").load(index, precision)
