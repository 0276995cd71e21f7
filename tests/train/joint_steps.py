"""Steps of every base on made pairs of ragged lengths, in float64; as a program, taken by three processes together."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from safetensors.torch import save_file

from eval.validation import validate
from tests.eval.test_encode import Made, model_of
from tests.train.forked import run_together
from train.batches import RegionBatch, TeacherBatch, WordBatch, pad
from train.feed import read_part
from train.joint import joint_gradients
from train.losses import LOSSES as REGISTERED
from train.masking import share_momentum
from train.model import RetrievalModel, build_model
from train.processes import GradientMean, Processes, join, leave
from train.settings import RunSettings

BASES = {
    "vsrn": {"name": "vsrn", "dim": 16, "graph_layers": 2},
    "camera": {"name": "camera", "dim": 32, "heads": 2, "views": 3, "dropout": 0.0},
    "vse_infinity": {"name": "vse_infinity", "dim": 16, "position_dim": 4, "size_augmentation": 0.0},
    "transformer": {
        "name": "transformer",
        "dim": 16,
        "layers": 1,
        "heads": 2,
        "head_layers": 1,
        "head_heads": 2,
        "dropout": 0.0,
    },
}
# Every loss that any base can have, and those that some can.
LOSSES = {"triplet": {}, "contrast": {}, "lca": {"num_concepts": 8, "frozen_epochs": 0}, "cra": {}, "word_region": {}}
LOSSES |= {"alignment": {}, "distillation": {"mode": "mse"}, "cusa_contrast": {}, "csa": {}, "usa": {}}
OWN = {"vsrn": {"generation": {"dim": 16, "dropout": 0.0}}, "camera": {"diversity": {}}}
ALONE = Processes(0, 1, torch.device("cpu"))


def own_losses() -> set[str]:
    """The names of this project's losses; installed packages may have entered others."""
    return {name for name, loss in REGISTERED.own().items() if loss.__module__.startswith("train.losses.")}


class MadeData:
    """Forty captions of twenty images, with what a step asks of `RetrievalData`."""

    caption_image = np.arange(20).repeat(2)

    def region_batch(self, images) -> RegionBatch:
        found = [np.random.default_rng(int(i)).standard_normal((3 + i % 7, 12)) for i in images]
        features, mask = pad(found)
        corner = features[..., :2].sigmoid()
        boxes = torch.cat([corner, corner + 0.1 + features[..., 2:4].sigmoid()], dim=-1)
        return RegionBatch(
            features=features, boxes=boxes, image_size=torch.full((len(found), 2), 2.0).double(), mask=mask
        )

    def word_batch(self, captions, states: bool = True) -> WordBatch:
        words, mask = pad([np.arange(2 + c % 6) * (c + 3) % 15 + 5 for c in captions])
        place = torch.arange(words.shape[1]).expand_as(words)
        return WordBatch(words=words * mask, pos=torch.zeros_like(words, dtype=torch.uint8), mask=mask, word=place)

    def teacher_batch(self, captions) -> TeacherBatch:
        def vectors(numbers, width: int) -> torch.Tensor:
            return torch.from_numpy(
                np.stack([np.random.default_rng([width, int(n)]).standard_normal(width) for n in numbers])
            )

        return TeacherBatch(vectors(self.caption_image[np.asarray(captions)], 6), vectors(captions, 5))


def made_model(base: str, chunks: int = 1, **changes) -> RetrievalModel:
    torch.manual_seed(0)
    text = {"reads": "tokens", "word_dim": 8}
    run = {"base": {**BASES[base], **changes}, "losses": LOSSES | OWN.get(base, {}), "bag": {}, "labels": "teachers"}
    settings = RunSettings(dataset="x", epochs=1, text=text, **run)
    model = build_model(settings, feature_dim=12, vocabulary_size=20).double().train()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.ones_(parameter)
    share_momentum(model, chunks)
    return model


def step(
    model: RetrievalModel,
    captions,
    chunks: int = 1,
    processes: Processes = ALONE,
    mean: GradientMean | None = None,
) -> dict[str, float]:
    """The gradients of one step, complete in every process; returns the loss terms."""
    data, mean = MadeData(), mean or GradientMean(model.parameters(), processes)
    part = read_part(
        data,
        np.asarray(captions),
        lambda own: data.region_batch(data.caption_image[own]),
        chunks=chunks,
        processes=processes,
    )
    terms = joint_gradients(
        model,
        part,
        epoch=0,
        seed=(0, 0, 0),
        processes=processes,
        autocast=partial(torch.autocast, "cpu", enabled=False),
        last=mean.during_backward,
    )
    mean.finish()
    return {name: term.item() for name, term in terms.items()}


# base, captions, chunks: uneven shares, images that two captions share, chunks, fewer captions than processes.
STEPS = [(base, [0, 1, 5, 8, 14, 15, 21, 30, 33, 38, 39], chunks) for base in BASES for chunks in (1, 2)]
STEPS.append(("vsrn", [4, 31], 1))


def outcome(number: int, processes: Processes = ALONE) -> dict[str, torch.Tensor]:
    """Gradients, running statistics and loss terms of ``STEPS[number]``."""
    base, captions, chunks = STEPS[number]
    model = made_model(base, chunks)
    terms = step(model, captions, chunks, processes)
    found = {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"running.{name}": x for name, x in model.named_buffers() if "running" in name}
    found |= {f"term.{name}": torch.tensor(value) for name, value in terms.items()}
    return {f"{number}.{name}": tensor.clone() for name, tensor in found.items()}


def sent_while_others_are_made(processes: Processes, chunks: int) -> dict[str, torch.Tensor]:
    """The gradients of a first and of a second step on the same weights, and how many buckets went out early."""
    found = {}
    model = made_model("vsrn", chunks)
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    mean = GradientMean(model.parameters(), processes, bytes_each=4096)
    for number in range(2):
        model.load_state_dict(weights)
        model.zero_grad()
        step(model, STEPS[0][1], chunks, processes, mean)
        found |= {f"{number}.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[f"sent.{number}"] = torch.tensor(mean.sent_early)
    return found


def validated() -> dict[str, float]:
    """R@sum of a model's validation, which the first process has, and how many images and captions this one encoded."""
    model, counted = model_of(), {"images": 0.0, "captions": 0.0}

    def count(name: str, encode: Callable) -> None:
        def counting(batch):
            counted[name] += len(batch.mask)
            return encode(batch)

        setattr(model, f"encode_{name}", counting)

    for name in counted:
        count(name, getattr(model, f"encode_{name}"))
    return counted | {"rsum": validate(model, Made(70), 16).get("rsum", -1.0)}


def take_all(out: str) -> None:
    """Take all steps with the other processes and write the outcomes to a file of this process."""
    group = join("cpu")
    outcomes = {name: x for number in range(len(STEPS)) for name, x in outcome(number, group).items()}
    for chunks in (1, 2):
        outcomes |= {f"early.{chunks}.{name}": x for name, x in sent_while_others_are_made(group, chunks).items()}
    outcomes |= {f"validation.{name}": torch.tensor(x) for name, x in validated().items()}
    save_file(outcomes, f"{out}/{group.rank}.safetensors")
    leave()


if __name__ == "__main__":
    run_together(3, lambda: take_all(sys.argv[1]))
