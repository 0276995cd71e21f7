"""Losses against plain transcriptions of their formulas, in values and gradients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train.concepts import concept_alignment
from train.all_pairs import alignment_scores
from train.encoding import Encoding
from train.losses import LOSSES
from train.losses.cra import context_alignment_loss
from train.losses.diversity import diversity
from train.losses.lca import ConceptAlignment, sinkhorn
from train.losses.loss import Shape, Step
from train.ranking import all_pairs_triplet, hardest_triplet

DISTILLATION = dict(np.load(Path(__file__).parents[1] / "data" / "distillation.npz"))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def up_to(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def same_with_gradients(ours: Callable, plain: Callable, *inputs: Tensor) -> None:
    """Both functions' values and gradients in the inputs agree to 1e-6."""
    results = []
    for function in (ours, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        weight = torch.arange(1, 1 + value.numel(), dtype=value.dtype).view(value.shape)
        gradients = torch.autograd.grad((value * weight).sum(), leaves, allow_unused=True)
        results.append(
            (value.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)))
        )
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


def encoding_of(vectors: Tensor, locals_: Tensor, contextual: Tensor, mask: Tensor) -> Encoding:
    """B images or captions, of embeddings ``[B, D]`` and locals ``[B, N, D]``."""
    return Encoding(mask, locals_, contextual, vectors[:, None], context=vectors[:, :0])


def loss_of(name: str, images: Encoding, captions: Encoding, same: Tensor, **settings: object) -> Tensor:
    """The value of a loss for matching pairs."""
    part, dim = LOSSES.find(name), images.pooled.shape[-1]
    loss = part(part.Settings(**settings), Shape(dim, dim, 99, 8, (None, None)), {})
    return loss(Step(images, captions, same, captions.mask.byte(), {}, None, 0))


def plain_info_nce(scores: Tensor, temperature: float, same: Tensor) -> Tensor:
    """Pair by pair, both directions."""
    total = 0
    for i in range(len(scores)):
        rivals = ~same[i] | (torch.arange(len(scores)) == i)
        for row in (scores[i], scores[:, i]):
            total = total + (row[rivals] / temperature).logsumexp(0) - row[i] / temperature
    return total / (2 * len(scores))


@pytest.mark.parametrize("image", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 1]])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrast(image: list[int], temperature: float) -> None:
    same = torch.tensor(image)[:, None] == torch.tensor(image)
    locals_, mask = torch.zeros(4, 1, 6), torch.ones(4, 1).bool()

    def ours(images: Tensor, captions: Tensor) -> Tensor:
        sides = (encoding_of(x, locals_, locals_, mask) for x in (images, captions))
        return loss_of("contrast", *sides, same, temperature=temperature)

    def plain(images: Tensor, captions: Tensor) -> Tensor:
        return plain_info_nce(images @ captions.T, temperature, same)

    same_with_gradients(ours, plain, unit(4, 6), unit(4, 6, seed=1))


@pytest.mark.parametrize("kind", ["projected", "contextual"])
def test_word_region(kind: str) -> None:
    same = torch.tensor([0, 0, 1])[:, None] == torch.tensor([0, 0, 1])
    masks = up_to([4, 2, 3], 4), up_to([1, 5, 2], 5)
    other = unit(3, 4, 6, seed=2), unit(3, 5, 6, seed=3)
    length = 3.0 if kind == "contextual" else 1.0  # locals after context are of any length

    def ours(*read: Tensor) -> Tensor:
        sides = []
        for own, unread, mask in zip(read, other, masks, strict=True):
            both = (own, unread) if kind == "projected" else (unread, length * own)
            sides.append(encoding_of(torch.zeros(3, 6), *both, mask))
        return loss_of("word_region", *sides, same, temperature=0.1, locals=kind)

    def plain(regions: Tensor, words: Tensor) -> Tensor:
        scores = plain_alignment(regions, words, *masks) / masks[1].sum(1)
        return plain_info_nce(scores, 0.1, same)

    same_with_gradients(ours, plain, unit(3, 4, 6), unit(3, 5, 6, seed=1))


