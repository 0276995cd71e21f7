"""`selfalign remove`: a data set's entries, what was made of it, and its part of `dvc.lock`; never its pictures."""

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from manifests.errors import InputError
from manifests.files import write_text
from manifests.locks import sole_writer
from pipeline import editing, places
from pipeline.params import FILE, Params, parse_params, read_text

LOCK, STAGES = Path("dvc.lock"), Path("dvc.yaml")
_STORES = (places.manifest, places.regions, places.tokens, places.text_features, places.teachers, places.pack)
_OF_DATASET = ("manifest", "regions", "tokens", "text_features", "teachers", "pack")


@dataclass(frozen=True)
class Removal:
    """What goes: places in `params.yaml`, files and folders, names in `dvc.lock`; `kept` says what stays, and why."""

    keys: list[tuple[str, ...]]
    paths: list[Path]
    stages: list[str]
    kept: list[str]

    def __str__(self) -> str:
        lines = [f"  {FILE}: {'.'.join(key)}" for key in self.keys] + [f"  {path}" for path in self.paths]
        lines += [f"  {LOCK}: {', '.join(self.stages)}"] if self.stages else []
        return "\n".join([*lines, *(f"  ({note})" for note in self.kept)])


def run(name: str, agreed: Callable[[Removal], bool]) -> bool:
    """Take the data set `name` out, with its runs, their ensembles and studies, once `agreed` says so of what goes.

    Raises
    ------
    InputError : no such data set, or the last one; something that stays needs what goes; a stage is making some of it.
        Nothing is removed then.
    """
    with ExitStack() as held:
        held.enter_context(sole_writer(FILE, f"change of {FILE}", wait=False))
        text = read_text()
        params = parse_params(text)
        found = _removal(name, params)
        if list(params.datasets) == [name]:
            raise InputError(f"{name} is the only data set", where=FILE, fix="add another one first: `selfalign add`")
        text = _without(text, found.keys)
        parse_params(text)
        locked = _without(_text(LOCK), [("stages", stage) for stage in found.stages])
        if not agreed(found):
            return False
        for path in found.paths:
            of_run = (path / "model", path / "evaluation") if path.parent == places.RUNS else ()
            for made in (path, *of_run):
                held.enter_context(sole_writer(made, f"stage for {made}", wait=False))
        # The entry goes last: where this is interrupted, the same command finds the rest.
        for path in found.paths:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if found.stages:
            write_text(LOCK, locked)
        write_text(FILE, text)
    _tidy(found.paths, places.DATA / name)
    return True


def _removal(name: str, params: Params) -> Removal:
    if name not in params.shared:
        params.dataset(name)  # says which names there are
    runs = [run for run, settings in params.runs.items() if settings.dataset == name]
    ensembles = [each for each, members in params.ensembles.items() if set(members) & set(runs)]
    studies = [each for each, study in params.studies.items() if study.run in runs]
    sections = ("datasets", "shared", "text_features", "teachers", "packs")
    keys: list[tuple[str, ...]] = [(each, name) for each in sections if name in getattr(params, each)]
    optional = {run: each for each, some in params.optional.items() for run in some if some[run].dataset == name}
    keys += [("optional", each, run) for run, each in optional.items()]
    keys += [("runs", run) for run in runs if run not in optional]
    keys += [("ensembles", each) for each in ensembles] + [("studies", each) for each in studies]

    paths = [place(name) for place in _STORES]
    paths += [path.with_name(f"{path.name}.dvc") for path in paths]
    paths += [places.RUNS / run for run in runs] + [places.ENSEMBLES / each for each in ensembles]
    paths += [places.STUDIES / each for each in studies] + list(_indexes(name, runs))
    paths = [path for path in paths if os.path.lexists(path)]
    needed = [Path(os.path.abspath(path)) for path in _read(params, name, runs)]
    kept = [path for path in paths if any(each.is_relative_to(path.absolute()) for each in needed)]
    notes = [f"{path} stays: a data set or a run that stays reads files in it" for path in kept]
    stages = [f"{stage}@{name}" for stage in _OF_DATASET]
    stages += [f"{stage}@{run}" for run in runs for stage in ("train", "evaluate")]
    stages += [f"ensemble@{each}" for each in ensembles] + [f"study@{each}" for each in studies]
    folders = [places.DATA / name, *(places.RUNS / run for run in runs)]
    folders += [places.ENSEMBLES / each for each in ensembles] + [places.STUDIES / each for each in studies]
    own = re.compile("|".join(rf"\b{re.escape(folder.as_posix())}(?![-\w])" for folder in folders))
    if lines := [str(number) for number, line in enumerate(_text(STAGES).splitlines(), 1) if own.search(line)]:
        notes.append(f"{STAGES} names them on the lines {', '.join(lines)}: take those out by hand")
    listed = _text(LOCK)
    there = [stage for stage in stages if listed and editing.find(listed, ("stages", stage)) >= 0]
    return Removal(keys, [path for path in paths if path not in kept], there, notes)


def _without(text: str, keys: list[tuple[str, ...]]) -> str:
    """A YAML text without some entries, the last one first: what is named further down goes before its anchor."""
    if not keys:
        return text
    try:
        for key in sorted(keys, key=lambda key: editing.find(text, key), reverse=True):
            text = editing.cut(text, key)
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        message = f"what stays takes over what would go: {' '.join(str(error).split())}"
        raise InputError(message, where=FILE, fix="write out what that alias stands for, then remove again") from error
    return text


def _read(params: Params, name: str, runs: list[str]) -> Iterator[Path | str]:
    """The files of people that entries name, and what others than the data set `name` read of it."""
    for each, settings in params.datasets.items():
        source = settings.source
        yield from (path for path in (source.images, source.captions, source.pictures) if path)
        if each != name and settings.tokens.vocabulary:
            yield settings.tokens.vocabulary
    yield from (settings.images for settings in params.shared.values() if settings.images)
    for run, settings in params.runs.items():
        if run not in runs and settings.stream:
            yield from settings.stream.urls


def _indexes(name: str, runs: list[str]) -> Iterator[Path]:
    """The indexes of the data set or by its runs."""
    for path in sorted(places.INDEXES.glob("*/recipe.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            recipe = json.loads(path.read_text(encoding="utf-8"))["recipe"]
            if recipe["data set"]["name"] == name or recipe["run"]["name"] in runs:
                yield path.parent


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _tidy(gone: list[Path], folder: Path) -> None:
    """Remove what was noted beside files that are gone, and the data set's folder if it has nothing else."""
    for path in gone:
        for note in path.parent.glob(f".{glob.escape(path.name)}.*.json"):
            note.unlink(missing_ok=True)
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"made.jsonl", ".gitignore"}:
        shutil.rmtree(folder)
