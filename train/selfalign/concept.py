"""Concept alignment, L_LCA (arXiv 2308.14009, "local concept alignment"; METHODS.md, "LCA").

A codebook of K prototypes scores regions and words before any context. Each word takes its most similar region of its
own picture; the word must predict that region's codebook assignment, which Sinkhorn-Knopp makes without gradient
(as SwAV does, Caron et al., NeurIPS 2020, section 3.1).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used alike.

    Starting from ``exp(scores / epsilon)``, `iterations` times: prototypes are scaled to equal sums, then samples.
    Done in scaling form: two vectors change, the matrix is never rewritten.

    Parameters
    ----------
    scores : cosines ``[N, K]`` of samples and prototypes.
    epsilon : the entropy's weight; smaller is sharper.

    Returns
    -------
    ``[N, K]``, each row (sample) summing to 1; the dtype of `scores`.
    """
    kernel = ((scores - scores.max()) / epsilon).exp()
    samples, prototypes = kernel.shape
    sample_scale = kernel.new_full((samples,), 1 / kernel.sum().item())
    prototype_scale = kernel.new_ones(prototypes)
    for _ in range(iterations):
        prototype_scale = 1 / (prototypes * (sample_scale @ kernel))
        sample_scale = 1 / (samples * (kernel @ prototype_scale))
    return kernel * (sample_scale * samples)[:, None] * prototype_scale


class ConceptAlignment(nn.Module):
    """L_LCA over a batch of matching pairs.

    Parameters
    ----------
    dim : D of the local features.
    num_concepts : K, the codebook's size.
    temperature : of the words' prediction.
    epsilon, sinkhorn_iterations : of the regions' assignment (`sinkhorn`).

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
        """The loss, a scalar.

        Parameters
        ----------
        regions ``[B, R, D]``, words ``[B, T, D]`` : unit-length local features of matching pairs.
        word_mask ``[B, T]``, region_mask ``[B, R]`` : true where there is a word or a region; every picture and
            caption needs at least one.

        Gradients reach the words and the codebook, not the regions.
        """
        self.normalize_codebook()
        regions = regions.detach()
        if region_mask is None:
            region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
        targets = sinkhorn(regions[region_mask] @ self.codebook.detach().T, self.epsilon, self.sinkhorn_iterations)
        with torch.no_grad():
            similarity = words @ regions.transpose(1, 2)
            nearest = similarity.masked_fill(~region_mask[:, None], -torch.inf).argmax(-1)
            # Where each region's assignment stands among the valid ones.
            place = (region_mask.flatten().cumsum(0) - 1).view_as(region_mask)
            chosen = place.gather(1, nearest)[word_mask]
        logits = words[word_mask] @ self.codebook.T / self.temperature
        cross_entropy = logits.logsumexp(-1) - (targets[chosen] * logits).sum(-1)
        lengths = word_mask.sum(1)
        share = (1 / (len(words) * lengths))[:, None].expand_as(word_mask)[word_mask]
        return (cross_entropy * share).sum()
