"""Trained runs that are kept: the same settings, data, seed and code give the run that was trained before.

Code counts by its meaning, and only what the run uses (`extract.engine.code`): another base's file, or a comment,
trains nothing again.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from extract.engine.cache import ABOUT, in_use
from extract.engine.code import code_fingerprint
from extract.stores.intact import listed_files
from extract.stores.regions import region_stores
from extract.text.encoder import encoder_recipe
from manifests.errors import InputError
from manifests.files import atomic, fingerprint, sha256, whole_folder, write_json
from manifests.locks import sole_writer
from manifests.registry import identity
from manifests.typed import Digest, Written, read_checked
from train.bases import BASES
from train.bases.base import Base
from train.losses import LOSSES
from train.losses.loss import Loss
from train.settings import RunSettings

CURVES, MODEL = "epochs.csv", "model"


class _About(Written):
    key: dict[str, Any]
    files: dict[str, Digest]


def run_code(settings: RunSettings) -> str:
    """What the code means that trains a run of these settings, as one number; to be asked for before it is loaded."""
    used = (part.__module__ for part in _parts(settings).values())
    return code_fingerprint("train.train", "eval.validation", *used, without=unused_modules(settings))


def unused_modules(settings: RunSettings) -> set[str]:
    """The modules that training imports and that a run of these settings doesn't use."""
    unused = {"train.curves", "train.readings", "train.reuse", "train.state"}  # printing and saving
    for module, chosen in (("train.bag", settings.bag), ("train.stream", settings.stream)):
        unused |= set() if chosen else {module}
    return unused


def run_key(
    settings: RunSettings, code: str, manifest_sha256: str, stores: Mapping[str, Path | None]
) -> dict[str, Any]:
    """All that decides a trained run, as JSON: settings, code, data (the sha256 of the shards) and text encoder."""
    encoder = settings.text.encoder
    return {
        "settings": settings.model_dump(mode="json", exclude_defaults=True),
        "parts": {name: version for name, part in _parts(settings).items() if (version := identity(part))},
        "code": code,
        "manifest": manifest_sha256,
        "stores": {name: _shards(name, folder) for name, folder in stores.items() if folder},
        "encoder": encoder_recipe(encoder.model, encoder.revision) if encoder else None,
    }


def _parts(settings: RunSettings) -> dict[str, type[Base] | type[Loss]]:
    base = settings.base.name
    return {f"base {base}": BASES.find(base)} | {f"loss {name}": LOSSES.find(name) for name in settings.losses}


class TrainedRun:
    """The place of one trained run in the machine's cache. An error there is a warning, and costs nobody a run.

    Parameters
    ----------
    cache : the cache folder.
    key : of the run (`run_key`).
    """

    def __init__(self, cache: Path, key: Mapping[str, Any]):
        self.key = dict(key)
        self.folder = Path(cache).expanduser() / "runs" / fingerprint(self.key)[:32]

    def install(self, out: Path, curves: Path) -> bool:
        """Put a run that was trained before into `out` and `curves`; says whether there is one that is whole."""
        if not (self.folder / ABOUT).is_file():
            return False
        try:
            with in_use(self.folder), whole_folder(out) as ready:
                files = read_checked(self.folder / ABOUT, _About, fix="remove it")[0].files
                shutil.copytree(self.folder / MODEL, ready, dirs_exist_ok=True)
                with atomic(curves) as written:
                    shutil.copyfile(self.folder / CURVES, written)
                    _require_same(files, {MODEL: ready, CURVES: written})
        except (InputError, OSError, shutil.Error) as error:
            tqdm.write(f"a trained run of the cache can't be used, and is trained again ({error})")
            return False
        return True

    def keep(self, out: Path, curves: Path) -> None:
        """Keep what was trained into `out` and `curves`, unless somebody has kept it meanwhile."""
        try:
            with sole_writer(self.folder, "keeping of a run"):
                if (self.folder / ABOUT).is_file():
                    return
                with whole_folder(self.folder) as ready:
                    shutil.copytree(out, ready / MODEL)
                    shutil.copyfile(curves, ready / CURVES)
                    write_json(ready / ABOUT, {"key": self.key, "files": _files(ready)})
        except (InputError, OSError, shutil.Error) as error:
            tqdm.write(f"the run could not be kept for other projects ({error})")


def _files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ABOUT)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _require_same(files: Mapping[str, str], copied: Mapping[str, Path]) -> None:
    """Raise `InputError` where a copied file isn't the one that was kept."""
    model, curves = copied[MODEL], copied[CURVES]
    found = {f"{MODEL}/{name}": digest for name, digest in _files(model).items()} | {CURVES: sha256(curves)}
    if found != files:
        wrong = sorted(name for name in {*found, *files} if found.get(name) != files.get(name))
        raise InputError("not what was kept", where=", ".join(wrong), fix="remove the entry")


def _shards(name: str, folder: Path) -> str:
    """What training reads of a store, in one number: its shards' sha256."""
    return fingerprint(_digests(folder) if name != "regions" else _trained_regions(folder))


def _trained_regions(folder: Path) -> dict[str, Any]:
    """The sha256 of the shards of each split that is trained or validated on, as far as it is there. Of older projects,
    that of all splits' one store."""
    there = {store.name: store for store in region_stores(folder)}
    return {split: _digests(there[split]) for split in ("train", "val") if split in there} or _digests(folder)


def _digests(store: Path) -> dict[str, str]:
    return {name: digest for name, digest in listed_files(store).items() if name.endswith(".h5")}
