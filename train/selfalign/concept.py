"""Concept alignment, L_LCA (arXiv 2308.14009, "local concept alignment"; docs/method.md).

A codebook of K prototypes scores regions and words before any context. Each word takes its most similar region of its
own picture; the word must predict that region's codebook assignment, which Sinkhorn-Knopp makes without gradient
(as SwAV does, Caron et al., NeurIPS 2020, section 3.1).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from train.precision import matmul_dtype, sum_dtype

# On the CPU, what is done row by row to [N, K] is done to this many rows while they are in its cache; a product whose
# result goes elsewhere is made of that many.
_ROWS, _PRODUCT_ROWS = 128, 1024
# How far apart float32 may have the logits, cosines over epsilon: their exponentials are multiplied with each other.
_WIDEST = 80
_LEAST_EPSILON = 0.004  # below, float64 loses prototypes too


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used alike.

    Starting from ``exp(scores / epsilon)``, `iterations` times: prototypes are scaled to equal sums, then samples.

    Parameters
    ----------
    scores : cosines ``[N, K]`` of samples and prototypes; N may be 0.
    epsilon : the entropy's weight, 0.004 or more; smaller is sharper.

    Returns
    -------
    ``[N, K]``, each row (sample) summing to 1; at least float32.

    Raises
    ------
    ValueError : a smaller epsilon, or no iteration.
    """
    _check(epsilon, iterations)
    logits = scores.to(_kernel_dtype(scores, epsilon)) / epsilon
    kernel, sample_scale, prototype_scale = _scaling(logits, iterations)
    return kernel.mul_(prototype_scale).mul_(sample_scale[:, None]).to(sum_dtype(scores))


def _check(epsilon: float, iterations: int) -> None:
    if epsilon < _LEAST_EPSILON or iterations < 1:
        raise ValueError(f"epsilon must be {_LEAST_EPSILON} or more and is {epsilon}, iterations 1 and is {iterations}")


def _kernel_dtype(scores: Tensor, epsilon: float) -> torch.dtype:
    """At least float32, and float64 for an epsilon so small that float32 would lose whole prototypes."""
    return torch.float64 if 2 / epsilon > _WIDEST else sum_dtype(scores)


