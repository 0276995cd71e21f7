"""The schema of `params.yaml`: every parameter that changes an artifact, typed, with errors that name the key.

Each floor describes its own parameters; here they are put together. What only changes the speed is in `machine.py`.
"""

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, PlainValidator, ValidationError, model_validator

from demo.detector.settings import DetectorTrainingSettings
from demo.scenes.settings import SceneSettings
from eval.settings import EvaluationSettings, ReportSettings
from eval.study.settings import StudySettings
from extract.settings import About, ImportSettings, PackSettings, RegionSettings
from extract.teachers import TEACHERS
from extract.teachers.settings import TeacherSettings
from extract.text.settings import TextFeatureSettings, TokenSettings
from manifests.errors import InputError
from manifests.names import ALLOWED, name_problem
from manifests.opening import read_file
from manifests.settings import DatasetSource
from manifests.typed import Settings
from pipeline import places, strict_yaml
from train.old_runs import translated, written
from train.settings import RunSettings

FILE = Path("params.yaml")
# Sections whose keys are names; those of one group name folders beside each other.
_NAMED = (
    ("datasets", "shared"), ("text_features",), ("teachers",), ("packs",), ("optional",), ("runs",), ("ensembles",),
    ("studies",),
)  # fmt: skip


def _region_section(value: Any) -> Settings:
    """The section `regions`: extracted regions have a detector, imported ones have none."""
    if isinstance(value, Settings):
        return value
    extracted = not isinstance(value, dict) or {"detector", "selection"} & value.keys()
    return (RegionSettings if extracted else ImportSettings).model_validate(value)


class DatasetSettings(Settings):
    """One data set: where it comes from, and how its stores are made."""

    source: DatasetSource
    regions: Annotated[RegionSettings | ImportSettings, PlainValidator(_region_section)]
    tokens: TokenSettings
    about: About = About()

    @model_validator(mode="after")
    def _imported_or_extracted(self) -> Self:
        if self.source.imported != isinstance(self.regions, ImportSettings):
            lacking = "no detector and no selection" if self.source.imported else "a detector"
            raise ValueError(f"with source.format {self.source.format}, regions must have {lacking}")
        return self

    @model_validator(mode="after")
    def _has_given_boxes(self) -> Self:
        if self.regions.boxes == "given" and self.source.boxes is None:
            raise ValueError("`regions.boxes: given` needs a file of boxes: set `source.boxes`")
        return self

    @model_validator(mode="after")
    def _says_what_dvc_watches(self) -> Self:
        if self.source.watch is None:
            which = self.source.images if self.source.imported else self.source.boxes or self.source.captions
            hint = "`selfalign migrate` does so in an older project"
            raise ValueError(f"source has no `watch`, which dvc.yaml reads: add `watch: {which}` ({hint})")
        return self


class SharedSettings(Settings):
    """A data set that another project made; its manifest and stores were brought to `data/NAME` (`docs/sharing.md`)."""

    images: Path | None = Field(None, description="the image root, for the report, where the pictures are here too")


