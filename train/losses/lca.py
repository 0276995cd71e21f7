"""Concept alignment, L_LCA (arXiv 2308.14009, "local concept alignment"; docs/method.md).

A codebook of K prototypes scores regions and words before any context. Each word takes its most similar region of its
own picture, and must predict that region's codebook assignment. Sinkhorn-Knopp makes assignments without gradient (as
SwAV does, Caron et al., NeurIPS 2020, section 3.1).
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from extract.text.parts_of_speech import POS_NAMES
from train.encoding import FIELD, Kind
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Shape, Step
from train.precision import sum_dtype

# How far apart float32 may have the logits, cosines over epsilon: their exponentials are multiplied with each other.
_WIDEST = 80
_LEAST_EPSILON = 0.004  # below, float64 loses prototypes too


class ConceptSettings(LossSettings):
    num_concepts: int = Field(1024, ge=1, description="K, the codebook's size")
    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, ge=_LEAST_EPSILON)
    sinkhorn_iterations: int = Field(2, ge=1)
    frozen_epochs: int = Field(1, ge=0, description="its first epochs, in which the codebook isn't moved")
    both_directions: bool = Field(False, description="regions predict their words' entries as well")
    parts_of_speech: list[Literal[*POS_NAMES]] | None = Field(
        None, min_length=1, description="universal tags of the words that learn"
    )
    locals: Kind = Field("projected", description="before or after context")


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, valid: Tensor | None = None) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used alike.

    Starting from ``exp(scores / epsilon)``, `iterations` times: prototypes are scaled to equal sums, then samples.
    In scaling form: two vectors change, the matrix is made once.

    Parameters
    ----------
    scores : cosines ``[N, K]`` of samples and prototypes; N may be 0.
    epsilon : the entropy's weight, 0.004 or more; smaller is sharper.
    valid : bool ``[N]``, the rows that are samples; None means all.

    Returns
    -------
    ``[N, K]``, each row (sample) summing to 1, other rows 0; at least float32.

    Raises
    ------
    ValueError : a smaller epsilon, or no iteration.
    """
    if epsilon < _LEAST_EPSILON or iterations < 1:
        raise ValueError(f"epsilon must be {_LEAST_EPSILON} or more and is {epsilon}, iterations 1 and is {iterations}")
    dtype = torch.float64 if 2 / epsilon > _WIDEST else sum_dtype(scores)
    logits = scores.to(dtype) / epsilon
    if not len(logits):
        return logits.to(sum_dtype(scores))
    if valid is None:
        valid = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    largest = logits.amax(1, keepdim=True)
    kernel = (logits - largest).exp_()
    most = largest.masked_fill(~valid[:, None], torch.finfo(dtype).min).amax()
    sample = (largest - most).exp().squeeze(1).masked_fill(~valid, 0)
    for _ in range(iterations):
        sums = (sample @ kernel).clamp_(min=torch.finfo(dtype).tiny)
        prototype = sums.amin() / sums
        sample = (1 / (kernel @ prototype)).masked_fill(~valid, 0)
    return kernel.mul_(prototype).mul_(sample[:, None]).to(sum_dtype(scores))


@LOSSES.add("lca")
class ConceptAlignment(Loss):
    """L_LCA over a batch of matching pairs.

    Attributes
    ----------
    codebook : parameter ``[K, D]``; in training mode its rows are brought to unit length before every use.
    """

    Settings = ConceptSettings
    training_only = True

    def __init__(self, settings: ConceptSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        self.codebook = nn.Parameter(F.normalize(torch.randn(settings.num_concepts, shape.dim), dim=-1))
        chosen = settings.parts_of_speech
        tags = torch.tensor([POS_NAMES.index(tag) for tag in chosen], dtype=torch.uint8) if chosen else None
        self.register_buffer("tags", tags, persistent=False)

    def frozen(self, epoch: int, model: nn.Module) -> Iterable[nn.Parameter]:
        return [self.codebook] if epoch < self.options.start_epoch + self.options.frozen_epochs else []

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({FIELD[self.options.locals]})

    def forward(self, step: Step) -> Tensor:
        images, captions, kind = step.images, step.captions, self.options.locals
        chosen = None if self.tags is None else (step.pos[..., None] == self.tags).any(-1)
        return self.aligned(images.unit(kind), captions.unit(kind), captions.mask, images.mask, chosen)

    def aligned(
        self,
        regions: Tensor,
        words: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: the mean over a caption's words (a picture's regions), then over captions (pictures).

        A pair without a word or without a region is left out of the mean; with no other pair the loss is 0.

        Parameters
        ----------
        regions, words : ``[B, R, D]`` and ``[B, T, D]``, unit-length local features of matching pairs.
        word_mask, region_mask : ``[B, T]`` and ``[B, R]``, true where there is a word or a region.
        chosen : ``[B, T]``, true where a word takes part, for instance by its part of speech; None means all do.

        Gradients reach the side that predicts (the words; the regions where they predict as well) and the codebook.
        """
        if self.training:
            with torch.no_grad():
                # Through `data`: a second use before backward finds unit rows, and what autograd kept stays true.
                self.codebook.data.copy_(F.normalize(self.codebook, dim=-1))
        if region_mask is None:
            region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        if chosen is not None:
            word_mask = word_mask & chosen
        paired = word_mask.any(1, keepdim=True) & region_mask.any(1, keepdim=True)
        loss = self._predict(words, word_mask & paired, regions.detach(), region_mask)
        if self.options.both_directions:
            loss = (loss + self._predict(regions, region_mask & paired, words.detach(), word_mask)) / 2
        return loss

    def _predict(self, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        """Mean cross-entropy of x's ``[B, N, D]`` predictions and the assignments of their nearest y ``[B, M, D]``."""
        with torch.no_grad():
            scores, options = (y @ self.codebook.T).flatten(0, 1), self.options
            assigned = sinkhorn(scores, options.epsilon, options.sinkhorn_iterations, y_mask.flatten())
            nearest = (x @ y.transpose(1, 2)).masked_fill(~y_mask[:, None], -torch.inf).argmax(-1)
            row = nearest + y_mask.shape[1] * torch.arange(len(y), device=y.device)[:, None]
            lengths = x_mask.sum(1, keepdim=True)
            share = x_mask / (lengths * (lengths > 0).sum()).clamp(min=1)
        logits = (x @ self.codebook.T).to(assigned.dtype) / self.options.temperature
        # sum(-Q log softmax(z)) = logsumexp(z) - <Q, z>, since Q sums to 1.
        losses = logits.logsumexp(-1) - (assigned[row] * logits).sum(-1)
        return (share * losses).sum()
