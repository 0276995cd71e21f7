"""The shards of a region store, made of the manifest's rows.

Pictures whose regions the cache has are not even read. Decoding runs in threads beside the network. Pictures of one
shape share a batch. The batches depend on the manifest, the cache and the batch size alone, so that equal machines give
equal bytes.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extract.engine.cache import Cache, Sidecar
from extract.engine.code import code_fingerprint
from extract.engine.device import environment, make_current
from extract.engine.maker import Advance, ItemMaker
from extract.engine.tolerance import difference_beyond
from extract.settings import RegionSettings
from extract.stores.fields import FIELDS, Regions
from extract.stores.hdf5 import MappedHDF5
from extract.stores.norms import Norms
from extract.stores.regions import SCHEMA, region_layout_problems, shard_row, write_shard
from extract.vision.decode import UnreadableImage
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import TooFewProposals
from extract.vision.given import BoxFacts
from extract.vision.loading import load_detector
from extract.vision.reading import ahead, read_picture
from manifests.errors import InputError
from manifests.files import fingerprint
from manifests.schema import ImageRow
from manifests.typed import Count

# A shape that few pictures share must not keep them waiting in memory for the whole shard.
PENDING_BATCHES = 4
PIXELS = 600 * 1000  # of one of a GPU's batch: smaller pictures fill it in larger numbers


@cache
def detector_code(name: str) -> str:
    """The fingerprint of the code that makes regions with a detector.

    It is kept from the first call on: a worker that started before an edit doesn't pass for one that runs the new code.
    """
    return code_fingerprint("extract.vision.shards", DETECTORS.find(name).__module__)


class _Sidecar(Sidecar):
    """The sidecar of a shard of regions."""

    count: Count
    first: str | None
    last: str | None
    failures: list[dict[str, str]]
    norms: tuple[Count, float, float, float] | None
    environment: dict[str, str | int]


class RegionShards(ItemMaker[list[ImageRow], Regions]):
    """Makes shards of regions; a part is a list of the manifest's rows, with their given boxes, if any.

    Parameters
    ----------
    images : the image root that the rows' paths start from.
    given : the facts of all given boxes.
    cache : the machine's cache folder.
    id_bytes : length of the ``image_id`` field, one for the whole data set.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.
    exact : take only results of this `environment`.

    Attributes
    ----------
    recipe : all that decides the numbers by design, as JSON.

    Raises `InputError` for wrong weights. Making a shard raises it for a picture that is missing or that changed since
    the manifest was made, and for a full disk. So does a picture that can't be decoded, unless ``settings.unreadable``
    is "skip".
    """

    def __init__(
        self,
        *,
        images: Path,
        settings: RegionSettings,
        cache: Path,
        id_bytes: int,
        device: str,
        batch_size: int,
        readers: int,
        given: BoxFacts | None = None,
        exact: bool = False,
    ):
        self.images, self.settings, self.id_bytes, self.device = Path(images), settings, id_bytes, device
        self.batch_size, self.readers = batch_size, readers
        self.detector = load_detector(settings.detector, settings.selection, device)
        self.given = given
        self.dense = None if self.given else self.detector.fixed
        self.most = self.given.most if self.given else self.detector.most
        self.object_names = (self.given and self.given.names) or self.detector.object_names
        self.recipe = {
            "format": {"schema": SCHEMA, "features": "float16"},
            "detector": self.detector.recipe,
            **settings.choice,
            **({"truncated": "take"} if settings.truncated == "take" else {}),
        }
        self.key = {"recipe": self.recipe, "code": detector_code(settings.detector.name)}
        own = self.environment if exact else None
        self.finished = Cache(cache, "regions", self.recipe, self.key["code"], _Sidecar, self._sound, exact=own)
        self.recipe_hash = fingerprint(self.recipe)

    def done(self, part: list[ImageRow]) -> dict[str, Any] | None:
        """Pictures that could not be read are tried again, unless they are to be skipped."""
        done = super().done(part)
        return done if done and (not done["failures"] or self.settings.unreadable == "skip") else None

    def content(self, part: list[ImageRow]) -> dict[str, Any]:
        rows = [[row.id, digest] for row, digest in zip(part, self.digests(part), strict=True)]
        bound = self.settings.max_pixels
        return {"rows": rows, "id_bytes": self.id_bytes, "dense": self.dense, "max_pixels": bound}

    def digests(self, part: list[ImageRow]) -> list[str]:
        """The picture's sha256, or that of picture and given boxes."""
        return [row.digest if self.given else row.sha256 for row in part]

    def most_bytes(self, part: list[ImageRow]) -> int:
        """A region's feature in half precision, its box, and its class and attribute with their confidences."""
        return len(part) * self.most * (2 * self.detector.dim + 32)

    def _sound(self, shard: MappedHDF5, pictures: int) -> bool:
        layout = "ragged" if self.dense is None else "dense"
        return not any(region_layout_problems(shard, pictures, self.detector.dim, layout, "<f2"))

    def read(self, shard: MappedHDF5, row: int) -> Regions | None:
        """A picture of more than `max_pixels` is refused as ever."""
        found = shard_row(shard, row)
        return found if math.prod(found.image_size) <= self.settings.max_pixels else None

    def name(self, part: list[ImageRow], place: int) -> str:
        return f"image {part[place].id!r}"

    def difference(self, known: Regions, again: Regions) -> str | None:
        return difference(known, again)

    def save(self, path: Path, part: list[ImageRow], results: Mapping[int, Regions]) -> dict[str, Any]:
        places, digests = sorted(results), self.digests(part)
        ids, regions = [part[place].id for place in places], [results[place] for place in places]
        own = {"dim": self.detector.dim, "dense": self.dense, "id_bytes": self.id_bytes}
        write_shard(path, ids, regions, self.recipe_hash, **own)
        norms = Norms.combined(Norms.of(own.features) for own in regions)
        return {
            "count": len(ids),
            "first": ids[0] if ids else None,
            "last": ids[-1] if ids else None,
            "failures": [self.failures[place] for place in sorted(self.failures)],
            "norms": astuple(norms) if norms.count else None,
            "environment": self.environment,
            "items": [digests[place] for place in places],
        }

    @property
    def environment(self) -> dict[str, Any]:
        """Facts that may move the last bits."""
        return environment(self.device, self.batch_size)

    def compute(self, part: list[ImageRow], places: Sequence[int], advance: Advance) -> dict[int, Regions]:
        """Regions by their picture's place; `failures` are those that couldn't be read (id, path, reason)."""
        regions: dict[int, Regions] = {}
        self.failures: dict[int, dict[str, str]] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, ImageRow, Tensor, tuple[int, int]]]] = {}
        running: deque[Future[dict[int, Regions | TooFewProposals]]] = deque()

        def collect(most: int) -> None:
            while len(running) > most:
                for place, found in (done := running.popleft().result()).items():
                    if isinstance(found, TooFewProposals):
                        self.failures[place] = self._failure(part[place], found)
                    else:
                        regions[place] = found
                advance(len(done))

        with (
            _streams(self.device) as streams,
            ThreadPoolExecutor(self.readers) as readers,
            ThreadPoolExecutor(streams, initializer=partial(make_current, self.device)) as network,
        ):

            def flush(shape: tuple[int, ...]) -> None:
                running.append(network.submit(self._detect, waiting.pop(shape)))
                collect(streams)

            rows = [part[place] for place in places]
            pictures = ahead(readers, self._read, rows, (streams + 1) * self.batch_size)
            for place, row in zip(places, rows, strict=True):
                with self.timed("read"):
                    try:
                        picture, size = next(pictures).result()
                    except UnreadableImage as error:
                        self.failures[place] = self._failure(row, error)
                        advance(1)
                        continue
                shape = tuple(picture.shape)
                waiting.setdefault(shape, []).append((place, row, picture, size))
                filled = {shape: len(same) / self.pictures_per_batch(shape) for shape, same in waiting.items()}
                if filled[shape] >= 1:
                    flush(shape)
                elif round(sum(filled.values()), 6) >= PENDING_BATCHES:
                    flush(max(filled, key=filled.__getitem__))
            for shape in list(waiting):
                flush(shape)
            collect(0)
        return regions

    def pictures_per_batch(self, shape: tuple[int, ...]) -> int:
        """How many prepared pictures ``[3, h, w]`` share a batch: `batch_size`, on a GPU of 600 x 1,000 pixels each."""
        if self.device == "cpu":
            return self.batch_size
        return max(1, self.batch_size * PIXELS // (shape[-2] * shape[-1]))

    def _detect(
        self, batch: Sequence[tuple[int, ImageRow, Tensor, tuple[int, int]]]
    ) -> dict[int, Regions | TooFewProposals]:
        """Regions of a batch by the pictures' numbers; a picture that has too few proposals is looked at alone."""
        numbers, rows, pictures, sizes = zip(*batch, strict=True)
        with self.timed("compute"):
            given = self.given and [row.inside(size) for row, size in zip(rows, sizes, strict=True)]
            try:
                found = self.detector.detect(torch.stack(pictures), sizes, given)
            except TooFewProposals as error:
                if len(batch) == 1:
                    return {numbers[0]: error}
                found = None
        if found is None:
            return {number: own for one in batch for number, own in self._detect([one]).items()}
        if self.given and self.given.names:
            found = [row.labelled(regions) for row, regions in zip(rows, found, strict=True)]
        return dict(zip(numbers, found, strict=True))

    def _read(self, row: ImageRow) -> tuple[Tensor, tuple[int, int]]:
        rgb = read_picture(self.images, row, self.settings.max_pixels, truncated=self.settings.truncated == "take")
        return self.detector.prepare(rgb), (rgb.shape[1], rgb.shape[0])

    def _failure(self, row: ImageRow, error: UnreadableImage | TooFewProposals) -> dict[str, str]:
        few = isinstance(error, TooFewProposals)
        reason, fix = (error.what, error.fix) if few else (str(error), "replace the picture")
        if self.settings.unreadable == "stop":
            problem = "has too few regions" if few else "can't be read"
            raise InputError(
                f"image {row.id!r} {problem}: {reason}",
                where=self.images / row.path,
                fix=f"{fix}, or set `regions.unreadable: skip` to list it in failures.jsonl and go on",
            ) from error
        return {"id": row.id, "path": row.path, "reason": reason}


def difference(known: Regions, again: Regions) -> str | None:
    """Which field of a picture's regions isn't the same within the tolerance, and by how much it differs; or None."""
    if known.image_size != again.image_size or len(known) != len(again):
        return f"{len(again)} regions in {again.image_size}, {len(known)} in {known.image_size} before"
    for name, own in FIELDS.items():
        ours, theirs = getattr(again, name), getattr(known, name)
        if (ours is None) != (theirs is None):
            return f"{name} is there only {'now' if theirs is None else 'before'}"
        if ours is None:
            continue
        largest = difference_beyond(theirs, ours, own.tolerance, features=name == "features")
        if largest is not None:
            return f"{name} differ by {largest:.3g}"
    return None


@contextmanager
def _streams(device: str) -> Iterator[int]:
    """The number of batches that the network works on at a time; torch's operators use one thread each meanwhile.

    On the CPU that is torch's number of threads. Whole batches side by side leave no thread waiting for another, and
    the results don't depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads if device == "cpu" else 1
    finally:
        torch.set_num_threads(threads)
