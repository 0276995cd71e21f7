"""The schema of `params.yaml`: every parameter that changes an artifact, typed, with errors that name the key.

Each floor describes its own parameters; here they are put together. What only changes the speed is in `machine.py`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from eval.settings import EvaluationSettings, ReportSettings
from extract.settings import DetectorTrainingSettings, ImportSettings, PackSettings, RegionSettings
from extract.text.settings import TokenSettings
from manifests.errors import InputError
from manifests.settings import DatasetSource, SceneSettings
from manifests.typed import Settings
from train.settings import RunSettings

FILE = Path("params.yaml")


def _region_section(value: Any) -> str:
    """Which section a `regions` is: extracted regions have a detector and a selection."""
    if isinstance(value, dict):
        return "RegionSettings" if {"detector", "selection"} & value.keys() else "ImportSettings"
    return type(value).__name__ if isinstance(value, ImportSettings) else "RegionSettings"


class DatasetSettings(Settings):
    """One data set: where it comes from, and how its stores are made."""

    source: DatasetSource
    regions: Annotated[
        Annotated[RegionSettings, Tag("RegionSettings")] | Annotated[ImportSettings, Tag("ImportSettings")],
        Discriminator(_region_section),
    ]
    tokens: TokenSettings
    pack: PackSettings

    @model_validator(mode="after")
    def _imported_or_extracted(self) -> Self:
        if self.source.imported != isinstance(self.regions, ImportSettings):
            lacking = "no detector and no selection" if self.source.imported else "a detector and a selection"
            raise ValueError(f"with source.format {self.source.format}, regions must have {lacking}")
        return self


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
        message = " ".join(str(error).split())
        raise InputError(f"not YAML: {message}", where=path, fix="mend the line it names") from error
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"], item["type"]) for item in error.errors())
        raise InputError(problems, where=path, fix="correct these keys (docs/parameters.md lists all)") from None
    for name, run in params.runs.items():
        if run.dataset not in params.datasets:
            raise InputError(
                f"runs.{name}.dataset is {run.dataset!r}, which is none of the data sets"
                f"{_nearest(run.dataset, params.datasets)}",
                where=path,
                fix=f"choose one of {', '.join(params.datasets)}",
            )
    return params


def check_import(source: dict[str, Any], options: dict[str, Any]) -> tuple[DatasetSource, ImportSettings]:
    """The parameters of `selfalign import`, whose options are keys of either section. InputError names the option."""
    ours = {name: value for name, value in options.items() if name in DatasetSource.model_fields}
    try:
        return DatasetSource(**source, **ours), ImportSettings(
            **{name: value for name, value in options.items() if name not in ours}
        )
    except ValidationError as error:
        problems = "; ".join(f"--{item['loc'][0]}: {item['msg']}".replace("_", "-") for item in error.errors())
        raise InputError(problems, where="selfalign import", fix="see `selfalign import --help`") from None


def _named(items: dict[str, Any], section: str, name: str) -> Any:
    if name not in items:
        raise InputError(
            f"{section} has no {name!r}{_nearest(name, items)}", where=FILE, fix=f"choose one of {', '.join(items)}"
        )
    return items[name]


def _problem(place: tuple[int | str, ...], message: str, kind: str) -> str:
    key, _ = _follow(place)
    if kind != "extra_forbidden":
        return f"{key}: {message[:1].lower()}{message[1:]}"
    (section,) = _sections(_follow(place[:-1])[1])
    return f"{key}: unknown key{_nearest(str(place[-1]), section.model_fields)}"


def _follow(place: tuple[int | str, ...]) -> tuple[str, Any]:
    """The dotted key of a place where pydantic found an error, and what the schema wants there.

    Inside a choice of sections (a detector, by its `name`; regions extracted or imported) pydantic's place has the
    chosen name, which is no key.
    """
    keys: list[str] = []
    wanted: Any = Params
    for part in place:
        sections = _sections(wanted)
        if get_origin(wanted) is dict:
            wanted = get_args(wanted)[-1]
        elif len(sections) > 1:
            wanted = next(section for section in sections if _is_called(section, part))
            continue
        else:
            field = sections[0].model_fields.get(part) if sections else None
            wanted = field.annotation if field else None
        keys.append(str(part))
    return ".".join(keys), wanted


def _sections(wanted: Any) -> list[type[BaseModel]]:
    """The sections that the schema allows at a place: none, one, or several to choose from."""
    if _is_model(wanted):
        return [wanted]
    return [] if get_origin(wanted) is dict else [found for part in get_args(wanted) for found in _sections(part)]


def _is_called(section: type[BaseModel], name: int | str) -> bool:
    return section.__name__ == name or any(
        get_args(field.annotation) == (name,) for field in section.model_fields.values()
    )


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
