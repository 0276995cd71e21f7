"""Which numbers are multiplied in which precision.

`precision` of a run says it of matrix products and of cuDNN alike. Vectors are brought to unit length and compared in
float32 whatever it is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

Precision = Literal["float32", "tf32", "bfloat16"]

_SHORTEST = 1e-12  # a length that is divided by


@contextmanager
def multiplied_in(precision: Precision) -> Iterator[None]:
    """Let CUDA's matrix products and cuDNN round float32 to TF32, or not; bfloat16 is autocast's, `autocast_to`."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def autocast_to(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context in which operations run in bfloat16, where the precision says so."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Full precision for products of `x` whose last digits are compared."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def unit(x: Tensor) -> Tensor:
    """`x` ``[..., D]`` with vectors of length 1, in float32 at least, autocast or not."""
    return _Unit.apply(x)


class _Unit(torch.autograd.Function):
    """``y = x / |x|``. The gradient ``(g - (g · y) y) / |x|`` is written out: autograd's takes thrice the passes."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sum_dtype(x)).clamp_(min=_SHORTEST)
        made = x / length
        ctx.save_for_backward(made, length)
        ctx.dtype = x.dtype
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        made, length = ctx.saved_tensors
        along = (gradient * made).sum(-1, keepdim=True)
        return gradient.addcmul(made, along, value=-1).div_(length).to(ctx.dtype)


class GRU(nn.GRU):
    """A GRU of one layer that multiplies in autocast's dtype.

    Left to itself, autocast runs cuDNN's GRU in float16 whatever its dtype, and float16 has no room for gradients.
    """

    def __init__(self, inputs: int, dim: int, *, bidirectional: bool = False):
        super().__init__(inputs, dim, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor, start: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The states ``[B, N, D]`` (both ways: 2 D) of ``[B, N, inputs]``; `start` ``[B, D]`` is before the first."""
        dtype, ways = matmul_dtype(x), 1 + self.bidirectional
        before = x.new_zeros(ways, len(x), self.hidden_size, dtype=dtype) if start is None else start[None].to(dtype)
        weights = [weight.to(dtype) for weight in self._flat_weights]
        with without_autocast(x):
            return torch.gru(x.to(dtype), before, weights, True, 1, 0.0, self.training, self.bidirectional, True)[0]


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `x` has: autocast's where it is on, else that of `x`.

    Autocast covers only the forward of a custom autograd function; asking here covers both ways.
    """
    device = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype for sums over `x`: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)
