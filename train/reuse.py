"""Trained runs that are kept: the same settings, data, seed and code give the run that was trained before.

Code counts by its meaning, and only what the run uses (`extract.engine.code`): another base's file, or a comment,
trains nothing again.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from extract.engine.cache import ABOUT, in_use
from extract.engine.code import code_fingerprint
from extract.stores.intact import listed_files
from manifests.files import fingerprint, whole_folder, write_json
from train.settings import RunSettings

CURVES, MODEL = "epochs.csv", "model"
_BASES = {
    "vsrn": {"train.models.vsrn", "train.models.caption_decoder"},
    "camera": {"train.models.camera"},
    "vse_infinity": {"train.models.vse_infinity"},
    "transformer": {"train.models.transformer"},
}


def unused_modules(settings: RunSettings) -> set[str]:
    """The modules that training imports and that a run of these settings doesn't use."""
    return set(_unused(settings))


def _unused(settings: RunSettings) -> Iterator[str]:
    own = _BASES[settings.base.name]
    yield from (module for modules in _BASES.values() for module in modules if module not in own)
    selfalign = settings.selfalign
    if not (selfalign and selfalign.concept):
        yield "train.selfalign.concept"
    if not (selfalign and selfalign.context):
        yield "train.selfalign.context"
    if not (selfalign and selfalign.bag):
        yield "train.selfalign.bag"
    if not settings.cusa:
        yield from ("train.models.cusa", "train.losses.soft_labels")
    if not settings.aladin:
        yield "train.losses.distillation"
        if not (selfalign and selfalign.word_region):
            yield "train.losses.alignment"
    if not settings.stream:
        yield "train.stream"
    yield from ("train.curves", "train.processes", "train.reuse", "train.state")  # how it is told, shared and kept


class TrainedRuns:
    """The place of one trained run in the machine's cache.

    Parameters
    ----------
    cache : the cache folder.
    settings, manifest_sha256 : of the run, and of its manifest.
    stores : the folders of the stores that it reads; what counts is the sha256 of their shards.
    """

    def __init__(self, cache: Path, settings: RunSettings, manifest_sha256: str, stores: Mapping[str, Path | None]):
        code = code_fingerprint("train.train", "eval.validation", without=unused_modules(settings))
        self.about: dict[str, Any] = {
            "settings": settings.model_dump(mode="json"),
            "manifest": manifest_sha256,
            "stores": {name: _shards(folder) for name, folder in stores.items() if folder},
            "code": code,
        }
        self.folder = Path(cache).expanduser() / "runs" / fingerprint(self.about)[:32]

    def install(self, out: Path, curves: Path) -> bool:
        """Put a run that was trained before into `out` and `curves`; says whether there is one."""
        if not (self.folder / ABOUT).is_file():
            return False
        with in_use(self.folder):
            with whole_folder(out) as ready:
                shutil.copytree(self.folder / MODEL, ready, dirs_exist_ok=True)
            curves.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / CURVES, curves)
        return True

    def keep(self, out: Path, curves: Path) -> None:
        """Keep what was trained into `out` and `curves`."""
        with whole_folder(self.folder) as ready:
            shutil.copytree(out, ready / MODEL)
            shutil.copyfile(curves, ready / CURVES)
            write_json(ready / ABOUT, self.about)


def _shards(folder: Path) -> str:
    """What a store holds, in one number: its shards' sha256."""
    return fingerprint({name: digest for name, digest in listed_files(folder).items() if name.endswith(".h5")})
