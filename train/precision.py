"""Which numbers are multiplied in which precision.

`precision` of a run says it of matrix products and of cuDNN alike. Vectors are brought to unit length and compared in
float32 whatever it is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Precision = Literal["float32", "tf32", "bfloat16"]


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
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """`x` with vectors of length 1 along `dim`, in float32 at least, autocast or not."""
    return F.normalize(x.to(sum_dtype(x)), dim=dim)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `x` has: autocast's where it is on, else that of `x`.

    Autocast covers only the forward of a custom autograd function; asking here covers both ways.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype for sums over `x`: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)
