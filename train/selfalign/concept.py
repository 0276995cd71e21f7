"""Concept alignment, L_LCA (arXiv 2308.14009, "local concept alignment"; METHODS.md, "LCA").

A codebook of K prototypes scores regions and words before any context. Each word takes its most similar region of its
own picture; the word must predict that region's codebook assignment, which Sinkhorn-Knopp makes without gradient
(as SwAV does, Caron et al., NeurIPS 2020, section 3.1).
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from train.precision import matmul_dtype, sum_dtype


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used alike.

    Starting from ``exp(scores / epsilon)``, `iterations` times: prototypes are scaled to equal sums, then samples.

    Parameters
    ----------
    scores : cosines ``[N, K]`` of samples and prototypes; N may be 0.
    epsilon : the entropy's weight; smaller is sharper.

    Returns
    -------
    ``[N, K]``, each row (sample) summing to 1; at least float32.
    """
    return _assignment(*_kernel_and_scale(scores.to(sum_dtype(scores), copy=True), epsilon, iterations))


def _kernel_and_scale(scores: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Sinkhorn-Knopp in scaling form: two vectors change, the matrix is made once, in the place of `scores`.

    Returns the kernel ``exp(scores / epsilon)``, each row relative to its largest value so that none vanishes, and the
    prototypes' scale ``[K]``. The samples' scale is what makes a row's sum 1 (`_assignment`).
    """
    samples, prototypes = scores.shape
    if samples == 0:
        return scores, scores.new_ones(prototypes)
    largest = scores.amax(1, keepdim=True)
    kernel = scores.sub_(largest).div_(epsilon).exp_()
    sample_scale = ((largest - largest.max()) / epsilon).exp().squeeze(1)
    for _ in range(iterations):
        sums = (sample_scale @ kernel).clamp(min=torch.finfo(kernel.dtype).tiny)
        prototype_scale = sums.min() / sums
        sample_scale = 1 / (kernel @ prototype_scale)
    return kernel, prototype_scale


def _assignment(kernel: Tensor, prototype_scale: Tensor) -> Tensor:
    """The assignments ``[n, K]`` of some of the kernel's rows, in their place."""
    kernel *= prototype_scale
    return kernel.div_(kernel.sum(1, keepdim=True))


class ConceptAlignment(nn.Module):
    """L_LCA over a batch of matching pairs.

    Parameters
    ----------
    dim : D of the local features.
    num_concepts : K, the codebook's size.
    temperature : of the prediction.
    epsilon, sinkhorn_iterations : of the assignment (`sinkhorn`).
    both_directions : regions predict the assignments of their most similar words as well, and the loss is the mean.

    Attributes
    ----------
    codebook : parameter ``[K, D]``; its rows are brought to unit length before every step in training.
    """

    def __init__(
        self,
        dim: int,
        num_concepts: int,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 2,
        both_directions: bool = False,
    ):
        super().__init__()
        self.codebook = nn.Parameter(F.normalize(torch.randn(num_concepts, dim), dim=-1))
        self.temperature, self.epsilon, self.sinkhorn_iterations = temperature, epsilon, sinkhorn_iterations
        self.both_directions = both_directions

    @torch.no_grad()
    def normalize_codebook(self) -> None:
        """Bring the codebook's rows to unit length, in place."""
        self.codebook.copy_(F.normalize(self.codebook, dim=-1))

    def forward(
        self,
        regions: Tensor,
        words: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: the mean over a caption's words (a picture's regions), then over captions (pictures).

        Parameters
        ----------
        regions ``[B, R, D]``, words ``[B, T, D]`` : unit-length local features of matching pairs.
        word_mask ``[B, T]``, region_mask ``[B, R]`` : true where there is a word or a region; every picture and
            caption needs at least one.
        chosen ``[B, T]`` : true where a word takes part, for instance by its part of speech; None means all do. Pairs
            without such a word are left out of the mean; without any such pair the loss is 0.

        Gradients reach the side that predicts (the words; the regions where they predict as well) and the codebook.
        """
        self.normalize_codebook()
        if region_mask is None:
            region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        if chosen is not None:
            word_mask = word_mask & chosen
        with torch.no_grad():
            similarity = words @ regions.transpose(1, 2)
        loss = self._predict(words, word_mask, regions, region_mask, similarity)
        if self.both_directions:
            paired = region_mask & word_mask.any(1, keepdim=True)
            loss = (loss + self._predict(regions, paired, words, word_mask, similarity.transpose(1, 2))) / 2
        return loss

    def _predict(self, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, similarity: Tensor) -> Tensor:
        """Mean cross-entropy of x's ``[B, N, D]`` predictions and the assignments of their nearest y ``[B, M, D]``."""
        rows = x_mask.flatten().nonzero().squeeze(1)
        with torch.no_grad():
            nearest = similarity.masked_fill(~y_mask[:, None], -torch.inf).argmax(-1)
            # Where each of y stands among its valid ones.
            place = (y_mask.flatten().cumsum(0) - 1).view_as(y_mask)
            nearest = place.gather(1, nearest).flatten()[rows]
            scores = _rows(y, y_mask.flatten().nonzero().squeeze(1)) @ self.codebook.T
            kernel, scale = _kernel_and_scale(scores.to(sum_dtype(scores)), self.epsilon, self.sinkhorn_iterations)
            targets = _assignment(kernel[nearest], scale)
            del scores, kernel
            lengths = x_mask.sum(1, keepdim=True)
            weight = (lengths * (lengths > 0).sum()).expand_as(x_mask).flatten()[rows].to(targets.dtype)
        return _CrossEntropy.apply(x, self.codebook, rows, targets, 1 / weight, self.temperature)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``[B, N, D]`` counted through all B; no copy where they are all of them."""
    flat = x.flatten(0, 1)
    return flat if len(rows) == len(flat) else flat[rows]


class _CrossEntropy(torch.autograd.Function):
    """``sum_i share_i (logsumexp(z_i) - <Q_i, z_i>)`` with ``z_i = x_i Cᵀ / temperature``.

    The gradient in z is made in the forward in z's own place, so that nothing else of that size is kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, codebook: Tensor, rows: Tensor, targets: Tensor, share: Tensor, temperature: float
    ) -> Tensor:
        dtype = matmul_dtype(x)
        logits = (_rows(x, rows).to(dtype) @ codebook.to(dtype).T).to(targets.dtype).div_(temperature)
        normaliser = logits.logsumexp(1, keepdim=True)
        loss = (share * (normaliser.squeeze(1) - torch.linalg.vecdot(targets, logits))).sum()
        slope = logits.sub_(normaliser).exp_().sub_(targets).mul_(share[:, None] / temperature)
        ctx.save_for_backward(x, codebook, rows, slope.to(dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, codebook, rows, slope = ctx.saved_tensors
        grad_x = grad_codebook = None
        if ctx.needs_input_grad[1]:
            grad_codebook = (slope.T @ _rows(x, rows).to(slope.dtype)).to(codebook.dtype).mul_(grad)
        if ctx.needs_input_grad[0]:
            compact = (slope @ codebook.to(slope.dtype)).to(x.dtype).mul_(grad)
            grad_x = x.new_zeros(x.shape).flatten(0, 1).index_copy_(0, rows, compact).view_as(x)
        return grad_x, grad_codebook, None, None, None, None
