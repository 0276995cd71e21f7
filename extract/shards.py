"""The shards of a region store: what decides their bytes, and how one is made from the manifest's rows.

A shard is the unit of work, here as on the workers of a cluster (`extract.workers`). Decoding runs in threads beside
the network; pictures of one shape share a batch, and which ones do depends on the manifest and the batch size alone,
so that equal machines give equal bytes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extract.detectors import load_detector
from extract.images import UnreadableImage
from extract.pictures import ahead, read_picture
from extract.settings import RegionSettings
from extract.stores.norms import Norms
from extract.stores.regions import SCHEMA, Regions, write_shard
from extract.stores.staging import Staging
from manifests.errors import InputError
from manifests.files import fingerprint, sha256
from manifests.schema import ImageRow
from manifests.tables import Manifest, images_sha256

# A shape that few pictures share must not keep them waiting in memory for the whole shard.
PENDING_BATCHES = 4
TIMES = ("read", "compute", "write")


def _code() -> dict[str, str]:
    here = Path(__file__).parent
    rooms = [*sorted((here / "detectors").glob("*.py")), *sorted((here / "stores").glob("*.py"))]
    files = [Path(__file__), here / "images.py", here / "pictures.py", here / "selection.py", *rooms]
    return {str(file.relative_to(here)): sha256(file) for file in files}


# The source files that decide the bytes of a shard: shards staged by other code are not continued. Taken at the
# import, so that a worker that has been running since before an edit doesn't pass for one that runs the new code.
CODE = _code()


@dataclass(frozen=True, slots=True)
class Made:
    """A finished shard: its done-marker, and the seconds spent on it.

    ``seconds`` counts waiting for decoded pictures ("read"), the network and selection ("compute", of all streams
    together) and "write".
    """

    done: dict[str, Any]
    seconds: dict[str, float]


class Shards:
    """The shards of one store, numbered from 0 in manifest order.

    Parameters
    ----------
    manifest : its folder; its sha256 sums decide what is read.
    images : the image root that the manifest's paths start from.
    staging : folder below which finished shards wait, in `staged`.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.

    Attributes
    ----------
    recipe : what decides the numbers by design, as JSON.
    key : all that decides the bytes of the shards, as JSON, the code and the manifest included.

    Raises `InputError` for an empty manifest and for wrong weights.
    """

    def __init__(
        self,
        *,
        manifest: Path,
        images: Path,
        settings: RegionSettings,
        staging: Path,
        device: str,
        batch_size: int,
        readers: int,
    ):
        listed = Manifest.open(manifest)
        self.rows = listed.images
        if not self.rows:
            raise InputError("it lists no image", where=manifest, fix="run the manifest stage again")
        self.manifest, self.images, self.settings, self.device = manifest, Path(images), settings, device
        self.batch_size, self.readers = batch_size, readers
        self.detector = load_detector(settings.detector, settings.selection, device)
        self.dense = settings.selection.fixed
        self.id_bytes = listed.id_bytes
        self.recipe = {
            "format": {"schema": SCHEMA, "features": "float16"},
            "detector": self.detector.recipe,
            "selection": settings.selection.model_dump(),
        }
        self.key = {
            "recipe": self.recipe,
            "manifest": images_sha256(manifest),
            "images_per_shard": settings.images_per_shard,
            "unreadable": settings.unreadable,
            "max_pixels": settings.max_pixels,
            "code": CODE,
            # They move the last bits.
            "batch_size": batch_size,
            "torch": torch.__version__,
        }
        self.staged = Staging(staging, self.key)
        self._recipe_hash = fingerprint(self.recipe)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.settings.images_per_shard)

    def path(self, number: int) -> Path:
        """Where shard `number` lies once it is made."""
        return self.staged.folder / f"{number:06d}.h5"

    def part(self, number: int) -> Sequence[ImageRow]:
        """The manifest's rows of shard `number`."""
        size = self.settings.images_per_shard
        return self.rows[number * size : (number + 1) * size]

    def make(self, number: int, advance: Callable[[int], Any] = lambda pictures: None) -> Made:
        """Make shard `number`, unless it is staged already; call `advance` with each number of pictures done.

        Raises `InputError` for a picture that can't be decoded (unless ``settings.unreadable`` is "skip"), that is
        missing or that changed since the manifest was made, and for a full disk.
        """
        path, rows, seconds = self.path(number), self.part(number), dict.fromkeys(TIMES, 0.0)
        done = self.staged.finished(path)
        if done:
            advance(len(rows))
            return Made(done, seconds)
        regions, failures = self._extract(rows, seconds, advance)
        numbers = sorted(regions)
        ids = [rows[number].id for number in numbers]
        with _timed(seconds, "write"):
            write_shard(
                path,
                ids,
                [regions[number] for number in numbers],
                self._recipe_hash,
                dim=self.detector.dim,
                dense=self.dense,
                id_bytes=self.id_bytes,
            )
            facts = {
                "count": len(ids),
                "first": ids[0] if ids else None,
                "last": ids[-1] if ids else None,
                "failures": failures,
                "norms": astuple(Norms.together(Norms.of(found.features) for found in regions.values())),
                "device": self.device.partition(":")[0],
                "threads": torch.get_num_threads(),
            }
            return Made(self.staged.finish(path, facts), seconds)

    def _extract(
        self, rows: Sequence[ImageRow], seconds: dict[str, float], advance: Callable[[int], Any]
    ) -> tuple[dict[int, Regions], list[dict[str, str]]]:
        """Regions by their picture's place in `rows`, and the pictures that couldn't be read (id, path, reason)."""
        regions: dict[int, Regions] = {}
        failures = []
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor, tuple[int, int]]]] = {}
        running: deque[Future[dict[int, Regions]]] = deque()

        def collect(most: int) -> None:
            while len(running) > most:
                found = running.popleft().result()
                regions.update(found)
                advance(len(found))

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
                        failures.append(self._failure(row, error))
                        advance(1)
                        continue
                shape = tuple(picture.shape)
                waiting.setdefault(shape, []).append((number, picture, size))
                if len(waiting[shape]) == self.batch_size:
                    flush(shape)
                elif sum(map(len, waiting.values())) >= PENDING_BATCHES * self.batch_size:
                    flush(max(waiting, key=lambda shape: len(waiting[shape])))
            for shape in list(waiting):
                flush(shape)
            collect(0)
        return regions, failures

    def _detect(
        self, batch: Sequence[tuple[int, Tensor, tuple[int, int]]], seconds: dict[str, float]
    ) -> dict[int, Regions]:
        with _timed(seconds, "compute"):
            found = self.detector.detect(torch.stack([picture for _, picture, _ in batch]), [s for *_, s in batch])
        return dict(zip((number for number, *_ in batch), found, strict=True))

    def _read(self, row: ImageRow) -> tuple[Tensor, tuple[int, int]]:
        rgb = read_picture(self.images, row, self.settings.max_pixels)
        return self.detector.prepare(rgb), (rgb.shape[1], rgb.shape[0])

    def _failure(self, row: ImageRow, error: UnreadableImage) -> dict[str, str]:
        if self.settings.unreadable == "stop":
            raise InputError(
                f"image {row.id!r} can't be read: {error}",
                where=self.images / row.path,
                fix="replace the picture, or set `regions.unreadable: skip` to list it in failures.jsonl and go on",
            ) from error
        return {"id": row.id, "path": row.path, "reason": str(error)}


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
