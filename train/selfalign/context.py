"""Context alignment, L_CRA (arXiv 2308.14009, "context alignment"; METHODS.md, "CRA").

Each modality's guided global must find the other modality's contextualised locals among all locals of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.masking import MaskedBatchNorm, masked_mean


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
    num_negatives : how many of the hardest count; all there are where the batch has fewer.
    mask ``[B, N]`` : true where there is a local.
    same ``[B, B]`` : true where two pairs are of one picture; such pairs are not each other's negatives.

    Returns
    -------
    a scalar: the mean over a pair's locals, then over pairs. 0 where the batch is one pair: there is nothing to tell
    it from.
    """
    pairs, width, dim = locals_.shape
    if mask is None:
        mask = torch.ones(pairs, width, dtype=torch.bool, device=locals_.device)
    logits = (global_ @ locals_.reshape(-1, dim).T).view(pairs, pairs, width) / temperature
    own = torch.eye(pairs, dtype=torch.bool, device=locals_.device)
    positives = logits[own]
    barred = own if same is None else own | same
    # Filled so low that a pair with fewer candidates than it asks for is given no false one, yet gradients stay finite.
    negatives = logits.masked_fill(barred[..., None] | ~mask, torch.finfo(logits.dtype).min / 2).flatten(1)
    count = min(num_negatives, negatives.shape[1])
    hardest = negatives.topk(count, sorted=False).values.logsumexp(1, keepdim=True)
    each = torch.logaddexp(positives, hardest) - positives
    return masked_mean(each[..., None], mask).mean()


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
        self.guide_norm = nn.BatchNorm1d(dim)
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
