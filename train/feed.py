"""What the steps of an epoch read, ahead of them: regions and words, in the stores' own precision until the device.

Threads read some steps ahead into buffers that are used again (pinned where the device is a GPU). Where the split's
features fit on a GPU, they lie there, and a step sends it numbers of rows alone.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from extract.engine.device import make_current
from train.batches import RegionBatch, TeacherBatch, WordBatch
from train.data import RetrievalData
from train.device import fits_on_gpu
from train.epochs import Batch, Epochs
from train.masking import ragged_rows
from train.processes import Processes, combined

T = TypeVar("T", RegionBatch, WordBatch)
Resident = Literal["auto", "on", "off"]
AHEAD = 2  # steps that are read before they are needed
READERS = 2  # threads
_BLOCK = 512  # items that are sent to the device together


@dataclass(frozen=True, slots=True)
class FedBatch:
    """This process's part of a joint batch.

    captions : int64 ``[B]``, of the joint batch, as far as this process knows them.
    shares, regions, words : the captions of this process's pairs, their regions and words, chunk by chunk.
    image : int64 ``[b]``, the image of each of these pairs. teachers : of the same pairs.
    alone : whether every process has the whole batch, since it has fewer pairs than there are processes.
    """

    captions: np.ndarray
    shares: list[np.ndarray]
    regions: list[RegionBatch]
    words: list[WordBatch]
    image: Tensor
    teachers: TeacherBatch | None
    alone: bool = False


def shares(captions: np.ndarray, chunks: int, processes: int) -> list[list[np.ndarray]]:
    """Which captions each process encodes, chunk by chunk: ``shares[rank][chunk]``.

    Every process has the same number of chunks, a caption at least in each, and every chunk has two over all processes.
    """
    chunks = max(1, min(chunks, len(captions) // max(2, processes)))
    parts = [np.array_split(chunk, processes) for chunk in np.array_split(captions, chunks)]
    return [[part[rank] for part in parts] for rank in range(processes)]


def read_part(
    data: RetrievalData,
    captions: np.ndarray,
    regions: Callable[[np.ndarray], RegionBatch],
    *,
    chunks: int,
    processes: Processes,
    sharded: bool = False,
    states: bool = True,
) -> FedBatch:
    """Read this process's part of a joint batch: each caption once, with its picture.

    Parameters
    ----------
    captions : of the joint batch; where they are fewer than the processes, each process reads them all.
    regions : gives the regions of the images of some captions.
    sharded : `captions` are this process's part already, as large as any other's.
    states : whether those of text features are read.
    """
    alone = len(captions) < processes.count and not sharded
    sharing, place = (1, 0) if sharded or alone else (processes.count, processes.rank)
    mine = shares(captions, 1 if alone else chunks, sharing)[place]
    share = np.concatenate(mine)
    return FedBatch(
        captions,
        mine,
        [regions(own) for own in mine],
        [data.word_batch(own, states=states) for own in mine],
        torch.from_numpy(data.caption_image[share]),
        data.teacher_batch(share),
        alone,
    )


_Read = tuple[FedBatch, list[Tensor | None], list[Tensor | None]]  # with rows of the tables that lie on the device


class Table:
    """Vectors of N items that lie on a device: item n has rows ``first[n]`` to ``first[n] + count[n]`` of ``[M, D]``.

    Parameters
    ----------
    read : gives the vectors ``[n, D]`` of an item.
    """

    def __init__(self, count: np.ndarray, dim: int, dtype: np.dtype, device: torch.device, read: Callable):
        self.count, self.first = count, np.cumsum(count) - count
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        self.vectors = torch.empty(int(count.sum()), dim, dtype=kind, device=device)
        for start in range(0, len(count), _BLOCK):
            items = range(start, min(start + _BLOCK, len(count)))
            block = torch.from_numpy(np.concatenate([read(item) for item in items]))
            self.vectors[int(self.first[start]) :][: len(block)] = block.to(device)

    def rows(self, items: np.ndarray) -> Tensor:
        """Which rows B items have, int64 ``[B, most]`` (`ragged_rows`)."""
        return ragged_rows(self.first[items], self.count[items])[0]

    def of(self, rows: Tensor, mask: Tensor) -> Tensor:
        """The vectors ``[B, most, D]`` of `rows`, zeros where the mask is false."""
        return self.vectors[rows] * mask[..., None]


class Feed:
    """The parts of an epoch's steps, on the device of `processes`, in their order.

    Parameters
    ----------
    chunks : that a part is encoded in.
    resident : whether the features of the split, and the states of its captions, lie on the device. By `auto` each does
        on a GPU where it fits into half of the free memory.
    """

    def __init__(
        self, data: RetrievalData, epochs: Epochs, processes: Processes, *, chunks: int, resident: Resident = "auto"
    ):
        self.data, self.epochs, self.processes, self.chunks = data, epochs, processes, chunks
        device = processes.device
        self.features = self.states = None
        if not epochs.sharded:
            count, store = data.region_counts(), data.region_store
            kind = store.feature_dtype
            if _fits(resident, device, lambda: count.sum() * store.dim * kind.itemsize):
                self.features = Table(count, store.dim, kind, device, data.region_features)
        if data.text_store is not None:
            count = functools.cache(lambda: np.array([len(data.states(row)) for row in range(data.num_captions)]))
            if _fits(resident, device, lambda: count().sum() * data.text_dim * 2):
                self.states = Table(count(), data.text_dim, np.dtype(np.float16), device, data.states)
        self._readers = 1 if epochs.sharded else READERS  # a stream is read by one
        self._buffers = [_Buffer(device) for _ in range(AHEAD + 2)]

    def __call__(self, epoch: int, first: int = 0) -> Iterator[FedBatch]:
        """The steps of an epoch from `first` on."""
        waiting: deque[tuple[Future, _Buffer]] = deque()

        def next_part() -> FedBatch:
            read, buffer = waiting.popleft()
            part = self._sent(read.result())
            buffer.in_use()
            return part

        current = functools.partial(make_current, self.processes.device)
        with ThreadPoolExecutor(self._readers, thread_name_prefix="feed", initializer=current) as reader:
            for number, batch in enumerate(self.epochs(epoch, first)):
                buffer = self._buffers[number % len(self._buffers)]
                waiting.append((reader.submit(self._read, batch, buffer), buffer))
                if len(waiting) > AHEAD:
                    yield next_part()
            while waiting:
                yield next_part()

    def _read(self, batch: Batch, buffer: "_Buffer") -> _Read:
        """Read a step's part into this machine's memory."""
        buffer.reuse()
        captions, regions = batch
        part = read_part(
            self.data,
            captions,
            lambda own: regions(own, None if self.features else buffer.memory),
            chunks=self.chunks,
            processes=self.processes,
            sharded=self.epochs.sharded,
            states=self.states is None,
        )
        rows = _rows(self.features, [self.data.caption_image[own] for own in part.shares])
        states = _rows(self.states, part.shares)
        if self.processes.device.type == "cuda":
            part = replace(
                part,
                regions=[combined(_pinned, own) for own in part.regions],
                words=[combined(_pinned, own) for own in part.words],
                image=_pinned(part.image),
                teachers=combined(_pinned, part.teachers),
            )
        return part, rows, states

    def _sent(self, read: _Read) -> FedBatch:
        """A part on the device."""
        part, rows, states = read
        device = self.processes.device

        def send(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=device.type == "cuda")

        def whole(batch: T, table: Table | None, own: Tensor | None) -> T:
            batch = combined(send, batch)
            return batch if table is None else replace(batch, features=table.of(send(own), batch.mask))

        return replace(
            part,
            regions=[whole(batch, self.features, own) for batch, own in zip(part.regions, rows, strict=True)],
            words=[whole(batch, self.states, own) for batch, own in zip(part.words, states, strict=True)],
            image=send(part.image),
            teachers=combined(send, part.teachers),
        )


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()  # an expanded one can't be written to


def _rows(table: Table | None, shares: Sequence[np.ndarray]) -> list[Tensor | None]:
    """The rows of a table that each chunk's items have; None without a table."""
    return [None if table is None else table.rows(items) for items in shares]


