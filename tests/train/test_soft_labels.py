"""CUSA's losses: the recorded values and gradients, and plain transcriptions at other ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from train.losses.cusa_contrast import shared_info_nce
from train.losses.soft_labels import soft_label_kl

GOLDEN = dict(np.load(Path(__file__).parents[1] / "data" / "distillation.npz"))
CASES = sorted(name.split("_")[1] for name in GOLDEN if name.startswith("cusa_") and name.endswith("_kl"))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_values_and_gradients(case: str, dtype: torch.dtype) -> None:
    logits, teacher, tau, teacher_tau = (
        torch.tensor(GOLDEN[f"cusa_{case}_{name}"]).to(dtype) for name in ("logits", "teacher", "tau", "teacher_tau")
    )
    logits.requires_grad_()
    loss = soft_label_kl(logits, teacher, tau.item(), teacher_tau.item())
    loss.backward()
    for ours, name in ((loss.detach(), "kl"), (logits.grad, "grad")):
        torch.testing.assert_close(
            ours.double(), torch.tensor(GOLDEN[f"cusa_{case}_{name}"]).double(), rtol=1e-5, atol=1e-7
        )


def plain_kl(logits: list[list[float]], teacher: list[list[float]], tau: float, teacher_tau: float) -> float:
    total = 0.0
    for own, taught in zip(logits, teacher, strict=True):
        q, p = [math.exp(x / tau) for x in own], [math.exp(x / teacher_tau) for x in taught]
        total += sum(a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q))) for a, b in zip(p, q, strict=True))
    return total / len(logits)


@pytest.mark.parametrize(
    ("size", "tau", "teacher_tau"), [(1, 0.45, 1.0), (2, 0.1, 0.1), (7, 0.99, 0.3), (16, 0.2, 2.0)]
)
def test_other_sizes_and_temperatures(size: int, tau: float, teacher_tau: float) -> None:
    logits, teacher = random(size, size).tanh(), random(size, size, seed=1).tanh()
    assert soft_label_kl(logits, teacher, tau, teacher_tau).item() == pytest.approx(
        plain_kl(logits.tolist(), teacher.tolist(), tau, teacher_tau), rel=1e-6, abs=1e-12
    )
    # One pair says nothing; otherwise the slopes are those of finite differences, in the temperature too.
    logits.requires_grad_()
    learnt = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: soft_label_kl(x, teacher, t, teacher_tau), (logits, learnt))


def test_no_gradient_goes_to_the_teacher() -> None:
    teacher = random(4, 4, seed=1).requires_grad_()
    loss = soft_label_kl(random(4, 4).requires_grad_(), teacher, 0.45, 1.0)
    loss.backward()
    assert teacher.grad is None and loss > 0


def test_agreement_costs_nothing_and_large_logits_stay_finite() -> None:
    teacher = random(5, 5)
    assert soft_label_kl(2 * teacher, teacher, 1.0, 0.5).item() == pytest.approx(0, abs=1e-12)
    logits = (1e4 * random(5, 5)).float().requires_grad_()
    loss = soft_label_kl(logits, teacher.float(), 0.01, 0.01)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("image", [[0], [0, 1, 2], [0, 1, 0, 2, 0, 1]])
def test_captions_of_one_image_are_all_right_answers(image: list[int]) -> None:
    scores, tau = random(len(image), len(image)).tanh(), 0.07
    same = torch.tensor(image)[:, None] == torch.tensor(image)
    total = 0.0
    for table in (scores.tolist(), scores.T.tolist()):
        for row, own in zip(table, image, strict=True):
            right = [j for j, other in enumerate(image) if other == own]
            whole = sum(math.exp(x / tau) for x in row)
            total -= sum(math.log(math.exp(row[j] / tau) / whole) for j in right) / len(right)
    assert shared_info_nce(scores, tau, same).item() == pytest.approx(total / 2 / len(image), rel=1e-9, abs=1e-12)
    scores.requires_grad_()
    learnt = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: shared_info_nce(x, t, same), (scores, learnt))