def plain_alignment(regions: Tensor, words: Tensor, region_mask: Tensor, word_mask: Tensor) -> Tensor:
    rows = []
    for image, regions_there in zip(regions, region_mask, strict=True):
        row = []
        for caption, words_there in zip(words, word_mask, strict=True):
            cosines = F.normalize(caption[words_there], dim=-1) @ F.normalize(image[regions_there], dim=-1).T
            row.append(cosines.amax(1).clamp(min=0).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("case", ["a", "b"])
def test_alignment_scores_are_the_published_ones(case: str) -> None:
    def golden(name: str) -> Tensor:
        return torch.tensor(DISTILLATION[f"aladin_{case}_{name}"])

    regions, words = (golden(name).double().requires_grad_() for name in ("regions", "words"))
    region_mask = torch.arange(regions.shape[1]) < golden("num_regions")[:, None]
    word_mask = torch.arange(words.shape[1]) < golden("num_words")[:, None]
    scores = alignment_scores(regions, words, region_mask, word_mask)
    loss = hardest_triplet(scores, 0.2)
    loss.backward()
    found = {"scores": scores, "loss": loss, "grad_regions": regions.grad, "grad_words": words.grad}
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), golden(name).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("region_lengths", "word_lengths"),
    [([5, 3, 1], [4, 1, 2, 4]), ([1], [1]), ([2, 5], [3])],
    ids=["ragged", "one pair", "fewer captions than images"],
)
@pytest.mark.parametrize("at_least", [1, 1 << 18], ids=["a caption at a time", "all at once"])
def test_alignment_scores(region_lengths: list[int], word_lengths: list[int], at_least: int, monkeypatch) -> None:
    monkeypatch.setattr("train.all_pairs._AT_LEAST", at_least)
    masks = up_to(region_lengths, 5), up_to(word_lengths, 4)
    regions = unit(len(region_lengths), 5, 3) * 3
    words = unit(len(word_lengths), 4, 3, seed=1) * 0.5
    same_with_gradients(
        lambda r, w: alignment_scores(r, w, *masks), lambda r, w: plain_alignment(r, w, *masks), regions, words
    )


def test_alignment_scores_do_not_depend_on_padding() -> None:
    regions, words = unit(3, 4, 3), unit(3, 6, 3, seed=1)
    wider = F.pad(regions, (0, 0, 0, 2), value=7.0), F.pad(words, (0, 0, 0, 2), value=7.0)
    scores = alignment_scores(*wider, up_to([4] * 3, 6), up_to([6] * 3, 8))
    torch.testing.assert_close(scores, alignment_scores(regions, words))


def test_alignment_scores_of_zero_vectors_are_zero_with_finite_gradients() -> None:
    regions, words = torch.zeros(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    scores = alignment_scores(regions, words)
    scores.sum().backward()
    assert not scores.any() and not regions.grad.any() and not words.grad.any()


def test_alignment_scores_under_autocast() -> None:
    regions, words = unit(4, 5, 64).float().requires_grad_(), unit(4, 6, 64, seed=1).float().requires_grad_()
    exact = alignment_scores(regions, words)
    gradient = torch.autograd.grad(exact.sum(), words)[0]
    with torch.autocast("cpu", torch.bfloat16):
        scores = alignment_scores(regions, words)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0.02, atol=0.02)
    cosine = F.cosine_similarity(torch.autograd.grad(scores.sum(), words)[0].flatten(), gradient.flatten(), dim=0)
    assert cosine > 0.95


def test_alignment_scores_of_half_precision() -> None:
    regions, words = unit(4, 5, 64), unit(4, 6, 64, seed=1)
    exact = alignment_scores(regions, words).float()
    regions, words = regions.bfloat16().requires_grad_(), words.bfloat16().requires_grad_()
    scores = alignment_scores(regions, words)
    scores.sum().backward()
    torch.testing.assert_close(scores, exact, rtol=0.02, atol=0.02)
    assert words.grad.dtype == regions.grad.dtype == torch.bfloat16


