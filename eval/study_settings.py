"""The parameters of a study in `params.yaml`: one parameter of a run over several values."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from manifests.errors import InputError
from manifests.typed import Settings
from train.settings import RunSettings


class StudySettings(Settings):
    """What `study@S` reads, beside the run that it varies."""

    title: str = Field(description="what the report calls it")
    run: str
    dataset: str = Field(description="the run's, said again for DVC")
    reads: Literal["tokens", "text_features"] = Field("tokens", description="the run's text.reads, likewise")
    labels: Literal["manifest", "teachers"] = Field("manifest", description="the run's, likewise")
    key: str = Field(description="dotted, below the run: losses.lca.num_concepts")
    values: list[int | float | str | list[str] | None] = Field(description="none where DVC's queue makes all points")
    changes: dict[str, Any] = Field({}, description="dotted keys below the run, the same for all points")


def varied(run: RunSettings, settings: StudySettings, value: Any) -> RunSettings:
    """The run with the changes and one value; InputError for a key that is not there or a value that can not be."""
    values = copy.deepcopy(run.model_dump())
    changes = {**settings.changes, settings.key: value}
    for key, wanted in changes.items():
        *sections, last = key.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) if isinstance(place, Mapping) else None
        if not isinstance(place, Mapping) or last not in place:
            raise InputError(f"there is no {key!r} in it", where=f"run {settings.run}", fix="name a key that it has")
        place[last] = wanted
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(told, where=f"run {settings.run}", fix=f"correct {settings.key} or the changes") from None


def label(value: Any) -> str:
    """A value as the report shows it: NOUN+ADJ for a list, all for none."""
    return "all" if value is None else "+".join(map(str, value)) if isinstance(value, list) else str(value)
