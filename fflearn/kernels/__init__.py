"""Kernels: the arithmetic of a step, one class per backend, chosen by name once.

`reference` (NumPy) is the definition; the others override what they do better.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fflearn.errors import BackendUnavailable, SpecError

if TYPE_CHECKING:
    from fflearn.kernels.reference import Kernels

__all__ = ["load", "names"]

# name -> module and class
_BACKENDS = {
    "reference": ("fflearn.kernels.reference", "Kernels"),
    "numba": ("fflearn.kernels.cpu", "CpuKernels"),
}
_GPU_PACKAGES = ("cupy", "numba_cuda")


def names() -> tuple[str, ...]:
    """Names `load` knows, the reference first; one may still be unavailable on this machine."""
    return (*_BACKENDS, "cuda")


def load(name: str) -> "Kernels":
    """Return the kernels of a backend.

    Raises
    ------
    SpecError
        The name is not one of `names()`.
    BackendUnavailable
        Something the backend needs is missing; the message says what, and what to type.
    """
    if name not in names():
        raise SpecError(f"load needs one of {', '.join(names())}; got {name!r}.")
    if name not in _BACKENDS:
        raise BackendUnavailable(_no_cuda())
    module, kernels = _BACKENDS[name]
    try:
        return getattr(import_module(module), kernels)()
    except ImportError as error:
        raise BackendUnavailable(
            f"the {name!r} kernels need {error.name}, which cannot be imported here ({error}). "
            "Type: pip install --upgrade fflearn, or choose the 'reference' kernels."
        ) from error


def _no_cuda() -> str:
    missing = [package for package in _GPU_PACKAGES if find_spec(package) is None]
    if missing:
        return (
            f"the 'cuda' kernels need {' and '.join(missing)}, not installed here. "
            "Type: pip install \"fflearn[gpu]\", or choose the 'numba' kernels."
        )
    return (
        "the 'cuda' kernels need a class of kernels for the GPU; this version has random numbers "
        "only (fflearn.gpu.kernels). Choose the 'numba' kernels."
    )
