"""Checkpoints: a folder of safetensors weights and a JSON record of what made them. No pickle is ever read."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from extract.stores.recipe import require_same_recipe
from extract.stores.tensors import load_into, read_tensors, require_shapes, shapes_of
from extract.text.encoder import encoder_of
from manifests.errors import InputError
from manifests.files import atomic, write_json
from manifests.typed import Count, Written, read_checked
from train.data import RetrievalData
from train.model import RetrievalModel, build_model
from train.settings import RunSettings

WEIGHTS, RECORD = "model.safetensors", "run.json"
_AGAIN = "run `dvc repro train@<run>` or `dvc pull`"


def save_model(folder: Path, model: RetrievalModel, record: dict[str, Any]) -> None:
    """Write a model and its record; ``record`` needs the keys settings, feature_dim, vocabulary_size and recipe.

    What the model is on the text side (`RetrievalModel.text_record`) is added as ``text``.
    """
    with atomic(Path(folder) / WEIGHTS) as temporary:
        save_file(model.state_dict(), temporary)
    write_json(Path(folder) / RECORD, {**record, "text": model.text_record})


class _Text(Written):
    text_dim: Count | None
    marks: tuple[Count | None, Count | None]
    encoder: dict[str, Any] | None


class _Record(Written):
    settings: RunSettings
    feature_dim: Count
    vocabulary_size: Count
    recipe: dict[str, dict[str, Any]]
    text: _Text


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint. Raises `InputError` where it is missing or damaged."""
    return _read_record(folder)[1]


def _read_record(folder: Path) -> tuple[_Record, dict[str, Any]]:
    path = Path(folder) / RECORD
    try:
        return read_checked(path, _Record, fix=_AGAIN)
    except InputError as error:
        raise InputError(f"no readable checkpoint ({error.what})", where=path, fix=_AGAIN) from error


def load_model(folder: Path, device: str = "cpu") -> RetrievalModel:
    """The model of a checkpoint, in evaluation mode on `device`; its text encoder comes from there too.

    Raises `InputError` where record or weights are missing or damaged, or don't belong together.
    """
    record, path = _read_record(folder)[0], Path(folder) / WEIGHTS
    weights, _ = read_tensors(path, fix=_AGAIN)
    try:
        with torch.device("meta"), _Unfilled():  # a damaged record may ask for any amount of memory
            expected = shapes_of(_model_of(record))
    except InputError:
        raise
    except Exception as error:  # transformers and torch raise whatever a damaged record leads them to
        first, *_ = str(error).splitlines() or [type(error).__name__]  # torch goes on with a traceback
        message = f"no model can be made of it ({first})"
        raise InputError(message, where=Path(folder) / RECORD, fix=_AGAIN) from error
    require_shapes(weights, expected, path, fix=_AGAIN)
    model = _model_of(record)
    load_into(model, weights, path, fix=_AGAIN)
    return model.to(device).eval()


class _Unfilled(TorchFunctionMode):
    """Leaves out what gives new weights their numbers. For device "meta" torch imports its compiler there: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "normalize"):
            return args[0] if args else next(iter(kwargs.values()))
        return func(*args, **kwargs)


def _model_of(record: _Record) -> RetrievalModel:
    text = record.text
    return build_model(
        record.settings,
        record.feature_dim,
        record.vocabulary_size,
        text_dim=text.text_dim,
        boundary_ids=text.marks,
        encoder=encoder_of(text.encoder) if text.encoder else None,
    )


def data_recipe(data: RetrievalData) -> dict[str, Any]:
    """What a model's numbers mean: the recipes of the regions and of the words, or text features, it reads."""
    recipe = {"regions": data.region_store.recipe, "tokens": data.token_store.recipe}
    return recipe | ({"text_features": data.text_store.recipe} if data.text_store else {})


def require_recipe(folder: Path, data: RetrievalData) -> None:
    """Raise `InputError` with the first differing key where a checkpoint was trained on other features or words."""
    require_same_recipe(read_record(folder)["recipe"], folder, data_recipe(data), "the data at hand")