def plain_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("iterations", [1, 2, 10])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (300, 5)])
def test_sinkhorn(shape: tuple[int, int], iterations: int) -> None:
    scores = unit(*shape)
    kept = scores.clone()
    ours = sinkhorn(scores, 0.05, iterations)
    torch.testing.assert_close(ours, plain_sinkhorn(scores, 0.05, iterations), rtol=1e-9, atol=1e-12)
    assert torch.equal(scores, kept)


def test_sinkhorn_of_far_apart_scores_stays_finite() -> None:
    scores = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, -0.9], [-1.0, -0.98, -1.0]])
    assert not plain_sinkhorn(scores, 0.005, 2).isfinite().all()
    torch.testing.assert_close(sinkhorn(scores, 0.005, 2).sum(1), torch.ones(3))


@pytest.mark.parametrize("epsilon", [0.02, 0.005])
def test_sinkhorn_of_a_small_epsilon_and_scores_that_are_alike(epsilon: float) -> None:
    torch.manual_seed(0)
    samples = F.normalize(torch.ones(1500, 8) + 0.1 * torch.randn(1500, 8), dim=-1)
    scores = samples @ F.normalize(torch.randn(256, 8), dim=-1).T
    exact = sinkhorn(scores.double(), epsilon, 3)
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3), exact.float(), rtol=1e-4, atol=1e-6)


def test_lca_of_a_small_epsilon_is_that_of_float64() -> None:
    regions = F.normalize(unit(6, 5, 8).float() + 1, dim=-1)
    words = unit(6, 4, 8, seed=1).float().requires_grad_()
    module = concept_alignment(8, 64, epsilon=0.01)
    everywhere = torch.ones(6, 4, dtype=torch.bool)
    loss = module.aligned(regions, words, everywhere)
    (gradient,) = torch.autograd.grad(loss, words)
    module.double()
    exact = module.aligned(regions.double(), words.double(), everywhere)
    (exact_gradient,) = torch.autograd.grad(exact, words)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-3, atol=1e-6)


def test_sinkhorn_of_half_precision_scores() -> None:
    scores = unit(40, 9).bfloat16()
    ours = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(ours, plain_sinkhorn(scores.float(), 0.05, 3), rtol=1e-4, atol=1e-6)


def test_sinkhorn_of_nothing() -> None:
    assert sinkhorn(torch.empty(0, 4), 0.05, 2).shape == (0, 4)


def plain_prediction(
    module: ConceptAlignment, codebook: Tensor, x: list[Tensor], y: list[Tensor], partners: list[bool]
) -> Tensor:
    """One direction of L_LCA, vector by vector: x's predictions of their nearest y's assignments."""
    scores = torch.cat(y) @ codebook.T
    assignments = plain_sinkhorn(scores, module.options.epsilon, module.options.sinkhorn_iterations).detach()
    means, first = [], 0
    for vectors, candidates, has_partner in zip(x, y, partners, strict=True):
        losses = []
        for vector in vectors if has_partner else []:
            target = assignments[first + int((candidates @ vector).argmax())]
            losses.append(-(target * (vector @ codebook.T / module.options.temperature).log_softmax(-1)).sum())
        if losses:
            means.append(torch.stack(losses).mean())
        first += len(candidates)
    return torch.stack(means).mean()


def plain_concept_loss(
    module: ConceptAlignment, regions: Tensor, words: Tensor, codebook: Tensor, region_mask: Tensor, word_mask: Tensor
) -> Tensor:
    images = [x[there] for x, there in zip(regions, region_mask, strict=True)]
    captions = [x[there] for x, there in zip(words, word_mask, strict=True)]
    loss = plain_prediction(module, codebook, captions, [x.detach() for x in images], [True] * len(images))
    if module.options.both_directions:
        some = [len(caption) > 0 for caption in captions]
        loss = (loss + plain_prediction(module, codebook, images, [x.detach() for x in captions], some)) / 2
    return loss


