"""Training from WebDataset shards at addresses (files, HTTP, S3): what `runs.R.stream` asks for.

A remote shard is fetched whole into a temporary file and checked against the sha256 of the ``index.json`` beside it.
Only then it is read, while the next one is fetched. Shards in folders are checked once, as stores are. Every epoch
puts the shards into a new order and shuffles captions within a window. It shows every caption once, as the stores do,
but mixes each with its neighbours only.

The captions of an epoch, laid end to end, are cut into equal parts, one a rank and worker. Shards needn't be as many as
those, or equally large. Up to one caption a part is left over, others in other epochs.
"""

import hashlib
import http.client
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import braceexpand
import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from extract.stores.intact import INDEX, require_intact
from extract.stores.recipe import FILE as RECIPE
from extract.stores.regions import Regions
from extract.stores.webdataset import FORMAT, PackedShard, PackIndex, Sample, read_samples, require_pack_recipe
from manifests.errors import InputError
from manifests.typed import checked

ATTEMPTS = 3
TIMEOUT = 60  # seconds without an answer
_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: its address, its sha256, and how many captions it holds."""

    url: str
    sha256: str
    captions: int


def open_shards(urls: Sequence[str]) -> tuple[list[Shard], dict[str, Any]]:
    """The shards at some addresses, ``{000000..000009}`` expanded, and their recipe.

    Folders are checked as stores are. Raises `InputError` for a file there that has changed. It also does for an
    address that its ``index.json`` doesn't list, of another split than train, or of another recipe than the first one.
    """
    shards: list[Shard] = []
    recipes: dict[str, dict[str, Any]] = {}
    indices: dict[str, dict[str, PackedShard]] = {}
    for url in (each for pattern in urls for each in braceexpand.braceexpand(pattern)):
        folder, _, name = url.rpartition("/")
        if folder not in indices:
            if _local(url):
                require_intact(_local(folder))
            index = checked(_json(f"{folder}/{INDEX}"), PackIndex, where=f"{folder}/{INDEX}", fix="pack again")
            indices[folder] = {entry.file: entry for entry in index.shards}
            written = _json(f"{folder}/{RECIPE}")
            recipes[folder] = written.get("recipe") if isinstance(written, dict) else None
            require_pack_recipe(recipes[folder], f"{folder}/{RECIPE}")
        entry = indices[folder].get(name)
        problem = None
        if entry is None:
            problem = f"{folder}/{INDEX} doesn't list it"
        elif entry.split != "train":
            problem = f"it holds images of split {entry.split!r}"
        elif recipes[folder].get("format") != FORMAT or recipes[folder] != next(iter(recipes.values())):
            problem = "it was made by another recipe than the shards before it"
        if problem:
            raise InputError(problem, where=url, fix="correct `stream.urls` of the run")
        shards.append(Shard(url, entry.sha256, entry.captions))
    return shards, next(iter(recipes.values()))


class CaptionStream(IterableDataset[tuple[int, Regions]]):
    """An epoch's captions in a shuffled order, each with the regions of its image.

    Parameters
    ----------
    shards : `open_shards`.
    captions : number and text of every caption of every image that may come, by its id, in the manifest's order.
    window : how many captions wait to be drawn from; their images' regions are in memory.
    seed : of the order of shards and captions.
    rank, ranks : this process and how many train together; workers of a DataLoader are found out.

    Iterating yields (caption's number, regions), as many in every rank: ``len`` of them, over all its workers. Raises
    `InputError` for a shard that can't be fetched or has changed, and for an image whose captions aren't as expected.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        captions: Mapping[str, Sequence[tuple[int, str]]],
        *,
        window: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.shards, self.captions, self.window, self.seed = list(shards), captions, window, seed
        self.rank, self.ranks = rank, ranks
        self.epoch = 0

    def __len__(self) -> int:
        return sum(shard.captions for shard in self.shards) // self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, Regions]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        place, places = self.rank * workers + number, self.ranks * workers
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.shards))
        part = self._part([self.shards[i] for i in order], place, places)
        return shuffled(part, self.window, np.random.default_rng([self.seed, self.epoch, place]))

    def _part(self, shards: Sequence[Shard], place: int, places: int) -> Iterator[tuple[int, Regions]]:
        """Part `place` of `places` of the captions of all shards, end to end."""
        ends = np.cumsum([0, *(shard.captions for shard in shards)]).tolist()
        size = ends[-1] // places
        first, last = place * size, (place + 1) * size
        touched = [i for i, shard in enumerate(shards) if ends[i] < last and ends[i] + shard.captions > first]
        with closing(_fetched([shards[i] for i in touched])) as files:
            for i, file in zip(touched, files, strict=True):
                at = ends[i]
                for sample in read_samples(file, shards[i].url):
                    for caption, _ in self._captions_of(sample, shards[i]):
                        if first <= at < last:
                            yield caption, sample.regions
                        at += 1
                if at != ends[i + 1]:
                    raise InputError(
                        f"holds {at - ends[i]} captions, {INDEX} says {shards[i].captions}",
                        where=shards[i].url,
                        fix="pack the data set again",
                    )

    def _captions_of(self, sample: Sample, shard: Shard) -> Sequence[tuple[int, str]]:
        own = self.captions.get(sample.id)
        if own is None or [text for _, text in own] != sample.facts["captions"]:
            message = (
                "isn't in the manifest's train split" if own is None else "has other captions than in the manifest"
            )
            raise InputError(
                f"image {sample.id!r} {message}",
                where=shard.url,
                fix="use the manifest and the tokens of the data set that was packed",
            )
        return own


