"""A step leaves the device alone: no value is read back but the losses and the norm, and nothing changes devices."""

from dataclasses import replace

import pytest
import torch

from tests.train.joint_steps import own_losses
from tests.train.readbacks import OneDevice, ReadBacks
from train.bases import BASES
from train.batches import RegionBatch, TeacherBatch, WordBatch
from train.data import RetrievalData
from train.loop import Loop
from train.losses.loss import Step
from train.model import build_model
from train.processes import Processes
from train.settings import RunSettings
from train.train import _optimizer

B, R, T, FEATURES, V, W = 6, 5, 7, 16, 40, 12
BASE = {
    "vsrn": {"dim": 16, "graph_layers": 2},
    "camera": {"dim": 16, "heads": 4, "views": 3},
    "vse_infinity": {"dim": 16, "size_augmentation": 0.2},
    "transformer": {"dim": 16, "layers": 2, "heads": 2},
}
SELFALIGN = {"triplet": {}, "lca": {"num_concepts": 8, "parts_of_speech": ["NOUN"]}, "cra": {"num_negatives": 8}}
ALL = SELFALIGN | {
    "contrast": {},
    "word_region": {},
    "alignment": {},
    "distillation": {"scale": 6.0},
    "generation": {"dim": 8},
    "cusa_contrast": {},
    "csa": {},
    "usa": {},
}


def settings(base: str, losses: dict, **keys) -> RunSettings:
    losses = losses | ({"diversity": {}} if BASES.find(base).has_views else {})
    return RunSettings(
        **{
            "dataset": "d",
            "epochs": 3,
            "batch_size": B,
            "labels": "teachers" if "csa" in losses else "manifest",
            "base": {"name": base, **BASE[base]},
            "text": {"reads": "tokens", "word_dim": W},
            "losses": losses,
            **keys,
        }
    )


def batch(device: str = "cpu") -> tuple[RegionBatch, WordBatch, TeacherBatch]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.randint(2, T + 1, (B, 1), generator=generator)
    boxes = torch.rand(B, R, 4, generator=generator).cumsum(-1)
    regions = RegionBatch(
        torch.randn(B, R, FEATURES, generator=generator), boxes, torch.full((B, 2), 9.0), torch.ones(B, R).bool()
    )
    ids = torch.randint(5, V, (B, T), generator=generator) * mask
    words = WordBatch(ids, torch.full((B, T), 8, dtype=torch.uint8), mask, torch.arange(T).expand(B, T))
    teachers = TeacherBatch(*(torch.nn.functional.normalize(torch.randn(B, 4), dim=-1) for _ in range(2)))
    return regions.to(device), words.to(device), teachers.to(device)


@pytest.mark.parametrize("base", BASE)
def test_forward_and_backward_of_all_losses_run_where_no_value_can_be_read(base: str):
    chosen = settings(base, ALL)
    assert set(chosen.losses) | {"diversity"} == own_losses(), "add the loss to ALL above"
    model = build_model(chosen, FEATURES, V).to("meta")
    regions, words, teachers = batch("meta")
    model.begin(1)
    with OneDevice():
        pairs = model(regions, words)
        terms = model.terms(pairs, torch.arange(B, device="meta") // 2, 1, teachers)
        sum(terms.values()).backward()
    assert set(terms) == set(chosen.losses)


@pytest.mark.parametrize("base", ["vsrn", "camera", "vse_infinity"])
def test_a_step_reads_back_once(base: str, dataset: dict, monkeypatch: pytest.MonkeyPatch):
    data = RetrievalData(**dataset, split="train")
    chosen = settings(base, SELFALIGN, batch_size=32)
    model = build_model(chosen, data.region_store.dim, data.vocabulary_size)
    loop = Loop("test", model, _optimizer(model, chosen), data, chosen, Processes(0, 1, torch.device("cpu")))
    model.begin(1)
    steps = loop.feed(1)
    loop.step(1, 0, next(steps))
    with ReadBacks() as counted:
        loop.step(1, 1, next(steps))
    steps.close()
    assert sum(counted.found.values()) <= 1, counted.found


@pytest.mark.parametrize("base", BASE)
def test_a_loss_reads_no_more_than_it_declares(base: str):
    chosen = settings(base, ALL)
    torch.manual_seed(0)
    model = build_model(chosen, FEATURES, V)
    regions, words, teachers = batch()
    model.begin(1)
    pairs, image = model(regions, words), torch.arange(B) // 2
    step = Step(pairs.images, pairs.captions, image[:, None] == image, pairs.pos, pairs.each, teachers, 1)
    sizes = {}
    for name, loss in model.losses.items():
        own = pairs.only(loss.reads)
        found = loss(replace(step, images=own.images, captions=own.captions))
        torch.testing.assert_close(found, loss(step), msg=name)
        sizes[name] = sum(x.numel() for x in (own.images.locals, own.images.contextual, own.images.pooled))
    # SelfAlign beside a triplet tells no locals after context; CRA's parts are its own.
    assert sizes["cra"] == 0 and sizes["lca"] == pairs.images.locals.numel()
    expected = {"locals", "pooled", "context"}
    assert build_model(settings(base, SELFALIGN), FEATURES, V).reads(1) - {"view_weights"} == expected
