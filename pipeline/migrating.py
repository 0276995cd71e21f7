"""`selfalign migrate`: a project of an older main goes on with this one, and nothing is extracted again.

What an older project extracted enters the cache, and today's stores are put together from there. First all of it is
made beside the project. Only when nothing is in the way do `params.yaml` and the data sets' folders change, and
`dvc commit` follows. Runs are another matter: their bases compute as published now, so that `dvc repro` trains them.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from extract.teachers.settings import named
from manifests.errors import InputError
from manifests.files import link_or_copy, write_text
from manifests.grounding import FILE as GROUNDING
from manifests.imported import FILE as SOURCE
from manifests.locks import sole_writer
from manifests.tables import OLD, Manifest, write_manifest
from pipeline import places, strict_yaml
from pipeline.machine import Machine
from pipeline.old_params import rewritten
from pipeline.params import FILE, DatasetSettings, Params, parse_params, read_text

LOCK = Path("dvc.lock")
_WORKSPACE = ".migrating"  # below a data set's folder: today's stores, until all of them are made
_EARLIER = "with the code that made it (`git checkout`), `dvc pull`; come back to this code, and run this again"
# Stores that a data set has where a section of params.yaml names it.
_OF_SOME = {"text_features": "text_features", "teachers": "teachers", "pack": "packs"}
_MADE = ("manifest", "regions", "tokens", "text_features", "teachers", "pack")


@dataclass(frozen=True)
class _Set:
    """An older project's data set, and which of its stores are to be made anew of what they hold."""

    name: str
    settings: DatasetSettings
    again: list[str]

    @property
    def folder(self) -> Path:
        return places.DATA / self.name

    @property
    def workspace(self) -> Path:
        return self.folder / _WORKSPACE

    def place(self, store: str) -> Path:
        """Where today's store is before it takes its place: where it was if it stays as it is."""
        return (self.workspace if store in self.again else self.folder) / store


def run(machine: Machine) -> str:
    """Bring the project at hand to today's form; returns what was done.

    Raises
    ------
    InputError : something can't be taken over, or isn't here. `params.yaml`, the data sets' folders and `dvc.lock` are
        as they were then.
    """
    with sole_writer(FILE, f"change of {FILE}", wait=False), ExitStack() as held:
        before = read_text()
        try:
            text, changes = rewritten(before)
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(f"not YAML: {' '.join(str(error).split())}", where=FILE, fix="mend it") from error
        params, locked = parse_params(text), _locked()
        sets = [found for name in params.datasets if (found := _older_set(name, params, locked))]
        if not changes and not sets:
            return "nothing to migrate: params.yaml and the data sets' stores are in today's form"
        problems = [problem for each in sets for problem in _problems(each, locked)]
        if problems:
            raise InputError("; ".join(problems), where="this project", fix="mend that first: nothing was changed")
        for each in sets:
            held.enter_context(_tidied(each.workspace))
            for store in _MADE:
                if store in each.again or (each.folder / store).exists():
                    held.enter_context(sole_writer(each.folder / store, f"stage for {each.folder / store}", wait=False))
        for each in sets:
            _make(each, params, machine)
        for each in sets:
            for store in each.again:
                _put(each, store)
        if text != before:
            write_text(FILE, text)
    if not sets:
        return "\n".join([f"{FILE}: {line}" for line in changes])
    stages, left = _stages(sets, params, locked)
    _dvc("commit", "--force", "--quiet", *stages)
    lines = [f"{FILE}: {line}" for line in changes]
    lines += [f"{each.name}: {', '.join(each.again) or 'its stores'} in today's form" for each in sets]
    lines += [f"dvc commit: {', '.join(stages)}"]
    lines += [f"left to `dvc repro`: {', '.join(left)}"] if left else []
    return "\n".join(lines)


def _older_set(name: str, params: Params, locked: dict[str, Any]) -> _Set | None:
    """The data set if it is an older project's; a killed migration left it so, or all but DVC's lock."""
    folder, again = places.DATA / name, []
    if (folder / "manifest" / OLD).is_file():
        again.append("manifest")
    if (folder / "regions" / "index.json").is_file():
        again.append("regions")
    outs = [out["path"] for out in locked.get(f"regions@{name}", {}).get("outs", ())]
    if not again and places.regions(name).as_posix() not in outs:
        return None
    if "manifest" in again or "regions" in again:
        again += [s for s in ("text_features", "teachers") if name in getattr(params, s) and (folder / s).is_dir()]
    return _Set(name, params.datasets[name], again)


def _problems(found: _Set, locked: dict[str, Any]) -> Iterator[str]:
    """Why a data set can't be taken over."""
    for store in ("manifest", "regions"):
        if not (found.folder / store).is_dir():
            yield f"{found.folder / store} isn't here: fetch it {_EARLIER}"
    source = found.settings.source
    for path in (source.captions, source.watch):
        if path is not None and not path.exists():
            yield f"{path} isn't here, which DVC hashes for manifest@{found.name}"
    for stage in ("manifest", "regions"):
        for dep in locked.get(f"{stage}@{found.name}", {}).get("deps", ()):
            path = Path(dep["path"])
            ours = path == source.captions or found.folder in path.parents
            if ours and path.is_file() and "md5" in dep and _md5(path) != dep["md5"]:
                yield (
                    f"{path} isn't what {stage}@{found.name} was made of: restore it, or, with the code that made it, "
                    f"`dvc repro regions@{found.name}`"
                )


