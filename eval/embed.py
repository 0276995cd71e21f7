"""Encodes a split with a model: `eval.embeddings.Embeddings` of its images and captions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eval.embeddings import Embeddings
from eval.encode import encode
from manifests.errors import InputError
from train.batches import WordBatch
from train.data import RetrievalData
from train.encoding import Encoding
from train.processes import summed_arrays


def embed(model: nn.Module, data: RetrievalData, batch_size: int, *, run: str, quiet: bool = False) -> Embeddings:
    """Encode every image and every caption of `data`. Raises InputError as `EmbeddingCollector.embeddings` does."""
    found = EmbeddingCollector(data)
    encode(model, data, batch_size, [found], quiet=quiet)
    return found.embeddings(run)


class EmbeddingCollector:
    """Collects the embeddings of a split.

    Equal pictures, by their bytes, and equal captions get one embedding: the place in a batch moves last bits, and
    equals must tie.
    """

    def __init__(self, data: RetrievalData):
        self._data = data
        self._arrays: dict[str, np.ndarray] = {}
        self._device = "cpu"

    def images(self, images: Sequence[int], seen: Encoding) -> None:
        count = len(self._data.images)
        self._keep("pooled", count, images, seen.pooled)
        self._keep("context", count, images, seen.context)

    def captions(
        self, captions: Sequence[int], batch: WordBatch, read: Encoding, seen: Encoding, place: Tensor
    ) -> None:
        self._keep("captions", self._data.num_captions, captions, torch.cat([read.pooled[:, 0], read.context], dim=-1))

    def embeddings(self, run: str, device: torch.device | None = None) -> Embeddings:
        """All of them, once they have passed, and those of the processes that have a share on their `device`.

        NaN or infinite ones raise InputError, which names `run`.
        """
        data, arrays = self._data, self._arrays
        if device is not None:
            arrays = summed_arrays(arrays, device)
        rows = distinct([image.sha256 for image in data.images], "images")
        texts = [data.caption_text(caption) for caption in range(data.num_captions)]
        firsts = {"pooled": rows, "context": rows, "captions": distinct(texts, "captions")}
        for name, first in firsts.items():
            again = np.flatnonzero(first != np.arange(len(first)))
            arrays[name][again] = arrays[name][first[again]]
        found = Embeddings(**arrays, device=self._device)
        found.require_finite(run)
        return found

    def _keep(self, name: str, count: int, items: Sequence[int], values: Tensor) -> None:
        if name not in self._arrays:
            self._arrays[name] = np.zeros((count, *values.shape[1:]), np.float32)
        self._device = str(values.device)
        self._arrays[name][items] = values.float().cpu().numpy()


def distinct(contents: list[str], unit: str) -> np.ndarray:
    """For every item the first one of its content, int64 `[N]`."""
    if not contents:
        raise InputError(f"the split has no {unit}", where="evaluation", fix="choose a split that has some")
    first = {content: item for item, content in reversed(list(enumerate(contents)))}
    return np.array([first[content] for content in contents])
