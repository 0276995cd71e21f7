"""The embeddings of a split: computed once, written once, reused by every later step through memory maps.

The score of an image and a caption is the best of the image's views against the caption's first P numbers. The context
parts' product, which the views share, is added (docs/method.md):

    max over v of pooled[i, v] · captions[c, :P]  +  context[i] · captions[c, P:]

N images of k views, C captions, P and S the lengths of the base's and of the context's part; S may be 0.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch

from eval.arrays import open_array, save_array
from eval.scores import as_scores, paired_products, paired_products_on_device, require_finite_scale, rounding
from manifests.errors import InputError
from train.device import fits_on_gpu

PARTS = ("pooled", "context", "captions")


@dataclass(frozen=True)
class Embeddings:
    """`pooled [N, k, P]`, `context [N, S]` and `captions [C, P + S]`, float32, in the order of `RetrievalData`.

    They are `eval.scores.Scores`, multiplied on `device`.
    """

    pooled: np.ndarray
    context: np.ndarray
    captions: np.ndarray
    device: str = "cpu"

    def __post_init__(self) -> None:
        images, _, dims = self.pooled.shape
        if self.context.shape[0] != images or self.captions.shape[1] != dims + self.context.shape[1]:
            raise InputError(
                "the parts don't fit together: "
                + ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in PARTS),
                where="embeddings",
                fix="give pooled [N, k, P], context [N, S] and captions [C, P + S]",
            )

    @property
    def num_images(self) -> int:
        return self.pooled.shape[0]

    @property
    def num_captions(self) -> int:
        return self.captions.shape[0]

    @property
    def views(self) -> int:
        return self.pooled.shape[1]

    @property
    def images(self) -> np.ndarray:
        """One vector an image, `[N, P + S]`: its views' mean and its context. A score's, where there is one view."""
        return np.concatenate([self.pooled.mean(axis=1), self.context], axis=1)

    @cached_property
    def _tensors(self) -> list[torch.Tensor]:
        """`PARTS` as tensors: on a GPU if half of its free memory holds them, else on the CPU."""
        arrays = [getattr(self, name) for name in PARTS]
        fits = fits_on_gpu(torch.device(self.device), sum(array.nbytes for array in arrays))
        return [torch.from_numpy(array).to(self.device if fits else "cpu") for array in arrays]

    @cached_property
    def largest(self) -> float:
        """No score is greater, either sign. Raises InputError where a number is NaN or infinite."""
        views = np.sqrt(np.einsum("nkp,nkp->nk", self.pooled, self.pooled).max(axis=1, initial=0))
        context = np.sqrt(np.einsum("ns,ns->n", self.context, self.context))
        captions = np.sqrt(np.einsum("ce,ce->c", self.captions, self.captions))
        return require_finite_scale(float(np.hypot(views, context).max() * captions.max()))

    def tolerance(self, precision: torch.dtype) -> float:
        """The most by which a `block` is off."""
        return rounding(self.captions.shape[1], self.largest, precision)

    def block(self, images: slice, captions: slice, precision: torch.dtype = torch.float32) -> np.ndarray:
        """The scores `[I, C]` of some images and captions; float64 for float64, otherwise float32."""
        return self.block_on_device(images, captions, precision).cpu().numpy()

    def block_on_device(self, images: slice, captions: slice, precision: torch.dtype = torch.float32) -> torch.Tensor:
        """The same embeddings, left on the device."""
        dims = self.pooled.shape[2]
        views, context, read = (
            array[part].to(self.device, precision)
            for array, part in zip(self._tensors, (images, images, captions), strict=True)
        )
        found = views.flatten(0, 1) @ read[:, :dims].T
        if self.views > 1:
            found = found.view(-1, self.views, len(read)).amax(dim=1)
        found = as_scores(found)
        if context.shape[1]:
            found = found + as_scores(context @ read[:, dims:].T)
        return found

    def exact(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The scores of M pairs in float64, `[M]`."""
        dims, on_device = self.pooled.shape[2], self._tensors[0].device.type != "cpu"
        pooled, context, read = self._tensors if on_device else (self.pooled, self.context, self.captions)
        products = paired_products_on_device if on_device else paired_products
        best = products(pooled, read[:, :dims], images, captions).max(axis=1)
        if context.shape[1]:
            best += products(context[:, None], read[:, dims:], images, captions)[:, 0]
        return best

    def part(self, images: slice, captions: slice) -> Self:
        """The embeddings of some images and captions only."""
        return type(self)(self.pooled[images], self.context[images], self.captions[captions], self.device)

    def require_finite(self, run: str) -> None:
        """Raise InputError, which names `run` and the first broken item, where a number is NaN or infinite."""
        images = np.isfinite(self.pooled).all(axis=(1, 2)) & np.isfinite(self.context).all(axis=1)
        for kind, whole in (("image", images), ("caption", np.isfinite(self.captions).all(axis=1))):
            if not whole.all():
                raise InputError(
                    f"{np.sum(~whole)} of {len(whole)} {kind} embeddings hold NaN or infinite numbers",
                    where=f"run {run}, {kind} {int(np.argmin(whole))} of the split",
                    fix="train the run again with a lower learning rate or stronger gradient clipping",
                )

    def save(self, folder: Path) -> None:
        """Write `pooled.npy`, `context.npy` and `captions.npy` into `folder`, each atomically."""
        for name in PARTS:
            save_array(folder / f"{name}.npy", np.ascontiguousarray(getattr(self, name), np.float32))

    @classmethod
    def open(cls, folder: Path, *, run: str) -> Self:
        """Map what `save` wrote; no change to the arrays reaches it. InputError, naming `run`, where it is missing."""
        fix = f"dvc repro evaluate@{run}"
        try:
            return cls(*open_parts(folder, fix=fix))
        except InputError as error:
            message = f"no readable embeddings of run {run} ({error.what})"
            raise InputError(message, where=error.where, fix=fix) from error


def open_parts(folder: Path, *, fix: str) -> list[np.ndarray]:
    """The `PARTS` that lie in `folder`, mapped. Raises InputError, with `fix`, where they don't fit together."""
    pooled, context, captions = (
        open_array(folder / f"{name}.npy", "<f4", dims, fix=fix) for name, dims in zip(PARTS, (3, 2, 2), strict=True)
    )
    if not all(pooled.shape) or len(context) != len(pooled) or captions.shape[1] != pooled.shape[2] + context.shape[1]:
        message = f"pooled {list(pooled.shape)}, context {list(context.shape)}, captions {list(captions.shape)}"
        raise InputError(f"the parts don't fit together: {message}", where=folder, fix=fix)
    return [pooled, context, captions]