class Params(Settings):
    """The whole of `params.yaml`."""

    scenes: SceneSettings
    detector: DetectorTrainingSettings
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    text_features: dict[str, TextFeatureSettings] = Field(description="by data set; those without need no entry")
    teachers: dict[str, TeacherSettings] = Field({}, description="by data set, for runs with soft labels")
    packs: dict[str, PackSettings] = Field(description="by data set; those without need no entry")
    shared: dict[str, SharedSettings] = {}
    optional: dict[str, dict[str, RunSettings]] = Field({}, description="sets of runs that `runs` may take in")
    runs: dict[str, RunSettings]
    evaluate: EvaluationSettings
    ensembles: dict[str, Annotated[list[str], Field(min_length=2)]] = {}
    studies: dict[str, StudySettings] = {}
    report: ReportSettings

    @model_validator(mode="after")
    def _optional_last(self) -> Self:
        """YAML puts merged keys first, and the report holds runs against the first one."""
        added = {name for runs in self.optional.values() for name in runs}
        for name in [name for name in self.runs if name in added]:
            self.runs[name] = self.runs.pop(name)
        return self

    def dataset(self, name: str) -> DatasetSettings:
        """The data set `name`; `InputError` with the nearest name otherwise."""
        return _named(self.datasets, "datasets", name)

    def text_feature(self, name: str) -> TextFeatureSettings:
        """The text features of the data set `name`; `InputError` with the nearest name otherwise."""
        return _named(self.text_features, "text_features", name)

    def teacher(self, name: str) -> TeacherSettings:
        """The teachers of the data set `name`; `InputError` with the nearest name otherwise."""
        return _named(self.teachers, "teachers", name)

    @property
    def image_roots(self) -> dict[str, Path]:
        """The image root of every data set; for one without pictures, a folder that isn't there or has none."""
        made = {name: settings.source.picture_root for name, settings in self.datasets.items()}
        brought = {name: settings.images or places.images(name) for name, settings in self.shared.items()}
        return made | brought

    def image_root(self, name: str) -> Path:
        """The image root of the data set `name`; `InputError` with the nearest name otherwise."""
        roots = self.image_roots
        return roots[name] if name in roots else self.dataset(name).source.picture_root

    def pack(self, name: str) -> PackSettings:
        """The pack of the data set `name`; `InputError` with the nearest name otherwise."""
        return _named(self.packs, "packs", name)

    def run(self, name: str) -> RunSettings:
        """The run `name`; `InputError` with the nearest name, or with how to turn it on, otherwise."""
        for key, runs in self.optional.items():
            if name in runs and name not in self.runs:
                raise InputError(
                    f"run {name!r} is of the optional set {key}, which is off",
                    where=FILE,
                    fix=f"add *{key} to the list at `<<:` below runs",
                )
        if name in self.ensembles and name not in self.runs:
            fix = f"take one of its runs: {', '.join(self.ensembles[name])}"
            raise InputError(f"{name!r} is an ensemble, and has no model of its own", where=FILE, fix=fix)
        return _named(self.runs, "runs", name)

    def ensemble(self, name: str) -> list[str]:
        """The runs of the ensemble `name`; `InputError` with the nearest name otherwise."""
        return _named(self.ensembles, "ensembles", name)

    def study(self, name: str) -> StudySettings:
        """The study `name`; `InputError` with the nearest name otherwise."""
        return _named(self.studies, "studies", name)


def read_params(path: Path = FILE) -> Params:
    """Read and check `params.yaml`. Every problem is named by its key, unknown keys with the nearest known one."""
    return parse_params(read_text(path), path)


def read_text(path: Path = FILE) -> str:
    """The text of `params.yaml`. InputError where it can't be read, or is no UTF-8."""
    try:
        return read_file(path).decode("utf-8")
    except OSError as error:
        raise InputError(
            f"can't be read ({error.strerror})", where=path.absolute(), fix="run from the project's folder"
        ) from error
    except ValueError as error:
        raise InputError(f"not YAML: {error}", where=path, fix="write it as UTF-8") from error


def parse_params(text: str, path: Path = FILE) -> Params:
    """Check a text of `params.yaml`, as `read_params` does; `path` is for messages."""
    try:
        values, node, twice = strict_yaml.compose(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"not YAML: {message}", where=path, fix="mend the line it names") from error
    wrong = list(_name_problems(node))
    if twice or wrong:
        fixes = ["give each key once"] * bool(twice) + [f"call them otherwise: {ALLOWED}"] * bool(wrong)
        raise InputError("; ".join([*twice, *wrong]), where=path, fix="; ".join(fixes))
    _refuse_old(values, path)
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors())
        raise InputError(problems, where=path, fix="correct these keys (docs/parameters.md lists all)") from None
    twice = sorted(params.datasets.keys() & params.shared.keys())
    if twice:
        raise InputError(
            f"{twice[0]!r} is in datasets and in shared", where=path, fix="make it here or bring it here, not both"
        )
    names = list(params.image_roots)
    for name, run in params.runs.items():
        _require_known(
            run.dataset, names, f"runs.{name}.dataset is {run.dataset!r}, which is none of the data sets", path
        )
    _check_text(params, path)
    _check_labels(params, path)
    _check_ensembles(params, path)
    _check_studies(params, path)
    return params


