"""Convolutions by way of PyTorch: its CPU shows that axes and memory are handed over right."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from numba import config

from fflearn.errors import MissingExtra
from fflearn.kernels.reference import Kernels

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="there is a CUDA device"),
]


@pytest.fixture
def k(monkeypatch):
    import torch

    from fflearn.gpu.cudnn import CudnnKernels
    from fflearn.gpu.device import SimulatedDevice

    class OnTheHost(CudnnKernels):
        @contextmanager
        def _here(self):
            with torch.no_grad():
                yield torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return OnTheHost(SimulatedDevice())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("at", [(3, 1, 1), (3, 2, 1), (1, 2, 0), (2, 2, 0), (5, 3, 2)])
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_convolutions_are_the_reference_s(k, at, groups, real):
    rng, (kernel, *how) = np.random.default_rng(0), at
    x, W = rng.normal(size=(2, 7, 6, 4)), rng.normal(size=(kernel, kernel, 4 // groups, 6))
    x, W, b = x.astype(real), W.astype(real), rng.normal(size=6).astype(real)
    r = Kernels()
    da = rng.normal(size=r.conv(x, W, b, *how).shape).astype(real)
    for found, want in (
        (k.conv(x, W, b, *how), r.conv(x, W, b, *how)),
        (k.conv(x, W, None, *how), r.conv(x, W, None, *how)),
        (k.conv_weights(x, da, 2.5, W.shape, *how), r.conv_weights(x, da, 2.5, W.shape, *how)),
        (k.conv_input(da, W, x.shape[1:], *how), r.conv_input(da, W, x.shape[1:], *how)),
    ):
        assert found.dtype == want.dtype and found.flags.c_contiguous
        assert np.allclose(found, want, *((1e-4, 1e-4) if real is np.float32 else (1e-12, 1e-12)))


def test_a_build_without_cuda_is_told():
    import torch

    from fflearn.gpu.cudnn import CudnnKernels

    if torch.cuda.is_available():
        pytest.skip("this build has CUDA")
    with pytest.raises(MissingExtra, match="with CUDA"):
        CudnnKernels(None)
