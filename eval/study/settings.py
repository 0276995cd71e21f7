"""The parameters of a study in `params.yaml`: the rows of a table, each a run that is trained with several seeds."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from manifests.errors import InputError
from manifests.typed import Settings
from train.settings import RunSettings

Changes = dict[str, Any]
Choices = Mapping[str, Changes]


class RowSettings(Settings):
    """A row of a study: keys of the run, and values that the validation split chooses from."""

    extends: str | None = Field(None, description="an earlier row: its keys and its chosen values come first")
    changes: Changes = Field({}, description="dotted keys of the run; null takes a loss or a section out")
    choose: dict[str, list[Any]] = Field({}, description="dotted keys and their values to choose from")
    against: str | None = Field(None, description="the row it is compared with, seed by seed; the extended one if null")

    @property
    def options(self) -> list[Changes]:
        """Every combination of the values to choose from; one that changes nothing where there is no choice."""
        return [dict(zip(self.choose, values, strict=True)) for values in itertools.product(*self.choose.values())]


class StudySettings(Settings):
    """What `study@S` reads, beside the run that it varies."""

    title: str = Field(description="what the report calls it")
    run: str
    dataset: str = Field(description="the run's, said again for DVC")
    reads: Literal["tokens", "text_features"] = Field("tokens", description="what the rows' text.reads needs, likewise")
    labels: Literal["manifest", "teachers"] = Field("manifest", description="what the rows' labels need, likewise")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    choosing_seeds: tuple[int, ...] = Field((100,), min_length=1, description="of the runs that choose values")
    changes: Changes = Field({}, description="dotted keys of the run, the same for all rows")
    vary: dict[str, list[Any]] = Field({}, description="dotted keys and their values: a row for each combination")
    rows: dict[str, RowSettings] = Field({}, description="rows by name, where `vary` doesn't say it")

    @model_validator(mode="after")
    def _rows_are_reported_once(self) -> Self:
        if bool(self.vary) == bool(self.rows):
            raise ValueError("give either vary or rows")
        choices = [*self.vary.items(), *(pair for row in self.rows.values() for pair in row.choose.items())]
        for key, values in choices:
            if not values:
                raise ValueError(f"{key} has no values")
        changed = [*self.changes, *(key for key, _ in choices), *(key for r in self.rows.values() for key in r.changes)]
        if "seed" in changed:
            raise ValueError("a row can't change seed: every row is trained with all of seeds")
        if len(self.table) < math.prod(map(len, self.vary.values())):
            raise ValueError("two of the varied values have one name")
        return self

    @model_validator(mode="after")
    def _rows_come_after_those_they_name(self) -> Self:
        earlier: list[str] = []
        for name, row in self.rows.items():
            for key in ("extends", "against"):
                named = getattr(row, key)
                if named is not None and named not in earlier:
                    names = ", ".join(map(repr, earlier)) or "none"
                    raise ValueError(f"rows.{name}.{key} is {named!r}, which is no earlier row (earlier: {names})")
            earlier.append(name)
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        chosen = self.choosing_seeds if any(row.choose for row in self.rows.values()) else ()
        twice = {seed for seed in (*self.seeds, *chosen) if (*self.seeds, *chosen).count(seed) > 1}
        if twice:
            raise ValueError(f"seed {min(twice)} stands twice in seeds and choosing_seeds; figures need unused seeds")
        return self

    @property
    def table(self) -> dict[str, RowSettings]:
        """The rows by name. A row of one varied key is named by its value: `64`, `NOUN+ADJ`, `all` for null."""
        if self.rows:
            return self.rows
        rows = {}
        for values in itertools.product(*self.vary.values()):
            changes = dict(zip(self.vary, values, strict=True))
            names = [f"{key.rpartition('.')[2]} {label(value)}" for key, value in changes.items()]
            rows[", ".join(names) if len(names) > 1 else label(values[0])] = RowSettings(changes=changes)
        return rows

    def changes_of(self, name: str, choices: Choices, option: Changes | None = None) -> Changes:
        """The changed keys of row `name`: the study's, then those of the rows it extends, then its own.

        `choices` gives the chosen values of every row that has some; `option` stands for those of this row.
        """
        row = self.table[name]
        before = self.changes_of(row.extends, choices) if row.extends else self.changes
        return {**before, **row.changes, **(choices.get(name, {}) if option is None else option)}

    def possible(self, base: RunSettings) -> Iterator[RunSettings]:
        """Every run that the study may train, without its seeds. Raises InputError as `varied` does."""
        choices: dict[str, Changes] = {}
        for name, row in self.table.items():
            for option in row.options:
                try:
                    yield varied(base, self.changes_of(name, choices, option))
                except InputError as error:
                    raise InputError(f"row {name!r}: {error.what}", where=error.where, fix=error.fix) from None
            choices[name] = row.options[0]


def varied(run: RunSettings, changes: Mapping[str, Any], seed: int | None = None) -> RunSettings:
    """The run with changed keys, and with a seed where one is given.

    A key that isn't there yet is added; null takes a loss or a section out. Raises InputError for what is no run.
    """
    values = copy.deepcopy(run.model_dump())
    for key, change in changes.items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                message = f"{key}: {section} is {place!r}, which has no keys"
                raise InputError(message, where="its changes", fix="name a key of the run")
        place[last] = copy.deepcopy(change)
    if seed is not None:
        values["seed"] = seed
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        message = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors())
        raise InputError(message, where="its changes", fix="correct the keys that the study changes") from None


def label(value: Any) -> str:
    """A value as the report shows it: NOUN+ADJ for a list, all for null."""
    return "all" if value is None else "+".join(map(str, value)) if isinstance(value, list) else str(value)