@pytest.mark.parametrize("both", [False, True], ids=["words predict", "both predict"])
@pytest.mark.parametrize("nouns_only", [False, True], ids=["every word", "chosen words"])
@pytest.mark.parametrize(
    ("word_lengths", "region_lengths", "iterations", "temperature", "epsilon"),
    [
        ([1], [5], 2, 0.1, 0.05),
        ([1], [1], 2, 0.1, 0.05),
        ([1, 1, 1], [5, 5, 5], 3, 0.2, 0.1),
        ([4, 1, 7], [5, 1, 3], 10, 0.05, 0.05),
        ([7, 7], [5, 5], 1, 1.0, 0.5),
        ([130, 130], [150, 150], 2, 0.1, 0.05),
    ],
    ids=["one pair", "one word, one region", "one word each", "ragged", "full", "several blocks of rows"],
)
def test_concept_alignment(word_lengths, region_lengths, iterations, temperature, epsilon, nouns_only, both) -> None:
    pairs = len(word_lengths)
    regions, words = unit(pairs, max(region_lengths), 8), unit(pairs, max(word_lengths), 8, seed=1)
    region_mask, word_mask = up_to(region_lengths, regions.shape[1]), up_to(word_lengths, words.shape[1])
    chosen, taking_part = None, word_mask
    if nouns_only:
        # All odd words, and the first of the first caption: other captions of one word have none.
        chosen = (torch.arange(words.shape[1]) % 2 == 1).repeat(pairs, 1)
        chosen[0, 0] = True
        taking_part = chosen & word_mask
    options = {"temperature": temperature, "epsilon": epsilon, "sinkhorn_iterations": iterations}
    module = concept_alignment(8, 6, **options, both_directions=both)

    def ours(regions: Tensor, words: Tensor, codebook: Tensor) -> Tensor:
        del module.codebook  # a parameter's place takes a tensor only then
        module.codebook = codebook
        module.eval()
        return module.aligned(regions, words, word_mask, region_mask, chosen)

    def plain(regions: Tensor, words: Tensor, codebook: Tensor) -> Tensor:
        return plain_concept_loss(module, regions, words, codebook, region_mask, taking_part)

    same_with_gradients(ours, plain, regions, words, unit(6, 8, seed=2))


@pytest.mark.parametrize("both", [False, True])
def test_no_chosen_word_at_all_is_a_zero_with_a_graph(both: bool) -> None:
    module = concept_alignment(8, 6, both_directions=both)
    regions, words = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    loss = module.aligned(regions, words, up_to([4, 2], 4), chosen=torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not words.grad.any() and not module.codebook.grad.any()


@pytest.mark.parametrize("pair", [0, 1])
def test_a_pair_without_regions_or_words_is_left_out_of_lca(pair: int) -> None:
    module = concept_alignment(8, 6)
    regions, words, word_mask = unit(3, 5, 8).float(), unit(3, 4, 8, seed=1).float(), up_to([4, 2, 1], 4)
    others = [i for i in range(3) if i != pair]
    region_mask = up_to([5, 3, 2], 5)
    alone = module.aligned(regions[others], words[others], word_mask[others], region_mask[others])
    region_mask[pair] = False
    torch.testing.assert_close(module.aligned(regions, words, word_mask, region_mask), alone)
    module = concept_alignment(8, 6, both_directions=True)
    for masks in ((word_mask, region_mask), (region_mask.any(1, keepdim=True) & word_mask, region_mask)):
        leaves = [x.clone().requires_grad_() for x in (regions, words)]
        module.aligned(*leaves, *masks).backward()
        assert all(leaf.grad.isfinite().all() and not leaf.grad[pair].any() for leaf in leaves)


def test_lca_of_no_pair_with_regions_is_zero() -> None:
    module = concept_alignment(8, 6, both_directions=True)
    loss = module.aligned(
        unit(2, 3, 8).float(), unit(2, 4, 8).float(), up_to([4, 2], 4), torch.zeros(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0 and not module.codebook.grad.any()


def test_lca_may_be_asked_twice_before_one_backward_and_changes_nothing_in_evaluation() -> None:
    module, inputs = concept_alignment(8, 6), (unit(2, 3, 8).float(), unit(2, 4, 8, seed=1).float(), up_to([4, 2], 4))
    with torch.no_grad():
        module.codebook.mul_(3)
    once, twice = module.aligned(*inputs), module.aligned(*inputs)
    (once + twice).backward()
    accumulated = module.codebook.grad.clone()
    torch.testing.assert_close(module.codebook.norm(dim=1), torch.ones(6))
    module.zero_grad()
    module.aligned(*inputs).backward()
    torch.testing.assert_close(accumulated, 2 * module.codebook.grad)
    before = module.codebook.detach().clone()
    module.eval().aligned(*inputs)
    assert torch.equal(module.codebook, before)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.003, 2), (0.05, 0)])
