"""Detectron2's checkpoints behind the `Detector` interface, without detectron2."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from extract.settings import BottomUpSettings, DetectionSettings
from extract.vision.decode import DECODING
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Candidates, Proposer, precision, read_names
from extract.vision.rcnn.checkpoint import from_benchmark, from_caffe, is_benchmark, is_caffe, read_checkpoint
from extract.vision.weights import WeightsSettings, local_weights
from manifests.errors import InputError

if TYPE_CHECKING:
    from extract.vision.rcnn.network import Outputs

_CONVENTIONS = {
    *("stride_in_1x1", "pooling", "pooler_resolution", "sampling_ratio", "anchor_sizes", "anchor_ratios"),
    *("anchor_offset", "proposals_before", "proposals_after", "proposals_min_size"),
}
_NOT_IN_RECIPE = {"weights", "sha256", "object_names", "attribute_names"}
_CAFFE = {"pooling": "pool", "pixel_mean": (102.9801, 115.9465, 122.7717)}
"""Of bottom-up attention's own network, where the settings don't name them."""
_BENCHMARK = {"pooling": "unaligned"}
"""Of maskrcnn-benchmark's."""


class RCNNSettings(WeightsSettings):
    """A detectron2 checkpoint on torchvision's parts (`extract.vision.rcnn.network`), detectron2's defaults."""

    shortest: int = Field(600, ge=1, description="pixels of the shorter side after resizing")
    longest: int = Field(1000, ge=1, description="bound on the longer side, in pixels")
    pixel_order: Literal["BGR", "RGB"] = "BGR"
    pixel_mean: tuple[float, float, float] = Field((103.53, 116.28, 123.675), description="in pixel_order")
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stride_in_1x1: bool = Field(True, description="where a stage strides: true for R50 and R101, false for X152")
    pooling: Literal["align", "unaligned", "pool"] = Field(
        "align", description="detectron2's ROIAlignV2, its ROIAlign or caffe's RoIPool"
    )
    pooler_resolution: int | None = Field(
        None,
        ge=1,
        description="cells a side of a pooled region: 14 of a C4, 7 of an FPN; 7 in published X152-C4 configs",
    )
    sampling_ratio: int = Field(0, ge=0, description="of RoIAlign: 0 adapts to the box, 2 in bottom-up configs")
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = Field(0.0, ge=0, lt=1, description="of the first anchor from the corner, in strides")
    proposals_before: int = Field(6000, ge=1, description="proposals kept before NMS, a level")
    proposals_after: int = Field(300, ge=1, description="proposals kept after NMS")
    proposals_nms: float = Field(0.7, gt=0, le=1)
    proposals_min_size: float = Field(0.0, ge=0, description="pixels that both sides of a proposal must exceed")
    box_weights: tuple[float, float, float, float] = Field(
        (10.0, 10.0, 5.0, 5.0), description="the divisors of the box head's deltas: BBOX_REG_WEIGHTS"
    )
    network: Literal["caffe"] | None = Field(
        None,
        description="caffe: bottom-up attention's own, whatever the objectness says: the stem's pooling starts at the "
        "border, res5 is dilated, the last attribute is none",
    )
    variance_includes_eps: bool = Field(False, description="old checkpoints, before FrozenBatchNorm's version 3")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    object_names: str | None = Field(None, description="text file, one class name a line")
    attribute_names: str | None = Field(None, description="text file, one attribute name a line")

    later = frozenset({"pooler_resolution", "anchor_offset", "proposals_min_size", "box_weights", "network"})


