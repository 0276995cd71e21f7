"""Missing files: those that data sets and runs of `params.yaml` need and that this machine lacks, for the doctor.

Each thing is an `InputError` that says what to do about it. Nothing is fetched, nothing is made.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import braceexpand

from eval.metrics import METRICS
from extract.exchange.formats import open_source
from extract.stores.teachers import SIDES
from extract.teachers import TEACHERS
from extract.text.encoder import find_encoder
from extract.text.pieces import PieceTokenizer
from extract.text.settings import TokenSettings
from extract.text.words import load_language
from extract.vision.backbones import BackboneSettings, find_model_files
from extract.vision.detectors.detectron2 import find_config
from extract.vision.weights import WeightsSettings, is_address, weights_place
from manifests.errors import InputError
from manifests.files import sha256
from manifests.progress import progress
from manifests.typed import Settings
from pipeline import places
from pipeline.params import FILE, Params
from train.settings import RunSettings

_LARGE = 10**8  # bytes of a file from which on hashing shows its progress
_FEATURES = "run `dvc pull {path}`, or bring it with `dvc import` (docs/sharing.md)"


def of_dataset(params: Params, name: str) -> Iterator[InputError]:
    """What a data set that is made here lacks; what a stage makes of others (`made_by_stages`) is left out."""
    dataset, key = params.datasets[name], f"datasets.{name}"
    source = dataset.source
    for what, path in (("images", source.images), ("captions", source.captions), ("boxes", source.boxes)):
        yield from _path(f"{key}.source.{what}", path, params)
    if source.imported and os.path.exists(source.images):
        yield from _raised(partial(open_source, source.format, source.images, source.captions, **dataset.regions.given))
    if not source.imported:
        yield from _detector(f"{key}.regions.detector", dataset.regions.detector, params)
    yield from _tokens(f"{key}.tokens", dataset.tokens, params)
    if features := params.text_features.get(name):
        yield from _raised(partial(find_encoder, features.model, features.revision))
    if teachers := params.teachers.get(name):
        for side in SIDES:
            teacher = getattr(teachers, side)
            yield from _raised(partial(TEACHERS.find(teacher.name).require, teacher))


def of_shared(params: Params, name: str) -> Iterator[InputError]:
    """What a data set that another project made lacks, the stores that runs read included. Pictures are optional."""
    runs = [run for run in params.runs.values() if run.dataset == name]
    needed = [places.manifest(name), places.regions(name), places.tokens(name)]
    needed += [places.text_features(name)] * any(run.text.reads == "text_features" for run in runs)
    needed += [places.teachers(name)] * any(run.labels == "teachers" for run in runs)
    for path in needed:
        if not os.path.exists(path):
            yield InputError("not there", where=f"shared.{name}: {path}", fix=_FEATURES.format(path=path))


def of_run(run: RunSettings, name: str) -> Iterator[InputError]:
    """What a run lacks beside its data set: its text encoder, and shards that it streams from this machine."""
    if encoder := run.text.encoder:
        yield from _raised(partial(find_encoder, encoder.model, encoder.revision))
    for pattern in run.stream.urls if run.stream else ():
        for url in braceexpand.braceexpand(pattern):
            if not _is_address(url) and not os.path.exists(url):
                yield InputError("no such file", where=f"runs.{name}.stream.urls: {url}", fix="put the shard there")


def of_evaluation(params: Params) -> Iterator[InputError]:
    """What the metrics of every run's evaluation lack."""
    for name, settings in params.evaluate.metrics.items():
        if reason := METRICS.find(name)(settings).lacking():
            yield InputError(reason, where=f"evaluate.metrics.{name}", fix="install it, or leave the metric out")


def made_by_stages(params: Params, name: str) -> list[Path]:
    """The files of a data set that aren't there and that a stage makes."""
    dataset = params.datasets[name]
    paths = (dataset.source.images, dataset.source.captions, dataset.tokens.vocabulary)
    return [path for path in paths if path and not os.path.exists(path) and _is_made(path, params)]


def absent_pictures(params: Params, name: str) -> Path | None:
    """Where the report would look for the pictures of imported or shared regions, if they are not there."""
    if name in params.datasets:
        source = params.datasets[name].source
        root = source.pictures if source.imported else None
    else:
        root = params.shared[name].images
    return root if root and not os.path.exists(root) else None


def _path(key: str, path: str | Path | None, params: Params) -> Iterator[InputError]:
    if path is not None and not os.path.exists(path) and not _is_made(path, params):
        yield InputError("no such file or folder", where=f"{key}: {path}", fix=f"put it there, or correct it in {FILE}")


def _is_made(path: str | Path, params: Params) -> bool:
    folders = [places.SCENES, *(places.tokens(name) for name in params.datasets)]
    return any(Path(os.path.abspath(path)).is_relative_to(folder.absolute()) for folder in folders)


def _detector(key: str, detector: Settings, params: Params) -> Iterator[InputError]:
    if detector.name == "detectron2" and find_spec("detectron2") is None:
        fix = "install it as docs/detectors.md says, or use `name: rcnn`"
        yield InputError("detectron2 isn't installed", where=key, fix=fix)
    elif detector.name == "detectron2":
        yield from _raised(partial(find_config, detector.config), f"{key}.config")
    for what in ("object_names", "attribute_names"):
        if path := getattr(detector, what, None):
            yield from _path(f"{key}.{what}", path, params)
    if isinstance(detector, BackboneSettings):
        yield from _raised(partial(find_model_files, detector), key)
    if not isinstance(detector, BackboneSettings | WeightsSettings) or detector.weights is None:
        return
    try:
        path = weights_place(detector.weights, detector.sha256)
    except InputError as error:
        yield InputError(error.what, where=f"{key}.weights: {detector.weights}", fix=error.fix)
        return
    address = is_address(detector.weights)
    if not address and not path.is_file():
        yield InputError(
            "no such file", where=f"{key}.weights: {path}", fix="put the weights there: docs/detectors.md says whose"
        )
    if set(detector.sha256) == {"0"}:
        file = "FILE (after fetching the weights)" if address else path
        yield InputError(
            "64 zeros stand for a hash that wasn't known yet",
            where=f"{key}.sha256",
            fix=f"put what `sha256sum {file}` prints there, once you trust that file",
        )
    elif path.is_file() and (found := _hash(path)) != detector.sha256:
        yield InputError(
            f"the file {path} has sha256 {found}",
            where=f"{key}.sha256: {detector.sha256}",
            fix="fetch the right weights, or put the file's hash there if you mean to change features",
        )


@cache
def _hash(path: Path) -> str:
    size = path.stat().st_size
    with progress(what=path.name, unit="B", total=size, scale=True, quiet=size < _LARGE) as bar:
        return sha256(path, bar.update)


def _is_address(text: str) -> bool:
    return len(urlsplit(text).scheme) > 1


def _tokens(key: str, tokens: TokenSettings, params: Params) -> Iterator[InputError]:
    yield from _raised(partial(load_language, tokens.language), f"{key}.language")
    if tokens.vocabulary:
        yield from _path(f"{key}.vocabulary", tokens.vocabulary, params)
    if tokens.tokenizer:
        yield from _raised(partial(PieceTokenizer, tokens.tokenizer, tokens.max_pieces), key)


def _raised(find: Callable[[], object], key: str = "") -> Iterator[InputError]:
    """The InputError of a check, with `key` as its place."""
    try:
        find()
    except InputError as error:
        yield InputError(error.what, where=f"{key}, {error.where}" if key else error.where, fix=error.fix)
