"""In which precision hand-written gradients multiply matrices, with and without autocast."""

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `x` has: autocast's where it is on, else that of `x`.

    Autocast covers only the forward of a custom autograd function; asking here covers both ways.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype for sums over `x`: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)
