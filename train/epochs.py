"""The batches of an epoch: captions with the regions of their images, from the region store or streamed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
from torch import distributed

from extract.stores.recipe import require_same_recipe
from train.batches import RegionBatch, region_batch
from train.data import Memory, RetrievalData
from train.settings import RunSettings
from train.stream import CaptionStream, open_shards

# The captions of a batch, and what gives the regions of the images of some of them, with the memory for features.
Batch = tuple[np.ndarray, Callable[[np.ndarray, Memory | None], RegionBatch]]


class Epochs(Protocol):
    """The batches of an epoch of training: every caption once.

    ``len`` is the number of batches. Calling it with the epoch's number gives them, from batch `first` on. Captions are
    int64 ``[B]``, indices of `RetrievalData`. A batch has two captions at least, since one has no negatives and batch
    norm needs two values.

    sharded : whether a batch holds this process's captions alone; else all processes' captions, to be shared out.
    """

    sharded: bool

    def __len__(self) -> int: ...

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]: ...


def epochs_of(data: RetrievalData, settings: RunSettings) -> Epochs:
    """The epochs that a run asks for. `data` was opened with `streamed` where they are streamed."""
    return StreamedEpochs(data, settings) if settings.stream else StoredEpochs(data, settings)


class StoredEpochs:
    """Batches of a permutation of all captions, regions read from the store."""

    sharded = False

    def __init__(self, data: RetrievalData, settings: RunSettings):
        self.data, self.seed, self.size = data, settings.seed, settings.batch_size

    def __len__(self) -> int:
        return _number(self.data.num_captions, self.size)

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.data.num_captions)
        for number in range(first, len(self)):
            yield order[number * self.size : (number + 1) * self.size], self._regions

    def _regions(self, captions: np.ndarray, into: Memory | None) -> RegionBatch:
        return self.data.region_batch(self.data.caption_image[captions], into)


class StreamedEpochs:
    """Batches of captions streamed from shards, this process's part of them where several train together.

    Raises `InputError` where the shards' regions were made by another recipe than the region store's, which the run is
    validated and evaluated on.
    """

    sharded = True

    def __init__(self, data: RetrievalData, settings: RunSettings):
        options = settings.stream
        shards, recipe = open_shards(options.urls)
        store = data.region_store
        require_same_recipe(recipe["regions"], options.urls[0], store.recipe, store.folder)
        captions = {
            row.id: [(caption, data.caption_text(caption)) for caption in data.captions_of(image)]
            for image, row in enumerate(data.images)
        }
        together = distributed.is_available() and distributed.is_initialized()
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self.stream = CaptionStream(shards, captions, window=options.window, seed=settings.seed, rank=rank, ranks=ranks)
        self.size = max(2, settings.batch_size // ranks)

    def __len__(self) -> int:
        return _number(len(self.stream), self.size)

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        self.stream.set_epoch(epoch)
        for batch in islice(_chunks(self.stream, self.size), first, len(self)):
            held = dict(batch)
            yield np.array(list(held)), lambda captions, _, held=held: region_batch([held[int(c)] for c in captions])


def _number(captions: int, size: int) -> int:
    return captions // size + (captions % size > 1)


def _chunks(items: Iterable, size: int) -> Iterator[Sequence]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk
