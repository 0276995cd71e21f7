"""A frozen teacher: the second phase begins anew from the best teacher, and only the student moves from there."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.settings import RunSettings
from train.state import STATE
from train.train import run

START = 3
SETTINGS = {
    "dataset": "small",
    "epochs": 5,
    "batch_size": 100,
    "learning_rate": 2e-3,
    "decay_epochs": 2,
    "base": {"name": "vsrn", "dim": 16, "graph_layers": 1},
    "text": {"reads": "tokens", "word_dim": 8},
    "losses": {
        "triplet": {"all_negatives_epochs": 5},
        "alignment": {"all_negatives_epochs": 5},
        "distillation": {"weight": 9.0, "start_epoch": START, "teacher": "frozen"},
    },
}
# R@sum of the student and of the teacher after each epoch: the best sum of both is epoch 1's.
RECALLS = [(5.0, 1.0), (1.0, 90.0), (50.0, 2.0), (3.0, 90.0), (4.0, 90.0)]


class Stopped(Exception):
    pass


def train(dataset, folder: Path, stop_in: int | None = None) -> dict[int, dict[str, torch.Tensor]]:
    """Train, and give the weights after each epoch; stop like a killed run in the validation of one of them."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    done = len(list(folder.rglob(STATE))) and 4

    def recalls(model, data) -> dict[str, float]:
        epoch = len(seen) + (done or 0)
        if epoch == stop_in:
            raise Stopped
        seen[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        student, teacher = RECALLS[epoch]
        return {"rsum": student, "teacher_rsum": teacher}

    run(
        name="test", **dataset, settings=RunSettings(**SETTINGS), validate=recalls, checkpoint_minutes=0,
        out=folder / "model", curves=folder / "epochs.csv", staging=folder / "staging",
    )  # fmt: skip
    return seen


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> tuple[Path, dict[int, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(dataset, folder)


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "epochs.csv", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_student_begins_from_the_best_teacher_and_alone_moves(trained) -> None:
    _, seen = trained
    # What makes the teacher's scores: words, projections, reasoning and the captions' GRU; not the images' GRU.
    of_teacher = [
        name
        for name in seen[1]
        if name.startswith(("base.words", "base.captions", "base.images.projection", "base.images.reasoning"))
    ]
    moved = [name for name in seen[1] if name.startswith("base.images.gru")]
    for epoch in (3, 4):
        for name in of_teacher:
            torch.testing.assert_close(seen[epoch][name], seen[1][name], rtol=0, atol=0, msg=f"{epoch} {name}")
        assert all(not torch.equal(seen[epoch][name], seen[1][name]) for name in moved)
    assert any(not torch.equal(seen[2][name], seen[1][name]) for name in of_teacher)


def test_terms_rates_and_the_best_epoch_follow_the_phases(trained) -> None:
    folder, _ = trained
    curve = rows(folder)
    assert [row["alignment"] > 0 for row in curve] == [True] * 3 + [False] * 2
    assert [row["distillation"] > 0 for row in curve] == [False] * 3 + [True] * 2
    assert [row["learning_rate"] for row in curve] == pytest.approx([2e-3, 2e-3, 2e-4, 2e-3, 2e-3])
    record = json.loads((folder / "model/run.json").read_text())
    assert record["best_epoch"] == 4 and record["val_rsum"] == 4.0  # of the second phase, by the student alone


def test_a_run_killed_in_the_second_phase_ends_like_an_uninterrupted_one(trained, dataset, tmp_path) -> None:
    with pytest.raises(Stopped):
        train(dataset, tmp_path, stop_in=4)
    train(dataset, tmp_path)
    files = [load_file(folder / "model/model.safetensors") for folder in (trained[0], tmp_path)]
    for name, tensor in files[0].items():
        assert torch.equal(tensor, files[1][name]), name
