"""The shards of an imported region store, made of files of an exchange format.

Threads read a shard's images while the shard before is written. Memory holds two shards' features, three where images
differ in their number of regions.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extract.engine.cache import Place
from extract.engine.code import code_fingerprint
from extract.engine.finished import Staging
from extract.engine.maker import Advance, Maker
from extract.exchange.checks import Checks, too_large, zero_feature
from extract.exchange.formats import open_source
from extract.exchange.half import to_float16
from extract.settings import ImportSettings
from extract.stores.fields import Regions
from extract.stores.norms import Norms
from extract.stores.regions import write_shard
from manifests.errors import InputError
from manifests.files import fingerprint

_TOGETHER = 16  # images that a thread reads at a time


class Image(NamedTuple):
    """An image's id, and where the files have its regions."""

    id: str
    place: list[int]


class About(NamedTuple):
    """The facts that all images of an import share.

    format : of the files.
    boxes : R where every image has that many regions.
    object_names, attribute_names : the names of class numbers, if the files have them.
    dim, labels : length of a feature, and the labels of the first image.
    id_bytes : length of the ``image_id`` field.
    """

    format: str
    boxes: int | None
    object_names: list[str] | None
    attribute_names: list[str] | None
    dim: int
    labels: list[str]
    id_bytes: int


class ImportShards(Maker[list[Image]]):
    """Makes shards of imported regions.

    Parameters
    ----------
    images : file or folder with the regions.
    staging, key : the folder of finished shards, and all that decides them.
    recipe_hash : of the store.
    readers : threads that read and convert.

    Making a shard raises `InputError` with file, row and fix for arrays that don't fit each other or `num_boxes`. NaN,
    numbers too large for the precision, boxes outside their picture and a full disk are errors too.
    """

    def __init__(
        self,
        *,
        images: Path,
        settings: ImportSettings,
        about: About,
        recipe_hash: str,
        staging: Path,
        key: Mapping[str, Any],
        readers: int,
    ):
        self.settings, self.about, self.recipe_hash, self.readers = settings, about, recipe_hash, readers
        self.source = open_source(about.format, images, **settings.given)
        self.source.object_names, self.source.attribute_names = about.object_names, about.attribute_names
        self.checks = Checks(self.source, settings.sizes, settings.precision)
        self.checks.dim, self.checks.labels = about.dim, about.labels
        self.key = {"key": fingerprint(key), "code": code_fingerprint(__name__, type(self.source).__module__)}
        self.finished = Staging(staging, {**key, **self.key})
        self._pool = ThreadPoolExecutor(readers)
        # Room for two shards' features ``[images, R, D]``; None for a ragged store.
        self._buffers: list[np.ndarray | None] = [None, None]
        self._waiting: dict[str, tuple[list[Future[tuple[list[Regions], Norms]]], np.ndarray | None]] = {}

    def content(self, part: list[Image]) -> list[Any]:
        return [part[0].id, part[-1].id, len(part)]

    def ahead(self, part: list[Image]) -> None:
        """Have a shard's images read, some at a time, into the buffer that the shard before doesn't use."""
        if part[0].id in self._waiting:
            return
        self._buffers.reverse()
        if self.about.boxes is not None and (self._buffers[0] is None or len(self._buffers[0]) < len(part)):
            shape = len(part), self.about.boxes, self.about.dim
            self._buffers[0] = np.empty(shape, self.settings.precision)
        buffer = self._buffers[0]
        blocks = [slice(at, min(at + _TOGETHER, len(part))) for at in range(0, len(part), _TOGETHER)]
        submit = self._pool.submit
        futures = [submit(self._read, part[own], None if buffer is None else buffer[own]) for own in blocks]
        self._waiting[part[0].id] = futures, buffer

    def write(
        self, path: Path, part: list[Image], known: Mapping[str, Place], advance: Advance
    ) -> tuple[dict[str, Any], int]:
        self.ahead(part)
        try:
            with self.timed("read"):
                regions, norms = [], Norms()
                for future in self._waiting[part[0].id][0]:
                    block, lengths = future.result()
                    regions += block
                    norms = Norms.combined((norms, lengths))
                    advance(len(block))
            _, buffer = self._waiting.pop(part[0].id)
        except BaseException:
            for futures, _ in self._waiting.values():
                for future in futures:
                    future.cancel()
            raise
        ids = [image.id for image in part]
        with self.timed("write"):
            write_shard(
                path,
                ids,
                regions,
                self.recipe_hash,
                dim=self.about.dim,
                dense=self.about.boxes,
                id_bytes=self.about.id_bytes,
                features=None if buffer is None else buffer[: len(ids)],
            )
        facts = {"count": len(ids), "first": ids[0], "last": ids[-1]}
        return facts | {"norms": astuple(norms) if norms.count else None}, len(ids)

    def _read(self, part: Sequence[Image], buffer: np.ndarray | None) -> tuple[list[Regions], Norms]:
        """The regions of some images and the norms of their features, which lie in `buffer` if it is given."""
        outs = [None] * len(part) if buffer is None else buffer
        regions = [self._regions(image, out) for image, out in zip(part, outs, strict=True)]
        norms = [Norms.of(found.features) for found in regions]
        for image, found, lengths in zip(part, regions, norms, strict=True):
            if lengths.least == 0:
                raise zero_feature(np.flatnonzero(~found.features.any(1))[0], self._where(image))
        return regions, Norms.combined(norms)

    def _where(self, image: Image) -> str:
        return f"{self.source.where(image.place)} (image {image.id!r})"

    def _regions(self, image: Image, out: np.ndarray | None) -> Regions:
        """One image's regions as the store keeps them; `out` is room for its features."""
        where, record = self._where(image), self.source.read(image.place)
        self.checks.require_alike(record, where)
        if self.about.boxes not in (None, len(record.features)):
            message = f"{len(record.features)} regions, its num_boxes says {self.about.boxes}"
            raise InputError(message, where=where, fix="fetch the file again")
        boxes, size = self.checks.boxes(record, where)
        labels = self.checks.kept_labels(record, where)
        return Regions(features=self._features(record.features, out, where), boxes=boxes, image_size=size, **labels)

    def _features(self, values: np.ndarray, out: np.ndarray | None, where: str) -> np.ndarray:
        values = values.reshape(-1, self.about.dim)
        out = np.empty(values.shape, self.settings.precision) if out is None else out
        if out.dtype == np.float16 and values.dtype != np.float16:
            whole = to_float16(np.ascontiguousarray(values, np.float32), out)
        else:
            with np.errstate(over="ignore"):
                np.copyto(out, values)
            whole = np.isfinite(out).all()
        if whole:
            return out
        self.checks.require_numbers(values, where)
        raise too_large(float(np.abs(values).max()), out.dtype.name, where)
