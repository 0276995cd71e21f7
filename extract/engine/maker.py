"""Makers of shards: a `Maker` makes a store's shards, here or on a worker, from a shard's rows alone."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from extract.engine.cache import Cache, Place
from extract.engine.finished import Staging
from extract.stores.hdf5 import MappedHDF5

if TYPE_CHECKING:
    from distributed import Client

Advance = Callable[[int], Any]
P = TypeVar("P")  # a part: the rows of a shard, as they travel to a worker; its length is the number of its items
R = TypeVar("R")  # the result of an item


@dataclass(frozen=True, slots=True)
class Made:
    """A finished shard: its marker, how many items were computed for it, and the seconds spent on each kind of work."""

    done: dict[str, Any]
    computed: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


class Maker(ABC, Generic[P]):
    """Makes the shards of one store. Workers have one of their own, made of the same arguments.

    Attributes
    ----------
    key : all that decides the bytes of a shard beside its rows, as JSON: workers must agree.
    finished : where finished shards lie.
    seconds : spent on the shard at hand, by the kind of work.
    """

    key: Mapping[str, Any]
    finished: Cache | Staging
    seconds: dict[str, float]

    @abstractmethod
    def content(self, part: P) -> Any:
        """The content that the shard of a part shall have, as JSON: it names the shard."""

    @abstractmethod
    def write(self, path: Path, part: P, known: Mapping[str, Place], advance: Advance) -> tuple[dict[str, Any], int]:
        """Write the shard of a part, of `known` results (item's sha256 -> place) and new ones.

        Calls `advance` with each number of items done. Returns the marker's facts (``sha256`` where it is known), and
        how many items were computed.
        """

    def done(self, part: P) -> dict[str, Any] | None:
        """The marker of the shard of a part, if it is finished."""
        return self.finished.finished(self.content(part))

    def most_bytes(self, part: P) -> int:
        """The largest size of the shard of a part, in bytes; 0 if unknown."""
        return 0

    def ahead(self, part: P) -> None:
        """Have a part read that is asked for soon."""

    def make(self, part: P, known: Mapping[str, Place], advance: Advance = lambda items: None) -> Made:
        """Make and finish the shard of a part. Raises `InputError` for the user's mistakes and for a full disk."""
        return self.draft(part, known, advance)()

    def draft(self, part: P, known: Mapping[str, Place], advance: Advance) -> Callable[[], Made]:
        """Write the shard of a part. Returns a function that hashes and finishes it, while another one is written."""
        if done := self.done(part):  # by a worker that died before it could say so
            advance(len(part))
            return lambda: Made(done)
        self.seconds = {}
        content, seconds = self.content(part), self.seconds
        draft = self.finished.draft(content)
        facts, computed = self.write(draft, part, known, advance)

        def finish() -> Made:
            start = time.perf_counter()
            done = self.finished.publish(draft, content, facts)
            seconds["write"] = seconds.get("write", 0.0) + time.perf_counter() - start
            return Made(done, computed, seconds)

        return finish

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Add the time of a block to the seconds of a kind of work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[work] = self.seconds.get(work, 0.0) + time.perf_counter() - start


class ItemMaker(Maker[P], Generic[P, R]):
    """A `Maker` with results that the cache keeps by item.

    Attributes
    ----------
    earlier : gives the result that an older project's store has for the item at a place of a part, or None. It is None
        without such a store.
    failures : the reasons of items without a result in the last `compute`, by their place.
    """

    failures: dict[int, Any]
    earlier: Callable[[P, int], R | None] | None = None

    @abstractmethod
    def digests(self, part: P) -> list[str]:
        """The sha256 of each item's inputs: with the recipe they decide its result."""

    @abstractmethod
    def compute(self, part: P, places: Sequence[int], advance: Advance) -> dict[int, R]:
        """The results of the items at some places of a part; an item that has none is left out."""

    @abstractmethod
    def save(self, path: Path, part: P, results: Mapping[int, R]) -> dict[str, Any]:
        """Write a shard of results, by their places in a part; the marker's facts, with ``items``."""

    @abstractmethod
    def read(self, shard: MappedHDF5, row: int) -> R | None:
        """The result in a shard's row; None where it is none under the settings at hand."""

    @abstractmethod
    def difference(self, known: R, again: R) -> str | None:
        """The first difference of two results of an item beyond the tolerance, as a text; None if there is none."""

    @abstractmethod
    def name(self, part: P, place: int) -> str:
        """The name of an item in messages."""

    def write(self, path: Path, part: P, known: Mapping[str, Place], advance: Advance) -> tuple[dict[str, Any], int]:
        results: dict[int, R] = {}
        with self.timed("read"):
            for place, digest in enumerate(self.digests(part) if known else ()):
                if digest in known and (own := self._known(known[digest])) is not None:
                    results[place] = own
            taken = self._of_earlier(part, results) if self.earlier else {}
            results |= taken
        advance(len(results))
        new = self.compute(part, [place for place in range(len(part)) if place not in results], advance)
        results |= new
        with self.timed("write"):
            facts = self.save(path, part, results)
        return facts | ({"environment": {"store of": "an older project"}} if taken else {}), len(new)

    def _of_earlier(self, part: P, results: Mapping[int, R]) -> dict[int, R]:
        assert self.earlier
        found = {place: self.earlier(part, place) for place in range(len(part)) if place not in results}
        return {place: result for place, result in found.items() if result is not None}

    def _known(self, place: Place) -> R | None:
        shard = self.finished.shard(place.file)
        return None if shard is None else self.read(shard, place.row)

    def again(self, parts: Iterable[P], sample: Mapping[str, Place]) -> tuple[str | None, list[tuple[P, dict[int, R]]]]:
        """Compute some items of the parts (sha256 -> place of the known result) again.

        Returns which number is another one, if any, and the new results, by part and place.
        """
        left, self.seconds, first, results = dict(sample), {}, None, []
        for part in parts:
            digests = self.digests(part)
            places = {digest: place for place, digest in enumerate(digests) if digest in left}
            new = self.compute(part, list(places.values()), lambda items: None) if places else {}
            if new:
                results.append((part, new))
            for digest, place in places.items():
                known = self._known(left.pop(digest))
                if known is None:  # damaged: it is made again
                    continue
                difference = self.difference(known, new[place]) if place in new else "it can no longer be read"
                first = first or (difference and f"{self.name(part, place)}: {difference}")
            if not left:
                break
        return first, results

    def keep(self, results: Iterable[tuple[P, dict[int, R]]]) -> None:
        """Publish some items' results as shards of their own, of which no store is made."""
        self.failures = {}
        for part, own in results:
            content = {"sample": self.content(part), "places": sorted(own)}
            draft = self.finished.draft(content)
            self.finished.publish(draft, content, self.save(draft, part, own))


@dataclass(frozen=True)
class ShardJob(Generic[P]):
    """Shards that one maker makes.

    parts : of each shard the rows, read when they are asked for.
    load, work : how a worker gets such a maker: ``load(**work, device=...)``; None where it is made here alone.
    on_device : whether the maker computes on a device.
    what, unit : the names of the job and its items, for the progress bar.
    """

    maker: Maker[P]
    parts: Sequence[P]
    what: str
    unit: str
    load: Callable[..., Maker[P]] | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    on_device: bool = True


class Parts(Sequence[P], Generic[P]):
    """So many parts, read when they are asked for by ``read(number)``."""

    def __init__(self, count: int, read: Callable[[int], P]):
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> P:
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} parts, no part {number}")
        return self._read(number)


def parts_of(items: int, size: int, read: Callable[[int, int], P]) -> Parts[P]:
    """Parts of `size` items each but for the last one; ``read(start, stop)`` gives some."""
    return Parts(-(-items // size), lambda number: read(number * size, min((number + 1) * size, items)))


@dataclass(frozen=True)
class Workers:
    """Who makes shards beside this process: a Dask client, and each worker's device and threads of torch."""

    client: "Client"
    device: str = "auto"
    threads: int | None = None
