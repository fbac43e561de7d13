"""Convolutions by cuDNN, through PyTorch: the option "cuda:cudnn".

Arrays go there and back by DLPack, without a copy, and no autograd sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fflearn.errors import MissingExtra
from fflearn.gpu.table import CudaKernels
from fflearn.kernels.reference import Array


class CudnnKernels(CudaKernels):
    """As `CudaKernels`, with PyTorch's convolutions.

    Raises
    ------
    MissingExtra
        PyTorch is not installed, or is a build without CUDA.
    """

    no_graphs = "PyTorch's memory is not the graph's: cuda:cudnn runs step by step"

    def __init__(self, device: Any):
        try:
            import torch
        except ImportError as e:
            raise MissingExtra.of("PyTorch", "torch", "the backend cuda:cudnn") from e
        if not torch.cuda.is_available():
            raise MissingExtra(
                f"cuda:cudnn needs a build of PyTorch with CUDA; this is {torch.__version__}. Take "
                f"the backend cuda."
            )
        super().__init__(device)
        self._torch = torch

    def conv(self, x: Array, W: Array, b: Array | None, stride: int, padding: int) -> Array:
        with self._here() as torch:
            groups = x.shape[3] // W.shape[2]
            bias = None if b is None else self._given(b)
            made = torch.nn.functional.conv2d(
                self._image(x), self._weights(W), bias, stride, padding, 1, groups
            )
            return self._taken(made.permute(0, 2, 3, 1))

    def conv_weights(
        self, x: Array, da: Array, n: float, shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        with self._here() as torch:
            k, _, c, units = shape
            groups = x.shape[3] // c
            made = torch.nn.grad.conv2d_weight(
                self._image(x), (units, c, k, k), self._image(da), stride, padding, 1, groups
            )
            return self._taken(made.permute(2, 3, 1, 0) / float(n))

    def conv_input(
        self, da: Array, W: Array, in_shape: tuple[int, ...], stride: int, padding: int
    ) -> Array:
        with self._here() as torch:
            h, w, c = in_shape
            given = self._weights(W), self._image(da)
            groups = c // W.shape[2]
            made = torch.nn.grad.conv2d_input(
                (len(da), c, h, w), *given, stride, padding, 1, groups
            )
            return self._taken(made.permute(0, 2, 3, 1))

    @contextmanager
    def _here(self) -> Iterator[Any]:
        """PyTorch on our stream, with the precision that was asked for, and without autograd."""
        torch, device = self._torch, self.device
        stream = torch.cuda.ExternalStream(device.stream.ptr, device=device.index)
        exact = {"deterministic": True, "benchmark": False, "allow_tf32": not device.direct}
        with torch.no_grad(), torch.cuda.stream(stream), torch.backends.cudnn.flags(**exact):
            yield torch

    def _given(self, a: Array) -> Any:
        return self._torch.from_dlpack(a)

    def _image(self, x: Array) -> Any:
        """(B, H, W, C) as PyTorch numbers its axes; the memory stays channels last."""
        return self._given(x).permute(0, 3, 1, 2)

    def _weights(self, W: Array) -> Any:
        return self._given(W).permute(3, 2, 0, 1).contiguous()

    def _taken(self, a: Any) -> Array:
        return self.xp.from_dlpack(a.contiguous())
