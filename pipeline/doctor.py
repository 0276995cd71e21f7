"""What `selfalign doctor` shows: settings, versions, and what is missing for which stage."""

import os
import platform
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from extract.teaching.sentences import read_modules
from extract.teaching.settings import LSA, REGIONS_MEAN
from extract.teaching.vision import find_vision_model
from extract.text_encoder import find_encoder
from manifests.errors import InputError
from pipeline import places
from pipeline.machine import PREFIX, Machine
from pipeline.params import DatasetSettings, Params, read_params

_PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "numpy",
    "h5py",
    "webdataset",
    "spacy",
    "transformers",
    "dask",
    "dvc",
)
_OPTIONAL = ("detectron2", "faiss-cpu")


def examine(machine: Machine) -> str:
    """The whole answer as text."""
    return "\n\n".join([_settings(machine), _versions(machine), _inputs()])


def _settings(machine: Machine) -> str:
    lines = ["Machine settings (environment variables; they change the speed, not what is computed)"]
    for name, field in Machine.model_fields.items():
        variable = PREFIX + name.upper()
        origin = "set" if variable in os.environ else "default"
        lines.append(f"  {variable:24} {getattr(machine, name)!s:12} {origin:8} {field.description}")
    return "\n".join(lines)


def _versions(machine: Machine) -> str:
    try:
        device = f"torch device {machine.torch_device()}"
    except InputError as error:
        device = str(error)
    lines = [f"Versions (Python {platform.python_version()}, {device})"]
    for package in _PACKAGES + _OPTIONAL:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed (optional)" if package in _OPTIONAL else "MISSING: run `make environment`"
        lines.append(f"  {package:24} {found}")
    lines.append(f"  {'free disk':24} {shutil.disk_usage('.').free / 1e9:.0f} GB")
    return "\n".join(lines)


def _inputs() -> str:
    lines = ["Data sets (params.yaml)"]
    try:
        params = read_params()
    except InputError as error:
        return "\n".join([*lines, f"  {error}"])
    for name, dataset in params.datasets.items():
        needed = [dataset.source.images, dataset.source.captions, *_files(dataset)]
        absent = [model for model, find in _models(params, name) if not _is_here(find)]
        lines.append(_missing(name, needed, absent))
    for name in params.shared:
        lines.append(_missing(name, [places.manifest(name), places.regions(name), places.tokens(name)]))
    return "\n".join(lines)


def _models(params: Params, dataset: str) -> list[tuple[str, Callable[[], object]]]:
    """The models of a data set's text features, of its runs and of its teachers, each with what looks for it."""
    named = [params.text_features[dataset]] if dataset in params.text_features else []
    named += [run.text.encoder for run in params.runs.values() if run.dataset == dataset and run.text.encoder]
    found = [(each.model, partial(find_encoder, each.model, each.revision)) for each in named]
    if teachers := params.teachers.get(dataset):
        for each, built_in, find in (
            (teachers.images, REGIONS_MEAN, find_vision_model),
            (teachers.captions, LSA, read_modules),
        ):
            found += [(each.model, partial(find, each))] if each.model != built_in else []
    return found


def _is_here(find: Callable[[], object]) -> bool:
    try:
        find()
    except InputError:
        return False
    return True


def _missing(name: str, needed: list[str | Path], absent: list[str] | None = None) -> str:
    missing = [str(path) for path in needed if not Path(path).exists()] + (absent or [])
    return f"  {name:24} {'ready' if not missing else 'not there yet: ' + ', '.join(missing)}"


def _files(dataset: DatasetSettings) -> list[str | Path]:
    """The files and folders that a data set's parameters name; addresses are left out."""
    named = [dataset.regions.detector.weights, dataset.tokens.vocabulary, dataset.tokens.tokenizer]
    return [path for path in named if path and "://" not in str(path)]
