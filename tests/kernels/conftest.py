"""A test that asks for ``k`` runs once for every backend that this machine has."""

import pytest

from fflearn import kernels
from fflearn.errors import BackendUnavailable


def available(name: str) -> bool:
    try:
        kernels.load(name)
    except BackendUnavailable:
        return False
    return True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "k" in metafunc.fixturenames:
        names = [name for name in kernels.names() if available(name)]
        metafunc.parametrize("k", [kernels.load(name) for name in names], ids=names)