def _make(found: _Set, params: Params, machine: Machine) -> None:
    """Make today's stores of what the older ones hold, apart from them."""
    from extract.stages import import_regions, regions, teachers, text_features
    from extract.stores.intact import require_intact

    settings, name = found.settings, found.name
    for store in found.again:
        if store != "manifest":
            require_intact(found.folder / store, fix=f"fetch it again {_EARLIER}")
    found.workspace.mkdir(exist_ok=True)
    if "manifest" in found.again:
        old, new = found.folder / "manifest", found.place("manifest")
        write_manifest(new, Manifest.open(old).checked().captioned)
        for file in (SOURCE, GROUNDING):
            if (old / file).is_file():
                link_or_copy(old / file, new / file)
    manifest = found.place("manifest")
    device = {"device": machine.torch_device(), "batch_size": machine.batch}
    if "regions" in found.again:
        common = {"dataset": name, "manifest": manifest, "images": settings.source.images, "about": settings.about}
        common |= {"settings": settings.regions, "out": found.place("regions"), "readers": machine.readers}
        if settings.source.imported:
            import_regions.run(**common, staging=machine.staging)
        else:
            regions.run(**common, **device, cache=machine.cache, earlier=found.folder / "regions")
    if "text_features" in found.again:
        text_features.run(
            dataset=name,
            tokens=found.place("tokens"),
            settings=params.text_features[name],
            out=found.place("text_features"),
            cache=machine.cache,
            device=device["device"],
            batch_size=machine.encode_batch,
            earlier=found.folder / "text_features",
        )
    if "teachers" in found.again:
        teachers.run(
            dataset=name,
            manifest=manifest,
            regions=found.place("regions"),
            images=params.image_roots[name],
            settings=params.teachers[name],
            out=found.place("teachers"),
            cache=machine.cache,
            staging=machine.staging,
            **device,
            caption_batch=machine.encode_batch,
            readers=machine.readers,
            earlier=found.folder / "teachers",
        )


def _put(found: _Set, store: str) -> None:
    """Let a store take its place; what was there is removed."""
    place, old = found.folder / store, found.workspace / f"{store}.old"
    os.replace(place, old)
    try:
        os.replace(found.workspace / store, place)
    except BaseException:
        os.replace(old, place)
        raise
    for note in found.folder.glob(f".{store}.*.json"):  # of the older one
        note.unlink()


@contextmanager
def _tidied(workspace: Path) -> Iterator[None]:
    """Remove the folder apart, before, where a killed process left it, and after; what was noted there is kept."""
    for old in workspace.glob("*.old"):  # a process was killed between two renames
        if not (place := workspace.with_name(old.name.removesuffix(".old"))).exists():
            os.replace(old, place)
    shutil.rmtree(workspace, ignore_errors=True)
    try:
        yield
        made = workspace / "made.jsonl"
        if made.is_file():
            with open(workspace.with_name(made.name), "a", encoding="utf-8") as file:
                file.write(made.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _stages(sets: list[_Set], params: Params, locked: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The stages to commit in DVC, and those left to `dvc repro`: missing ones, and ones of other parameters."""
    stages = [stage for stage, out in (("scenes", places.SCENES), ("detector", places.DEMO_WEIGHTS)) if out.exists()]
    left, values = [], strict_yaml.load(read_text())
    for each in sets:
        for store in _MADE:
            if store in _OF_SOME and each.name not in getattr(params, _OF_SOME[store]):
                continue
            stage = f"{store}@{each.name}"
            there = (each.folder / store).is_dir()
            asked = locked.get(stage, {}).get("params", {}).get(FILE.name, {})
            equal = (_at(values, key) == _now(key, value) for key, value in asked.items())
            same = store in ("manifest", "regions") or all(equal)
            (stages if there and same else left).append(stage)
    return stages, [*left, *(f"train@{run}" for run in params.runs), *(f"study@{study}" for study in params.studies)]


def _now(dotted: str, value: Any) -> Any:
    """What an older project's lock has of a key, as it is written now."""
    if dotted.startswith("teachers.") and isinstance(value, dict):
        return {key: named(key, own) or own for key, own in value.items()}
    return value


def _at(values: Any, dotted: str) -> Any:
    """What stands in `params.yaml` now where an older project's lock has a key."""
    if (keys := dotted.split("."))[0] == "datasets" and keys[2:3] == ["pack"]:
        dotted = f"packs.{keys[1]}"
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _locked() -> dict[str, Any]:
    """The stages of `dvc.lock`; none where there is no such file."""
    if not LOCK.exists():
        return {}
    return (strict_yaml.load(LOCK.read_text(encoding="utf-8")) or {}).get("stages", {})


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _dvc(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True)
    if done.returncode:
        message = " ".join(done.stderr.split())[-500:]
        raise InputError(message, where=f"dvc {arguments[0]}", fix="mend that, and run `selfalign migrate` again")
