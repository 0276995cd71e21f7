"""The schema of `params.yaml`: every parameter that changes an artifact, typed, with errors that name the key.

Each floor describes its own parameters; here they are put together. What only changes the speed is in `machine.py`.
"""

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError

from eval.settings import EvaluationSettings, ReportSettings
from extract.settings import DetectorTrainingSettings, PackSettings, RegionSettings
from extract.text.settings import TokenSettings
from manifests.errors import InputError
from manifests.settings import DatasetSource, SceneSettings, Settings
from train.settings import RunSettings

FILE = Path("params.yaml")


class DatasetSettings(Settings):
    """One data set: where it comes from, and how its stores are made."""

    source: DatasetSource
    regions: RegionSettings
    tokens: TokenSettings
    pack: PackSettings


class Params(Settings):
    """The whole of `params.yaml`."""

    scenes: SceneSettings
    detector: DetectorTrainingSettings
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    runs: dict[str, RunSettings]
    evaluate: EvaluationSettings
    report: ReportSettings

    def dataset(self, name: str) -> DatasetSettings:
        """The data set `name`; `InputError` with the nearest name otherwise."""
        return _named(self.datasets, "datasets", name)

    def run(self, name: str) -> RunSettings:
        """The run `name`; `InputError` with the nearest name otherwise."""
        return _named(self.runs, "runs", name)


def read_params(path: Path = FILE) -> Params:
    """Read and check `params.yaml`. Every problem is named by its key, unknown keys with the nearest known one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("can't be read", where=path.absolute(), fix="run from the project's folder") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", where=path, fix="mend the line it names") from error
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems = [_problem(values, item["loc"], item["msg"], item["type"]) for item in error.errors()]
        raise InputError("; ".join(problems), where=path, fix="correct these keys (docs/parameters.md lists all)") from None
    for name, run in params.runs.items():
        if run.dataset not in params.datasets:
            raise InputError(
                f"runs.{name}.dataset is {run.dataset!r}, which is none of the data sets{_nearest(run.dataset, params.datasets)}",
                where=path,
                fix=f"choose one of {', '.join(params.datasets)}",
            )
    return params


def _named(items: dict[str, Any], section: str, name: str) -> Any:
    if name not in items:
        raise InputError(
            f"{section} has no {name!r}{_nearest(name, items)}", where=FILE, fix=f"choose one of {', '.join(items)}"
        )
    return items[name]


def _problem(values: Any, place: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in place)
    if kind != "extra_forbidden":
        return f"{key}: {message[:1].lower()}{message[1:]}"
    return f"{key}: unknown key{_nearest(str(place[-1]), _known_keys(place[:-1]))}"


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema allows at a place of `params.yaml`."""
    model: Any = Params
    for part in place:
        if _is_model(model):
            annotation = model.model_fields[part].annotation
            optional = get_origin(annotation) in (Union, UnionType)
            model = next(filter(_is_model, get_args(annotation)), None) if optional else annotation
        else:  # a map: its keys are names, its values of one kind
            model = get_args(model)[-1]
    return list(model.model_fields) if _is_model(model) else []


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
