"""Stage `regions@D`: from the manifest's pictures to a region store.

The unit of work is a shard. Shards are made in a staging folder and survive a kill; the store appears under its final
name whole or not at all. Decoding runs in threads beside the network; pictures of one shape share a batch, and which
ones do depends on the manifest alone, so that two runs on one machine give the same bytes.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from extract.detectors import Detector, load_detector
from extract.images import UnreadableImage, decode
from extract.settings import RegionSettings
from extract.stores.card import region_card
from extract.stores.recipe import environment, write_recipe
from extract.stores.regions import FAILURES, INDEX, SCHEMA, Regions, write_shard
from extract.stores.staging import Staging
from manifests.errors import InputError
from manifests.files import canonical_json, fingerprint, sha256, write_json, write_text
from manifests.progress import progress
from manifests.schema import ImageRow, read_manifest

# A shape that few pictures share must not keep them waiting in memory for the whole shard.
PENDING_BATCHES = 4

T, U = TypeVar("T"), TypeVar("U")


def run(
    *,
    dataset: str,
    manifest: Path,
    images: Path,
    settings: RegionSettings,
    out: Path,
    staging: Path,
    device: str = "cpu",
    batch_size: int = 16,
    readers: int = 2,
) -> None:
    """Extract the regions of every picture of a manifest into the region store `out`.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : ``manifest.jsonl``; its sha256 sums decide what is read.
    images : the image root that the manifest's paths start from.
    staging : folder where finished shards wait; a killed run continues from there.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.

    Raises
    ------
    InputError : a picture that can't be decoded (unless ``settings.unreadable`` is "skip"), that is missing or that
        changed since the manifest was made; wrong weights; no readable picture at all.
    """
    rows = read_manifest(manifest)
    if not rows:
        raise InputError("it lists no image", where=manifest, fix="run the manifest stage again")
    detector = load_detector(settings.detector, settings.selection, device)
    recipe = {
        "format": {"schema": SCHEMA, "features": "float16"},
        "detector": detector.recipe,
        "selection": settings.selection.model_dump(),
    }
    staged = Staging(
        staging,
        {
            "recipe": recipe,
            "manifest": sha256(manifest),
            "images_per_shard": settings.images_per_shard,
            "unreadable": settings.unreadable,
            "code": _code(),
        },
    )
    extraction = Extraction(detector, Path(images), settings, fingerprint(recipe), batch_size, readers)
    done = _shards(rows, extraction, staged, id_bytes=max(len(row.id.encode()) for row in rows))
    failures = [failure for shard in done for failure in shard["failures"]]
    index = {
        "schema": SCHEMA,
        "images": sum(shard["count"] for shard in done),
        "dim": detector.dim,
        "layout": "ragged" if extraction.dense is None else "dense",
        "object_names": detector.object_names,
        "attribute_names": detector.attribute_names,
        "shards": [{key: shard[key] for key in ("file", "count", "first", "last", "sha256")} for shard in done],
    }
    if not index["images"]:
        raise InputError(
            f"none of its {len(rows)} pictures could be read; the first: {failures[0]['reason']}",
            where=manifest,
            fix="check the image root and the pictures",
        )
    write_json(staged.folder / INDEX, index)
    write_text(staged.folder / FAILURES, "".join(canonical_json(failure) + "\n" for failure in failures))
    recipe_hash = write_recipe(
        staged.folder,
        recipe,
        environment("torch", "torchvision", "numpy", "pillow", device=device, threads=torch.get_num_threads()),
    )
    write_text(staged.folder / "README.md", region_card(dataset, index, recipe, recipe_hash, len(failures)))
    staged.install(out)
    if failures:
        tqdm.write(f"{len(failures)} of {len(rows)} pictures could not be read: see {Path(out) / FAILURES}")


def _code() -> dict[str, str]:
    """The source files that decide features: shards staged by other code are not continued."""
    here = Path(__file__).parent
    files = [Path(__file__), here / "images.py", here / "selection.py", *sorted((here / "detectors").glob("*.py"))]
    return {file.name: sha256(file) for file in files}


def _shards(rows: Sequence[ImageRow], extraction: "Extraction", staged: Staging, *, id_bytes: int) -> list[dict[str, Any]]:
    """Make every shard that the staging folder doesn't hold yet; return all done-markers."""
    size = extraction.settings.images_per_shard
    parts = [(staged.folder / f"{i // size:06d}.h5", rows[i : i + size]) for i in range(0, len(rows), size)]
    found = {shard: staged.finished(shard) for shard, _ in parts}
    ready = sum(len(part) for shard, part in parts if found[shard])
    if ready:
        tqdm.write(f"continuing: {ready} of {len(rows)} pictures are staged in {staged.folder}")
    with progress(what="regions", unit="images", total=len(rows), initial=ready) as bar:
        for shard, part in parts:
            if not found[shard]:
                facts = extraction.shard(shard, part, id_bytes=id_bytes, advance=bar.update)
                found[shard] = staged.finish(shard, facts)
    times = extraction.seconds
    tqdm.write("regions: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in times.items()))
    return list(found.values())


class Extraction:
    """Turns rows of a manifest into one shard; all that it needs for that, and where the time went.

    ``seconds`` counts waiting for decoded pictures ("read"), the network and selection ("compute") and "write".
    """

    def __init__(
        self, detector: Detector, images: Path, settings: RegionSettings, recipe_hash: str, batch_size: int, readers: int
    ):
        self.detector, self.images, self.settings = detector, images, settings
        self.recipe_hash, self.batch_size, self.readers = recipe_hash, batch_size, readers
        fixed = settings.selection.min_boxes == settings.selection.max_boxes
        self.dense = settings.selection.max_boxes if fixed else None
        self.seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}

    def shard(
        self, path: Path, rows: Sequence[ImageRow], *, id_bytes: int, advance: Callable[[int], Any]
    ) -> dict[str, Any]:
        """Write the shard `path` of `rows`; call `advance` with each number of pictures done.

        Returns the facts of its done-marker: count, first and last id, failures (id, path, reason).
        """
        regions: dict[int, Regions] = {}
        failures = []
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor, tuple[int, int]]]] = {}

        def flush(shape: tuple[int, ...]) -> None:
            batch = waiting.pop(shape)
            with self._timed("compute"):
                found = self.detector.detect(torch.stack([picture for _, picture, _ in batch]), [s for *_, s in batch])
            regions.update(zip((number for number, *_ in batch), found, strict=True))
            advance(len(batch))

        with ThreadPoolExecutor(self.readers) as pool:
            pictures = _ahead(pool, self._read, rows, 2 * self.batch_size)
            for number, row in enumerate(rows):
                with self._timed("read"):
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
        numbers = sorted(regions)
        ids = [rows[number].id for number in numbers]
        with self._timed("write"):
            write_shard(
                path,
                ids,
                [regions[number] for number in numbers],
                self.recipe_hash,
                dim=self.detector.dim,
                dense=self.dense,
                id_bytes=id_bytes,
            )
        return {
            "count": len(ids),
            "first": ids[0] if ids else None,
            "last": ids[-1] if ids else None,
            "failures": failures,
        }

    def _read(self, row: ImageRow) -> tuple[Tensor, tuple[int, int]]:
        path = self.images / row.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"image {row.id!r} is in the manifest but can't be opened ({error.strerror})",
                where=path,
                fix="restore the picture, or run the manifest stage again",
            ) from error
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise InputError(
                f"image {row.id!r} has changed since the manifest was made",
                where=path,
                fix="run the manifest stage again: `dvc repro manifest@<data set>`",
            )
        rgb = decode(data)
        return self.detector.prepare(rgb), (rgb.shape[1], rgb.shape[0])

    def _failure(self, row: ImageRow, error: UnreadableImage) -> dict[str, str]:
        if self.settings.unreadable == "stop":
            raise InputError(
                f"image {row.id!r} can't be read: {error}",
                where=self.images / row.path,
                fix="replace the picture, or set `regions.unreadable: skip` to list it in failures.jsonl and go on",
            ) from error
        return {"id": row.id, "path": row.path, "reason": str(error)}

    def _timed(self, what: str) -> "_Clock":
        return _Clock(self.seconds, what)


class _Clock:
    """Adds the time of a block to ``seconds[what]``."""

    def __init__(self, seconds: dict[str, float], what: str):
        self.seconds, self.what = seconds, what

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.what] += time.perf_counter() - self.start


def _ahead(pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], ahead: int) -> Iterator[Future[U]]:
    """Futures of ``work(item)`` in order, never more than `ahead` of them unread."""
    futures: deque[Future[U]] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) == ahead:
            yield futures.popleft()
    yield from futures
