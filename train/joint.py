"""The gradients of one step: losses over a joint batch that no process, or no moment, needs to hold whole.

Negatives come from the whole batch. Where several processes train, each encodes its share and all encodings are
gathered. Where a share is too large for the memory, it is encoded in chunks, twice: first without a graph, for the loss
and its slopes in the encodings; then each chunk again with a graph, to which its slopes are handed (gradient caching,
Gao et al., RepL4NLP 2021). Dropout draws the same both times.

Batch norm sees one chunk of all processes at a time: joint statistics would need a pass over all chunks for every
layer. So several processes give the gradients of one, and chunks those of the same chunks encoded with a graph.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.batches import RegionBatch, TeacherBatch
from train.data import RetrievalData
from train.masking import running_statistics_kept
from train.model import Pairs, RetrievalModel
from train.processes import Processes, apart, combined, padded_to, tensors_of


@dataclass(frozen=True, slots=True)
class _Joint:
    """Pairs with the image of each, int64 ``[B]``, and what teachers make of them: what is gathered."""

    pairs: Pairs
    image: Tensor
    teachers: TeacherBatch | None


def shares(captions: np.ndarray, chunks: int, processes: int) -> list[list[np.ndarray]]:
    """Which captions each process encodes, chunk by chunk: ``shares[rank][chunk]``.

    Every process has the same number of chunks, a caption at least in each, and every chunk has two over all processes.
    """
    chunks = max(1, min(chunks, len(captions) // max(2, processes)))
    parts = [np.array_split(chunk, processes) for chunk in np.array_split(captions, chunks)]
    return [[part[rank] for part in parts] for rank in range(processes)]


def joint_gradients(
    model: RetrievalModel,
    data: RetrievalData,
    captions: np.ndarray,
    regions: Callable[[np.ndarray], RegionBatch],
    *,
    epoch: int,
    chunks: int,
    seed: Sequence[int],
    processes: Processes,
    autocast: Callable[[], AbstractContextManager],
    parted: bool = False,
) -> dict[str, Tensor]:
    """Add the gradients of the joint batch `captions` to the model's, this process's part of them.

    Parameters
    ----------
    captions : of the joint batch; where they are fewer than the processes, each process encodes them all.
    regions : gives the regions of the images of some of the captions.
    seed : numbers that dropout follows, others in every step; a process and a chunk are told apart here.

    parted : `captions` are this process's part of the joint batch already, as large as any other's.

    Returns
    -------
    the loss terms of the joint batch, scalars on the device, the same in every process. Gradients are complete after
    ``processes.average``.
    """
    if len(captions) < processes.count and not parted:
        alone = {"processes": processes.alone(), "autocast": autocast}
        with apart():
            return joint_gradients(model, data, captions, regions, epoch=epoch, chunks=1, seed=seed, **alone)
    sharing, place = (1, 0) if parted else (processes.count, processes.rank)
    mine = shares(captions, chunks, sharing)[place]
    device = processes.device

    def encoded(chunk: int) -> Pairs:
        torch.manual_seed(int(np.random.SeedSequence([*seed, processes.rank, chunk]).generate_state(1)[0]))
        batch = regions(mine[chunk]).to(device), data.word_batch(mine[chunk]).to(device)
        with autocast():
            return model(*batch)

    share = np.concatenate(mine)
    image = torch.from_numpy(data.caption_image[share]).to(device)
    teachers = combined(lambda vectors: vectors.to(device), data.teacher_batch(share))
    if len(mine) == 1:
        return _backward(model, _Joint(encoded(0), image, teachers), epoch, processes, autocast)
    with torch.no_grad():
        whole = combined(_joined, *(encoded(chunk) for chunk in range(len(mine))))
    leaves = combined(_leaf, whole)
    terms = _backward(model, _Joint(leaves, image, teachers), epoch, processes, autocast)
    slopes = [leaf.grad for leaf in tensors_of(leaves)]
    first = 0
    with running_statistics_kept(model):
        for chunk, own in enumerate(mine):
            pairs = tensors_of(encoded(chunk))
            handed = [
                (tensor, slope[first : first + len(own)][tuple(slice(size) for size in tensor.shape)])
                for tensor, slope in zip(pairs, slopes, strict=True)
                if tensor.requires_grad and slope is not None
            ]
            torch.autograd.backward(*zip(*handed, strict=True))
            first += len(own)
    return terms


def _backward(
    model: RetrievalModel,
    mine: _Joint,
    epoch: int,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, Tensor]:
    joint = processes.gathered(mine)
    with autocast():
        terms = model.terms(joint.pairs, joint.image, epoch, joint.teachers)
    sum(terms.values()).backward()
    return {name: term.detach() for name, term in terms.items()}


def _joined(*tensors: Tensor) -> Tensor:
    widths = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([padded_to(tensor, widths) for tensor in tensors])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())