def test_sinkhorn_refuses_what_it_cannot_assign(epsilon: float, iterations: int) -> None:
    with pytest.raises(ValueError, match=f"is {epsilon}, iterations 1 and is {iterations}"):
        sinkhorn(torch.randn(3, 4), epsilon, iterations)
    with pytest.raises(ValueError, match="epsilon|sinkhorn_iterations"):
        concept_alignment(8, 6, epsilon=epsilon, sinkhorn_iterations=iterations)


def test_settings_and_loss_agree_on_the_least_epsilon() -> None:
    sinkhorn(torch.randn(3, 4), concept_alignment(8, 6, epsilon=0.004).options.epsilon, 2)
    for refusing in (
        lambda epsilon: concept_alignment(8, 6, epsilon=epsilon),
        lambda epsilon: sinkhorn(torch.randn(3, 4), epsilon, 2),
    ):
        with pytest.raises(ValueError, match="epsilon"):
            refusing(0.0039)


def plain_context_loss(
    locals_: Tensor, global_: Tensor, temperature: float, num_negatives: int, mask: Tensor, same: Tensor
) -> Tensor:
    """L_CRA pair by pair and local by local, the negatives anew for each."""
    total = 0 * (locals_.sum() + global_.sum())
    for i, query in enumerate(global_):
        own = locals_[i][mask[i]] @ query / temperature
        others = [locals_[j][mask[j]] @ query / temperature for j in range(len(global_)) if j != i and not same[i, j]]
        if others:
            negatives = torch.cat(others).sort(descending=True).values[:num_negatives]
            each = [-torch.cat([logit[None], negatives]).log_softmax(0)[0] for logit in own]
            total = total + torch.stack(each).mean()
    return total / len(global_)


@pytest.mark.parametrize("num_negatives", [1, 5, 512])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
@pytest.mark.parametrize(
    ("lengths", "image"),
    [([6, 1, 3, 4], [0, 1, 2, 3]), ([6, 6], [0, 1]), ([1, 1, 1], [0, 1, 1]), ([2, 3, 6], [5, 5, 5])],
    ids=["ragged", "full", "two captions of one image", "one image only"],
)
def test_context_alignment(lengths, image, temperature, num_negatives) -> None:
    pairs, width = len(lengths), max(lengths)
    mask, image = up_to(lengths, width), torch.tensor(image)
    same = image[:, None] == image
    rest = (temperature, num_negatives, mask, same)
    locals_, global_ = unit(pairs, width, 8), unit(pairs, 8, seed=1)
    same_with_gradients(
        lambda x, g: context_alignment_loss(x, g, *rest), lambda x, g: plain_context_loss(x, g, *rest), locals_, global_
    )


@pytest.mark.parametrize("pair", [0, 2])
def test_a_pair_without_locals_is_left_out_of_cra(pair: int) -> None:
    locals_, global_ = unit(3, 5, 8).requires_grad_(), unit(3, 8, seed=1).requires_grad_()
    mask, others = up_to([5, 3, 2], 5), [i for i in range(3) if i != pair]
    mask[pair] = False
    loss = context_alignment_loss(locals_, global_, mask=mask)
    torch.testing.assert_close(loss, context_alignment_loss(locals_[others], global_[others], mask=mask[others]))
    loss.backward()
    assert locals_.grad.isfinite().all() and not locals_.grad[pair].any() and not global_.grad[pair].any()


@pytest.mark.parametrize("num_negatives", [0, -1])
def test_cra_refuses_to_be_without_negatives(num_negatives: int) -> None:
    with pytest.raises(ValueError, match=f"num_negatives must be 1 or more and is {num_negatives}"):
        context_alignment_loss(unit(3, 5, 8), unit(3, 8), num_negatives=num_negatives)


