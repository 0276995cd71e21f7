"""The real detectron2, where it is installed: any of its Faster R-CNN configs and weights, the same interface.

Proposals, pooled features and predictions are detectron2's own modules' work; selection is this project's, the same as
for every detector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from extract.settings import BottomUpSettings, DetectionSettings
from extract.vision.decode import DECODING
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Candidates, Proposer
from extract.vision.rcnn.checkpoint import read_content
from extract.vision.weights import WeightsSettings, local_weights
from manifests.errors import InputError
from manifests.files import fingerprint


class Detectron2Settings(WeightsSettings):
    """The real detectron2, where it is installed (`extract.vision.detectors.detectron2`)."""

    config: str = Field(description="path of a config file")
    options: tuple[str, ...] = Field((), description="overrides of the config: KEY, VALUE, KEY, VALUE ...")


@DETECTORS.add("detectron2")
class Detectron2Detector(Proposer):
    """A `GeneralizedRCNN` with C4 or standard RoI heads. Raises `InputError` where detectron2 isn't installed."""

    Settings = Detectron2Settings

    def __init__(
        self, settings: Detectron2Settings, selection: BottomUpSettings | DetectionSettings | None, device: str
    ):
        weights = local_weights(settings.weights, settings.sha256)
        try:
            from detectron2 import __version__
            from detectron2.checkpoint import DetectionCheckpointer
            from detectron2.config import get_cfg
            from detectron2.data import MetadataCatalog
            from detectron2.modeling import build_model
        except ImportError as error:
            raise InputError(
                f"detectron2 isn't installed ({error})",
                where="detector.name: detectron2",
                fix="install detectron2 from its source, or use `name: rcnn`, which reads the same checkpoints",
            ) from error
        self.selection, self.device = selection, device
        config = get_cfg()
        config.merge_from_file(settings.config)
        config.merge_from_list([*settings.options, "MODEL.DEVICE", device, "MODEL.WEIGHTS", str(weights)])
        self.model = build_model(config).eval()
        loaded = DetectionCheckpointer(self.model)._load_model(_checkpoint(weights))
        wrong = [*loaded.missing_keys, *loaded.unexpected_keys, *(name for name, *_ in loaded.incorrect_shapes)]
        if wrong:
            raise InputError(
                f"the weights don't fit the config: {', '.join(wrong)}", where=weights, fix="use the config they are of"
            )
        head = config.MODEL.ROI_BOX_HEAD
        if config.MODEL.ROI_HEADS.NAME not in ("Res5ROIHeads", "StandardROIHeads") or head.CLS_AGNOSTIC_BBOX_REG:
            raise InputError(
                f"{config.MODEL.ROI_HEADS.NAME} with class-agnostic boxes {head.CLS_AGNOSTIC_BBOX_REG}",
                where=settings.config,
                fix="use Res5ROIHeads or StandardROIHeads with boxes regressed for each class",
            )
        self.config = config
        self.recipe = {
            "name": settings.name,
            "version": __version__,
            "config": fingerprint(_resolved(config)),
            "weights_sha256": settings.sha256,
            "decoding": DECODING,
        }
        self.dim = self.model.roi_heads.box_predictor.cls_score.in_features
        names = (
            MetadataCatalog.get(config.DATASETS.TEST[0]).get("thing_classes", None) if config.DATASETS.TEST else None
        )
        self.object_names = tuple(names) if names else None
        self.attribute_names = None

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        from detectron2.data.transforms import ResizeShortestEdge

        sizes = self.config.INPUT
        height, width = ResizeShortestEdge.get_output_shape(height, width, sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST)
        return width, height

    def candidates(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> list[Candidates]:
        if self.config.INPUT.FORMAT == "BGR":
            pictures = pictures.flip(1)
        images = self.model.preprocess_image([{"image": picture} for picture in pictures])
        maps = self.model.backbone(images.tensor)
        heads = self.model.roi_heads
        if given is None:
            proposals, _ = self.model.proposal_generator(images, maps)
            boxes = [found.proposal_boxes for found in proposals]
        else:
            from detectron2.structures import Boxes

            boxes = [Boxes(own) for own in given]
        chosen = [
            maps[name] for name in (heads.in_features if hasattr(heads, "in_features") else heads.box_in_features)
        ]
        if hasattr(heads, "res5"):
            features = heads._shared_roi_transform(chosen, boxes).mean((2, 3))
        else:
            features = heads.box_head(heads.box_pooler(chosen, boxes))
        logits, deltas = heads.box_predictor(features)
        counts = [len(b) for b in boxes]
        return [
            Candidates(b.tensor, f, c, d, None)
            for b, f, c, d in zip(
                boxes,
                features.split(counts),
                torch.softmax(logits, 1)[:, :-1].split(counts),
                deltas.split(counts),
                strict=True,
            )
        ]


def _checkpoint(weights: Path) -> dict[str, Any]:
    """What detectron2's own reader makes of a file, without its unpickling, which runs what a file asks for."""
    content = read_content(weights)
    if "model" in content:
        return content
    arrays = content.get("blobs", content)
    state = {name: value for name, value in arrays.items() if not str(name).endswith("_momentum")}
    return {"model": state, "matching_heuristics": weights.suffix == ".pkl"}


def _resolved(config: Any) -> str:
    """The whole config with what its bases say, but for where it runs and where the weights lie."""
    whole = config.clone()
    whole.defrost()
    whole.MODEL.DEVICE = whole.MODEL.WEIGHTS = whole.OUTPUT_DIR = ""
    return whole.dump()