@DETECTORS.add("rcnn")
class RCNNDetector(Proposer):
    """A C4 or FPN network from a checkpoint's own shapes.

    Raises `InputError` that lists missing and unexpected parameters and wrong shapes.
    """

    Settings = RCNNSettings

    def __init__(self, settings: RCNNSettings, selection: BottomUpSettings | DetectionSettings | None, device: str):
        from extract.vision.rcnn.network import Conventions, build  # torchvision takes a second to import

        weights = local_weights(settings.weights, settings.sha256)
        state = read_checkpoint(weights)
        converted, self.inclusive = is_caffe(state), is_benchmark(state)
        caffe = converted or settings.network == "caffe"
        defaults = _CAFFE if caffe else _BENCHMARK if self.inclusive else {}
        settings = settings.model_copy(
            update={key: value for key, value in defaults.items() if key not in settings.model_fields_set}
        )
        self.settings, self.selection, self.device = settings, selection, device
        self.recipe = _recipe(settings) | ({"caffe": True} if caffe else {})
        self.recipe |= {"maskrcnn_benchmark": True} if self.inclusive else {}
        if settings.variance_includes_eps:
            state = {k: v - 1e-5 if k.endswith("running_var") else v for k, v in state.items()}
        self.box_weights = settings.box_weights
        conventions = Conventions(
            **settings.model_dump(include=_CONVENTIONS),
            rpn_nms=settings.proposals_nms,
            caffe=caffe,
            none_last=caffe or self.inclusive,
            inclusive=self.inclusive,
        )
        try:
            if converted:
                state = from_caffe(state, self.box_weights)
            elif self.inclusive:
                state = from_benchmark(state)
            network = build(state, conventions)
        except KeyError as error:
            raise InputError(
                f"the checkpoint has no parameter {error.args[0]!r}",
                where=weights,
                fix="use a whole checkpoint of a C4 or FPN Faster R-CNN",
            ) from error
        except (RuntimeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:  # of impossible shapes
            raise InputError(
                " ".join(str(error).split()),
                where=weights,
                fix="use a checkpoint whose parameters fit together, and the settings that it was trained with",
            ) from error
        self._dtype, self._layout = precision(settings.precision)
        self.network = network.to(device, self._dtype, memory_format=self._layout)
        self.dim = self.network.dim
        self.num_classes, self.num_attributes = self.network.num_classes, self.network.num_attributes
        self.object_names = read_names(settings.object_names, self.num_classes, "object_names")
        attributes = self.num_attributes
        self.attribute_names = (
            read_names(settings.attribute_names, attributes, "attribute_names") if attributes else None
        )
        self._mean = torch.tensor(settings.pixel_mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(settings.pixel_std, device=device).view(3, 1, 1)

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        """Detectron2's ResizeShortestEdge, its order of rounding included, or maskrcnn-benchmark's Resize."""
        if self.inclusive:
            shortest, least, most = self.settings.shortest, min(width, height), max(width, height)
            if most / least * shortest > self.settings.longest:
                shortest = round(self.settings.longest * least / most)
            sides = [shortest if side == least else int(shortest * side / least) for side in (width, height)]
            return max(1, sides[0]), max(1, sides[1])
        scale = self.settings.shortest / min(width, height)
        sides = [self.settings.shortest if side == min(width, height) else scale * side for side in (width, height)]
        if max(sides) > self.settings.longest:
            shrink = self.settings.longest / max(sides)
            sides = [side * shrink for side in sides]
        return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))

    def outputs(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> "list[Outputs]":
        """Everything that the network says of `prepare`d pictures, uint8 RGB ``[B, 3, h, w]``, or of `given` boxes."""
        x = pictures.to(self.device)
        if self.settings.pixel_order == "BGR":
            x = x.flip(1)
        x = ((x.float() - self._mean) / self._std).to(self._dtype, memory_format=self._layout)
        at_least = max(1, self.selection.min_boxes) if self.selection else 1
        return self.network(x, at_least=at_least, given=given)

    def candidates(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> list[Candidates]:
        return [
            Candidates(
                boxes=found.proposals,
                features=found.features,
                classes=found.logits.float().softmax(1)[:, :-1],
                deltas=found.deltas.float(),
                attributes=None
                if found.attributes is None
                else found.attributes.float().softmax(1)[:, : self.network.num_attributes],
            )
            for found in self.outputs(pictures, given)
        ]


def _recipe(settings: RCNNSettings) -> dict[str, Any]:
    values = {key: value for key, value in settings.decides().items() if key not in _NOT_IN_RECIPE}
    return {**values, "weights_sha256": settings.sha256, "decoding": DECODING, "resize_filter": "PIL bilinear"}
