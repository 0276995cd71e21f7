"""One way to build a store: locked, resumable, in this process or on the workers of a Dask cluster.

A store is made of shards, the unit of work. A finished shard is used as it is. Of another one the items (pictures,
captions) that the cache has are read, and the rest is computed (`extract.engine.maker`). The store appears whole or not
at all.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from extract.engine.cache import Cache, Place, in_use
from extract.engine.finished import ABOUT, Staging
from extract.engine.maker import ItemMaker, Made, ShardJob, Workers
from extract.stores.intact import INDEX
from extract.stores.regions import FAILURES
from manifests.errors import DiskFull, InputError
from manifests.files import link_or_copy, whole_folder, write_json
from manifests.locks import sole_writer
from manifests.progress import progress

_AGAIN = "run the stage again: it makes only the missing shards"


@contextmanager
def building(
    out: Path, work: str, key: Any, jobs: Sequence[ShardJob], *, title: str, workers: Workers | None = None
) -> Iterator[list[list[dict[str, Any]]] | None]:
    """Hold the lock of `out`, have the shards of all jobs finished, and give their markers, job by job.

    Gives None where another process made `out` meanwhile. At the end of the block the staging folders are removed.

    Parameters
    ----------
    work : names the work, for a process that waits: "extraction of coco".
    key : JSON of all that decides `out`.
    title : of the last line: "regions coco".

    Raises `InputError` for a maker's error, a full disk or a lost scheduler. Finished shards are kept, but for staged
    ones whose inputs will change when the error is mended.
    """
    staged = [job.maker.finished for job in jobs if isinstance(job.maker.finished, Staging)]
    with ExitStack() as held:
        staging = staged[0].folder if staged else None
        remember = len(staged) == len(jobs)  # the cache has the results of the others
        if held.enter_context(sole_writer(out, work, key, staging=staging, remember=remember)):
            yield None
            return
        for folder in staged:
            folder.prepare()
            write_json(folder.folder / ABOUT, {"work": work, "out": str(Path(out).absolute())})
        with _kept_to_continue(staged, workers):
            built = [_Build(job, title, held) for job in jobs]
            for each in built:
                each.require_room()
            for each in built:
                each.make(workers)
            yield [each.done() for each in built]
        # A worker that was given up for lost may be writing there to this day: it makes no folder.
        for folder in staged:
            folder.discard()
    for each in built:
        each.say_times()
    items, computed, reused, failures = (sum(each.counts[i] for each in built) for i in range(4))
    units = " and ".join(dict.fromkeys(job.unit for job in jobs))
    left_out = f", {failures} left out: see {FAILURES} in {out}" if failures else ""
    tqdm.write(f"{title}: {items} {units}, {computed} computed, {reused} reused{left_out}")


class _Build:
    """The shards of one job: those that are finished, and those that are to be made."""

    def __init__(self, job: ShardJob, title: str, held: ExitStack):
        self.job, self.maker, self.title = job, job.maker, title
        self.computed, self._made = 0, {}
        cache = self.maker.finished if isinstance(self.maker.finished, Cache) else None
        if cache:
            held.enter_context(in_use(cache.folder))
            # With an earlier store, older code's results aren't tried: some of them would be computed again.
            requested = () if self.maker.earlier else _Digests(self.maker, job.parts)
            again = partial(self.maker.again, job.parts)
            self.computed, notes = cache.open(requested, again, self.maker.keep, job.unit)
            for line in notes:
                tqdm.write(f"{title}: {line}")
        self.found: dict[int, dict[str, Any]] = {}
        self.missing: dict[int, int] = {}
        self.items = 0
        contents = []
        for number, part in enumerate(job.parts):
            self.items += len(part)
            if done := self.maker.done(part):
                self.found[number] = done
            else:
                self.missing[number] = len(part)
            if cache:
                contents.append(self.maker.content(part))
        # Items that several shards of this store have are computed in each: a resumed run gives an uninterrupted one's
        # bytes.
        self.known: dict[str, Place] = {}
        if cache and self.missing:
            requested = {digest for number in self.missing for digest in self.maker.digests(job.parts[number])}
            self.known = cache.rows(requested, contents)

    def require_room(self) -> None:
        """Print the work to do. Raises `DiskFull` where the disk has less room than the shards may need."""
        size = sum(self.maker.most_bytes(self.job.parts[number]) for number in self.missing)
        if not size:
            return
        new = sum(self.missing.values())
        if self.known:
            own = (digest for number in self.missing for digest in self.maker.digests(self.job.parts[number]))
            new -= sum(digest in self.known for digest in own)
        folder = self.maker.finished.folder
        free = shutil.disk_usage(folder).free
        work = "take over" if isinstance(self.maker, ItemMaker) and self.maker.earlier else "compute"
        tqdm.write(
            f"{self.title}: {new} of {self.items} {self.job.unit} to {work}, at most {size / 1e9:.2f} GB to write, "
            f"{free / 1e9:.1f} GB free in {folder}"
        )
        if size > free:
            raise DiskFull(
                f"the shards may need {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
                where=folder,
                fix="make room on that disk, or set SELFALIGN_CACHE to a folder on another one",
            )

    def make(self, workers: Workers | None) -> None:
        """Have the missing shards made. Raises one error for all that failed: the user's mistake itself where there is
        only one."""
        failed: dict[int, Exception] = {}
        ready = self.items - sum(self.missing.values())
        if ready and isinstance(self.maker.finished, Staging):
            progress_note = f"{ready} of {self.items} {self.job.unit} are staged in {self.maker.finished.folder}"
            tqdm.write(f"continuing: {progress_note}")
        with progress(what=self.job.what, unit=self.job.unit, total=self.items, initial=ready) as bar:
            if workers is None or self.job.load is None:
                self._make_here(bar.update)
            else:
                from extract.engine.workers import on_workers

                tasks = ((number, self._task(number)) for number in self.missing)
                with closing(on_workers(workers, self.job, tasks)) as outcomes:
                    for number, outcome in outcomes:
                        if isinstance(outcome, Made):
                            self._made[number] = outcome
                            bar.update(self.missing[number])
                            continue
                        failed[number] = outcome
                        tqdm.write(f"shard {number:06d} failed: {_message(outcome)}")
                        if isinstance(outcome, DiskFull):
                            break
        if failed:
            raise self._failure(failed)

    def _make_here(self, advance: Callable[[int], Any]) -> None:
        """One shard after the other; one is hashed while the next is written and the third is read."""
        numbers = list(self.missing)
        tasks = {number: self._task(number) for number in numbers[:1]}
        with ThreadPoolExecutor(1) as finishing:
            before: tuple[int, Any, Future[Made]] | None = None
            for place, number in enumerate(numbers):
                part, known = tasks.pop(number)
                content = self.maker.content(part)
                if before and before[1] == content:
                    wait([before[2]])
                self.maker.ahead(part)
                for following in numbers[place + 1 : place + 2]:
                    tasks[following] = self._task(following)
                    self.maker.ahead(tasks[following][0])
                finish = self.maker.draft(part, known, advance)
                if before:
                    self._made[before[0]] = before[2].result()
                before = number, content, finishing.submit(finish)
            if before:
                self._made[before[0]] = before[2].result()

    def _task(self, number: int) -> tuple[Any, dict[str, Place]]:
        part = self.job.parts[number]
        digests = self.maker.digests(part) if self.known else ()
        return part, {digest: self.known[digest] for digest in digests if digest in self.known}

    def _failure(self, failed: Mapping[int, Exception]) -> InputError:
        first = next(iter(failed.values()))
        if isinstance(first, InputError) and len({str(error) for error in failed.values()}) == 1:
            return first
        return InputError(
            f"{len(failed)} of {len(self.job.parts)} shards failed (listed above), the others are kept; "
            f"{_message(first)}",
            where=self.maker.finished.folder,
            fix="mend the cause and run the stage again: it makes only the missing shards",
        )

    def done(self) -> list[dict[str, Any]]:
        """The markers of all shards."""
        return [self.found.get(number) or self._made[number].done for number in range(len(self.job.parts))]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Items in all, computed (those of a sample too), reused and left out."""
        made = sum(each.computed for each in self._made.values())
        failures = sum(len(done.get("failures", ())) for done in self.done())
        return self.items, self.computed + made, self.items - failures - made, failures

    def say_times(self) -> None:
        names = dict.fromkeys(name for each in self._made.values() for name in each.seconds)
        times = {name: sum(each.seconds.get(name, 0.0) for each in self._made.values()) for name in names}
        if times:
            tqdm.write(f"{self.job.what}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()))


class _Digests(Collection[str]):
    """All digests of some parts, read when they are asked for."""

    def __init__(self, maker: ItemMaker, parts: Sequence[Any]):
        self._maker, self._parts = maker, parts

    def __iter__(self) -> Iterator[str]:
        return (digest for part in self._parts for digest in self._maker.digests(part))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, digest: object) -> bool:
        return any(digest == own for own in self)


