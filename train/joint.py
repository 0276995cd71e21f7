"""The gradients of one step: losses over a joint batch that no process, or no moment, needs to hold whole.

Negatives come from the whole batch. Where several processes train, each encodes its share and all encodings are
gathered. Where a share is too large for the memory, it is encoded in chunks, twice (gradient caching, Gao et al.,
RepL4NLP 2021). The first pass, without a graph, gives the loss and its gradients in the encodings. The second encodes
each chunk with a graph, which these gradients go into. Dropout draws the same both times.

Batch norm sees one chunk of all processes at a time: joint statistics would need a pass over all chunks for every
layer. So several processes give the gradients of one, and chunks those of the same chunks encoded with a graph.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.batches import TeacherBatch
from train.feed import FedBatch
from train.masking import running_statistics_kept
from train.model import Pairs, RetrievalModel
from train.processes import Processes, combined, isolated, padded_to, tensors_of


@dataclass(frozen=True, slots=True)
class _Joint:
    """Pairs with the image of each, int64 ``[B]``, and what teachers make of them: what is gathered."""

    pairs: Pairs
    image: Tensor
    teachers: TeacherBatch | None


def joint_gradients(
    model: RetrievalModel,
    part: FedBatch,
    *,
    epoch: int,
    seed: Sequence[int],
    processes: Processes,
    autocast: Callable[[], AbstractContextManager],
    last: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Tensor]:
    """Add the gradients of a joint batch to the model's, those of this process's `part` of it, which is on the device.

    Parameters
    ----------
    seed : numbers that dropout follows, others in every step; each process and chunk adds its own number here.
    last : the context of the backward that gives parameters the last part of their gradients.

    Returns
    -------
    the loss terms of the joint batch, scalars on the device, the same in every process. Gradients are complete after
    their mean over the processes (`GradientMean`).
    """
    if part.alone:
        processes = processes.alone()
        with isolated():
            return joint_gradients(
                model,
                replace(part, alone=False),
                epoch=epoch,
                seed=seed,
                processes=processes,
                autocast=autocast,
                last=last,
            )

    def encoded(chunk: int) -> Pairs:
        torch.manual_seed(int(np.random.SeedSequence([*seed, processes.rank, chunk]).generate_state(1)[0]))
        with autocast():
            return model(part.regions[chunk], part.words[chunk])

    def joint(pairs: Pairs) -> _Joint:
        return _Joint(pairs, part.image, part.teachers)

    if len(part.shares) == 1:
        return _backward(model, joint(encoded(0)), epoch, processes, autocast, last)
    with torch.no_grad():
        whole = combined(_joined, *(encoded(chunk) for chunk in range(len(part.shares))))
    leaves = combined(_leaf, whole)
    terms = _backward(model, joint(leaves), epoch, processes, autocast)
    slopes = [leaf.grad for leaf in tensors_of(leaves)]
    first = 0
    with running_statistics_kept(model):
        for chunk, own in enumerate(part.shares):
            pairs = tensors_of(encoded(chunk))
            handed = [
                (tensor, slope[first : first + len(own)][tuple(slice(size) for size in tensor.shape)])
                for tensor, slope in zip(pairs, slopes, strict=True)
                if tensor.requires_grad and slope is not None
            ]
            with last() if chunk == len(part.shares) - 1 else nullcontext():
                torch.autograd.backward(*zip(*handed, strict=True))
            first += len(own)
    return terms


def _backward(
    model: RetrievalModel,
    mine: _Joint,
    epoch: int,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager],
    last: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Tensor]:
    if processes.count > 1:
        mine = replace(mine, pairs=mine.pairs.only(model.reads(epoch)))
    joint = processes.gathered(mine)
    with autocast():
        terms = model.terms(joint.pairs, joint.image, epoch, joint.teachers)
    with last():
        sum(terms.values()).backward()
    return {name: term.detach() for name, term in terms.items()}


def _joined(*tensors: Tensor) -> Tensor:
    widths = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([padded_to(tensor, widths) for tensor in tensors])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())
