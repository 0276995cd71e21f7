"""Faster R-CNN as detectron2 computes it, made of torchvision's parts, with sizes read off a checkpoint.

C4 networks (R50, R101 with attributes, X152) run res5 on pooled regions; FPN networks pool from four levels and have
two fully connected layers. Every convention is detectron2's: docs/detectors.md says how equal.
The networks' own parameter names are used throughout (`checkpoint.py` brings others to them); background is the last
class.

Shapes: pictures enter as float ``[B, 3, H, W]`` in the network's pixel order, mean subtracted; boxes are
(x1, y1, x2, y2) in that picture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d, roi_align, roi_pool

from extract.vision.rcnn.checkpoint import NORM_EPS
from extract.vision.rcnn.proposals import propose


@dataclass(frozen=True, slots=True)
class Conventions:
    """The settings of a network that a checkpoint's shapes don't fix.

    anchor_sizes, anchor_ratios : sides in pixels and height / width; an FPN has one size a level.
    stride_in_1x1 : where a stage's first block strides: its 1x1 (R50, R101) or its 3x3 convolution (X152).
    anchor_offset : of the first anchor from the picture's corner, in strides.
    pooling : RoIAlign, unaligned RoIAlign (half a cell off), or RoIPool.
    sampling_ratio : of RoIAlign; 0 adapts to the box.
    pooler_resolution : cells a side; None is 14 of a C4 and 7 of an FPN.
    proposals_before, proposals_after : proposals kept before NMS (a level) and after it; `rpn_nms` is its threshold.
    proposals_min_size : pixels of the network's picture that both sides of a proposal must exceed.
    caffe : bottom-up attention's own network: the stem's pooling starts at the border, res5 is dilated and keeps its
        14x14 cells.
    none_last : whether the last attribute is none.
    inclusive : whether boxes end with their last pixel, so that one of x1 = x2 is a pixel wide.
    """

    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0
    stride_in_1x1: bool = True
    pooling: Literal["align", "unaligned", "pool"] = "align"
    sampling_ratio: int = 0
    pooler_resolution: int | None = None
    proposals_before: int = 6000
    proposals_after: int = 300
    proposals_min_size: float = 0.0
    rpn_nms: float = 0.7
    caffe: bool = False
    none_last: bool = False
    inclusive: bool = False


@dataclass(frozen=True, slots=True)
class Outputs:
    """The network's outputs for one picture's P proposals.

    `proposals` is ``[P, 4]``, `objectness` ``[P]`` (logits, best first), `features` ``[P, D]``. `logits` is
    ``[P, C + 1]`` (background last), `deltas` ``[P, 4 C]``. `attributes` is ``[P, A]`` (logits, with that of "none" if
    the network has it) or None.
    """

    proposals: Tensor
    objectness: Tensor
    features: Tensor
    logits: Tensor
    deltas: Tensor
    attributes: Tensor | None


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors ``[S · Q, 4]`` around the origin, size-major, not rounded."""
    boxes = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return torch.tensor(boxes)


def grid_anchors(cells: Tensor, height: int, width: int, stride: int, offset: float = 0.0) -> Tensor:
    """`cells` ``[A, 4]`` at every position of a feature map: ``[H · W · A, 4]``, the first at `offset` strides."""
    y, x = torch.meshgrid(
        (torch.arange(height, device=cells.device) + offset) * stride,
        (torch.arange(width, device=cells.device) + offset) * stride,
        indexing="ij",
    )
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cells).reshape(-1, 4)


def _rois(boxes: Sequence[Tensor]) -> Tensor:
    """Each picture's boxes ``[P, 4]`` as one list ``[sum P, 5]``, the picture's number first."""
    return torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])


