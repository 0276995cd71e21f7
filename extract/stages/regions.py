"""Stage `regions@D`: from the manifest's pictures to a region store a split.

The unit of work is a shard, made here or on the workers of a Dask cluster by the same function
(`extract.vision.shards.Shards.make`), in the cache. The stores are put together from shards that are there and shards
that are made; all of them appear under their final names at once, whole or not at all.
"""

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from extract.cards.card import write_card
from extract.engine.cache import Place, in_use
from extract.engine.staging import filled
from extract.settings import About, RegionSettings
from extract.stores.intact import INDEX
from extract.stores.norms import Norms
from extract.stores.recipe import note_made, write_recipe
from extract.stores.regions import FAILURES, region_index
from extract.vision.shards import TIMES, Made, Shards
from manifests.errors import DiskFull, InputError
from manifests.files import canonical_json, whole_folder, write_json, write_text
from manifests.locks import sole_writer
from manifests.progress import progress
from manifests.schema import SPLITS

if TYPE_CHECKING:
    from distributed import Client


def run(
    *,
    dataset: str,
    manifest: Path,
    images: Path,
    settings: RegionSettings,
    out: Path,
    cache: Path,
    device: str = "cpu",
    batch_size: int = 16,
    readers: int = 2,
    client: "Client | None" = None,
    threads: int | None = None,
    about: About | None = None,
) -> None:
    """Extract the regions of every picture of a manifest into the region stores `out`/train, `out`/val, `out`/test.

    A split without pictures is a store without shards: DVC wants every out to be there.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : its folder; its sha256 sums decide what is read.
    images : the image root that the manifest's paths start from.
    cache : the machine's cache folder (`extract.engine.cache`): what is there isn't computed again, and a killed run
        continues from there.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.
    client : of a Dask cluster whose workers make the shards, each on its own `device` ("auto" is settled there).
        They must see the same files under the same paths.
    threads : torch's threads in each of these workers; None is a worker's ``--nthreads``.
    about : what the card says of the pictures' licence and of what to cite.

    Raises
    ------
    InputError : a picture that can't be decoded (unless ``settings.unreadable`` is "skip"), that is missing or that
        changed since the manifest was made; wrong weights; no readable picture at all; a full disk; shards that the
        workers could not make, after all others are kept.
    """
    work = {
        "manifest": manifest,
        "images": images,
        "settings": settings,
        "cache": cache,
        "batch_size": batch_size,
        "readers": readers,
    }
    shards = Shards(**work, device="cpu" if client else device)
    key = shards.key | {"images_per_shard": settings.images_per_shard, "unreadable": settings.unreadable}
    with sole_writer(out, f"extraction of {dataset}", key) as made, in_use(shards.cache.folder):
        if made:
            return
        computed, told = shards.cache.open({shards.digest(row) for row in shards.rows}, shards.differs)
        for line in told:
            tqdm.write(f"regions {dataset}: {line}")
        shards.cache.prepare()
        found = {number: shards.finished(number) for number in range(len(shards))}
        missing = [number for number, done in found.items() if not done]
        known = shards.cache.rows({shards.digest(row) for number in missing for row in shards.part(number)})
        parts = {
            number: {digest: known[digest] for row in shards.part(number) if (digest := shards.digest(row)) in known}
            for number in missing
        }
        _require_room(dataset, shards, parts)
        outcomes = None
        if client:
            from extract.engine.workers import on_workers

            outcomes = on_workers(client, shards, parts, work, device=device, threads=threads)
        made_now = _make(shards, parts, outcomes)
        done = [
            (found[number] or made_now[number].done) | {"file": place.file, "split": place.split}
            for number, place in enumerate(shards.places)
        ]
        _require_some(shards, done)
        with whole_folder(out) as ready:
            for split in SPLITS:
                own = [shard for shard in done if shard["split"] == split]
                with filled(ready / split, [(Path(shard["path"]), shard) for shard in own]) as folder:
                    _finish(folder, dataset, split, shards, own, about or About())
    environments = [shard["environment"] for shard in done]
    note_made(
        out,
        shards.recipe_hash,
        *("torch", "torchvision", "numpy", "pillow"),
        shards=[each for number, each in enumerate(environments) if each not in environments[:number]],
    )
    computed += sum(each.computed for each in made_now.values())
    pictures, failures = len(shards.rows), sum(len(shard["failures"]) for shard in done)
    if failures:
        tqdm.write(f"{failures} of {pictures} pictures could not be read: see {FAILURES} in {out}")
    reused = pictures - failures - sum(each.computed for each in made_now.values())
    tqdm.write(f"regions {dataset}: {pictures} pictures, {computed} computed, {reused} reused")


