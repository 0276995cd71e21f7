"""The `regions` stage of an imported data set: ordinary region stores, made of files instead of pictures.

The recipe says `imported`, with the files' sha256. Threads read a shard's images while the shard before is written and
the one before that is hashed; finished shards wait in the staging folder, so that a killed import continues, and the
stores appear whole or not at all (docs/architecture.md, "Resume"). Memory holds two shards' features, three where
images differ in their number of regions.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from tqdm import tqdm

from extract.cards.card import write_card
from extract.engine.code import code_fingerprint
from extract.engine.staging import Staging, filled
from extract.exchange.checks import Checks, too_large, zero_feature
from extract.exchange.formats import open_source
from extract.exchange.half import to_float16
from extract.exchange.source import Record
from extract.settings import About, ImportSettings
from extract.stores.intact import INDEX
from extract.stores.norms import Norms
from extract.stores.recipe import note_made, write_recipe
from extract.stores.regions import FAILURES, SCHEMA, Regions, region_index, write_shard
from manifests.errors import DiskFull, InputError
from manifests.files import fingerprint, whole_folder, write_json, write_text
from manifests.imported import read_source
from manifests.progress import progress
from manifests.registry import identity
from manifests.schema import SPLITS
from manifests.tables import Manifest, images_sha256

_TOGETHER = 16  # images that a thread reads at a time


def run(
    *,
    dataset: str,
    manifest: Path,
    images: Path,
    settings: ImportSettings,
    out: Path,
    staging: Path,
    readers: int = 2,
    check: bool = True,
    about: About | None = None,
) -> None:
    """Import the regions of every image of a manifest into the region stores `out`/train, `out`/val and `out`/test.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : the folder of an imported data set's manifest, with ``source.json``.
    images : file or folder with the regions.
    staging : folder where finished shards wait.
    readers : threads that read and convert.
    check : hash the files again, to notice a change since the manifest was made; for the caller that has just made it
        there is no need.
    about : what the card says of the pictures' licence and of what to cite.

    Raises
    ------
    InputError : names file, row and fix: a file that changed since the manifest was made, arrays that don't fit each
        other or `num_boxes`, NaN, numbers too large for the precision, boxes outside their picture; a full disk.
    """
    work = _Import(manifest=manifest, images=images, settings=settings, staging=staging)
    with work.staged.alone(out, f"import of {dataset}") as made, _kept_to_continue(work.staged):
        if made:
            return
        found = {number: work.staged.finished(work.path(number)) for number in range(len(work))}
        missing = [number for number, done in found.items() if not done]
        ready = len(work.rows) - sum(len(work.shards[number].rows) for number in missing)
        if ready:
            tqdm.write(f"continuing: {ready} of {len(work.rows)} images are staged in {work.staged.folder}")
        with progress(what="regions", unit="images", total=len(work.rows), initial=ready) as bar:
            found |= work.make(missing, readers, bar, check=check)
        done = [found[number] for number in range(len(work))]
        with whole_folder(out) as folder:
            for split in SPLITS:
                work.finish(folder, split, dataset, done, about or About())
        work.staged.discard()
    note_made(out, fingerprint(work.recipe), "numpy", "h5py")


def changed_files(manifest: Path, images: Path, settings: ImportSettings) -> Iterator[tuple[str, str]]:
    """The files of an imported data set that aren't those its manifest was made of, with what is wrong."""
    imported = read_source(manifest)
    source = open_source(imported.format, images, **settings.told)
    with progress(what="check", unit="B", total=source.size, scale=True) as bar:
        now = source.hash_again(bar.update)
    for name, digest in imported.files.items():
        if now.get(name) != digest:
            yield (
                str(source.root / name if source.root.is_dir() else source.root),
                "changed" if name in now else "missing",
            )


@contextmanager
def _kept_to_continue(staged: Staging) -> Iterator[None]:
    """What is staged stays, and is told of, if the same command can continue with it; else it goes with the error."""
    told = f"finished shards wait in {staged.folder}, and the same command continues with them"
    try:
        yield
    except DiskFull as error:
        raise DiskFull(error.what, where=error.where, fix=f"{error.fix}: {told}") from error
    except InputError:  # other files or parameters will have another staging folder
        staged.discard()
        raise
    except KeyboardInterrupt:
        tqdm.write(f"stopped: {told}")
        raise