def test_a_single_pair_has_nothing_to_be_distinguished_from() -> None:
    locals_, global_ = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    loss = context_alignment_loss(locals_, global_)
    loss.backward()
    assert loss.item() == 0
    assert not locals_.grad.any() and not global_.grad.any()


def plain_triplet(scores: Tensor, margin: float, same: Tensor, hardest: bool) -> Tensor:
    total = 0 * scores.sum()
    for i in range(len(scores)):
        rivals = [j for j in range(len(scores)) if j != i and not same[i, j]]
        for costs in (
            [(margin + scores[i, j] - scores[i, i]).clamp(min=0) for j in rivals],
            [(margin + scores[j, i] - scores[i, i]).clamp(min=0) for j in rivals],
        ):
            if costs:
                total = total + (torch.stack(costs).amax() if hardest else torch.stack(costs).sum())
    return total


@pytest.mark.parametrize(("loss", "hardest"), [(hardest_triplet, True), (all_pairs_triplet, False)])
@pytest.mark.parametrize("image", [[0], [0, 0], [0, 1, 2, 3], [0, 1, 1, 0, 2]])
def test_triplets(loss: Callable, hardest: bool, image: list[int]) -> None:
    same = torch.tensor(image)[:, None] == torch.tensor(image)
    scores = torch.randn(len(image), len(image), dtype=torch.float64)
    same_with_gradients(lambda s: loss(s, 0.3, same), lambda s: plain_triplet(s, 0.3, same, hardest), scores)


def test_diversity_of_ragged_images() -> None:
    views, lengths = torch.randn(3, 6, 4, dtype=torch.float64), [6, 2, 4]

    def plain(views: Tensor) -> Tensor:
        total = torch.zeros((), dtype=views.dtype)
        for image, length in zip(views, lengths, strict=True):
            columns = [column / column.norm() for column in image[:length].T]
            for i, a in enumerate(columns):
                for j, b in enumerate(columns):
                    total = total + (a @ b - float(i == j)) ** 2
        return total

    same_with_gradients(lambda v: diversity(v, up_to(lengths, 6)), plain, views)


def call_concept_alignment(module: ConceptAlignment, regions: Tensor, words: Tensor) -> Tensor:
    return module.aligned(regions, words, torch.arange(words.shape[1], device=words.device).expand(words.shape[:2]) < 5)


CALLS = {
    "concept": (lambda c: lambda r, w: call_concept_alignment(c, r, w)),
    "context": (lambda c: lambda r, w: context_alignment_loss(w, r[:, 0], num_negatives=7)),
    "alignment": (lambda c: lambda r, w: alignment_scores(r, w).logsumexp(1).sum()),
    "diversity": (lambda c: lambda r, w: diversity(w)),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("call", CALLS)
def test_autocast_and_compile_change_little(call: str, device: str) -> None:
    module = concept_alignment(64, 12, both_directions=True).to(device)
    regions, words = unit(4, 5, 64).float().to(device), unit(4, 6, 64, seed=1).float().to(device)
    function = CALLS[call](module)

    def run(function: Callable) -> tuple[Tensor, Tensor]:
        leaf = words.clone().requires_grad_()
        value = function(regions, leaf)
        value.backward()
        assert value.dtype == leaf.grad.dtype == torch.float32
        return value.detach(), leaf.grad

    exact, gradient = run(function)
    # Without code generation: what is looked at is whether the function can be traced.
    torch.testing.assert_close(run(torch.compile(function, backend="aot_eager")), (exact, gradient))
    with torch.autocast(device, torch.bfloat16):
        rough, rough_gradient = run(function)
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0)
    assert F.cosine_similarity(rough_gradient.flatten(), gradient.flatten(), dim=0) > 0.95


@pytest.mark.parametrize(("images", "captions"), [(0, 3), (2, 0), (0, 0)])
def test_alignment_scores_of_nothing_are_empty(images: int, captions: int) -> None:
    regions = torch.ones(images, 4, 5, requires_grad=True)
    words = torch.ones(captions, 6, 5, requires_grad=True)
    scores = alignment_scores(regions, words)
    assert scores.shape == (images, captions)
    scores.sum().backward()
    assert not regions.grad.any() and not words.grad.any()