def _require_room(dataset: str, shards: Shards, parts: Mapping[int, Mapping[str, Place]]) -> None:
    """Say what there is to do. Raises `DiskFull` where the cache's disk has less room than its shards may need."""
    pictures = sum(shards.digest(row) not in known for number, known in parts.items() for row in shards.part(number))
    written = sum(len(shards.part(number)) for number in parts)
    # A region's feature in half precision, its box, and its class and attribute with their confidences.
    size = written * shards.most * (2 * shards.detector.dim + 32)
    folder = shards.cache.folder
    free = shutil.disk_usage(folder).free
    tqdm.write(
        f"regions {dataset}: {pictures} of {len(shards.rows)} pictures to compute, at most {size / 1e9:.2f} GB to "
        f"write, {free / 1e9:.1f} GB free in {folder}"
    )
    if size > free:
        raise DiskFull(
            f"the shards may need {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            where=folder,
            fix="make room on that disk, or set SELFALIGN_CACHE to a folder on another one",
        )


def _make(
    shards: Shards,
    parts: Mapping[int, Mapping[str, Place]],
    outcomes: Generator[tuple[int, Made | Exception], None, None] | None,
) -> dict[int, Made]:
    """The shards of `parts` (number -> known results), made here or taken from the workers' `outcomes`."""
    pictures = len(shards.rows)
    ready = pictures - sum(len(shards.part(number)) for number in parts)
    made: dict[int, Made] = {}
    failed: dict[int, Exception] = {}
    with progress(what="regions", unit="images", total=pictures, initial=ready) as bar:
        if outcomes is None:
            for number, known in parts.items():
                made[number] = shards.make(number, known, bar.update)
        else:
            with closing(outcomes):
                for number, outcome in outcomes:
                    if isinstance(outcome, Made):
                        made[number] = outcome
                        bar.update(len(shards.part(number)))
                        continue
                    failed[number] = outcome
                    tqdm.write(f"shard {number:06d} failed: {_message(outcome)}")
                    if isinstance(outcome, DiskFull):
                        break
    times = {what: sum(each.seconds[what] for each in made.values()) for what in TIMES}
    tqdm.write("regions: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in times.items()))
    if failed:
        raise _failure(shards, failed)
    return made


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _failure(shards: Shards, failed: dict[int, Exception]) -> InputError:
    """One error for all failed shards: the user's mistake itself where there is only one."""
    first = next(iter(failed.values()))
    if isinstance(first, InputError) and len({str(error) for error in failed.values()}) == 1:
        return first
    return InputError(
        f"{len(failed)} of {len(shards)} shards failed (listed above), the others are kept; {_message(first)}",
        where=shards.cache.folder,
        fix="mend the cause and run the stage again: it makes only what is missing",
    )


def _require_some(shards: Shards, done: Sequence[dict[str, Any]]) -> None:
    """Raise `InputError` where no picture of the data set could be read."""
    if not any(shard["count"] for shard in done):
        reason = next(failure["reason"] for shard in done for failure in shard["failures"])
        raise InputError(
            f"none of its {len(shards.rows)} pictures could be read; the first: {reason}",
            where=shards.manifest,
            fix="check the image root and the pictures",
        )


def _finish(
    folder: Path, dataset: str, split: str, shards: Shards, done: Sequence[dict[str, Any]], about: About
) -> None:
    """Write what stands beside the shards in `folder`: index, failures, recipe and card."""
    detector = shards.detector
    failures = [failure for shard in done for failure in shard["failures"]]
    failed = {failure["id"] for failure in failures}
    paths = {row.id: row.path for row in shards.rows if row.id in failed} if failed else {}  # today's
    index = region_index(
        done,
        dim=detector.dim,
        dense=shards.dense,
        object_names=shards.object_names,
        attribute_names=detector.attribute_names,
    ) | {
        "dataset": dataset,
        "split": split,
        "about": about.model_dump(exclude_none=True),
        "norms": Norms.together(Norms(*shard["norms"]) for shard in done if shard["norms"]).as_json(),
    }
    write_json(folder / INDEX, index)
    write_text(folder / FAILURES, "".join(canonical_json(f | {"path": paths[f["id"]]}) + "\n" for f in failures))
    write_recipe(folder, shards.recipe)
    write_card(folder)
