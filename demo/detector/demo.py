"""The demo's detector: `SceneRCNN` with its committed weights."""

from collections.abc import Sequence

import torch
from pydantic import Field, field_validator
from torch import Tensor

from demo.detector.labels import ATTRIBUTES, FEATURE_DIM, OBJECTS, STRIDE
from extract.settings import BottomUpSettings, DetectionSettings
from extract.stores.tensors import load_into, read_tensors
from extract.vision.decode import DECODING
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Candidates, Proposer
from extract.vision.weights import WeightsSettings, local_weights

PROPOSALS = {"before_nms": 300, "after_nms": 48, "nms_threshold": 0.7}


WEIGHTS = "demo/weights/demo.safetensors"
OLD_WEIGHTS = "extract/detectors/weights/demo.safetensors"  # in the params.yaml of older projects


class DemoDetectorSettings(WeightsSettings):
    """The demo's small network (`demo.detector.network`)."""

    shortest: int = Field(160, ge=8, description="pixels of the shorter side after resizing")
    longest: int = Field(256, ge=8, description="bound on the longer side, in pixels")

    @field_validator("weights")
    @classmethod
    def _moved(cls, weights: str) -> str:
        return WEIGHTS if weights == OLD_WEIGHTS else weights


@DETECTORS.add("demo")
class DemoDetector(Proposer):
    """`SceneRCNN` on `device`."""

    Settings = DemoDetectorSettings
    dim = FEATURE_DIM
    object_names = OBJECTS
    attribute_names = ATTRIBUTES

    def __init__(
        self,
        settings: DemoDetectorSettings,
        selection: BottomUpSettings | DetectionSettings | None,
        device: str,
    ):
        from demo.detector.network import (
            SceneRCNN,  # torchvision takes a second to import, `params.yaml` needs none of it
        )

        weights = local_weights(settings.weights, settings.sha256)
        self.settings, self.selection, self.device = settings, selection, device
        self.recipe = {
            "name": settings.name,
            "weights_sha256": settings.sha256,
            "decoding": DECODING,
            "pixels": "RGB, (x / 255 - 0.5) / 0.25",
            "resize": {
                "filter": "PIL bilinear",
                "shortest": settings.shortest,
                "longest": settings.longest,
                "multiple_of": STRIDE,
            },
            "proposals": PROPOSALS,
            "pooling": "RoIAlign 5x5, aligned, sampling ratio 2",
        }
        self.network = SceneRCNN().eval().requires_grad_(False)
        fix = "use the demo's own weights: `git checkout` them"
        load_into(self.network, read_tensors(weights, fix=fix)[0], weights, fix=fix)
        self.network.to(device)

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        shorter, longer = min(width, height), max(width, height)
        scale = min(self.settings.shortest / shorter, self.settings.longest / longer)
        return tuple(max(1, round(side * scale / STRIDE)) * STRIDE for side in (width, height))

    def candidates(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> list[Candidates]:
        pictures = pictures.to(self.device, torch.float32) / 255
        return self.network.candidates(
            pictures,
            before=PROPOSALS["before_nms"],
            after=PROPOSALS["after_nms"],
            at_least=self.selection.min_boxes if self.selection else 1,
            nms_threshold=PROPOSALS["nms_threshold"],
            given=given,
        )
