"""The base of detectors: pictures in, regions out.

A detector that proposes leaves the choice to a selection rule, the same for every network. Any detector describes boxes
that it is given, in their order. Boxes are (x1, y1, x2, y2) in pixels everywhere: of the network's picture in
`Candidates`, of the original picture in `Regions`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from extract.settings import BottomUpSettings, DetectionSettings
from extract.stores.regions import Regions
from manifests.errors import InputError
from manifests.jsonl import read_utf8


@dataclass(frozen=True, slots=True)
class Candidates:
    """One picture's proposals before selection.

    boxes ``[P, 4]`` in the network's picture, features ``[P, D]``, class probabilities without background ``[P, C]``,
    box deltas of every class ``[P, 4 C]``, attribute probabilities ``[P, A]`` or None.
    """

    boxes: Tensor
    features: Tensor
    classes: Tensor
    deltas: Tensor
    attributes: Tensor | None


class TooFewProposals(InputError):
    """A picture in which a detector proposes fewer regions than ``selection.min_boxes``."""


class Detector(ABC):
    """A region extractor.

    Attributes
    ----------
    recipe : everything that decides its numbers by design, as JSON; part of the store's recipe hash.
    fixed : the number of regions of every picture; None where it varies.
    most : a bound on it; None where boxes are given.
    proposes : whether it makes proposals, among which a selection chooses.
    device : where its network is.
    dim : D, the length of a region feature.
    object_names, attribute_names : the names behind the ids; None where it knows none.
    """

    recipe: dict[str, Any]
    fixed: int | None
    most: int | None
    proposes: ClassVar[bool] = False
    device: str
    dim: int
    object_names: tuple[str, ...] | None
    attribute_names: tuple[str, ...] | None

    @abstractmethod
    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to which a picture of that size is resized: pictures that share it can share a batch."""

    @abstractmethod
    def detect(
        self, pictures: Tensor, sizes: Sequence[tuple[int, int]], given: Sequence[np.ndarray] | None = None
    ) -> list[Regions]:
        """Regions of `prepare`d pictures ``[B, 3, h, w]``; `sizes` are their original (width, height).

        given : boxes float32 ``[R, 4]`` of each picture, in original pixels, to describe instead of the detector's own.

        Raises `InputError` where a picture has fewer proposals than the selection asks for.
        """

    def prepare(self, rgb: np.ndarray) -> Tensor:
        """Resize an upright RGB picture (uint8 ``[H, W, 3]``) to uint8 ``[3, h, w]``: PIL's bilinear filter.

        A detector of a library that resizes in another way may give another dtype.
        """
        size = self.network_size(rgb.shape[1], rgb.shape[0])
        if size != (rgb.shape[1], rgb.shape[0]):
            rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        return torch.from_numpy(rgb.transpose(2, 0, 1).copy())

    def moved(self, pictures: Tensor) -> Tensor:
        """Pictures on `device`."""
        if self.device.startswith("cuda"):
            return pictures.pin_memory().to(self.device, non_blocking=True)
        return pictures

    def rescaled(
        self, boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], network: tuple[int, int]
    ) -> list[Tensor]:
        """Boxes ``[R, 4]`` in pixels of the originals (width, height) as boxes of the network's pictures, (h, w)."""
        scales = [(network[1] / width, network[0] / height) * 2 for width, height in sizes]
        return [torch.tensor(b * np.float32(s), device=self.device) for b, s in zip(boxes, scales, strict=True)]


