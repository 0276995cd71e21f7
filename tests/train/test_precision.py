"""Whatever the precision of matrix products, embeddings have length 1 and scores are float32's."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import gpu
from extract.engine.device import torch_device
from tests.train.test_readbacks import BASE, FEATURES, SELFALIGN, B, V, batch, settings
from train.encoding import similarity
from train.model import build_model
from train.precision import GRU, autocast_to, matmul_dtype, multiplied_in, unit


@pytest.mark.parametrize("base", BASE)
def test_bfloat16_leaves_lengths_and_scores_alone(base: str):
    torch.manual_seed(0)
    model = build_model(settings(base, SELFALIGN), FEATURES, V).train()
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


def test_a_device_multiplies_float32_in_full_in_every_process():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    with multiplied_in("tf32"):
        torch_device("cpu")
        assert [switch.allow_tf32 for switch in switches] == [False, False]


def test_unit_vectors_have_the_gradient_of_a_division_by_the_length():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, x)
    y = torch.randn(6, 5).bfloat16().requires_grad_()
    weights = torch.randn(6, 5)
    (gradient,) = torch.autograd.grad((unit(y) * weights).sum(), y)
    (exact,) = torch.autograd.grad((F.normalize(y.float(), dim=-1) * weights).sum(), y)
    assert unit(y).dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient, exact)
    short = torch.tensor([[3e-13, 4e-13], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((unit(short) * torch.tensor([1.0, 2.0])).sum(), short)
    torch.testing.assert_close(gradient, torch.tensor([[1e12, 2e12]] * 2, dtype=torch.float64))
    assert not unit(short)[1].any()


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_gru_is_torchs_and_runs_in_the_dtype_of_products(both_ways: bool):
    torch.manual_seed(0)
    ours = GRU(4, 6, bidirectional=both_ways)
    plain = nn.GRU(4, 6, batch_first=True, bidirectional=both_ways)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(ours(x), plain(x)[0], rtol=0, atol=0)
    if not both_ways:
        start = torch.randn(2, 6)
        torch.testing.assert_close(ours(x, start), plain(x, start[None])[0], rtol=0, atol=0)
    with autocast_to("bfloat16", torch.device("cpu")):
        states = ours(x)
    assert states.dtype == torch.bfloat16
    torch.testing.assert_close(states.float(), plain(x)[0], rtol=0.02, atol=0.02)
    states.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in ours.parameters())


@pytest.mark.parametrize("base", BASE)
def test_no_model_leaves_a_gru_to_autocast(base: str):
    model = build_model(settings(base, SELFALIGN | {"generation": {}}), FEATURES, V)
    assert all(isinstance(module, GRU) for module in model.modules() if isinstance(module, nn.GRU))


@pytest.fixture
def compiled_by_autograd_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile makes its graphs, forward and backward, and no kernels of them: seconds, not minutes."""
    compile = torch.compile
    monkeypatch.setattr("train.model.torch.compile", lambda part: compile(part, backend="aot_eager"))


@pytest.mark.usefixtures("compiled_by_autograd_alone")
@pytest.mark.parametrize("base", BASE)
def test_compiled_parts_give_the_same_losses_and_gradients(base: str):

    def step(compile: bool) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        torch.manual_seed(0)
        model = build_model(settings(base, SELFALIGN), FEATURES, V)
        model.begin(1)
        if compile:
            model.compile_parts()
        regions, words, _ = batch()
        torch.manual_seed(1)
        terms = model.terms(model(regions, words), torch.arange(B), epoch=1)
        sum(terms.values()).backward()
        return terms, [p.grad for p in model.parameters() if p.grad is not None]

    torch.testing.assert_close(step(compile=True), step(compile=False))


@pytest.mark.usefixtures("compiled_by_autograd_alone")
def test_a_compiled_model_freezes_the_parameters_of_its_teacher_alone():
    def frozen(compile: bool) -> list[str]:
        torch.manual_seed(0)
        losses = {"triplet": {}, "alignment": {}, "distillation": {"teacher": "frozen", "start_epoch": 1}}
        model = build_model(settings("camera", losses, compile=compile), FEATURES, V)
        if compile:
            model.compile_parts()
        model.begin(1)
        own = model._frozen(1)
        return [name for name, parameter in model.named_parameters() if id(parameter) in own]

    assert frozen(compile=True) == frozen(compile=False) != []


def test_a_gru_in_evaluation_mode_passes_gradients_on(monkeypatch: pytest.MonkeyPatch):
    """cuDNN refuses the backward of a forward in evaluation mode, in which a frozen teacher's modules are."""
    asked, gru = [], torch.gru
    monkeypatch.setattr("train.precision.torch.gru", lambda *given: asked.append(given[6]) or gru(*given))
    model = GRU(4, 6).eval()
    x = torch.randn(2, 5, 4, requires_grad=True)
    model(x).sum().backward()
    with torch.inference_mode():
        model(x)
    assert asked == [True, False] and x.grad.any()


def test_the_benchmark_of_gpus_runs_its_comparison():
    bases = {name: base | gpu.SMALL[name] for name, base in gpu.BASES.items()}
    found = gpu.parity("cpu", bases)
    assert found["bases"].keys() == bases.keys() and found["ranks_that_differ"] == 0
    assert found["hits_that_differ"] == 0
    assert all(figure == 0 for figures in found["bases"].values() for figure in figures.values())


@pytest.mark.slow
def test_the_benchmark_of_gpus_compares_kept_regions():
    assert gpu.kept_regions_that_differ("cpu") == 0
