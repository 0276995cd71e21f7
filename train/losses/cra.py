"""Context alignment, L_CRA (arXiv 2308.14009, "context alignment"; docs/method.md).

Each modality's guided global must find the other modality's contextualised locals among all locals of the batch. The
context is a part of the final embedding. An image's is ``[mean(l) / 2; f / 2]``, a caption's ``[f; mean(l)]``, so that
one's context locals meet the other's fused context.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from train.encoding import Encoded
from train.losses import LOSSES
from train.losses.loss import Extension, Loss, LossSettings, Shape, Side, Step
from train.masking import MaskedBatchNorm, masked_mean
from train.precision import sum_dtype, unit


class ContextSettings(LossSettings):
    temperature: float = Field(0.7, gt=0)
    num_negatives: int = Field(512, ge=1)


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
    locals_, global_ : ``[B, N, D]`` and ``[B, D]``, unit-length features of matching pairs.
    num_negatives : number of the hardest that count, 1 or more; a smaller batch has fewer.
    mask : ``[B, N]``, true where there is a local. A pair without any is left out of the mean.
    same : ``[B, B]``, true where two pairs are of one picture; such pairs are not each other's negatives.

    Returns
    -------
    a scalar: the mean over a pair's locals, then over pairs. It is 0 where the batch is one pair, without negatives.

    Raises
    ------
    ValueError : no negatives are asked for.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be 1 or more and is {num_negatives}")
    pairs, width, _ = locals_.shape
    if mask is None:
        mask = torch.ones(pairs, width, dtype=torch.bool, device=locals_.device)
    excluded = torch.eye(pairs, dtype=torch.bool, device=locals_.device)
    excluded = (excluded if same is None else excluded | same)[..., None] | ~mask
    logits = (global_ @ locals_.flatten(0, 1).T).to(sum_dtype(locals_)).view(pairs, pairs, width) / temperature
    positives = logits.diagonal().T
    # So low that a pair with fewer candidates than it asks for is given no false one, yet all slopes are finite.
    candidates = logits.masked_fill(excluded, torch.finfo(logits.dtype).min / 4).flatten(1)
    hardest = candidates.gather(1, _hardest(candidates.detach(), min(num_negatives, candidates.shape[1])))
    rival = hardest.logsumexp(1, keepdim=True)
    lengths = mask.sum(1, keepdim=True)
    share = mask / ((lengths > 0).sum() * lengths).clamp(min=1)
    return ((rival - positives).logaddexp(rival.new_zeros(())) * share).sum()


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
        self.guide_norm = MaskedBatchNorm(dim)
        self.local_norm = MaskedBatchNorm(dim)
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor, mask: Tensor) -> Context:
        """Contextualised locals ``[B, N, D]`` with their mask ``[B, N]`` to a `Context`."""
        average = masked_mean(x, mask)
        guided = self.guide_norm(self.guide(average)).relu()
        alpha = self.gate(torch.cat([average, guided], dim=-1))
        return Context(
            locals=unit(self.local_norm(x, mask).relu()),
            guided=unit(guided),
            fused=unit(alpha * average + (1 - alpha) * guided),
        )


@LOSSES.add("cra")
class ContextAlignment(Loss):
    Settings = ContextSettings
    published = {
        "ctx_fc.": "{side}.guide.",
        "ctx_fc_bn1.": "{side}.guide_norm.",
        "ctx_fc_bn2.": "{side}.local_norm.",
        "fusion_fn.": "{side}.gate.",
    }

    def __init__(self, settings: ContextSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        self.images, self.captions = ContextAggregation(shape.dim), ContextAggregation(shape.dim)

    @classmethod
    def added_dims(cls, settings: ContextSettings, dim: int) -> int:
        return 2 * dim

    def extend(self, side: Side, encoded: Encoded) -> Extension:
        context = getattr(self, side)(encoded.contextual, encoded.mask)
        mean = masked_mean(context.locals, encoded.mask)
        parts = [mean / 2, context.fused / 2] if side == "images" else [context.fused, mean]
        return Extension(torch.cat(parts, dim=-1), {"cra_locals": context.locals, "cra_guided": context.guided})

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def forward(self, step: Step) -> Tensor:
        temperature, count = self.options.temperature, self.options.num_negatives
        losses = [
            context_alignment_loss(
                side.parts["cra_locals"], other.parts["cra_guided"], temperature, count, side.mask, step.same
            )
            for side, other in ((step.images, step.captions), (step.captions, step.images))
        ]
        return sum(losses) / 2
