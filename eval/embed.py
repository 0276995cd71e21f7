"""Encodes a split with a model: `eval.embeddings.Embeddings` of its images and captions."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from eval.embeddings import Embeddings
from manifests.errors import InputError
from manifests.progress import progress
from train.data import RetrievalData


@torch.inference_mode()
def embed(model: nn.Module, data: RetrievalData, batch_size: int, *, run: str, quiet: bool = False) -> Embeddings:
    """Encode every image and every caption of `data`.

    The model is used in evaluation mode and given back in the mode that it came in. NaN or infinite embeddings raise
    InputError, which names `run`.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        pooled, context = _encode(
            lambda rows: model.encode_images(data.region_batch(rows).to(device)),
            len(data.images), batch_size, what="embed images", unit="images", quiet=quiet,
        )  # fmt: skip
        read, said = _encode(
            lambda rows: model.encode_captions(data.word_batch(rows).to(device)),
            data.num_captions, batch_size, what="embed captions", unit="captions", quiet=quiet,
        )  # fmt: skip
    finally:
        model.train(training)
    found = Embeddings(pooled, context, np.concatenate([read[:, 0], said], axis=1))
    found.require_finite(run)
    return found


def _encode(
    encode: Callable[[list[int]], object], count: int, batch_size: int, *, what: str, unit: str, quiet: bool
) -> tuple[np.ndarray, np.ndarray]:
    if not count:
        raise InputError(f"the split has no {unit}", where="evaluation", fix="choose a split that has some")
    starts = range(0, count, batch_size)
    batches = starts if quiet else progress(starts, what=what, unit="batches")
    encoded = [encode(list(range(start, min(start + batch_size, count)))) for start in batches]
    return tuple(
        np.concatenate([getattr(batch, name).float().cpu().numpy() for batch in encoded]).astype(np.float32, copy=False)
        for name in ("pooled", "context")
    )