class _Import:
    """The shards of a data set's region stores, numbered from 0: those of each split in manifest order."""

    def __init__(self, *, manifest: Path, images: Path, settings: ImportSettings, staging: Path):
        listed = Manifest.open(manifest)
        self.rows, self._listed = listed.images, listed
        self.imported = read_source(manifest)
        if len(self.imported.places) != len(self.rows):
            raise InputError("not as long as its source.json", where=manifest, fix="run the manifest stage again")
        files = fingerprint(self.imported.files)
        for row, place in zip(self.rows, self.imported.places, strict=True):
            if row.sha256 != fingerprint([files, place]):
                raise InputError(
                    f"its sha256 isn't that of image {row.id!r}'s place in the files, as source.json tells it",
                    where=manifest,
                    fix="run the manifest stage again",
                )
        self.settings = settings
        self.source = source = open_source(self.imported.format, images, **settings.told)
        source.object_names, source.attribute_names = self.imported.object_names, self.imported.attribute_names
        self.checks = Checks(source, settings.sizes, settings.precision)
        self.recipe = {
            "format": {"schema": SCHEMA, "features": settings.precision},
            "imported": {
                "format": self.imported.format,
                "files": self.imported.files,
                "boxes": source.boxes,
                "sizes": settings.sizes if source.boxes and "sizes" in source.options else None,
                "info": settings.info,
                **({"dtype": settings.dtype} if settings.dtype else {}),
                **identity(type(source)),
            },
        }
        key = {
            "recipe": self.recipe,
            "manifest": images_sha256(manifest),
            "images_per_shard": settings.images_per_shard,
            "code": code_fingerprint(__name__, type(source).__module__),
        }
        self._hash = fingerprint(self.recipe)
        self.shards = listed.shards(settings.images_per_shard)
        self._id_bytes = listed.id_bytes
        # One image tells what all others must have: the length of a feature, and which labels.
        self.checks.first(self._first_record())
        self.dim = self.checks.dim
        self.staged = Staging(staging, key)

    def _first_record(self) -> Record:
        for place in self.imported.places:
            record = self.source.read(place)
            if len(record.features):
                return record
        raise InputError(
            "no image has a region", where=self.source.root, fix="check `source.images`, the path of the regions"
        )

    def __len__(self) -> int:
        return len(self.shards)

    def path(self, number: int) -> Path:
        return self.staged.folder / f"{self.shards[number].split}-{self.shards[number].file}"

    def make(self, numbers: Sequence[int], readers: int, bar: "tqdm[Any]", *, check: bool) -> dict[int, dict[str, Any]]:
        """Done-markers of these shards, made here: one is hashed and the next written while the third is read."""
        done: dict[int, Future[dict[str, Any]]] = {}
        buffers = [self._buffer() for _ in range(min(2, len(numbers)))]
        given_up = Event()

        def go_on(_: int) -> None:
            if given_up.is_set():
                raise CancelledError

        with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(1) as finishing, ThreadPoolExecutor(readers) as pool:
            again = beside.submit(self.source.hash_again, go_on) if check else None
            waiting: dict[int, list[Future[tuple[list[Regions], Norms]]]] = {}
            try:
                for place, number in enumerate(numbers):
                    for ahead in range(place, min(place + 2, len(numbers))):
                        if numbers[ahead] not in waiting:
                            waiting[numbers[ahead]] = self._submit(pool, numbers[ahead], buffers[ahead % 2])
                    regions, norms = [], Norms()
                    for future in waiting[number]:
                        block, lengths = future.result()
                        regions += block
                        norms = Norms.together((norms, lengths))
                        bar.update(len(block))
                    del waiting[number]
                    facts = self._write(number, regions, norms, buffers[place % 2])
                    if place:
                        done[numbers[place - 1]].result()
                    done[number] = finishing.submit(self.staged.finish, self.path(number), facts)
                finished = {number: future.result() for number, future in done.items()}
                if again:
                    self._refuse_changed(again.result())
                return finished
            except BaseException:
                given_up.set()
                for futures in waiting.values():
                    for future in futures:
                        future.cancel()
                raise

    def _refuse_changed(self, files: dict[str, str]) -> None:
        for name, digest in self.imported.files.items():
            if files.get(name) != digest:
                raise InputError(
                    "it has changed since the manifest was made",
                    where=self.source.root / name,
                    fix="run the manifest stage again: `dvc repro -f manifest@<data set>`",
                )

    def _buffer(self) -> np.ndarray | None:
        """Room for a shard's features ``[images, R, D]``; None for a ragged store."""
        if self.imported.boxes is None:
            return None
        images = min(self.settings.images_per_shard, len(self.rows))
        return np.empty((images, self.imported.boxes, self.dim), self.settings.precision)

    def _submit(
        self, pool: ThreadPoolExecutor, number: int, buffer: np.ndarray | None
    ) -> list[Future[tuple[list[Regions], Norms]]]:
        """Have a shard's images read, some at a time."""
        part = self.shards[number].rows.tolist()
        blocks = [slice(at, min(at + _TOGETHER, len(part))) for at in range(0, len(part), _TOGETHER)]
        return [pool.submit(self._read, part[block], None if buffer is None else buffer[block]) for block in blocks]

    def _write(self, number: int, regions: list[Regions], norms: Norms, buffer: np.ndarray | None) -> dict[str, Any]:
        """Write a shard; what its done-marker is to say of it."""
        ids = [row.id for row in self._listed.images_at(self.shards[number].rows)]
        write_shard(
            self.path(number),
            ids,
            regions,
            self._hash,
            dim=self.dim,
            dense=self.imported.boxes,
            id_bytes=self._id_bytes,
            features=None if buffer is None else buffer[: len(ids)],
        )
        return {"count": len(ids), "first": ids[0], "last": ids[-1], "norms": astuple(norms)}

    def _read(self, rows: Sequence[int], buffer: np.ndarray | None) -> tuple[list[Regions], Norms]:
        """The regions of some images, their features in `buffer` where there is one, and these features' norms."""
        outs = [None] * len(rows) if buffer is None else buffer
        regions = [self._regions(row, out) for row, out in zip(rows, outs, strict=True)]
        norms = [Norms.of(found.features) for found in regions]
        for row, found, lengths in zip(rows, regions, norms, strict=True):
            if lengths.least == 0:
                raise zero_feature(np.flatnonzero(~found.features.any(1))[0], self._where(row))
        return regions, Norms.together(norms)

    def _where(self, row: int) -> str:
        return f"{self.source.where(self.imported.places[row])} (image {self.rows[row].id!r})"

    def _regions(self, row: int, out: np.ndarray | None) -> Regions:
        """One image's regions as the store keeps them; `out` is room for its features."""
        where, record = self._where(row), self.source.read(self.imported.places[row])
        self.checks.require_alike(record, where)
        if self.imported.boxes not in (None, len(record.features)):
            told = f"{len(record.features)} regions, its num_boxes says {self.imported.boxes}"
            raise InputError(told, where=where, fix="fetch the file again")
        boxes, size = self.checks.boxes(record, where)
        labels = self.checks.kept_labels(record, where)
        return Regions(features=self._features(record.features, out, where), boxes=boxes, image_size=size, **labels)

    def _features(self, values: np.ndarray, out: np.ndarray | None, where: str) -> np.ndarray:
        values = values.reshape(-1, self.dim)
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

    def finish(self, out: Path, split: str, dataset: str, done: Sequence[dict[str, Any]], about: About) -> None:
        """Fill the folder of a split in `out` with its shards, of all that are `done`, and what stands beside them."""
        own = [
            (self.path(number), done[number] | {"file": shard.file})
            for number, shard in enumerate(self.shards)
            if shard.split == split
        ]
        with filled(out / split, own) as folder:
            self._describe(folder, split, dataset, [shard for _, shard in own], about)

    def _describe(self, folder: Path, split: str, dataset: str, done: Sequence[dict[str, Any]], about: About) -> None:
        index = region_index(
            done,
            dim=self.dim,
            dense=self.imported.boxes,
            object_names=self.imported.object_names,
            attribute_names=self.imported.attribute_names,
        ) | {
            "dataset": dataset,
            "split": split,
            "about": about.model_dump(exclude_none=True),
            "norms": Norms.together(Norms(*shard["norms"]) for shard in done).as_json(),
        }
        write_json(folder / INDEX, index)
        write_text(folder / FAILURES, "")
        write_recipe(folder, self.recipe)
        write_card(folder)
