"""The shards of a region store: what is in each, and how one is made from the manifest's rows.

A shard is the unit of work, here as on the workers of a cluster (`extract.engine.workers`). Pictures whose regions the
cache has are not even read. Decoding runs in threads beside the network; pictures of one shape share a batch, and which
ones do depends on the manifest, the cache and the batch size alone, so that equal machines give equal bytes.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract.engine.cache import Cache, Place, Sidecar
from extract.engine.code import code_fingerprint
from extract.settings import RegionSettings
from extract.stores.hdf5 import MappedHDF5
from extract.stores.norms import Norms
from extract.stores.regions import FIELDS, SCHEMA, Regions, region_layout_problems, shard_row, write_shard
from extract.vision.decode import UnreadableImage
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import TooFewProposals
from extract.vision.given import GivenBoxes
from extract.vision.loading import load_detector
from extract.vision.reading import ahead, read_picture
from manifests.errors import InputError
from manifests.files import fingerprint
from manifests.schema import ImageRow
from manifests.tables import Manifest, images_sha256
from manifests.typed import Count

# A shape that few pictures share must not keep them waiting in memory for the whole shard.
PENDING_BATCHES = 4
TIMES = ("read", "compute", "write")
# Results of the same numbers on another device, in another batch or by another library differ by no more: boxes in
# pixels, confidences, features as a part of their root mean square beside half precision's rounding.
TOLERANCES = {"boxes": 0.1, "features": 0.01, "objects_conf": 0.01, "attrs_conf": 0.01}
ROUNDING = 2**-9


@cache
def detector_code(name: str) -> str:
    """The fingerprint of the code that makes regions with a detector.

    Kept from the first call on, so that a worker that has been running since before an edit doesn't pass for one that
    runs the new code.
    """
    return code_fingerprint("extract.vision.shards", DETECTORS.find(name).__module__)


class _Sidecar(Sidecar):
    """What a shard's sidecar says."""

    count: Count
    first: str | None
    last: str | None
    failures: list[dict[str, str]]
    norms: tuple[Count, float, float, float] | None
    environment: dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Made:
    """A finished shard: its sidecar, the pictures that went through the network for it, and the seconds spent on it.

    ``seconds`` counts waiting for decoded pictures ("read"), the network and selection ("compute", of all streams
    together) and "write".
    """

    done: dict[str, Any]
    computed: int
    seconds: dict[str, float]