class FrozenNorm(FrozenBatchNorm2d):
    """Batch norm by the checkpoint's statistics, in one call of torch's, as detectron2 does: the same bits."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Stem(nn.Module):
    def __init__(self, channels: int, caffe: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = FrozenNorm(channels)
        self.pool = nn.MaxPool2d(3, 2, 0, ceil_mode=True) if caffe else nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.bn1(self.conv1(x)).relu())


def _stage(
    state: Mapping[str, Tensor], prefix: str, stride: int, stride_in_1x1: bool, dilation: int = 1
) -> nn.Sequential:
    """The blocks ``prefix.0``, ``prefix.1`` ... with the sizes that `state` has."""
    blocks: list[nn.Module] = []
    while f"{prefix}.{len(blocks)}.conv1.weight" in state:
        here = f"{prefix}.{len(blocks)}"
        width, channels_in = state[f"{here}.conv1.weight"].shape[:2]
        planes = state[f"{here}.conv3.weight"].shape[0] // Bottleneck.expansion
        groups = width // state[f"{here}.conv2.weight"].shape[1]
        downsample = None
        if f"{here}.downsample.0.weight" in state:
            out = planes * Bottleneck.expansion
            downsample = nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False), FrozenNorm(out))
        block = Bottleneck(
            channels_in,
            planes,
            stride if not blocks else 1,
            downsample,
            groups=groups,
            base_width=64 * width / (planes * groups),
            dilation=dilation,
            norm_layer=FrozenNorm,
        )
        if stride_in_1x1:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        blocks.append(block)
    return nn.Sequential(*blocks)


class RPNHead(nn.Module):
    def __init__(self, channels: int, hidden: int, anchors: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden, anchors, 1)
        self.anchor_deltas = nn.Conv2d(hidden, anchors * 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness ``[B, H · W · A]`` and deltas ``[B, H · W · A, 4]`` in the order of `grid_anchors`."""
        x = self.conv(x).relu()
        deltas = self.anchor_deltas(x)
        batch, _, height, width = deltas.shape
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
        return self.objectness_logits(x).permute(0, 2, 3, 1).flatten(1), deltas


