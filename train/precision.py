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

_EPSILON = 1e-12  # the least length that is divided by


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
    return _Normalize.apply(x)


class _Normalize(torch.autograd.Function):
    """``y = x / max(|x|, ε)``. The gradient ``(g - (g · y) y) / |x|`` is written out: autograd's takes more passes."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=sum_dtype(x)).clamp_(min=_EPSILON)
        output = x / norm
        ctx.save_for_backward(output, norm)
        ctx.dtype = x.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> Tensor:
        output, norm = ctx.saved_tensors
        dot = (grad_output * output).sum(-1, keepdim=True) * (norm > _EPSILON)
        return grad_output.addcmul(output, dot, value=-1).div_(norm).to(ctx.dtype)


class GRU(nn.GRU):
    """A GRU of one layer that multiplies in autocast's dtype.

    Autocast runs cuDNN's GRU in float16 whatever its dtype, and small gradients are zero there.
    """

    def __init__(self, inputs: int, dim: int, *, bidirectional: bool = False):
        super().__init__(inputs, dim, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The states ``[B, N, D]`` (both ways: 2 D) of ``[B, N, inputs]``; `h0` ``[B, D]`` is the one before them."""
        dtype, directions = matmul_dtype(x), 1 + self.bidirectional
        h0 = x.new_zeros(directions, len(x), self.hidden_size) if h0 is None else h0[None].contiguous()
        weights = [weight.to(dtype) for weight in self._flat_weights]
        train = torch.is_grad_enabled()  # cuDNN has no backward of a forward in evaluation mode
        with without_autocast(x):
            return torch.gru(x.to(dtype), h0.to(dtype), weights, True, 1, 0.0, train, self.bidirectional, True)[0]


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