def shuffled(
    items: Iterable[tuple[int, Regions]], window: int, rng: np.random.Generator
) -> Iterator[tuple[int, Regions]]:
    """Every item once; each is drawn from the `window` items that came last and haven't been drawn."""
    waiting: list[tuple[int, Regions]] = []
    for item in items:
        if len(waiting) < window:
            waiting.append(item)
            continue
        drawn = int(rng.integers(window))
        waiting[drawn], item = item, waiting[drawn]
        yield item
    rng.shuffle(waiting)
    yield from waiting


def _fetched(shards: Sequence[Shard]) -> Iterator[BinaryIO]:
    """The shards as files that have been checked; the next one is fetched while one is read."""
    with ThreadPoolExecutor(1) as pool:
        coming: Future[BinaryIO] | None = pool.submit(fetch, shards[0]) if shards else None
        for number in range(len(shards)):
            file = coming.result()
            coming = pool.submit(fetch, shards[number + 1]) if number + 1 < len(shards) else None
            with file:
                yield file


def fetch(shard: Shard) -> BinaryIO:
    """A shard at its first byte: itself in a folder, else a temporary file.

    Raises `InputError` where it can't be reached or where its sha256 isn't the index's.
    """
    if _local(shard.url):
        return open_url(shard.url)
    problem: InputError
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        file = tempfile.TemporaryFile()  # noqa: SIM115 (it is handed on)
        try:
            digest = hashlib.sha256()
            with open_url(shard.url) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    file.write(block)
        except (OSError, http.client.HTTPException) as error:
            problem = _unreachable(shard.url, error)
        else:
            if digest.hexdigest() == shard.sha256:
                file.seek(0)
                return file
            # A connection that breaks off may look like the end of the file.
            problem = InputError(
                f"the shard has changed: its sha256 is {digest.hexdigest()}, {INDEX} says {shard.sha256}",
                where=shard.url,
                fix="restore it there: `selfalign verify` checks the folder",
            )
        file.close()
    raise problem


def open_url(url: str) -> BinaryIO:
    """What lies at a path, a ``file:``, ``http:``, ``https:`` or ``s3:`` address.

    Raises `InputError` for another kind of address, for one where nothing lies, and where `s3fs` is missing.
    """
    scheme = urlsplit(url).scheme
    try:
        if scheme in ("http", "https"):
            return urllib.request.urlopen(url, timeout=TIMEOUT)
        if path := _local(url):
            return open(path, "rb")
        if scheme == "s3":
            return _s3().open(url, "rb")
    except (FileNotFoundError, urllib.error.HTTPError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code >= 500:
            raise
        raise _unreachable(url, error) from error
    raise InputError(f"addresses of kind {scheme!r} can't be read", where=url, fix="use a path, http(s):// or s3://")


def _local(url: str) -> Path | None:
    """The path that an address means on this machine; None for one elsewhere."""
    scheme, _, path, *_ = urlsplit(url)
    return Path(url if not scheme else urllib.request.url2pathname(path)) if scheme in ("", "file") else None


def _s3() -> Any:
    try:
        import s3fs
    except ImportError as error:
        raise InputError(
            "s3fs isn't installed", where="stream.urls", fix='install it with `pip install "selfalign[s3]"`'
        ) from error
    # A file system of its own in every process and thread: s3fs doesn't survive a fork.
    return s3fs.S3FileSystem(skip_instance_cache=True)


def _json(url: str) -> Any:
    try:
        with open_url(url) as file:
            return json.loads(file.read())
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not what `selfalign pack` writes ({error!r})", where=url, fix="pack again") from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> InputError:
    return InputError(
        f"can't be fetched ({error})", where=url, fix="check the address, the server and your access to it"
    )
