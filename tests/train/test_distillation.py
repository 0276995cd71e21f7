"""Distillation losses: the published values, and plain transcriptions of the formulas at other sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from train.losses.distillation import affine_mse, listnet, ordinal

GOLDEN = dict(np.load(Path(__file__).parents[1] / "data" / "distillation.npz"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", ["a", "b"])
def test_listnet_is_the_published_one(case: str, dtype: torch.dtype) -> None:
    teacher = torch.tensor(GOLDEN[f"aladin_{case}_scores"]).to(dtype)
    student = torch.tensor(GOLDEN[f"aladin_{case}_student"]).to(dtype).requires_grad_()
    loss = listnet(teacher, student)
    loss.backward()
    for found, name in ((loss.detach(), "listnet"), (student.grad, "listnet_grad")):
        expected = torch.tensor(GOLDEN[f"aladin_{case}_{name}"]).double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def plain_listnet(teacher: Tensor, student: Tensor, scale: float) -> Tensor:
    total = 0
    for t, s in ((teacher, student), (teacher.T, student.T)):
        for theirs, row in zip(t, s, strict=True):
            p, q = theirs.exp() / theirs.exp().sum(), (scale * row).exp() / (scale * row).exp().sum()
            total = total - (p * q.log()).sum() / len(t)
    return total


def plain_ordinal(teacher: Tensor, student: Tensor, margin: float, least: float, stride: int) -> Tensor:
    total = student.new_zeros(())
    for t, s in ((teacher, student), (teacher.T, student.T)):
        hinges = []
        for theirs, row in zip(t, s, strict=True):
            order = sorted(range(len(theirs)), key=lambda n: theirs[n].item())
            hinges += [
                (margin + row[worse] - row[better]).clamp(min=0)
                for worse, better in zip(order, order[stride:], strict=False)
                if theirs[better] >= least
            ]
        if hinges:
            total = total + torch.stack(hinges).mean()
    return total


def scores(count: int, seed: int) -> Tensor:
    return 2 * torch.randn(count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(ours: Callable, plain: Callable, count: int) -> None:
    teacher = scores(count, 1).requires_grad_()
    results = []
    for function in (ours, plain):
        student = scores(count, 2).requires_grad_()
        value = function(teacher if function is ours else teacher.detach(), student)
        if value.requires_grad:
            value.backward()
        results.append((value.detach(), torch.zeros_like(student) if student.grad is None else student.grad))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [1.0, 6.0])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_listnet(count: int, scale: float) -> None:
    same(lambda t, s: listnet(t, s, scale), lambda t, s: plain_listnet(t, s, scale), count)


@pytest.mark.parametrize(("margin", "least", "stride"), [(0.2, 0.1, 3), (1.0, -9.0, 1), (0.2, 99.0, 3)])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_ordinal(count: int, margin: float, least: float, stride: int) -> None:
    settings = (margin, least, stride)
    same(lambda t, s: ordinal(t, s, *settings), lambda t, s: plain_ordinal(t, s, *settings), count)


@pytest.mark.parametrize("count", [1, 5])
def test_affine_mse(count: int) -> None:
    def plain(teacher: Tensor, student: Tensor, affine: Tensor) -> Tensor:
        pairs = [(i, j) for i in range(count) for j in range(count)]
        return sum((affine[0] * student[p] + affine[1] - teacher[p]) ** 2 for p in pairs) / len(pairs)

    affines = [torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    same(
        lambda t, s: affine_mse(t, s, affines[0]),
        lambda t, s: plain(t, s, affines[1]),
        count,
    )
    torch.testing.assert_close(affines[0].grad, affines[1].grad)


def test_listnet_of_far_apart_scores_stays_finite() -> None:
    student = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    loss = listnet(torch.tensor([[-50.0, 50.0], [50.0, -50.0]]), student, 1000.0)
    loss.backward()
    assert loss.item() == pytest.approx(4000) and student.grad.isfinite().all()
