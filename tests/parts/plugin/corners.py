"""Detector `corners`: a picture's four quarters, each as its mean colour and the spread of its colours."""

from typing import Literal

import numpy as np
from pydantic import Field

from extract.stores.regions import Regions
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Detector
from manifests.typed import Settings

_QUARTERS = np.float32([(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)])


class CornersSettings(Settings):
    name: Literal["corners"] = "corners"
    side: int = Field(32, ge=2, multiple_of=2, description="pixels to which a picture is resized")


@DETECTORS.add("corners", version=3)
class Corners(Detector):
    Settings = CornersSettings
    object_names = attribute_names = None
    fixed = most = 4
    dim = 6

    def __init__(self, settings, selection, device):
        self.settings, self.device, self.recipe = settings, device, settings.decides()

    def network_size(self, width, height):
        return self.settings.side, self.settings.side

    def detect(self, pictures, sizes, given=None):
        half = self.settings.side // 2
        parts = pictures.float().unfold(2, half, half).unfold(3, half, half).flatten(4).flatten(2, 3)  # [B, 3, 4, P]
        features = np.concatenate([parts.mean(-1).numpy(), parts.std(-1).numpy()], 1).swapaxes(1, 2) / 255
        return [
            Regions(own.astype(np.float16), _QUARTERS * np.float32([*size, *size]), size)
            for own, size in zip(features, sizes, strict=True)
        ]
