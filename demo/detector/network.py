"""The demo's detector: a small Faster R-CNN with an attribute head, made of torchvision's parts.

It has a residual backbone of stride 8 (16-32-64 channels), square anchors, RoIAlign 5x5 and a 256-d box head. That
head's output is the region feature. Three linear heads read it: 5 shapes and background, box deltas, 18 attributes
(colour and texture). Without the attribute head the features hold no colour. `training.py` trains it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import roi_align

from demo.detector.labels import ATTRIBUTES, FEATURE_DIM, OBJECTS, STRIDE
from extract.vision.detectors.base import Candidates
from extract.vision.rcnn.proposals import propose


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; `stride` on the first."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


class SceneRCNN(nn.Module):
    """The network. Pictures enter as float RGB ``[B, 3, H, W]`` in 0..1, H and W multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.backbone = nn.Sequential(stem, Block(16, 32, 2), Block(32, 64, 2), Block(64, 64, 1))
        self.anchors = AnchorGenerator(((20, 30, 44, 60),), ((1.0,),))
        self.rpn_head = RPNHead(64, self.anchors.num_anchors_per_location()[0])
        self.box_head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 5 * 5, FEATURE_DIM), nn.ReLU(), nn.Linear(FEATURE_DIM, FEATURE_DIM), nn.ReLU()
        )
        self.class_head = nn.Linear(FEATURE_DIM, len(OBJECTS) + 1)
        self.delta_head = nn.Linear(FEATURE_DIM, 4 * (len(OBJECTS) + 1))
        self.attribute_head = nn.Linear(FEATURE_DIM, len(ATTRIBUTES))
        self.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))

    def features(self, pictures: Tensor) -> Tensor:
        """Feature map ``[B, 64, H/8, W/8]`` of pictures ``[B, 3, H, W]``."""
        return self.backbone((pictures - 0.5) / 0.25)

    def anchor_boxes(self, pictures: Tensor, feature_map: Tensor) -> Tensor:
        """The anchors ``[A, 4]`` of one picture; the same for all of a batch."""
        size = (pictures.shape[-2], pictures.shape[-1])
        return self.anchors(ImageList(pictures[:1], [size]), [feature_map[:1]])[0]

    def rpn(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits ``[B, A]`` and deltas ``[B, A, 4]``, in the order of `anchor_boxes`."""
        (logits,), (deltas,) = self.rpn_head([feature_map])
        batch, per_cell, height, width = logits.shape
        deltas = deltas.view(batch, per_cell, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
        return logits.permute(0, 2, 3, 1).flatten(1), deltas

    def region_features(self, feature_map: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Features ``[sum P, 256]`` of each picture's boxes ``[P, 4]`` (x1, y1, x2, y2 in the network's picture)."""
        return self.box_head(roi_align(feature_map, list(boxes), 5, 1 / STRIDE, sampling_ratio=2, aligned=True))

    @torch.inference_mode()
    def candidates(
        self,
        pictures: Tensor,
        *,
        before: int,
        after: int,
        at_least: int,
        nms_threshold: float,
        given: Sequence[Tensor] | None = None,
    ) -> list[Candidates]:
        """Proposals of each picture, or its `given` boxes, with features and probabilities (`base.Candidates`)."""
        feature_map = self.features(pictures)
        if given is None:
            anchors = self.anchor_boxes(pictures, feature_map)
            objectness, deltas = self.rpn(feature_map)
            size = (pictures.shape[-2], pictures.shape[-1])
            bounds = {"before": before, "after": after, "at_least": at_least, "nms_threshold": nms_threshold}
            pairs = zip(objectness, deltas, strict=True)
            given = [propose([o], [d], [anchors], size, **bounds)[0] for o, d in pairs]
        features = self.region_features(feature_map, given)
        counts = [len(boxes) for boxes in given]
        return [
            Candidates(*parts)
            for parts in zip(
                given,
                features.split(counts),
                self.class_head(features).softmax(1)[:, 1:].split(counts),
                self.delta_head(features)[:, 4:].split(counts),
                self.attribute_head(features).softmax(1).split(counts),
                strict=True,
            )
        ]
