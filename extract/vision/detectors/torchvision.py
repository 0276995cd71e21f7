"""Torchvision's Faster R-CNNs, with its own weights or ones that were trained with it.

Pictures are resized, proposals made and features pooled by torchvision's own modules; selection is this project's.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from extract.settings import BottomUpSettings, DetectionSettings
from extract.vision.decode import DECODING
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Candidates, Proposer, read_names
from extract.vision.rcnn.checkpoint import as_tensor, read_state
from extract.vision.weights import WeightsSettings, local_weights
from manifests.errors import InputError

_COCO = 91  # classes of COCO's ids, the background first and unused ids among them


class TorchvisionSettings(WeightsSettings):
    """A Faster R-CNN of torchvision's (`extract.vision.detectors.torchvision`); keys left out are as it has them."""

    name: Literal["torchvision"] = "torchvision"
    model: Literal[
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ]
    shortest: int | None = Field(
        None, ge=1, description="pixels of the shorter side after resizing: 800; of the 320 320"
    )
    longest: int | None = Field(None, ge=1, description="bound on the longer side, in pixels: 1333; of the 320 640")
    proposals_after: int | None = Field(None, ge=1, description="proposals kept after NMS: 1,000; of the 320 150")
    proposals_score: float | None = Field(
        None, ge=0, lt=1, description="objectness of a proposal at the least: 0; of the MobileNets 0.05"
    )
    norm_eps: float | None = Field(
        None, ge=0, description="of batch norm: 1e-5; 0 of fasterrcnn_resnet50_fpn, whose published weights have it so"
    )
    object_names: str | None = Field(
        None, description="text file, one class name a line; left out: torchvision's own of 90 classes"
    )


@DETECTORS.add("torchvision")
class TorchvisionDetector(Proposer):
    """A detector of torchvision's. Raises `InputError` for weights that don't fit the model, which it lists."""

    Settings = TorchvisionSettings
    least_side = 0.01
    attribute_names = None

    def __init__(
        self, settings: TorchvisionSettings, selection: BottomUpSettings | DetectionSettings | None, device: str
    ):
        self.selection, self.device = selection, device
        weights = local_weights(settings.weights, settings.sha256)
        state = {name: as_tensor(name, value, weights) for name, value in read_state(weights).items()}
        self.model, own = _built(settings, state)
        self.model.requires_grad_(False)
        _load(self.model, state, weights)
        self.model.to(device)
        self._settle_strides()
        transform = self.model.transform
        self._shortest, self._longest = transform.min_size[-1], transform.max_size
        self.recipe = {
            "name": settings.name,
            "model": settings.model,
            **own,
            "weights_sha256": settings.sha256,
            "decoding": DECODING,
            "resize_filter": "torchvision bilinear",
        }
        classes, self.dim = self.model.roi_heads.box_predictor.cls_score.weight.shape
        self.num_classes, self.num_attributes = classes - 1, 0
        self.object_names = read_names(settings.object_names, self.num_classes, "object_names")
        if self.object_names is None and classes == _COCO:
            self.object_names = coco_names()

    @torch.inference_mode()
    def _settle_strides(self) -> None:
        """Torchvision takes the maps' strides from the first picture that comes, and a tiny one would give others."""
        maps = self.model.backbone(torch.zeros(1, 3, 256, 256, device=self.device))
        self.model.roi_heads.box_roi_pool(maps, [torch.ones(1, 4, device=self.device)], [(256, 256)])

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        scale = min(self._shortest / min(width, height), self._longest / max(width, height))
        return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))

    def prepare(self, rgb: np.ndarray) -> Tensor:
        """An upright RGB picture (uint8 ``[H, W, 3]``), normalised and then resized: float32 ``[3, h, w]``."""
        picture = self.model.transform.normalize(torch.tensor(rgb).permute(2, 0, 1).contiguous().float().div_(255))
        width, height = self.network_size(rgb.shape[1], rgb.shape[0])
        if 1 in (width, height):  # torchvision's own rounding comes to no pixel at all
            return F.interpolate(picture[None], (height, width), mode="bilinear", align_corners=False)[0]
        return self.model.transform.resize(picture)[0]

    def candidates(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> list[Candidates]:
        from torchvision.models.detection.image_list import ImageList

        sizes = [tuple(pictures.shape[-2:])] * len(pictures)
        images = ImageList(
            self.model.transform.batch_images(list(pictures), self.model.transform.size_divisible), sizes
        )
        maps = self.model.backbone(images.tensors)
        boxes = self.model.rpn(images, maps)[0] if given is None else list(given)
        heads = self.model.roi_heads
        features = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
        logits, deltas = heads.box_predictor(features)
        counts = [len(own) for own in boxes]
        parts = [features, logits.softmax(-1)[:, 1:], deltas[:, 4:]]  # the background is torchvision's class 0
        return [
            Candidates(own, *each, None)
            for own, *each in zip(boxes, *(part.split(counts) for part in parts), strict=True)
        ]


def _built(settings: TorchvisionSettings, state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """The model with as many classes as the weights have, and its facts for the recipe."""
    from torchvision.models import detection
    from torchvision.ops import FrozenBatchNorm2d

    classes = state.get("roi_heads.box_predictor.cls_score.bias")
    own = {
        "min_size": settings.shortest,
        "max_size": settings.longest,
        "rpn_post_nms_top_n_test": settings.proposals_after,
        "rpn_score_thresh": settings.proposals_score,
    }
    own = {key: value for key, value in own.items() if value is not None}
    count = _COCO if classes is None else max(2, classes.numel())  # the background and something else
    with torch.device("meta"):  # the weights take the place of all that would be drawn
        model = getattr(detection, settings.model)(weights=None, weights_backbone=None, num_classes=count, **own).eval()
    eps = settings.norm_eps
    if eps is None:
        eps = 0.0 if settings.model == "fasterrcnn_resnet50_fpn" else 1e-5
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and settings.model.endswith("_v2"):
            module.eps = eps
        elif isinstance(module, nn.BatchNorm2d):  # as torchvision has them where it loads weights of its own
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, FrozenBatchNorm2d(module.num_features, eps))
    rpn = model.rpn
    return model, {
        "shortest": model.transform.min_size[-1],
        "longest": model.transform.max_size,
        "proposals_before": rpn.pre_nms_top_n(),
        "proposals_after": rpn.post_nms_top_n(),
        "proposals_score": rpn.score_thresh,
        "norm_eps": eps,
    }


def _load(model: nn.Module, state: Mapping[str, Tensor], weights: Path) -> None:
    """Raises `InputError` that lists missing and unexpected parameters and wrong shapes."""
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise InputError(message, where=weights, fix="use the `model` that the weights are of") from None


def coco_names() -> tuple[str, ...]:
    """The names behind torchvision's 90 classes of COCO; those of ids that COCO doesn't use are ``N/A``."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"][1:])
