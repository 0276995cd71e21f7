"""A step's gradients don't depend on how many processes share its batch, nor on how many chunks it is encoded in."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.joint_steps import (
    BASES,
    LOSSES,
    OWN,
    STEPS,
    MadeData,
    made_model,
    outcome,
    own_losses,
    step,
    validated,
)
from train.feed import shares
from train.masking import MaskedBatchNorm
from train.processes import combined, padded_to

CHECKOUT = Path(__file__).parents[2]
CAPTIONS = [0, 1, 5, 8, 14, 15, 21, 30, 33, 38, 39]


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-8) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def three_processes(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("three")
    with open(out / "log", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "tests.train.joint_steps", str(out)],
            cwd=CHECKOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (out / "log").read_text()[-3000:]
    return [load_file(out / f"{rank}.safetensors") for rank in range(3)]


def test_every_loss_is_among_the_steps() -> None:
    assert set(LOSSES).union(*OWN.values()) == own_losses(), "add the loss to LOSSES in joint_steps.py"


@pytest.mark.parametrize("number", range(len(STEPS)), ids=lambda n: f"{STEPS[n][0]}-{len(STEPS[n][1])}-{STEPS[n][2]}")
def test_three_processes_have_the_gradients_of_one(three_processes, number):
    expected = outcome(number)
    for part in ("losses.lca", "losses.usa.images", "losses.usa.caption_temperature"):
        assert any(name.startswith(f"{number}.grad.{part}") for name in expected)
    for found in three_processes:
        assert_same({name: x for name, x in found.items() if name.startswith(f"{number}.")}, expected)


def test_processes_share_validation(three_processes):
    alone = validated()
    assert (alone["images"], alone["captions"]) == (70, 140)
    figures = [{name: found[f"validation.{name}"].item() for name in alone} for found in three_processes]
    # Batches of 16 of 70 images: the first process has the first and the fourth.
    assert [each["images"] for each in figures] == [32, 22, 16] and sum(each["captions"] for each in figures) == 140
    assert [each["rsum"] for each in figures] == [pytest.approx(alone["rsum"]), -1, -1]


@pytest.mark.parametrize("chunks", [1, 2])
def test_gradients_are_sent_while_others_are_made(three_processes, chunks):
    for found in three_processes:
        own = {name.removeprefix(f"early.{chunks}."): x for name, x in found.items() if f"early.{chunks}." in name}
        assert own["sent.0"] == 0 and own["sent.1"] > 3
        first = {name.removeprefix("0."): x for name, x in own.items() if name.startswith("0.")}
        assert_same({name.removeprefix("1."): x for name, x in own.items() if name.startswith("1.")}, first)


@pytest.mark.parametrize("base", BASES)
def test_chunks_have_the_gradients_of_the_same_chunks_with_a_graph(base):
    """Dropout draws the same twice, and batch norm sees the same chunk twice."""
    changes = {"camera": {"dropout": 0.3}, "vse_infinity": {"size_augmentation": 0.3}}.get(base, {})
    ours = made_model(base, 3, **changes)
    terms = step(ours, CAPTIONS, 3)

    plain, data, pairs = made_model(base, 3, **changes), MadeData(), []
    for number, chunk in enumerate(shares(np.array(CAPTIONS), 3, 1)[0]):
        torch.manual_seed(int(np.random.SeedSequence([0, 0, 0, 0, number]).generate_state(1)[0]))
        pairs.append(plain(data.region_batch(data.caption_image[chunk]), data.word_batch(chunk)))

    def joined(*tensors):
        widths = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
        return torch.cat([padded_to(x, widths) for x in tensors])

    losses = plain.terms(
        combined(joined, *pairs), torch.from_numpy(data.caption_image[CAPTIONS]), 0, data.teacher_batch(CAPTIONS)
    )
    sum(losses.values()).backward()
    assert terms == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-9)
    assert_same(gradients(ours), gradients(plain))
    assert_same(dict(ours.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("base", BASES)
def test_chunks_keep_all_negatives(base):
    """Without dropout and with fixed statistics, chunks change nothing at all."""
    found = []
    for chunks in (1, 2, 5):
        model = made_model(base)
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm):
                module.eval()
        terms = step(model, CAPTIONS, chunks)
        found.append({**gradients(model), **{name: torch.tensor(value) for name, value in terms.items()}})
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_running_statistics_move_as_far_in_chunks_as_in_one():
    moved = []
    for chunks in (1, 3):
        model = made_model("vsrn", chunks)
        start = model.base.images.norm.running_var.clone()
        for _ in range(20):
            step(model, CAPTIONS[:6] * 3, chunks)
        moved.append((model.base.images.norm.running_var - start).norm().item())
    assert moved[1] == pytest.approx(moved[0], rel=0.02)


@pytest.mark.parametrize(("count", "chunks", "processes"), [(128, 4, 2), (5, 4, 2), (7, 9, 3), (3, 2, 3), (2, 5, 1)])
def test_shares_are_all_captions_and_as_many_chunks_each(count, chunks, processes):
    given = shares(np.arange(count), chunks, processes)
    assert len(given) == processes and len({len(own) for own in given}) == 1
    assert sorted(np.concatenate([part for own in given for part in own])) == list(range(count))
    for number in range(len(given[0])):
        assert sum(len(own[number]) for own in given) >= 2 and all(len(own[number]) for own in given)