def _name_problems(root: yaml.Node | None) -> Iterator[str]:
    """What is wrong with the names of data sets, runs, ensembles and studies, as they are written, each with its line.

    Two of a kind that differ in case alone would share a folder where file systems know no case.
    """
    sections = {key.value: value for key, value in _items(root)}
    optional = {f"optional.{key.value}": value for key, value in _items(sections.get("optional"))}
    for group in _NAMED:
        nodes = {section: sections.get(section) for section in group} | (optional if group == ("runs",) else {})
        # A run that `runs` takes in from an optional set is the set's own node.
        keys = {id(key): (section, key) for section, node in nodes.items() for key, _ in _items(node)}
        spelt: dict[str, tuple[str, str]] = {}
        for section, key in keys.values():
            name, line = key.value, strict_yaml.line(key)
            if problem := name_problem(name):
                yield f"{section}: {problem} (line {line})"
            if "datasets" in group and name.lower() == places.SCENES.name:
                yield f"{section}: {name!r} (line {line}) would share {places.SCENES} with the demo's pictures"
            other, other_place = spelt.setdefault(name.lower(), (name, f"{section}, line {line}"))
            if other != name:
                yield f"{section}: {name!r} (line {line}) and {other!r} ({other_place}) differ in case alone"


def _items(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of a mapping whose keys are written as scalars; none of anything else."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [(key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)]


def _refuse_old(values: Any, path: Path) -> None:
    """Raise `InputError` for packs and runs as older projects wrote them, with what to write now."""
    named = values if isinstance(values, dict) else {}
    datasets = named.get("datasets")
    packed = [name for name, own in (datasets if isinstance(datasets, dict) else {}).items() if "pack" in (own or ())]
    if packed:
        message = f"{', '.join(f'datasets.{name}.pack' for name in packed)}: packs are a section of their own"
        raise InputError(message, where=path, fix=f"`selfalign migrate` moves them: `packs: {{{packed[0]}: ...}}`")
    sets = {f"optional.{name}": runs for name, runs in (named.get("optional") or {}).items()}
    new = {
        f"{section}.{name}": block
        for section, runs in (sets | {"runs": named.get("runs")}).items()
        for name, run in (runs.items() if isinstance(runs, dict) else ())
        if isinstance(run, dict) and (block := translated(run)) is not None
    }
    if new:
        raise InputError(
            f"the losses of {', '.join(new)} aren't in one map",
            where=path,
            fix="`selfalign migrate` rewrites them; or write, in the place of triplet, contrast, selfalign, aladin and "
            "cusa: " + "; ".join(f"{name}: {{{written(block)}}}" for name, block in new.items()),
        )


def _check_text(params: Params, path: Path) -> None:
    """Raise `InputError` for a text encoder without word pieces, and for text features that no stage makes."""
    for name in params.packs:
        _require_known(name, params.datasets, f"packs.{name} is none of the data sets", path)
    for name in params.text_features:
        _require_known(name, params.datasets, f"text_features.{name} is none of the data sets", path)
    needing = {f"text_features.{name}": name for name in params.text_features}
    needing |= {f"runs.{name}.text": run.dataset for name, run in params.runs.items() if run.text.pieces}
    for key, name in needing.items():
        if name in params.datasets and params.datasets[name].tokens.tokenizer is None:
            raise InputError(
                f"{key} needs word pieces, and datasets.{name}.tokens has no tokenizer",
                where=path,
                fix="set tokenizer there to the folder of the encoder's tokenizer",
            )
    for name, run in params.runs.items():
        if run.text.reads == "text_features" and run.dataset not in {*params.text_features, *params.shared}:
            raise InputError(
                f"runs.{name}.text reads text_features, and text_features has no {run.dataset!r}",
                where=path,
                fix=f"add `{run.dataset}: {{model: ...}}` below text_features",
            )


def _check_labels(params: Params, path: Path) -> None:
    """Raise `InputError` for teachers of no data set, or without pictures, and for soft labels that no stage makes."""
    for name, teacher in params.teachers.items():
        _require_known(name, params.datasets, f"teachers.{name} is none of the data sets", path)
        if TEACHERS[teacher.images.name].reads == "pictures" and params.datasets[name].source.imported:
            raise InputError(
                f"teachers.{name}.images reads pictures, and datasets.{name} was imported without checking any",
                where=path,
                fix="set `images: {name: regions-mean}` there",
            )
    for name, run in params.runs.items():
        if "labels" not in run.model_fields_set:
            raise InputError(
                f"runs.{name}.labels: field required: DVC's stage train depends on it",
                where=path,
                fix="set it to manifest, or to teachers for a run with cusa",
            )
        if run.labels == "teachers" and run.dataset not in {*params.teachers, *params.shared}:
            raise InputError(
                f"runs.{name}.labels are of teachers, and teachers has no {run.dataset!r}",
                where=path,
                fix=f"add `{run.dataset}: {{images: ..., captions: ...}}` below teachers",
            )


def _check_ensembles(params: Params, path: Path) -> None:
    """Raise `InputError` for an ensemble of unknown runs, or of runs on several data sets."""
    for name, members in params.ensembles.items():
        for member in members:
            _require_known(member, params.runs, f"ensembles.{name} has {member!r}, which is none of the runs", path)
        if len(datasets := {params.runs[member].dataset for member in members}) > 1:
            raise InputError(
                f"ensembles.{name} has runs on several data sets ({', '.join(sorted(datasets))})",
                where=path,
                fix="combine runs of one data set",
            )


def _check_studies(params: Params, path: Path) -> None:
    """Raise `InputError` for a study of an unknown run, of other data than its rows', or of a row that is no run."""
    for name, study in params.studies.items():
        _require_known(study.run, params.runs, f"studies.{name}.run is {study.run!r}, which is none of the runs", path)
        try:
            possible = list(study.possible(params.runs[study.run]))
        except InputError as error:
            raise InputError(f"studies.{name}: {error.what}", where=path, fix=error.fix) from None
        needed = {
            "dataset": {each.dataset for each in possible},
            "reads": {each.text.reads for each in possible} - {"tokens"} or {"tokens"},
            "labels": {each.labels for each in possible} - {"manifest"} or {"manifest"},
        }
        if wrong := [key for key, values in needed.items() if values != {getattr(study, key)}]:
            names = ", ".join(f"{key} {getattr(study, key)!r}" for key in wrong)
            right = ", ".join(f"{key}: {' or '.join(sorted(needed[key]))}" for key in wrong)
            raise InputError(f"studies.{name} has {names}, and its rows need others", where=path, fix=f"write {right}")


def _named(items: dict[str, Any], section: str, name: str) -> Any:
    _require_known(name, items, f"{section} has no {name!r}", FILE)
    return items[name]


def _require_known(name: str, known: Collection[str], message: str, where: Path) -> None:
    """Raise `InputError` unless a name is known: `message`, then the nearest known name and all of them."""
    if name not in known:
        raise InputError(f"{message}{_nearest(name, known)}", where=where, fix=f"choose one of {', '.join(known)}")


def _problem(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, place))}: {message[:1].lower()}{message[1:]}"


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
