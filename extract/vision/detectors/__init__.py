"""Detectors: one interface (`base.Detector`), one file a network, by name in `DETECTORS`."""

from typing import Any

from manifests.registry import Registry

DETECTORS: Registry[Any] = Registry("detector", "extract.vision.detectors")