def _fits(resident: Resident, device: torch.device, size: Callable[[], int]) -> bool:
    return fits_on_gpu(device, size()) if resident == "auto" else resident == "on"


class _Buffer:
    """Memory that one step after the other reads its features into, pinned for a GPU."""

    def __init__(self, device: torch.device):
        self._device, self._pinned = device, device.type == "cuda"
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._outgrown: list[torch.Tensor] = []  # which the device may still be copying
        self._used = 0
        self._sent: torch.cuda.Event | None = None

    def reuse(self) -> None:
        """Wait until what was last in it is on the device."""
        if self._sent is not None:
            self._sent.synchronize()
        self._outgrown.clear()
        self._used = 0

    def in_use(self) -> None:
        """Note that the device copies from it now."""
        if self._pinned:
            self._sent = torch.cuda.current_stream(self._device).record_event()

    def memory(self, numbers: int, dtype: np.dtype) -> np.ndarray:
        """Room for so many numbers, beside what was given before since `reuse`."""
        start, size = self._used, numbers * np.dtype(dtype).itemsize
        if start + size > len(self._bytes):
            self._outgrown.append(self._bytes)
            self._bytes = torch.empty(start + size, dtype=torch.uint8, pin_memory=self._pinned)
        self._used += size
        return self._bytes.numpy()[start : start + size].view(dtype)