class Shards:
    """The shards of a data set's region stores, numbered from 0: those of each split in manifest order.

    Parameters
    ----------
    manifest : its folder; its sha256 sums decide what is read.
    images : the image root that the manifest's paths start from.
    cache : the machine's cache folder.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.

    Attributes
    ----------
    recipe : what decides the numbers by design, as JSON.
    key : all by which workers must agree with whoever asks them, as JSON.
    places : the split, file name and rows of each shard.

    Raises `InputError` for an empty manifest and for wrong weights.
    """

    def __init__(
        self,
        *,
        manifest: Path,
        images: Path,
        settings: RegionSettings,
        cache: Path,
        device: str,
        batch_size: int,
        readers: int,
    ):
        listed = Manifest.open(manifest)
        self.rows = listed.images
        if not self.rows:
            raise InputError("it lists no image", where=manifest, fix="run the manifest stage again")
        self._listed, self.places = listed, listed.shards(settings.images_per_shard)
        self.manifest, self.images, self.settings, self.device = manifest, Path(images), settings, device
        self.batch_size, self.readers = batch_size, readers
        self.detector = load_detector(settings.detector, settings.selection, device)
        self.given = GivenBoxes.of(manifest) if settings.boxes else None
        self.dense = None if self.given else self.detector.fixed
        self.most = self.given.most if self.given else self.detector.most
        self.object_names = (self.given and self.given.names) or self.detector.object_names
        self.id_bytes = listed.id_bytes
        self.recipe = {
            "format": {"schema": SCHEMA, "features": "float16"},
            "detector": self.detector.recipe,
            **settings.choice,
            **({"truncated": "take"} if settings.truncated == "take" else {}),
        }
        self.key = {
            "recipe": self.recipe,
            "manifest": images_sha256(manifest),
            "code": detector_code(settings.detector.name),
        }
        if self.given:
            self.key["boxes"] = fingerprint([self.given.digest(row) for row in self.rows])
        self.cache = Cache(cache, "regions", self.recipe, self.key["code"], _Sidecar, self._sound)
        self.recipe_hash = fingerprint(self.recipe)

    def __len__(self) -> int:
        return len(self.places)

    def part(self, number: int) -> Sequence[ImageRow]:
        """The manifest's rows of shard `number`."""
        return list(self._listed.images_at(self.places[number].rows))

    def digest(self, row: ImageRow) -> str:
        """By which the cache knows a picture's regions: the picture's sha256, or that of picture and given boxes."""
        return self.given.digest(row) if self.given else row.sha256

    def finished(self, number: int) -> dict[str, Any] | None:
        """The sidecar of shard `number`, if it is in the cache. Pictures that could not be read are tried again, unless
        they are to be skipped."""
        done = self.cache.finished(self._content(number))
        return done if done and (not done["failures"] or self.settings.unreadable == "skip") else None

    def _content(self, number: int) -> dict[str, Any]:
        """What is to be in shard `number`."""
        rows = [[row.id, self.digest(row)] for row in self.part(number)]
        bound = self.settings.max_pixels
        return {"rows": rows, "id_bytes": self.id_bytes, "dense": self.dense, "max_pixels": bound}

    def _sound(self, shard: MappedHDF5, pictures: int) -> bool:
        layout = "ragged" if self.dense is None else "dense"
        return not any(region_layout_problems(shard, pictures, self.detector.dim, layout, "<f2"))

    def differs(self, sample: Mapping[str, Place]) -> str | None:
        """Compute the regions of some pictures (sha256 -> place) again; which number is another one, if any."""
        rows = {digest: row for row in self.rows if (digest := self.digest(row)) in sample}
        seconds = dict.fromkeys(TIMES, 0.0)
        again, _ = self._extract(list(rows.values()), seconds, lambda pictures: None)
        for number, (digest, row) in enumerate(rows.items()):
            place = sample[digest]
            shard = self.cache.shard(place.file)
            if shard is None:  # damaged: it is made again
                continue
            known = shard_row(shard, place.row)
            if number not in again or (told := difference(known, again[number])):
                return f"image {row.id!r}: {told if number in again else 'it can no longer be read'}"
        return None

    def make(
        self, number: int, known: Mapping[str, Place], advance: Callable[[int], Any] = lambda pictures: None
    ) -> Made:
        """Make shard `number` in the cache of `known` results (picture's sha256 -> place) and of the network's; call
        `advance` with each number of pictures done.

        Raises `InputError` for a picture that can't be decoded (unless ``settings.unreadable`` is "skip"), that is
        missing or that changed since the manifest was made, and for a full disk.
        """
        rows, seconds = self.part(number), dict.fromkeys(TIMES, 0.0)
        digests = [self.digest(row) for row in rows]
        if done := self.finished(number):  # by a worker that died before it could say so
            advance(len(rows))
            return Made(done, 0, seconds)
        regions: dict[int, Regions] = {}
        with _timed(seconds, "read"):
            for place, digest in enumerate(digests):
                if digest in known and (own := self.cache.shard(known[digest].file)):
                    found = shard_row(own, known[digest].row)
                    if math.prod(found.image_size) <= self.settings.max_pixels:  # else it is refused as ever
                        regions[place] = found
        advance(len(regions))
        new = [place for place in range(len(rows)) if place not in regions]
        found, failures = self._extract([rows[place] for place in new], seconds, advance)
        regions |= {new[place]: own for place, own in found.items()}
        numbers = sorted(regions)
        ids = [rows[place].id for place in numbers]
        draft = self.cache.draft(self._content(number))
        with _timed(seconds, "write"):
            write_shard(
                draft,
                ids,
                [regions[place] for place in numbers],
                self.recipe_hash,
                dim=self.detector.dim,
                dense=self.dense,
                id_bytes=self.id_bytes,
            )
            norms = Norms.together(Norms.of(own.features) for own in regions.values())
            facts = {
                "count": len(ids),
                "first": ids[0] if ids else None,
                "last": ids[-1] if ids else None,
                "failures": failures,
                "norms": astuple(norms) if norms.count else None,
                "environment": self.environment,
            }
            pictures = [digests[place] for place in numbers]
            done = self.cache.publish(draft, self._content(number), pictures, facts)
        return Made(done, len(found), seconds)

    @property
    def environment(self) -> dict[str, Any]:
        """What may move the last bits."""
        return {
            "device": self.device.partition(":")[0],
            "threads": torch.get_num_threads(),
            "batch_size": self.batch_size,
            "torch": torch.__version__,
        }

    def _extract(
        self, rows: Sequence[ImageRow], seconds: dict[str, float], advance: Callable[[int], Any]
    ) -> tuple[dict[int, Regions], list[dict[str, str]]]:
        """Regions by their picture's place in `rows`, and the pictures that couldn't be read (id, path, reason)."""
        regions: dict[int, Regions] = {}
        failures: dict[int, dict[str, str]] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, ImageRow, Tensor, tuple[int, int]]]] = {}
        running: deque[Future[dict[int, Regions | TooFewProposals]]] = deque()

        def collect(most: int) -> None:
            while len(running) > most:
                for number, found in (done := running.popleft().result()).items():
                    if isinstance(found, TooFewProposals):
                        failures[number] = self._failure(rows[number], found)
                    else:
                        regions[number] = found
                advance(len(done))

        with (
            _streams(self.device) as streams,
            ThreadPoolExecutor(self.readers) as readers,
            ThreadPoolExecutor(streams) as network,
        ):

            def flush(shape: tuple[int, ...]) -> None:
                running.append(network.submit(self._detect, waiting.pop(shape), seconds))
                collect(streams)

            pictures = ahead(readers, self._read, rows, (streams + 1) * self.batch_size)
            for number, row in enumerate(rows):
                with _timed(seconds, "read"):
                    try:
                        picture, size = next(pictures).result()
                    except UnreadableImage as error:
                        failures[number] = self._failure(row, error)
                        advance(1)
                        continue
                shape = tuple(picture.shape)
                waiting.setdefault(shape, []).append((number, row, picture, size))
                if len(waiting[shape]) == self.batch_size:
                    flush(shape)
                elif sum(map(len, waiting.values())) >= PENDING_BATCHES * self.batch_size:
                    flush(max(waiting, key=lambda shape: len(waiting[shape])))
            for shape in list(waiting):
                flush(shape)
            collect(0)
        return regions, [failures[number] for number in sorted(failures)]

    def _detect(
        self, batch: Sequence[tuple[int, ImageRow, Tensor, tuple[int, int]]], seconds: dict[str, float]
    ) -> dict[int, Regions | TooFewProposals]:
        """Regions of a batch by the pictures' numbers; a picture that has too few proposals is looked at alone."""
        numbers, rows, pictures, sizes = zip(*batch, strict=True)
        with _timed(seconds, "compute"):
            given = self.given and [self.given.boxes(row, size) for row, size in zip(rows, sizes, strict=True)]
            try:
                found = self.detector.detect(torch.stack(pictures), sizes, given)
            except TooFewProposals as error:
                if len(batch) == 1:
                    return {numbers[0]: error}
                found = None
        if found is None:
            return {number: own for one in batch for number, own in self._detect([one], seconds).items()}
        if self.given:
            found = [self.given.labelled(row, regions) for row, regions in zip(rows, found, strict=True)]
        return dict(zip(numbers, found, strict=True))

    def _read(self, row: ImageRow) -> tuple[Tensor, tuple[int, int]]:
        rgb = read_picture(self.images, row, self.settings.max_pixels, truncated=self.settings.truncated == "take")
        return self.detector.prepare(rgb), (rgb.shape[1], rgb.shape[0])

    def _failure(self, row: ImageRow, error: UnreadableImage | TooFewProposals) -> dict[str, str]:
        few = isinstance(error, TooFewProposals)
        reason, fix = (error.what, error.fix) if few else (str(error), "replace the picture")
        if self.settings.unreadable == "stop":
            told = "has too few regions" if few else "can't be read"
            raise InputError(
                f"image {row.id!r} {told}: {reason}",
                where=self.images / row.path,
                fix=f"{fix}, or set `regions.unreadable: skip` to list it in failures.jsonl and go on",
            ) from error
        return {"id": row.id, "path": row.path, "reason": reason}


def difference(known: Regions, again: Regions) -> str | None:
    """Which field of a picture's regions isn't the same within `TOLERANCES`, and by how much it differs; or None."""
    if known.image_size != again.image_size or len(known) != len(again):
        return f"{len(again)} regions in {again.image_size}, {len(known)} in {known.image_size} before"
    for name in FIELDS:
        ours, theirs = getattr(again, name), getattr(known, name)
        if (ours is None) != (theirs is None):
            return f"{name} is there only {'now' if theirs is None else 'before'}"
        if ours is None or not len(ours):
            continue
        now, before = ours.astype(np.float64), theirs.astype(np.float64)
        bound = TOLERANCES.get(name, 0.0)
        if name == "features":  # half precision rounds large numbers by more
            bound = bound * np.sqrt(np.square(before).mean()) + ROUNDING * np.abs(before)
        off = np.abs(now - before)
        if not (off <= bound).all():
            return f"{name} differ by {off.max():.3g}"
    return None


@contextmanager
def _streams(device: str) -> Iterator[int]:
    """How many batches the network works on at a time; torch's operators use one thread each meanwhile.

    On the CPU that is torch's number of threads: whole batches side by side leave no thread waiting for another, and
    the numbers don't depend on how many threads there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads if device == "cpu" else 1
    finally:
        torch.set_num_threads(threads)


class _timed:
    """Adds the time of a block to ``seconds[what]``."""

    def __init__(self, seconds: dict[str, float], what: str):
        self.seconds, self.what = seconds, what

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.what] += time.perf_counter() - self.start
