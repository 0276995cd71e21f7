"""A run that is killed goes on and ends as if it hadn't been; processes that train together end as one does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.validation import validate
from manifests.errors import InputError
from train.settings import RunSettings
from train.state import STATE
from train.train import run

CHECKOUT = Path(__file__).parents[2]
SETTINGS = {
    "dataset": "small",
    "epochs": 3,
    "batch_size": 250,
    "learning_rate": 2e-3,
    "warmup_steps": 8,
    "decay_epochs": 2,
    "accumulate": 2,
    "base": {"name": "camera", "dim": 32, "heads": 2, "views": 2, "dropout": 0.2},
    "text": {"reads": "tokens", "word_dim": 16},
    "losses": {"triplet": {}, "lca": {"num_concepts": 16, "start_epoch": 1}, "cra": {"num_negatives": 32}},
}


def run_apart(dataset, folder: Path, mode: str, settings: dict) -> str:
    paths = json.dumps({name: str(path) for name, path in dataset.items()})
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killed_runs", str(folder), mode, json.dumps(settings), paths],
        cwd=CHECKOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "epochs.csv", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def record(folder: Path) -> dict:
    found = json.loads((folder / "model" / "run.json").read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("killed")
    return folder, json.loads(run_apart(dataset, folder, "killed", SETTINGS).splitlines()[-1])["kills"]


def test_a_killed_run_ends_like_an_uninterrupted_one(killed):
    folder, kills = killed
    assert kills >= 2, kills
    whole, resumed = folder / "whole", folder / "killed"
    assert (resumed / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    assert rows(resumed) == rows(whole)
    assert record(resumed) == record(whole)


def test_nothing_is_left_of_the_state(killed):
    for name in ("whole", "killed"):
        assert [path for path in (killed[0] / name).rglob("*") if "staging" in path.parts and path.is_file()] == []
        assert {path.name for path in (killed[0] / name / "model").iterdir()} == {"model.safetensors", "run.json"}


def test_the_learning_rate_warms_up_and_decays(killed):
    # 1,500 captions are 6 batches an epoch.
    rates = [row["learning_rate"] for row in rows(killed[0] / "whole")]
    assert rates == pytest.approx([2e-3 * 6 / 8, 2e-3, 2e-4], abs=1e-5)


def test_two_processes_end_like_one(dataset, killed, tmp_path):
    base = {**SETTINGS["base"], "dropout": 0.0}
    settings = {**SETTINGS, "epochs": 2, "batch_size": 500, "base": base}
    run_apart(dataset, tmp_path / "two", "together", settings)
    train_here(dataset, tmp_path / "one", settings)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        # Rounding grows from step to step; recalls move by whole queries.
        assert {k: v for k, v in b.items() if not k.startswith("val_")} == pytest.approx(
            {k: v for k, v in a.items() if not k.startswith("val_")}, rel=1e-3
        )
        assert b["val_rsum"] == pytest.approx(a["val_rsum"], abs=10)
    assert record(tmp_path / "one")["best_epoch"] == record(tmp_path / "two")["best_epoch"]
    # A weight whose gradient is next to nothing goes where rounding sends it, so all are looked at together.
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two")]
    alone, together = (torch.cat([found[name].flatten() for name in sorted(weights[0])]) for found in weights)
    assert (together - alone).norm() < 0.01 * alone.norm()


class Stopped(Exception):
    pass


def train_here(dataset, folder: Path, settings: dict, stop_in: int | None = None, scores=None, **machine) -> None:
    """Train in this process; stop like a killed run in the validation of an epoch, or invent the scores."""
    seen = []

    def recalls(model, data):
        seen.append(model)
        if stop_in is not None and len(seen) > stop_in:
            raise Stopped
        return {"rsum": scores[len(seen) - 1]} if scores else validate(model, data, 64)

    run(
        name="test", **dataset, settings=RunSettings(**settings), validate=recalls,
        out=folder / "model", curves=folder / "epochs.csv", staging=folder / "staging", **machine,
    )  # fmt: skip


SMALL = {
    **SETTINGS,
    "accumulate": 1,
    "batch_size": 1500,
    "base": {"name": "vse_infinity", "dim": 16, "position_dim": 4},
    "losses": {"triplet": {}},
}


def test_nothing_lies_in_the_outs_before_the_end(dataset, tmp_path):
    with pytest.raises(Stopped):
        train_here(dataset, tmp_path, SMALL, stop_in=1)
    assert not (tmp_path / "model").exists() and not (tmp_path / "epochs.csv").exists()
    (state,) = (tmp_path / "staging").rglob(STATE)
    assert (state.parent / "best-0" / "run.json").exists()


def test_other_settings_start_afresh(dataset, tmp_path, capsys):
    with pytest.raises(Stopped):
        train_here(dataset, tmp_path, SMALL, stop_in=1)
    changed = {**SMALL, "learning_rate": 1e-3}
    train_here(dataset, tmp_path, changed)
    train_here(dataset, tmp_path / "alone", changed)
    assert rows(tmp_path) == rows(tmp_path / "alone")
    assert "continuing" not in capsys.readouterr().out
    train_here(dataset, tmp_path, SMALL)
    assert "continuing: epoch 2" in capsys.readouterr().out


def test_a_damaged_state_is_named(dataset, tmp_path):
    with pytest.raises(Stopped):
        train_here(dataset, tmp_path, SMALL, stop_in=1)
    (state,) = (tmp_path / "staging").rglob(STATE)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(InputError, match=r"state\.safetensors: no tensors that can be read.*Fix: remove that folder"):
        train_here(dataset, tmp_path, SMALL)


def test_a_run_ends_after_its_patience(dataset, tmp_path):
    settings = {**SMALL, "epochs": 9, "patience": 2}
    train_here(dataset, tmp_path, settings, scores=[1.0, 3.0, 2.0, 3.0, 9.0, 9.0])
    assert [row["val_rsum"] for row in rows(tmp_path)] == [1, 3, 2, 3]
    assert record(tmp_path)["best_epoch"] == 1


def test_patience_survives_a_kill(dataset, tmp_path):
    settings = {**SMALL, "epochs": 9, "patience": 2}
    with pytest.raises(Stopped):
        train_here(dataset, tmp_path, settings, stop_in=3, scores=[1.0, 3.0, 2.0, 3.0])
    train_here(dataset, tmp_path, settings, scores=[3.0, 9.0, 9.0])
    assert [row["val_rsum"] for row in rows(tmp_path)] == [1, 3, 2, 3]


def test_tensorboard_is_asked_for_before_training(dataset, tmp_path):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="SELFALIGN_TENSORBOARD.*install tensorboard"):
            train_here(dataset, tmp_path, SMALL, tensorboard=tmp_path / "board")
    else:
        train_here(dataset, tmp_path, SMALL, tensorboard=tmp_path / "board")
        assert list((tmp_path / "board" / "test").glob("events.*"))


@pytest.mark.parametrize("base", [{"name": "vsrn", "dim": 32, "graph_layers": 1}, SETTINGS["base"], SMALL["base"]])
def test_bfloat16_learns_nearly_the_same(dataset, tmp_path, base):
    settings = {**SETTINGS, "epochs": 1, "accumulate": 1, "base": base}
    settings["losses"] = {"triplet": {}, "lca": {"num_concepts": 16}, "cra": {"num_negatives": 32}}
    train_here(dataset, tmp_path / "exact", settings)
    train_here(dataset, tmp_path / "coarse", {**settings, "precision": "bfloat16"})
    exact, coarse = rows(tmp_path / "exact")[0], rows(tmp_path / "coarse")[0]
    assert coarse["loss"] != exact["loss"]
    assert coarse["loss"] == pytest.approx(exact["loss"], rel=0.05)
    weights = load_file(tmp_path / "coarse/model/model.safetensors").values()
    assert {x.dtype for x in weights} == {torch.float32, torch.int64}
