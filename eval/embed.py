"""The embeddings of a split: one vector an image and one a caption, computed once and reused by every later step.

`images.npy` `[N, E]` and `captions.npy` `[C, E]`, float32, in the order of `RetrievalData`; scores are dot products.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from manifests.errors import InputError
from manifests.files import atomic
from manifests.progress import progress
from train.data import RetrievalData


@torch.inference_mode()
def embed(
    model: nn.Module, data: RetrievalData, batch_size: int, *, run: str, quiet: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every image and every caption of `data`: float32 `[N, E]` and `[C, E]`.

    The model is used in evaluation mode and given back in the mode that it came in. NaN or infinite embeddings raise
    InputError, which names `run`.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        images = _encode(
            lambda rows: model.encode_images(data.region_batch(rows).to(device)).embedding,
            len(data.images), batch_size, what="embed images", unit="images", quiet=quiet,
        )  # fmt: skip
        captions = _encode(
            lambda rows: model.encode_captions(data.word_batch(rows).to(device)).embedding,
            data.num_captions, batch_size, what="embed captions", unit="captions", quiet=quiet,
        )  # fmt: skip
    finally:
        model.train(training)
    for kind, vectors in (("image", images), ("caption", captions)):
        broken = ~np.isfinite(vectors).all(axis=1)
        if broken.any():
            raise InputError(
                f"{broken.sum()} of {len(vectors)} {kind} embeddings hold NaN or infinite numbers",
                where=f"run {run}, {kind} {int(np.argmax(broken))} of the split",
                fix="train the run again with a lower learning rate or stronger gradient clipping",
            )
    return images, captions


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one `.npy` file atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one `.npz` file of named arrays atomically; equal arrays give equal bytes."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _encode(
    encode: Callable[[list[int]], torch.Tensor], count: int, batch_size: int, *, what: str, unit: str, quiet: bool
) -> np.ndarray:
    if not count:
        raise InputError(f"the split has no {unit}", where="evaluation", fix="choose a split that has some")
    starts = range(0, count, batch_size)
    batches = starts if quiet else progress(starts, what=what, unit="batches")
    vectors = [encode(list(range(start, min(start + batch_size, count)))).float().cpu().numpy() for start in batches]
    return np.concatenate(vectors).astype(np.float32, copy=False)
