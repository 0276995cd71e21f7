"""What a detector is to the region stage: pictures in, regions out.

A detector proposes; the selection rule chooses; both are the same for every network. Boxes are (x1, y1, x2, y2) in
pixels everywhere: of the network's picture in `Candidates`, of the original picture in `Regions`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from extract.selection import bottom_up
from extract.settings import SelectionSettings
from extract.stores.regions import Regions
from manifests.errors import InputError


@dataclass(frozen=True, slots=True)
class Candidates:
    """One picture's proposals before selection.

    boxes ``[P, 4]`` in the network's picture, features ``[P, D]``, class probabilities without background ``[P, C]``,
    attribute probabilities ``[P, A]`` or None.
    """

    boxes: Tensor
    features: Tensor
    classes: Tensor
    attributes: Tensor | None


class Detector(ABC):
    """A region extractor.

    Attributes
    ----------
    recipe : everything that decides its numbers by design, as JSON; part of the store's recipe hash.
    selection : the rule that chooses regions among its proposals.
    dim : D, the length of a region feature.
    object_names, attribute_names : the names behind the ids; `attribute_names` is None where it knows none.
    """

    recipe: dict[str, Any]
    selection: SelectionSettings
    dim: int
    object_names: tuple[str, ...]
    attribute_names: tuple[str, ...] | None

    @abstractmethod
    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which a picture of that size is resized: pictures that share it can share a batch."""

    @abstractmethod
    def candidates(self, pictures: Tensor) -> list[Candidates]:
        """Propose regions in uint8 RGB pictures ``[B, 3, H, W]`` of `network_size`."""

    def prepare(self, rgb: np.ndarray) -> Tensor:
        """Resize an upright RGB picture (uint8 ``[H, W, 3]``) to uint8 ``[3, h, w]``: PIL's bilinear filter."""
        size = self.network_size(rgb.shape[1], rgb.shape[0])
        image = Image.fromarray(rgb)
        resized = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    @torch.inference_mode()
    def detect(self, pictures: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Regions]:
        """Regions of `prepare`d pictures, uint8 ``[B, 3, h, w]``, whose original (width, height) are `sizes`.

        Raises `InputError` where a picture has fewer proposals than ``selection.min_boxes``.
        """
        scale_to = (pictures.shape[-1], pictures.shape[-2])
        return [
            self._regions(found, scale_to, size)
            for found, size in zip(self.candidates(pictures), sizes, strict=True)
        ]

    def _regions(self, found: Candidates, network_size: tuple[int, int], size: tuple[int, int]) -> Regions:
        rows = bottom_up(
            found.boxes,
            found.classes,
            min_boxes=self.selection.min_boxes,
            max_boxes=self.selection.max_boxes,
            nms_threshold=self.selection.nms_threshold,
            score_threshold=self.selection.score_threshold,
        )
        if len(rows) < self.selection.min_boxes:
            raise InputError(
                f"the detector proposes {len(rows)} regions in a picture of {size[0]} x {size[1]} pixels, fewer than "
                f"the {self.selection.min_boxes} asked for",
                where="params.yaml, `selection.min_boxes`",
                fix="lower it, or let the detector see larger pictures",
            )
        x, y = size[0] / network_size[0], size[1] / network_size[1]
        boxes = found.boxes[rows].float() * found.boxes.new_tensor([x, y, x, y], dtype=torch.float32)
        limits = boxes.new_tensor([*size, *size])
        objects_conf, objects_id = found.classes[rows].max(1)
        attributes = None if found.attributes is None else found.attributes[rows].max(1)
        return Regions(
            features=found.features[rows].half().cpu().numpy(),
            boxes=boxes.clamp(min=0).minimum(limits).cpu().numpy(),
            image_size=size,
            objects_id=objects_id.int().cpu().numpy(),
            objects_conf=objects_conf.float().cpu().numpy(),
            attrs_id=None if attributes is None else attributes.indices.int().cpu().numpy(),
            attrs_conf=None if attributes is None else attributes.values.float().cpu().numpy(),
        )
