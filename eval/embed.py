"""Encodes a split with a model: `eval.embeddings.Embeddings` of its images and captions."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from eval.embeddings import Embeddings
from manifests.errors import InputError
from manifests.progress import progress
from train.data import RetrievalData
from train.encoding import Encoding


@torch.inference_mode()
def embed(model: nn.Module, data: RetrievalData, batch_size: int, *, run: str, quiet: bool = False) -> Embeddings:
    """Encode every image and every caption of `data`.

    The model is used in evaluation mode and given back in the mode that it came in. What is the same, a picture's
    bytes or a caption's text, is encoded once: the place in a batch moves an embedding's last bits, and equals must
    tie. NaN or infinite embeddings raise InputError, which names `run`.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        pooled, context = _encode(
            lambda rows: model.encode_images(data.region_batch(rows).to(device)),
            [image.sha256 for image in data.images], batch_size, unit="images", quiet=quiet,
        )  # fmt: skip
        read, said = _encode(
            lambda rows: model.encode_captions(data.word_batch(rows).to(device)),
            [data.caption_text(caption) for caption in range(data.num_captions)],
            batch_size, unit="captions", quiet=quiet,
        )  # fmt: skip
    finally:
        model.train(training)
    found = Embeddings(pooled, context, np.concatenate([read[:, 0], said], axis=1))
    found.require_finite(run)
    return found


def _encode(
    encode: Callable[[list[int]], Encoding], contents: list[str], batch_size: int, *, unit: str, quiet: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The pooled and the context part of every item, float32; those of equal contents are one's."""
    items, rows = distinct(contents, unit)
    encoded = list(batches(encode, items, batch_size, unit, quiet))
    return tuple(
        np.concatenate([getattr(batch, name).cpu().numpy().astype(np.float32) for batch in encoded])[rows]
        for name in ("pooled", "context")
    )


def distinct(contents: list[str], unit: str) -> tuple[list[int], np.ndarray]:
    """The first item of each content, and which of these every item is."""
    if not contents:
        raise InputError(f"the split has no {unit}", where="evaluation", fix="choose a split that has some")
    first = {content: item for item, content in reversed(list(enumerate(contents)))}
    items = sorted(first.values())
    return items, np.searchsorted(items, [first[content] for content in contents])


def batches(
    encode: Callable[[list[int]], Encoding], items: list[int], batch_size: int, unit: str, quiet: bool
) -> Iterator[Encoding]:
    """The encodings of some items, a batch at a time, under a progress bar unless `quiet`."""
    starts = range(0, len(items), batch_size)
    for start in starts if quiet else progress(starts, what=f"embed {unit}", unit="batches"):
        yield encode(items[start : start + batch_size])
