"""One pass over a split: every image and every caption is encoded once, and what is made of the encodings streams out.

Images pass a batch at a time, each batch with its captions behind it. So the local features of one batch are held, not
those of a split.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from manifests.progress import progress
from train.batches import WordBatch
from train.data import RetrievalData
from train.encoding import Encoding


class Collector(Protocol):
    """Takes what it needs of the encodings that pass."""

    def images(self, images: Sequence[int], seen: Encoding) -> None:
        """A batch of images of the split."""

    def captions(
        self, captions: Sequence[int], batch: WordBatch, read: Encoding, seen: Encoding, place: Tensor
    ) -> None:
        """A batch of captions: caption b's image is row ``place[b]`` of the last batch of images, `seen`."""


@torch.inference_mode()
def encode(
    model: nn.Module,
    data: RetrievalData,
    batch_size: int,
    collectors: Sequence[Collector],
    *,
    captions: Sequence[int] | None = None,
    share: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> None:
    """Encode every image and caption of `data`, or some `captions` (rising) and their images, for `collectors`.

    `share` is (rank, count) of processes that each encode every count-th batch of images, from the rank-th on. The
    model is used in evaluation mode and given back in the mode that it came in.
    """
    device = next(model.parameters()).device
    every = np.arange(data.num_captions) if captions is None else np.asarray(captions, np.int64)
    of_image = data.caption_image[every]
    images = np.arange(len(data.images)) if captions is None else np.unique(of_image)
    training = model.training
    model.eval()
    try:
        rank, count = share
        starts = range(rank * batch_size, len(images), count * batch_size)
        for start in progress(starts, what="encode", unit="batches", quiet=quiet):
            block = images[start : start + batch_size]
            seen = model.encode_images(data.region_batch(block.tolist()).to(device))
            for collector in collectors:
                collector.images(block.tolist(), seen)
            first, end = np.searchsorted(of_image, (block[0], block[-1] + 1))
            for low in range(first, end, batch_size):
                own = slice(low, min(low + batch_size, end))
                batch = data.word_batch(every[own].tolist()).to(device)
                read = model.encode_captions(batch)
                place = torch.from_numpy(np.searchsorted(block, of_image[own])).to(device)
                for collector in collectors:
                    collector.captions(every[own].tolist(), batch, read, seen, place)
    finally:
        model.train(training)
