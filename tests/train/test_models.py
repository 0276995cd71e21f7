"""Padding never enters: what a model makes of an item doesn't depend on the batch that it is in."""

import pytest
import torch

from train.batches import RegionBatch, WordBatch
from train.masking import MaskedBatchNorm, masked_mean
from train.models import build_model
from train.selfalign import ConceptAlignment, ContextAggregation, context_alignment_loss
from train.settings import RunSettings

BASES = {
    "vsrn": {"name": "vsrn", "dim": 16, "graph_layers": 2, "caption_decoder": {"dim": 16}},
    "camera": {"name": "camera", "dim": 32, "heads": 2, "views": 3},
    "vse_infinity": {"name": "vse_infinity", "dim": 16, "position_dim": 4},
}


def settings(base: str, selfalign=None) -> RunSettings:
    return RunSettings(
        dataset="x",
        epochs=1,
        base=BASES[base],
        text={"reads": "tokens", "word_dim": 8},
        triplet={},
        selfalign=selfalign,
    )


EVERYTHING = {
    "concept": {"num_concepts": 8},
    "context": {},
    "word_region": {},
    "bag": {"num_concepts": 6},
}


def region_batch(lengths: list[int], width: int) -> RegionBatch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    features = torch.randn(len(lengths), 40, 12, generator=generator)[:, :width]
    noise = torch.randn(len(lengths), width, 12)
    return RegionBatch(
        features=torch.where(mask[..., None], features, noise),
        boxes=torch.zeros(len(lengths), width, 4),
        image_size=torch.ones(len(lengths), 2),
        mask=mask,
    )


def word_batch(lengths: list[int], width: int) -> WordBatch:
    words = torch.arange(40).remainder(19).add(1).repeat(len(lengths), 1)[:, :width]
    words = (words * torch.arange(1, len(lengths) + 1)[:, None]).remainder(20)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return WordBatch(
        words=torch.where(mask, words, 7),
        pos=torch.zeros_like(words, dtype=torch.uint8),
        mask=mask,
        word=torch.arange(width).expand_as(words),
    )


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("selfalign", [None, EVERYTHING], ids=["base", "selfalign"])
def test_an_embedding_does_not_depend_on_its_batch(base, selfalign):
    torch.manual_seed(0)
    model = build_model(settings(base, selfalign), feature_dim=12, vocabulary_size=20)
    lengths = [5, 1, 9]
    model.train()
    for _ in range(3):
        model(region_batch(lengths, 9), word_batch(lengths, 9))
    for module in model.modules():
        if isinstance(module, MaskedBatchNorm):
            torch.nn.init.normal_(module.weight)
    model.eval()
    for encode, make in ((model.encode_images, region_batch), (model.encode_captions, word_batch)):
        together = encode(make(lengths, 9)).embedding
        padded = encode(make(lengths, 30)).embedding
        alone = encode(make(lengths[:1], 5)).embedding
        torch.testing.assert_close(together, padded, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(together[0], together[2], atol=1e-3)


@pytest.mark.parametrize("base", BASES)
def test_losses_do_not_see_padding(base):
    torch.manual_seed(0)
    model = build_model(settings(base, EVERYTHING), feature_dim=12, vocabulary_size=20).eval()
    lengths = [5, 1, 9]
    narrow, wide = (
        model.losses(model(region_batch(lengths, width), word_batch(lengths, width)), torch.arange(3), 0)
        for width in (9, 30)
    )
    own = {"vsrn": {"generation"}, "camera": {"diversity"}, "vse_infinity": set()}
    assert set(narrow) == {"triplet", "lca", "cra", "word_region"} | own[base]
    for name in narrow:
        torch.testing.assert_close(narrow[name], wide[name], rtol=1e-5, atol=1e-6)


def test_masked_batch_norm_is_batch_norm_of_the_valid_positions():
    x, mask = torch.randn(4, 6, 3), torch.rand(4, 6) > 0.4
    ours, plain = MaskedBatchNorm(3), torch.nn.BatchNorm1d(3)
    torch.testing.assert_close(ours(x, mask)[mask], plain(x[mask]))
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    assert not ours(x, mask)[~mask].any()


def test_masked_mean():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, torch.tensor([[True, True, False]])).item() == 2


