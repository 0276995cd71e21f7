"""Means, batch norm and pooling that padding never enters, so that an embedding doesn't depend on its batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.processes import sum_over_processes, together


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean ``[B, D]`` of ``[B, N, D]`` over the valid positions of ``[B, N]``; every row needs one."""
    weights = mask.to(x.dtype) / mask.sum(1, keepdim=True)
    return (x * weights[..., None]).sum(1)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics in training are those of all processes' rows, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[n, D]``, which may have another n in each process."""
        if not self.training or together() == 1:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        total = sum_over_processes(torch.cat([values.sum(0), values.new_tensor([len(values)])]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean
        variance = sum_over_processes(centred.square().sum(0)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return (centred * ((variance + self.eps).rsqrt() * self.weight) + self.bias).to(x.dtype)


class MaskedBatchNorm(BatchNorm):
    """Batch norm over the features of valid positions only; padding comes out as zeros."""

    @torch.compiler.disable  # how many positions are valid isn't known to a compiler
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``[B, N, D]`` over the valid positions of ``[B, N]``."""
        out = torch.zeros_like(x)
        out[mask] = super().forward(x[mask])
        return out


def share_momentum(model: nn.Module, parts: int) -> None:
    """Let each of `parts` updates of the running statistics weigh so much that together they weigh one."""
    for norm in _norms(model):
        norm.momentum = 1 - (1 - norm.momentum) ** (1 / parts)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norm in training normalises as ever, but doesn't move its running statistics."""
    norms = _norms(model)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]
