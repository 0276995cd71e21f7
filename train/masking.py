"""Means, batch norm and pooling that padding never enters, so that an embedding doesn't depend on its batch."""

import torch
from torch import Tensor, nn


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean ``[B, D]`` of ``[B, N, D]`` over the valid positions of ``[B, N]``; every row needs one."""
    weights = mask.to(x.dtype) / mask.sum(1, keepdim=True)
    return (x * weights[..., None]).sum(1)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the features of valid positions only; padding comes out as zeros."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``[B, N, D]`` over the valid positions of ``[B, N]``."""
        out = torch.zeros_like(x)
        out[mask] = super().forward(x[mask])
        return out