@contextmanager
def _kept_to_continue(staged: Sequence[Staging], workers: Workers | None) -> Iterator[None]:
    """Keep staged shards, and say so, if the same command can continue with them; else remove them."""
    advice = f"finished shards wait in {staged[0].folder}, and the same command continues with them" if staged else ""
    try:
        yield
    except DiskFull as error:
        raise DiskFull(error.what, where=error.where, fix=f"{error.fix}: {advice}" if advice else error.fix) from error
    except InputError:  # other inputs or parameters will have another staging folder
        for folder in staged if workers is None else ():
            folder.discard()
        raise
    except KeyboardInterrupt:
        if advice:
            tqdm.write(f"stopped: {advice}")
        raise


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


@contextmanager
def installing(out: Path, shards: Iterable[Mapping[str, Any]]) -> Iterator[Path]:
    """Give a folder with finished shards, to which index, recipe and card are added; at the end it becomes `out`.

    `shards` are markers with each one's name in the store (``file``). Raises `InputError`, and installs nothing, where
    a shard is missing, has another size, or isn't listed by the index.
    """
    with whole_folder(out) as ready, filled(ready, shards):
        yield ready


@contextmanager
def filled(folder: Path, shards: Iterable[Mapping[str, Any]]) -> Iterator[Path]:
    """As `installing`, but in a folder of a folder that becomes whole."""
    folder.mkdir(exist_ok=True)
    for shard in shards:
        link_or_copy(Path(shard["path"]), folder / shard["file"])
        if (size := (folder / shard["file"]).stat().st_size) != shard["size"]:
            message = f"it has {size} bytes, it was finished with {shard['size']}"
            raise InputError(message, where=shard["path"], fix=_AGAIN)
    yield folder
    listed = {shard["file"] for shard in json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]}
    there = {path.name for path in folder.iterdir() if path.suffix in (".h5", ".tar")}
    if listed != there:
        raise InputError(
            f"its index lists {len(listed)} shards, {len(there)} are there: {', '.join(sorted(listed ^ there))}",
            where=folder,
            fix=_AGAIN,
        )