def plain_concept_loss(module, regions, words, word_mask, region_mask) -> torch.Tensor:
    """L_LCA caption by caption, word by word, with Sinkhorn's normalisations written out on the matrix."""
    codebook = torch.nn.functional.normalize(module.codebook, dim=-1)
    q = (regions[region_mask] @ codebook.T / module.epsilon).exp().T
    q = q / q.sum()
    for _ in range(module.sinkhorn_iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    q = (q * q.shape[1]).T.detach()
    first, total = 0, 0.0
    for i in range(len(words)):
        count = int(region_mask[i].sum())
        own = regions[i][region_mask[i]]
        losses = []
        for word in words[i][word_mask[i]]:
            target = q[first + int((own @ word).argmax())]
            losses.append(-(target * (word @ codebook.T / module.temperature).log_softmax(-1)).sum())
        total = total + torch.stack(losses).mean()
        first += count
    return total / len(words)


@pytest.mark.parametrize(("lengths", "iterations"), [([1], 2), ([1, 1, 1], 3), ([4, 1, 7], 10), ([7, 7], 1)])
def test_concept_alignment_equals_a_loop(lengths, iterations):
    torch.manual_seed(1)
    unit = torch.nn.functional.normalize
    regions = unit(torch.randn(len(lengths), 5, 8, dtype=torch.float64), dim=-1)
    words = unit(torch.randn(len(lengths), 7, 8, dtype=torch.float64), dim=-1).requires_grad_()
    word_mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    region_mask = torch.ones(len(lengths), 5, dtype=torch.bool)
    region_mask[0, 2] = False
    module = ConceptAlignment(8, 6, temperature=0.2, epsilon=0.1, sinkhorn_iterations=iterations).double()
    loss = module(regions, words, word_mask, region_mask)
    plain = plain_concept_loss(module, regions, words, word_mask, region_mask)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(value, [words, module.codebook]) for value in (loss, plain))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-12)


def plain_context_loss(locals_, global_, temperature, num_negatives, mask) -> torch.Tensor:
    """L_CRA pair by pair and local by local, the negatives expanded for each."""
    total = 0.0
    for i in range(len(global_)):
        others = [j for j in range(len(global_)) if j != i]
        negatives = torch.cat([locals_[j][mask[j]] @ global_[i] for j in others]) / temperature
        negatives = negatives.sort(descending=True).values[:num_negatives]
        each = [
            -torch.cat([(local @ global_[i] / temperature)[None], negatives]).log_softmax(0)[0]
            for local in locals_[i][mask[i]]
        ]
        total = total + torch.stack(each).mean()
    return total / len(global_)


@pytest.mark.parametrize("num_negatives", [1, 5, 512])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_context_alignment_equals_a_loop(num_negatives, temperature):
    torch.manual_seed(2)
    locals_ = torch.nn.functional.normalize(torch.randn(4, 6, 8, dtype=torch.float64), dim=-1).requires_grad_()
    global_ = torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=-1).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 4])[:, None]
    loss = context_alignment_loss(locals_, global_, temperature, num_negatives, mask)
    plain = plain_context_loss(locals_, global_, temperature, num_negatives, mask)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(value, [locals_, global_]) for value in (loss, plain)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_a_single_pair_has_nothing_to_be_told_from():
    locals_, global_ = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    loss = context_alignment_loss(locals_, global_)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(locals_.grad).all() and torch.isfinite(global_.grad).all()


def test_context_vectors_are_of_unit_length():
    module = ContextAggregation(8)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    context = module(torch.randn(3, 3, 8), mask)
    for vectors in (context.locals[mask], context.guided, context.fused):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