class AttributeHead(nn.Module):
    """Region feature and the embedding of its best class to attribute logits (bottom-up attention, Visual Genome)."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        classes, embedding = state["attributes.embedding.weight"].shape
        hidden, inputs = state["attributes.hidden.weight"].shape
        self.embedding = nn.Embedding(classes, embedding)
        self.hidden = nn.Linear(inputs, hidden)
        self.score = nn.Linear(hidden, state["attributes.score.weight"].shape[0])

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        best = logits[:, : self.embedding.num_embeddings].argmax(1)
        return self.score(self.hidden(torch.cat([features, self.embedding(best)], dim=1)).relu())


class FasterRCNN(nn.Module):
    """A detectron2 Faster R-CNN; `build` makes one for a checkpoint, whose names decide between C4 and FPN."""

    side: int
    """Cells a side of a pooled region; the class's own where the conventions don't say."""
    stride: ClassVar[int]
    """Pixels between the first map's cells; each further map's is twice as large."""
    cell_anchors: list[Tensor]
    """Of each map."""

    def __init__(self, state: Mapping[str, Tensor], conventions: Conventions):
        super().__init__()
        self.conventions = conventions
        self.side = conventions.pooler_resolution or self.side
        inner = conventions.stride_in_1x1
        self.stem = Stem(state["stem.conv1.weight"].shape[0], conventions.caffe)
        self.layer1 = _stage(state, "layer1", 1, inner)
        self.layer2 = _stage(state, "layer2", 2, inner)
        self.layer3 = _stage(state, "layer3", 2, inner)
        self.layer4 = _stage(state, "layer4", *((1, inner, 2) if conventions.caffe else (2, inner)))
        hidden, channels = state["rpn.conv.weight"].shape[:2]
        self.rpn = RPNHead(channels, hidden, state["rpn.objectness_logits.weight"].shape[0])
        classes, self.dim = state["cls_score.weight"].shape
        self.cls_score = nn.Linear(self.dim, classes)
        self.bbox_pred = nn.Linear(self.dim, state["bbox_pred.weight"].shape[0])
        self.attributes = AttributeHead(state) if "attributes.embedding.weight" in state else None
        self.num_classes = classes - 1
        self.num_attributes = self.attributes.score.out_features - conventions.none_last if self.attributes else 0

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The feature maps, ``[B, C, h, w]`` each."""
        raise NotImplementedError

    def proposals(self, maps: Sequence[Tensor], size: tuple[int, int], *, at_least: int) -> list[tuple[Tensor, Tensor]]:
        """Proposals ``[P, 4]`` of each picture, whose (height, width) is `size`, with their objectness ``[P]``."""
        own, offset = self.conventions, self.conventions.anchor_offset
        levels = [
            (*self.rpn(m), grid_anchors(cells.to(m.device), *m.shape[-2:], self.stride << level, offset))
            for level, (m, cells) in enumerate(zip(maps, self.cell_anchors, strict=True))
        ]
        return [
            propose(
                [objectness[i].float() for objectness, _, _ in levels],
                [deltas[i].float() for _, deltas, _ in levels],
                [anchors for _, _, anchors in levels],
                size,
                before=own.proposals_before,
                after=own.proposals_after,
                at_least=at_least,
                nms_threshold=own.rpn_nms,
                least_side=own.proposals_min_size,
                inclusive=own.inclusive,
            )
            for i in range(len(maps[0]))
        ]

    def region_features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Features ``[sum P, D]`` of each picture's boxes."""
        raise NotImplementedError

    def pool(self, feature_map: Tensor, rois: Tensor, scale: float) -> Tensor:
        """Regions ``[P, C, side, side]`` of a map whose stride is 1 / `scale`; in float32, whatever the precision."""
        side = self.side
        if self.conventions.pooling == "pool":
            pooled = roi_pool(feature_map.float(), rois, side, scale)
        else:
            ratio, aligned = self.conventions.sampling_ratio, self.conventions.pooling == "align"
            pooled = roi_align(feature_map.float(), rois, side, scale, sampling_ratio=ratio, aligned=aligned)
        return pooled.to(feature_map.dtype)

    def classify(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Class logits, box deltas and attribute logits of features ``[P, D]``."""
        logits = self.cls_score(features)
        attributes = None if self.attributes is None else self.attributes(features, logits)
        return logits, self.bbox_pred(features), attributes

    @torch.inference_mode()
    def forward(self, pictures: Tensor, *, at_least: int = 1, given: Sequence[Tensor] | None = None) -> list[Outputs]:
        """All that the network says of each picture; at least that many proposals where it has the anchors.

        given : boxes ``[P, 4]`` of each picture to take instead of proposals; their objectness is 1.
        """
        maps = self.maps(pictures)
        if given is None:
            proposals = self.proposals(maps, tuple(pictures.shape[-2:]), at_least=at_least)
        else:
            proposals = [(boxes, boxes.new_ones(len(boxes))) for boxes in given]
        boxes = [found for found, _ in proposals]
        features = self.region_features(maps, boxes)
        logits, deltas, attributes = self.classify(features)
        counts = [len(b) for b in boxes]
        parts = [features.split(counts), logits.split(counts), deltas.split(counts)]
        attribute_scores = [None] * len(boxes) if attributes is None else attributes.split(counts)
        return [
            Outputs(b, objectness, *part, a)
            for (b, objectness), part, a in zip(proposals, zip(*parts, strict=True), attribute_scores, strict=True)
        ]


class C4(FasterRCNN):
    """res5 on 14x14 regions of the stride-16 map, averaged."""

    side, stride = 14, 16
    regions_at_a_time = 256  # 200 MB before res5 at full width; all of a batch's would be gigabytes

    def __init__(self, state: Mapping[str, Tensor], conventions: Conventions):
        super().__init__(state, conventions)
        self.cell_anchors = [
            state.get("rpn.cell_anchors.0", cell_anchors(conventions.anchor_sizes, conventions.anchor_ratios))
        ]
        _require_anchors(self.rpn, self.cell_anchors)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """res4, ``[B, C, H/16, W/16]``."""
        return [self.layer3(self.layer2(self.layer1(self.stem(pictures))))]

    def region_features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        rois = _rois(boxes)
        parts = rois.split(self.regions_at_a_time)
        return torch.cat([self.layer4(self.pool(maps[0], part, 1 / 16)).mean((2, 3)) for part in parts])


def _require_anchors(rpn: RPNHead, cells: Sequence[Tensor]) -> None:
    """Raise `RuntimeError` unless a checkpoint scores as many anchors a place as there are."""
    scored = rpn.objectness_logits.out_channels
    if wrong := {len(own) for own in cells} - {scored}:
        message = f"{scored} anchors a place are scored, and anchor_sizes and anchor_ratios give {wrong.pop()}"
        raise RuntimeError(message)


class FPN(FasterRCNN):
    """A feature pyramid: proposals on p2 to p6, 7x7 regions of p2 to p5, two fully connected layers."""

    side, stride = 7, 4
    size_divisor = 32

    def __init__(self, state: Mapping[str, Tensor], conventions: Conventions):
        super().__init__(state, conventions)
        channels = state["inner.0.weight"].shape[0]
        self.inner = nn.ModuleList(nn.Conv2d(state[f"inner.{i}.weight"].shape[1], channels, 1) for i in range(4))
        self.outer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        hidden, inputs = state["fc1.weight"].shape
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, state["fc2.weight"].shape[0])
        self.cell_anchors = [
            state.get(f"rpn.cell_anchors.{level}", cell_anchors([size], conventions.anchor_ratios))
            for level, size in enumerate(conventions.anchor_sizes)
        ]
        if len(self.cell_anchors) != 5:
            raise RuntimeError(f"a pyramid has 5 levels, and anchor_sizes has {len(self.cell_anchors)}")
        _require_anchors(self.rpn, self.cell_anchors)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """p2 to p6 of pictures that are padded with zeros to multiples of 32."""
        height, width = pictures.shape[-2:]
        x = self.stem(F.pad(pictures, (0, -width % self.size_divisor, 0, -height % self.size_divisor)))
        maps, top = [], None
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        for stage, inner, outer in zip(reversed(stages), reversed(self.inner), reversed(self.outer), strict=True):
            lateral = inner(stage)
            top = lateral if top is None else lateral + F.interpolate(top, scale_factor=2.0, mode="nearest")
            maps.insert(0, outer(top))
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]

    def region_features(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        rois = _rois(boxes)
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        level = (4 + (side / 224 + 1e-8).log2()).floor().clamp(2, 5).long() - 2
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], self.side, self.side)
        for number, feature_map in enumerate(maps[:4]):
            here = (level == number).nonzero().squeeze(1)
            pooled[here] = self.pool(feature_map, rois[here], 1 / (4 << number))
        return self.fc2(self.fc1(pooled.flatten(1)).relu()).relu()


def build(state: Mapping[str, Tensor], conventions: Conventions) -> C4 | FPN:
    """The network that a checkpoint's own names and shapes describe, with its weights, in evaluation mode.

    Parameters
    ----------
    state : parameters by this module's names (`extract.vision.rcnn.checkpoint.read_checkpoint`).
    conventions : settings that the shapes don't fix.

    Raises
    ------
    RuntimeError : lists missing and unexpected keys and wrong shapes.
    """
    network = (FPN if "inner.0.weight" in state else C4)(state, conventions)
    network.load_state_dict({key: value for key, value in state.items() if not key.startswith("rpn.cell_anchors")})
    return network.eval().requires_grad_(False)
