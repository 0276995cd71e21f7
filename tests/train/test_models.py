"""Padding never enters: what a model makes of an item doesn't depend on the batch that it is in."""

import pytest
import torch

from train.batches import RegionBatch, WordBatch
from train.losses.cra import ContextAggregation
from train.masking import MaskedBatchNorm, masked_mean
from train.model import build_model
from train.settings import RunSettings

BASES = {
    "vsrn": {"name": "vsrn", "dim": 16, "graph_layers": 2},
    "camera": {"name": "camera", "dim": 32, "heads": 2, "views": 3},
    "vse_infinity": {"name": "vse_infinity", "dim": 16, "position_dim": 4},
    "transformer": {"name": "transformer", "dim": 16, "layers": 2, "heads": 2, "head_layers": 1, "positions": 40},
}
OWN = {"vsrn": {"generation": {"dim": 16}}, "camera": {"diversity": {}}}
EVERYTHING = {"lca": {"num_concepts": 8}, "cra": {}, "word_region": {}, "alignment": {}, "distillation": {}}


def settings(base: str, losses: dict | None = None, bag: dict | None = None) -> RunSettings:
    """A run of a base with its own losses, and with others."""
    return RunSettings(
        dataset="x",
        epochs=3,
        base=BASES[base],
        text={"reads": "tokens", "word_dim": 8},
        losses={"triplet": {}, **OWN.get(base, {}), **(losses or {})},
        bag=bag,
    )


def region_batch(lengths: list[int], width: int) -> RegionBatch:
    # A generator each: an item is the same in a smaller batch.
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    features = torch.randn(len(lengths), 40, 12, generator=generators[0])[:, :width]
    sizes = 100 + 100 * torch.rand(len(lengths), 2, generator=generators[1])
    corners = torch.rand(len(lengths), 40, 2, 2, generator=generators[2]).sort(dim=2).values
    boxes = (corners * sizes[:, None, None]).flatten(2)[:, :width]
    noise = torch.randn(len(lengths), width, 12)
    return RegionBatch(
        features=torch.where(mask[..., None], features, noise),
        boxes=torch.where(mask[..., None], boxes, 1000 * torch.rand_like(boxes)),
        image_size=sizes,
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
@pytest.mark.parametrize("losses", [None, EVERYTHING], ids=["base", "selfalign"])
def test_an_embedding_does_not_depend_on_its_batch(base, losses):
    torch.manual_seed(0)
    bag = {"num_concepts": 6} if losses else None
    model = build_model(settings(base, losses, bag), feature_dim=12, vocabulary_size=20)
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
def test_locals_alone_are_those_of_the_encoding(base):
    torch.manual_seed(0)
    model = build_model(settings(base, EVERYTHING), feature_dim=12, vocabulary_size=20).eval()
    batch = region_batch([5, 1, 9], 9)
    expected = model.encode_images(batch)
    torch.testing.assert_close(model.encode_locals(batch)[batch.mask], expected.locals[batch.mask])


@pytest.mark.parametrize("base", BASES)
def test_losses_do_not_see_padding(base):
    torch.manual_seed(0)
    model = build_model(settings(base, EVERYTHING), feature_dim=12, vocabulary_size=20).eval()
    lengths = [5, 1, 9]
    narrow, wide = (
        model.terms(model(region_batch(lengths, width), word_batch(lengths, width)), torch.arange(3), 0)
        for width in (9, 30)
    )
    assert set(narrow) == {"triplet"} | EVERYTHING.keys() | OWN.get(base, {}).keys()
    for name in narrow:
        torch.testing.assert_close(narrow[name], wide[name], rtol=1e-5, atol=1e-6)


def test_masked_batch_norm_is_batch_norm_of_the_valid_positions():
    x, mask = torch.randn(4, 6, 3), torch.rand(4, 6) > 0.4
    ours, plain = MaskedBatchNorm(3), torch.nn.BatchNorm1d(3)
    found = ours(x, mask)
    torch.testing.assert_close(found[mask], plain(x[mask]))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name))
    assert not found[~mask].any()
    torch.testing.assert_close(ours.eval()(x, mask)[mask], plain.eval()(x[mask]))


def test_masked_batch_norm_has_the_gradients_of_its_definition():
    """`_Normalised` writes them out; in float64, with padding that has values and gradients of its own."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    mask, slopes = torch.rand(4, 6) > 0.4, torch.randn(4, 6, 3, dtype=torch.float64)
    ours = MaskedBatchNorm(3).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()

    def defined() -> torch.Tensor:
        rows = x[mask]
        scaled = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + ours.eps).sqrt()
        return x.new_zeros(x.shape).index_put((mask,), scaled * ours.weight + ours.bias)

    wanted = (x, ours.weight, ours.bias)
    found, exact = (torch.autograd.grad((made * slopes).sum(), wanted) for made in (ours(x, mask), defined()))
    torch.testing.assert_close(found, exact)
    short = x.detach().bfloat16().requires_grad_()
    made = ours.float()(short, mask)
    (gradient,) = torch.autograd.grad((made * slopes).sum(), short)
    assert made.dtype == gradient.dtype == torch.bfloat16 and not gradient[~mask].any()
    torch.testing.assert_close(gradient.double(), exact[0], rtol=0.03, atol=0.03)


@pytest.mark.parametrize("base", BASES)
def test_every_batch_norm_of_a_base_leaves_padding_out(base):
    model = build_model(settings(base, EVERYTHING, {}), feature_dim=12, vocabulary_size=20)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)]
    assert all(isinstance(norm, MaskedBatchNorm) for norm in norms)
    for module in model.modules():  # dropout draws by shape
        module.training = module in norms
    lengths, noise = [5, 1, 9], []
    for width in (9, 30):  # more padding, with other numbers in it
        for norm in norms:
            norm.reset_running_stats()
        torch.manual_seed(7)
        padded = region_batch(lengths, width), word_batch(lengths, width)
        model(*padded)
        noise.append([norm.running_var.clone() for norm in norms])
    for narrow, wide in zip(*noise, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-4, atol=1e-6)


def test_masked_mean():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, torch.tensor([[True, True, False]])).item() == 2


def test_context_vectors_are_of_unit_length():
    module = ContextAggregation(64)  # so many that no vector is zero after the ReLU
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    context = module(torch.randn(3, 3, 64), mask)
    for vectors in (context.locals[mask], context.guided, context.fused):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
