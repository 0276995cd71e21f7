"""Context alignment, L_CRA (arXiv 2308.14009, "context alignment"; docs/method.md).

Each modality's guided global must find the other modality's contextualised locals among all locals of the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from train.masking import BatchNorm, MaskedBatchNorm, masked_mean
from train.precision import matmul_dtype, sum_dtype


def context_alignment_loss(
    locals_: Tensor,
    global_: Tensor,
    temperature: float = 0.7,
    num_negatives: int = 512,
    mask: Tensor | None = None,
    same: Tensor | None = None,
) -> Tensor:
    """InfoNCE from each global to its own pair's locals, against the hardest locals of the other pairs.

    The negatives don't depend on the local: one top-k and one logsumexp a global serve all of its N positives.

    Parameters
    ----------
    locals_ ``[B, N, D]``, global_ ``[B, D]`` : unit-length features of matching pairs.
    num_negatives : how many of the hardest count, 1 or more; all there are where the batch has fewer.
    mask ``[B, N]`` : true where there is a local. A pair without any is left out of the mean.
    same ``[B, B]`` : true where two pairs are of one picture; such pairs are not each other's negatives.

    Returns
    -------
    a scalar: the mean over a pair's locals, then over pairs. 0 where the batch is one pair: there is nothing to tell
    it from.

    Raises
    ------
    ValueError : no negatives are asked for.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be 1 or more and is {num_negatives}")
    pairs, width, _ = locals_.shape
    if mask is None:
        mask = torch.ones(pairs, width, dtype=torch.bool, device=locals_.device)
    barred = torch.eye(pairs, dtype=torch.bool, device=locals_.device)
    if same is not None:
        barred = barred | same
    return _ContextAlignment.apply(locals_, global_, mask, barred, temperature, num_negatives)


class _ContextAlignment(torch.autograd.Function):
    """The loss and, in the logits' own place, its gradient in them: nothing else of their size ``[B, B N]`` is kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        locals_: Tensor,
        global_: Tensor,
        mask: Tensor,
        barred: Tensor,
        temperature: float,
        num_negatives: int,
    ) -> Tensor:
        pairs, width, _ = locals_.shape
        dtype = matmul_dtype(locals_)
        logits = global_.to(dtype) @ locals_.to(dtype).flatten(0, 1).T
        logits = logits.to(sum_dtype(logits)).div_(temperature)
        by_pair = logits.view(pairs, pairs, width)
        positives = by_pair.diagonal().T.clone()
        # So low that a pair with fewer candidates than it asks for is given no false one, yet all slopes are finite.
        lowest = torch.finfo(logits.dtype).min / 4
        by_pair += barred[..., None].to(logits.dtype) * lowest
        logits += (~mask).flatten().to(logits.dtype) * lowest
        places = _hardest(logits, min(num_negatives, logits.shape[1]))
        hardest = logits.gather(1, places)
        rival = hardest.logsumexp(1, keepdim=True)
        lengths = mask.sum(1, keepdim=True)
        share = mask.to(logits.dtype) / ((lengths > 0).sum() * lengths).clamp_(min=1)
        loss = ((rival - positives).logaddexp(rival.new_zeros(())) * share).sum()
        slope = (rival - positives).sigmoid_().mul_(share / temperature)
        logits.zero_().scatter_(1, places, hardest.softmax(1) * slope.sum(1, keepdim=True))
        by_pair.diagonal().copy_(-slope.T)
        ctx.save_for_backward(locals_, global_, logits.to(dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        locals_, global_, slope = ctx.saved_tensors
        grad_locals = grad_global = None
        if ctx.needs_input_grad[0]:
            scaled = (global_ * grad).to(slope.dtype)
            grad_locals = (slope.T @ scaled).to(locals_.dtype).view_as(locals_)
        if ctx.needs_input_grad[1]:
            grad_global = (slope @ locals_.to(slope.dtype).flatten(0, 1)).to(global_.dtype).mul_(grad)
        return grad_locals, grad_global, None, None, None, None


def _hardest(logits: Tensor, count: int) -> Tensor:
    """Where the `count` largest of each row are, in any order."""
    if logits.device.type == "cpu":
        # Several times faster than torch's topk.
        return torch.from_numpy(np.argpartition(logits.numpy(), -count, axis=1)[:, -count:])
    return logits.topk(count, sorted=False).indices


@dataclass(frozen=True, slots=True)
class Context:
    """One modality's context, all of unit length: locals ``[B, N, D]``, guided global and fused ``[B, D]``."""

    locals: Tensor
    guided: Tensor
    fused: Tensor


class ContextAggregation(nn.Module):
    """The guided global of one modality, its context locals, and the fused context of its final embedding.

    ``g = relu(BN1(W avg + b))``, ``l = relu(BN2(x))``, ``f = alpha avg + (1 - alpha) g`` with
    ``alpha = sigmoid(MLP([avg; g]))``; ``avg`` is the mean over valid locals.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.guide = nn.Linear(dim, dim)
        self.guide_norm = BatchNorm(dim)
        self.local_norm = MaskedBatchNorm(dim)
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor, mask: Tensor) -> Context:
        """Contextualised locals ``[B, N, D]`` with their mask ``[B, N]`` to a `Context`."""
        average = masked_mean(x, mask)
        guided = self.guide_norm(self.guide(average)).relu()
        alpha = self.gate(torch.cat([average, guided], dim=-1))
        return Context(
            locals=F.normalize(self.local_norm(x, mask).relu(), dim=-1),
            guided=F.normalize(guided, dim=-1),
            fused=F.normalize(alpha * average + (1 - alpha) * guided, dim=-1),
        )
