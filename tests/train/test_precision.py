"""Whatever the precision of matrix products, embeddings have length 1 and scores are float32's."""

from dataclasses import replace

import pytest
import torch

from benchmarks import gpu
from tests.train.test_readbacks import BASE, SELFALIGN, B, F, V, batch, settings
from train.encoding import similarity
from train.model import build_model
from train.precision import autocast_to, matmul_dtype, multiplied_in


@pytest.mark.parametrize("base", BASE)
def test_bfloat16_leaves_lengths_and_scores_alone(base: str):
    torch.manual_seed(0)
    model = build_model(settings(base, SELFALIGN), F, V).train()
    regions, words, _ = batch()
    with autocast_to("bfloat16", torch.device("cpu")):
        assert matmul_dtype(regions.features) == torch.bfloat16
        pairs = model(regions, words)
        scores = similarity(pairs.images, pairs.captions)
    for side, extension in ((pairs.images, 0.5), (pairs.captions, 1.0)):
        assert side.pooled.dtype == side.context.dtype == side.locals.dtype == torch.float32
        lengths = [side.pooled.norm(dim=-1), side.locals.norm(dim=-1)[side.mask]]
        guided, fused = side.parts["cra_guided"], side.context[:, :16] if extension == 1 else side.context[:, 16:]
        lengths += [guided.norm(dim=-1)[guided.norm(dim=-1) > 0], fused.norm(dim=-1) / extension]
        for found in lengths:
            assert (found - 1).abs().max() < 1e-5
    exact = similarity(
        *(
            replace(side, pooled=side.pooled.double(), context=side.context.double())
            for side in (pairs.images, pairs.captions)
        )
    )
    assert scores.dtype == torch.float32 and scores.shape == (B, B)
    assert (scores - exact).abs().max() < 2e-5


def test_a_precision_holds_for_products_and_cudnn_alike_and_ends():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for precision, rounded in (("tf32", True), ("float32", False), ("bfloat16", False)):
        with multiplied_in(precision):
            assert [switch.allow_tf32 for switch in switches] == [rounded, rounded]
        assert [switch.allow_tf32 for switch in switches] == before


def test_the_benchmark_of_gpus_runs_its_comparison():
    bases = {name: base | gpu.SMALL[name] for name, base in gpu.BASES.items()}
    found = gpu.parity("cpu", bases)
    assert found["bases"].keys() == bases.keys() and found["ranks_that_differ"] == 0
    assert found["hits_that_differ"] == 0
    assert all(figure == 0 for figures in found["bases"].values() for figure in figures.values())


@pytest.mark.slow
def test_the_benchmark_of_gpus_compares_kept_regions():
    assert gpu.kept_regions_that_differ("cpu") == 0
