"""Training runs for tests of what comes out of them."""

import csv
from pathlib import Path

from eval.validation import validate
from train.settings import RunSettings
from train.train import run


def train_run(stores: dict[str, Path], settings: RunSettings, out: Path) -> list[dict[str, float]]:
    """Train a run into `out`/model and give the rows of its curves; `stores` are the stage's paths."""
    run(
        name="test",
        **stores,
        settings=settings,
        validate=lambda model, data: validate(model, data, 64),
        out=out / "model",
        curves=out / "epochs.csv",
        staging=out / "staging",
    )
    with open(out / "epochs.csv", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
