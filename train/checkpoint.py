"""Checkpoints: a folder of safetensors weights and a JSON record of what made them. No pickle is ever read."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from extract.stores.recipe import require_same_recipe
from extract.text_encoder import encoder_of
from manifests.errors import InputError
from manifests.files import atomic, write_json
from train.data import RetrievalData
from train.models import RetrievalModel, build_model
from train.settings import RunSettings

WEIGHTS, RECORD = "model.safetensors", "run.json"


def save_model(folder: Path, model: RetrievalModel, record: dict[str, Any]) -> None:
    """Write a model and its record; ``record`` needs the keys settings, feature_dim, vocabulary_size and recipe.

    What the model is on the text side (`RetrievalModel.text_record`) is added as ``text``.
    """
    with atomic(Path(folder) / WEIGHTS) as temporary:
        save_file(model.state_dict(), temporary)
    write_json(Path(folder) / RECORD, {**record, "text": model.text_record})


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint."""
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"no readable checkpoint ({error})", where=path, fix="run `dvc repro train@<run>` or `dvc pull`"
        ) from error


def load_model(folder: Path, device: str = "cpu") -> RetrievalModel:
    """The model of a checkpoint, in evaluation mode on `device`; its text encoder comes from there too."""
    record = read_record(folder)
    text = record["text"]
    model = build_model(
        RunSettings(**record["settings"]),
        record["feature_dim"],
        record["vocabulary_size"],
        text_dim=text["text_dim"],
        marks=tuple(text["marks"]),
        encoder=encoder_of(text["encoder"]) if text["encoder"] else None,
    )
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return model.to(device).eval()


def data_recipe(data: RetrievalData) -> dict[str, Any]:
    """What a model's numbers mean: the recipes of the regions and of the words, or text features, it reads."""
    recipe = {"regions": data.region_store.recipe, "tokens": data.token_store.recipe}
    return recipe | ({"text_features": data.text_store.recipe} if data.text_store else {})


def require_recipe(folder: Path, data: RetrievalData) -> None:
    """Raise `InputError` with the first differing key where a checkpoint was trained on other features or words."""
    require_same_recipe(read_record(folder)["recipe"], folder, data_recipe(data), "the data at hand")
