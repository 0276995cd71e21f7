"""Detectors: one interface (`base.Detector`), one file a network.

`load_detector` is the only way in: it checks the weights against their hash before anything reads them.
"""

from pathlib import Path

from extract.detectors.base import Candidates, Detector
from extract.detectors.demo import DemoDetector
from extract.settings import DetectorSettings, SelectionSettings
from manifests.errors import InputError
from manifests.files import sha256

__all__ = ["Candidates", "Detector", "load_detector"]

_DETECTORS = {"demo": DemoDetector}


def load_detector(settings: DetectorSettings, selection: SelectionSettings, device: str = "cpu") -> Detector:
    """Build a detector with checked weights on `device`. Raises `InputError` for missing or other weights."""
    weights = Path(settings.weights)
    if not weights.is_file():
        raise InputError(
            "no such weights file", where=weights, fix="correct `detector.weights` in params.yaml, or `git checkout` it"
        )
    found = sha256(weights)
    if found != settings.sha256:
        raise InputError(
            f"the weights have sha256 {found}, params.yaml asks for {settings.sha256}",
            where=weights,
            fix="fetch the right file, or put the new hash in `detector.sha256` if you mean to change features",
        )
    return _DETECTORS[settings.name](settings, selection, weights, device)
