"""Stage `regions@D`: from the manifest's pictures to a region store.

The unit of work is a shard, made here or on the workers of a Dask cluster by the same function
(`extract.shards.Shards.make`). Finished shards wait in a staging folder and survive a kill; the store appears under
its final name whole or not at all.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from extract.card import write_card
from extract.settings import About, RegionSettings
from extract.shards import TIMES, Made, Shards
from extract.stores.intact import INDEX
from extract.stores.norms import Norms
from extract.stores.recipe import environment, write_recipe
from extract.stores.regions import FAILURES, region_index
from manifests.errors import DiskFull, InputError
from manifests.files import canonical_json, write_json, write_text
from manifests.progress import progress

if TYPE_CHECKING:
    from distributed import Client


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
    client: "Client | None" = None,
    threads: int | None = None,
    about: About | None = None,
) -> None:
    """Extract the regions of every picture of a manifest into the region store `out`.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : its folder; its sha256 sums decide what is read.
    images : the image root that the manifest's paths start from.
    staging : folder where finished shards wait; a killed run continues from there.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.
    client : of a Dask cluster whose workers make the shards, each on its own `device` ("auto" is settled there).
        They must see the same files under the same paths.
    threads : torch's threads in each of these workers; None is a worker's ``--nthreads``.
    about : what the card says of the pictures' licence and of what to cite.

    Raises
    ------
    InputError : a picture that can't be decoded (unless ``settings.unreadable`` is "skip"), that is missing or that
        changed since the manifest was made; wrong weights; no readable picture at all; a full disk; shards that the
        workers could not make, after all others are staged.
    """
    work = {
        "manifest": manifest,
        "images": images,
        "settings": settings,
        "staging": staging,
        "batch_size": batch_size,
        "readers": readers,
    }
    shards = Shards(**work, device="cpu" if client else device)
    with shards.staged.alone(out, f"extraction of {dataset}") as made:
        if made:
            return
        found = {number: shards.staged.finished(shards.path(number)) for number in range(len(shards))}
        missing = [number for number, done in found.items() if not done]
        outcomes = None
        if client:
            from extract.workers import on_workers

            outcomes = on_workers(client, shards, missing, work, device=device, threads=threads)
        found |= _make(shards, missing, outcomes)
        done = [found[number] for number in range(len(shards))]
        with shards.staged.install(out, done) as folder:
            _finish(folder, dataset, shards, done, about or About())
    failures = sum(len(shard["failures"]) for shard in done)
    if failures:
        tqdm.write(f"{failures} of {len(shards.rows)} pictures could not be read: see {Path(out) / FAILURES}")


def _make(
    shards: Shards, missing: Sequence[int], outcomes: Generator[tuple[int, Made | Exception], None, None] | None
) -> dict[int, dict[str, Any]]:
    """Done-markers of the `missing` shards, made here or taken from the workers' `outcomes`."""
    pictures = len(shards.rows)
    ready = pictures - sum(len(shards.part(number)) for number in missing)
    if ready:
        tqdm.write(f"continuing: {ready} of {pictures} pictures are staged in {shards.staged.folder}")
    made: dict[int, Made] = {}
    failed: dict[int, Exception] = {}
    with progress(what="regions", unit="images", total=pictures, initial=ready) as bar:
        if outcomes is None:
            for number in missing:
                made[number] = shards.make(number, bar.update)
        else:
            with closing(outcomes):
                for number, outcome in outcomes:
                    if isinstance(outcome, Made):
                        made[number] = outcome
                        bar.update(len(shards.part(number)))
                        continue
                    failed[number] = outcome
                    tqdm.write(f"shard {shards.path(number).name} failed: {_message(outcome)}")
                    if isinstance(outcome, DiskFull):
                        break
    times = {what: sum(each.seconds[what] for each in made.values()) for what in TIMES}
    tqdm.write("regions: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in times.items()))
    if failed:
        raise _failure(shards, failed)
    return {number: each.done for number, each in made.items()}


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _failure(shards: Shards, failed: dict[int, Exception]) -> InputError:
    """One error for all failed shards: the user's mistake itself where there is only one."""
    first = next(iter(failed.values()))
    if isinstance(first, InputError) and len({str(error) for error in failed.values()}) == 1:
        return first
    return InputError(
        f"{len(failed)} of {len(shards)} shards failed (listed above), the others are staged; {_message(first)}",
        where=shards.staged.folder,
        fix="mend the cause and run the stage again: it makes only what is missing",
    )


def _finish(folder: Path, dataset: str, shards: Shards, done: Sequence[dict[str, Any]], about: About) -> None:
    """Write what stands beside the shards in `folder`: index, failures, recipe and card."""
    detector = shards.detector
    failures = [failure for shard in done for failure in shard["failures"]]
    index = region_index(
        done,
        dim=detector.dim,
        dense=shards.dense,
        object_names=detector.object_names,
        attribute_names=detector.attribute_names,
    ) | {
        "dataset": dataset,
        "about": about.model_dump(exclude_none=True),
        "norms": Norms.together(Norms(*shard["norms"]) for shard in done).as_json(),
    }
    if not index["images"]:
        raise InputError(
            f"none of its {len(shards.rows)} pictures could be read; the first: {failures[0]['reason']}",
            where=shards.manifest,
            fix="check the image root and the pictures",
        )
    write_json(folder / INDEX, index)
    write_text(folder / FAILURES, "".join(canonical_json(failure) + "\n" for failure in failures))
    makers = {what: _one_or_all({shard[what] for shard in done}) for what in ("device", "threads")}
    write_recipe(folder, shards.recipe, environment("torch", "torchvision", "numpy", "pillow", **makers))
    write_card(folder)


def _one_or_all(values: set[Any]) -> Any:
    return sorted(values) if len(values) > 1 else next(iter(values))