def _scaling(logits: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sinkhorn-Knopp in scaling form: two vectors change, the matrix ``[N, K]`` is made once, in the place of `logits`.

    Returns the kernel ``exp(logits)``, each row relative to its largest value so that none vanishes, and the scales of
    samples ``[N]`` and prototypes ``[K]``. Kernel times both is the assignment, each row summing to 1.
    """
    samples, prototypes = logits.shape
    if samples == 0:
        return logits, logits.new_ones(samples), logits.new_ones(prototypes)
    largest = []
    for (part,) in _split(_ROWS, logits):
        largest.append(part.amax(1, keepdim=True))
        part.sub_(largest[-1]).exp_()
    kernel, largest = logits, torch.cat(largest).squeeze(1)
    sample_scale = (largest - largest.amax()).exp_()
    for _ in range(iterations):
        sums = (sample_scale @ kernel).clamp_(min=torch.finfo(kernel.dtype).tiny)
        prototype_scale = sums.amin() / sums
        sample_scale = 1 / (kernel @ prototype_scale)
    return kernel, sample_scale, prototype_scale


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
    codebook : parameter ``[K, D]``; in training mode its rows are brought to unit length before every use.

    Raises
    ------
    ValueError : as `sinkhorn` does.
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
        _check(epsilon, sinkhorn_iterations)
        self.codebook = nn.Parameter(F.normalize(torch.randn(num_concepts, dim), dim=-1))
        self.temperature, self.epsilon, self.sinkhorn_iterations = temperature, epsilon, sinkhorn_iterations
        self.both_directions = both_directions

    @torch.no_grad()
    def normalize_codebook(self) -> None:
        """Bring the codebook's rows to unit length, in place."""
        # Through `data`: a second use before backward finds unit rows, and what autograd kept of the first stays true.
        self.codebook.data.div_(torch.linalg.vector_norm(self.codebook, dim=-1, keepdim=True).clamp_(min=1e-12))

    def forward(
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
        regions ``[B, R, D]``, words ``[B, T, D]`` : unit-length local features of matching pairs.
        word_mask ``[B, T]``, region_mask ``[B, R]`` : true where there is a word or a region.
        chosen ``[B, T]`` : true where a word takes part, for instance by its part of speech; None means all do.

        Gradients reach the side that predicts (the words; the regions where they predict as well) and the codebook.
        """
        if self.training:
            self.normalize_codebook()
        if region_mask is None:
            region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        if chosen is not None:
            word_mask = word_mask & chosen
        with torch.no_grad():
            similarity = words @ regions.transpose(1, 2)
        paired = word_mask.any(1, keepdim=True) & region_mask.any(1, keepdim=True)
        loss = self._predict(words, word_mask & paired, regions, region_mask, similarity)
        if self.both_directions:
            backwards = similarity.transpose(1, 2)
            loss = (loss + self._predict(regions, region_mask & paired, words, word_mask, backwards)) / 2
        return loss

    def _predict(self, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, similarity: Tensor) -> Tensor:
        """Mean cross-entropy of x's ``[B, N, D]`` predictions and the assignments of their nearest y ``[B, M, D]``."""
        rows, valid = x_mask.flatten().nonzero().squeeze(1), y_mask.flatten().nonzero().squeeze(1)
        dtype = matmul_dtype(y)
        # The products are of that dtype, all else isn't.
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            nearest = similarity.masked_fill(~y_mask[:, None], -torch.inf).argmax(-1)
            # Where each of y stands among its valid ones.
            place = (y_mask.flatten().cumsum(0) - 1).view_as(y_mask)
            nearest = place.gather(1, nearest).flatten()[rows]
            scores = _scaled_product(_rows(y, valid).to(dtype), self.codebook.to(dtype).T, 1 / self.epsilon)
            kernel, y_scale, prototype_scale = _scaling(
                scores.to(_kernel_dtype(y, self.epsilon)), self.sinkhorn_iterations
            )
            targets, target_scale = kernel.index_select(0, nearest), y_scale[nearest]
            del scores, kernel
            lengths = x_mask.sum(1, keepdim=True)
            share = 1 / (lengths * (lengths > 0).sum()).expand_as(x_mask).flatten()[rows].to(targets.dtype)
        return _CrossEntropy.apply(
            x, self.codebook, rows, share, self.temperature, targets, target_scale, prototype_scale
        )


class _CrossEntropy(torch.autograd.Function):
    """``-sum_i share_i <Q_i, log softmax(x_i Cᵀ / temperature)>`` over some rows x_i of ``[B, N, D]``.

    Q_i is targets_i, a row of what `_scaling` gave, times its scale and the prototypes'. The slope in the logits takes
    the targets' place and is all that is kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        codebook: Tensor,
        rows: Tensor,
        share: Tensor,
        temperature: float,
        targets: Tensor,
        target_scale: Tensor,
        prototype_scale: Tensor,
    ) -> Tensor:
        dtype = matmul_dtype(x)
        product = _scaled_product(_rows(x, rows).to(dtype), codebook.to(dtype).T, 1 / temperature).to(targets.dtype)
        loss = share.new_zeros(())
        for logits, weight, scale, part in _split(_ROWS, product, share, target_scale, targets):
            part.mul_(prototype_scale).mul_((weight * scale)[:, None])
            log_softmax = logits.log_softmax(1)
            loss -= torch.dot(part.flatten(), log_softmax.flatten())
            torch.sub(log_softmax.exp_().mul_(weight[:, None]), part, out=part)
        ctx.save_for_backward(x, codebook, rows, targets.to(dtype))
        ctx.temperature = temperature
        return loss.to(sum_dtype(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, codebook, rows, slope = ctx.saved_tensors
        grad = grad / ctx.temperature
        grad_x = grad_codebook = None
        if ctx.needs_input_grad[1]:
            grad_codebook = (slope.T @ _rows(x, rows).to(slope.dtype)).to(codebook.dtype).mul_(grad)
        if ctx.needs_input_grad[0]:
            codebook = codebook.to(slope.dtype)
            grad_x = x.new_zeros(x.shape)
            for there, part in _split(_PRODUCT_ROWS, rows, slope):
                grad_x.flatten(0, 1).index_copy_(0, there, (part @ codebook).to(x.dtype).mul_(grad))
        return grad_x, grad_codebook, *[None] * 6


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``[B, N, D]`` counted through all B, rising; no copy where they are all of them."""
    flat = x.flatten(0, 1)
    return flat if len(rows) == len(flat) else flat.index_select(0, rows)


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * (a @ b)`` in one go."""
    return torch.addmm(a.new_empty(1), a, b, beta=0, alpha=scale)


def _split(rows: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors' rows, so many at a time; all at once where that isn't the CPU."""
    if tensors[0].device.type != "cpu":
        return [tensors]
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
