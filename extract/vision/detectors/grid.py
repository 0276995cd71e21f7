"""A vision model's feature map as regions, without a detector: its cells, fixed boxes, or the pooled vector alone.

It proposes nothing and selects nothing: a picture has the same regions as every other one, without classes.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from extract.stores.regions import Regions
from extract.vision.backbones import LIBRARIES, BackboneSettings
from extract.vision.decode import DECODING
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Detector, precision
from manifests.errors import InputError

MOST = 100
SAMPLES = 7  # a side: a number that adapted to the box would jump with the last bit of its coordinates
_MODELS_OWN = {"revision", "weights", "sha256"}  # where it comes from, which its own recipe says by hashes
_Share = Annotated[float, Field(ge=0, le=1)]


def _overlapping(across: int, side: float) -> list[tuple[float, ...]]:
    """`across` by `across` squares of `side`, evenly spread, row by row."""
    starts = [n * (1 - side) / (across - 1) for n in range(across)]
    return [(x, y, x + side, y + side) for y in starts for x in starts]


PYRAMID = (
    (0.0, 0.0, 1.0, 1.0),
    *_overlapping(2, 0.66),
    *_overlapping(3, 0.45),
    *_overlapping(4, 0.32),
    *((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)),
    *((0.25, 0.25, 0.75, 0.75), (0.0, 0.25, 1.0, 0.75)),
)
"""36 boxes (x1, y1, x2, y2) in parts of the picture: the whole, overlapping squares, halves and the middle."""


class GridSettings(BackboneSettings):
    """A vision model's feature map on boxes that are the same for every picture."""

    name: Literal["grid"] = "grid"
    boxes: (
        Literal["pyramid", "cells", "pooled"]
        | Annotated[str, Field(pattern="^[1-9][0-9]?x[1-9][0-9]?$")]
        | Annotated[tuple[tuple[_Share, _Share, _Share, _Share], ...], Field(min_length=1, max_length=MOST)]
    ) = Field(
        "pyramid",
        description="pyramid: 36 boxes; ROWSxCOLUMNS: so many equal ones; cells: the map's own; pooled: the model's "
        "pooled vector as the only region; or a list of (x1, y1, x2, y2) in parts of the picture",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.boxes == "pooled" and self.layer is not None and self.library != "torchvision":
            raise ValueError("`boxes: pooled` reads no `layer`")
        if isinstance(self.boxes, tuple) and any(x1 >= x2 or y1 >= y2 for x1, y1, x2, y2 in self.boxes):
            raise ValueError("`boxes` must have x1 < x2 and y1 < y2")
        if isinstance(self.boxes, str) and self.boxes[0].isdigit() and math.prod(_sides(self.boxes)) > MOST:
            raise ValueError(f"`boxes: {self.boxes}` are more than {MOST}")
        return self


@DETECTORS.add("grid")
class GridDetector(Detector):
    """Regions of fixed or given boxes; a feature is the mean of 7 x 7 samples of the map (RoIAlign, aligned)."""

    Settings = GridSettings
    object_names = None
    attribute_names = None

    def __init__(self, settings: GridSettings, selection: None, device: str):
        self.settings, self.device = settings, device
        self.backbone = LIBRARIES[settings.library](settings, settings.boxes == "pooled")
        self.size = settings.size or self.backbone.size
        self._dtype, self._layout = precision(settings.precision)
        self.backbone.network.eval().requires_grad_(False).to(device, self._dtype, memory_format=self._layout)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std)
        )
        found = self._map_of_grey()
        self.dim, self._parts = found.shape[0], _parts(settings.boxes, *found.shape[1:]).to(device)
        self.fixed = self.most = len(self._parts)
        self.recipe = {key: value for key, value in settings.decides().items() if key not in _MODELS_OWN} | {
            "model": self.backbone.recipe,
            "size": self.size,
            "pixel_mean": list(self.backbone.mean),
            "pixel_std": list(self.backbone.std),
            "regions": self.fixed,
            "pooling": f"RoIAlign 1x1, aligned, sampling ratio {SAMPLES}",
            "decoding": DECODING,
            "resize_filter": "PIL bilinear",
        }
        if self.fixed > MOST:
            fix = "set boxes to fewer of them, such as 7x7"
            raise InputError(f"its map has {self.fixed} cells, more than {MOST}", where="detector.boxes", fix=fix)

    def _map_of_grey(self) -> Tensor:
        try:
            return self._map(torch.full((1, 3, self.size, self.size), 128, dtype=torch.uint8))[0]
        except InputError:
            raise
        except Exception as error:  # whatever a network raises at a size or a layer that isn't its own
            message = f"{self.settings.model} gives no features of a picture of {self.size} pixels ({error})"
            fix = f"use its own size, {self.backbone.size}, and a layer that it has"
            raise InputError(message, where="detector.size, detector.layer", fix=fix) from error

    @torch.inference_mode()
    def _map(self, pictures: Tensor) -> Tensor:
        """``[B, D, h, w]`` float32 of uint8 RGB pictures; ``[B, D, 1, 1]`` of the pooled vector."""
        x = self.moved(pictures).to(self.device, torch.float32) / 255
        x = ((x - self._mean) / self._std).to(self._dtype, memory_format=self._layout)
        if self.settings.boxes == "pooled":
            return self.backbone.pooled(x).float()[:, :, None, None]
        return self.backbone.feature_map(x).float()

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """A square, whatever the picture's proportions: boxes are parts of it."""
        return self.size, self.size

    @torch.inference_mode()
    def features(self, pictures: Tensor, boxes: Sequence[Tensor] | None = None) -> Tensor:
        """float32 ``[sum R, D]`` of `prepare`d pictures, uint8 RGB ``[B, 3, size, size]``.

        boxes : ``[R, 4]`` of each picture in its pixels; None for the detector's own.
        """
        from torchvision.ops import roi_align  # a second to import

        found = self._map(pictures)
        if boxes is None and self.settings.boxes in ("cells", "pooled"):
            return found.flatten(2).transpose(1, 2).flatten(0, 1)
        rois = [self._parts * self.size] * len(found) if boxes is None else list(boxes)
        return roi_align(found, rois, 1, found.shape[-1] / self.size, SAMPLES, aligned=True).flatten(1)

    def detect(
        self, pictures: Tensor, sizes: Sequence[tuple[int, int]], given: Sequence[np.ndarray] | None = None
    ) -> list[Regions]:
        if given is None:
            features = self.features(pictures)
            parts = self._parts.cpu().numpy()
            given = [parts * np.float32((*size, *size)) for size in sizes]
        else:
            features = self.features(pictures, self.rescaled(given, sizes, (self.size, self.size)))
        each = features.half().cpu().split([len(boxes) for boxes in given])
        return [Regions(own.numpy(), boxes, size) for own, boxes, size in zip(each, given, sizes, strict=True)]


def _parts(boxes: str | Sequence[Sequence[float]], rows: int, columns: int) -> Tensor:
    """Boxes ``[R, 4]`` in parts of the picture, where the map has so many rows and columns."""
    if boxes == "pyramid":
        boxes = PYRAMID
    if not isinstance(boxes, str):
        return torch.tensor(boxes, dtype=torch.float32)
    if boxes not in ("cells", "pooled"):
        rows, columns = _sides(boxes)
    places = itertools.product(range(rows), range(columns))
    return torch.tensor([(x / columns, y / rows, (x + 1) / columns, (y + 1) / rows) for y, x in places])


def _sides(boxes: str) -> tuple[int, int]:
    """Rows and columns of "7x7"."""
    rows, columns = map(int, boxes.split("x"))
    return rows, columns