class Proposer(Detector):
    """A detector that proposes boxes with classes.

    selection : the rule that chooses regions among its proposals; None where all boxes are given.
    box_weights : the divisors of its box deltas.
    least_side : pixels of the network's picture, under which a regressed box is dropped.
    inclusive : whether its boxes end with their last pixel.
    """

    proposes = True
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    least_side: float = 0.0
    inclusive: bool = False
    selection: BottomUpSettings | DetectionSettings | None

    @abstractmethod
    def candidates(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> list[Candidates]:
        """Propose regions in `prepare`d RGB pictures ``[B, 3, H, W]`` of `network_size`, on `device`.

        given : boxes ``[P, 4]`` of each picture, in its pixels, to take instead of proposals.
        """

    @property
    def fixed(self) -> int | None:
        return None if self.selection is None else self.selection.fixed

    @property
    def most(self) -> int | None:
        return None if self.selection is None else self.selection.max_boxes

    @torch.inference_mode()
    def detect(
        self, pictures: Tensor, sizes: Sequence[tuple[int, int]], given: Sequence[np.ndarray] | None = None
    ) -> list[Regions]:
        network = pictures.shape[-2:]
        boxes = None if given is None else self.rescaled(given, sizes, network)
        found = self.candidates(self.moved(pictures), boxes)
        regions = [self._regions(f, network, size) for f, size in zip(found, sizes, strict=True)]
        return regions if given is None else [replace(r, boxes=b) for r, b in zip(regions, given, strict=True)]

    def _regions(self, found: Candidates, network: tuple[int, int], size: tuple[int, int]) -> Regions:
        rows, boxes, objects_id, objects_conf = self._select(found, network)
        if self.selection and len(rows) < self.selection.min_boxes:
            raise TooFewProposals(
                f"the detector proposes {len(rows)} regions in a picture of {size[0]} x {size[1]} pixels, fewer than "
                f"the {self.selection.min_boxes} asked for",
                where="params.yaml, `selection.min_boxes`",
                fix="lower it, or let the detector see larger pictures",
            )
        x, y = size[0] / network[1], size[1] / network[0]
        boxes = boxes.float() * boxes.new_tensor([x, y, x, y], dtype=torch.float32)
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([*size, *size]))
        if self.selection and self.selection.rule == "detections":  # a box outside the picture has no area in it
            inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
            rows, boxes, objects_id, objects_conf = (of[inside] for of in (rows, boxes, objects_id, objects_conf))
        attributes = None if found.attributes is None else found.attributes[rows].max(1)
        return Regions(
            features=found.features[rows].half().cpu().numpy(),
            boxes=boxes.cpu().numpy(),
            image_size=size,
            objects_id=objects_id.int().cpu().numpy(),
            objects_conf=objects_conf.float().cpu().numpy(),
            attrs_id=None if attributes is None else attributes.indices.int().cpu().numpy(),
            attrs_conf=None if attributes is None else attributes.values.float().cpu().numpy(),
        )

    def _select(self, found: Candidates, network: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of the proposals, boxes in the network's picture, classes and their confidence."""
        from extract.vision.selection import bottom_up, detections  # torchvision takes a second to import

        if self.selection is None:
            confidence, classes = found.classes.max(1)
            return torch.arange(len(classes), device=classes.device), found.boxes, classes, confidence
        thresholds = {
            "max_boxes": self.selection.max_boxes,
            "nms_threshold": self.selection.nms_threshold,
            "score_threshold": self.selection.score_threshold,
        }
        if self.selection.rule == "detections":
            rows, classes, boxes = detections(
                found.boxes,
                found.classes,
                found.deltas,
                (network[0], network[1]),
                box_weights=self.box_weights,
                least_side=self.least_side,
                inclusive=self.inclusive,
                **thresholds,
            )
            return rows, boxes, classes, found.classes[rows, classes]
        rows = bottom_up(found.boxes, found.classes, min_boxes=self.selection.min_boxes, **thresholds)
        confidence, classes = found.classes[rows].max(1)
        return rows, found.boxes[rows], classes, confidence


def precision(name: str) -> tuple[torch.dtype, torch.memory_format]:
    """The dtype of that name, and the layout in which convolutions of it are fastest.

    In half precision that is channels last (docs/extraction.md has figures); float32 keeps the layout, and so the bits,
    of everybody's features.
    """
    return getattr(torch, name), torch.contiguous_format if name == "float32" else torch.channels_last


def read_names(file: str | None, count: int, key: str) -> tuple[str, ...] | None:
    """The names of a text file, one a line; None without a file.

    Raises `InputError`, with the setting `key`, unless there are `count` of them.
    """
    if file is None:
        return None
    # Lines end at "\n" alone: Python takes other marks, which a name may hold, for a line's end as well.
    names = tuple(line.removesuffix("\r") for line in read_utf8(Path(file)).removesuffix("\n").split("\n"))
    if len(names) != count:
        raise InputError(
            f"{len(names)} names for {count} ids",
            where=file,
            fix=f"give `detector.{key}` one line an id, background left out",
        )
    return names
