"""Detectors: one interface (`base.Detector`), one file a network.

`load_detector` is the only way in. It checks the weights against their sha256 before anything reads them:

    detector = load_detector(
        {"name": "rcnn", "weights": "R50-C4.pth", "sha256": "…", "shortest": 600, "longest": 1000},
        {"rule": "bottom_up", "min_boxes": 36, "max_boxes": 36},
    )
    picture = detector.prepare(rgb)                       # uint8 [H, W, 3] RGB to uint8 [3, h, w]
    (regions,) = detector.detect(picture[None], [(W, H)])  # features, boxes, classes, attributes

The network behind ``name: rcnn`` is built from the checkpoint's own names and shapes (depth, widths, groups, classes,
attributes, C4 or FPN); what shapes don't tell are keys of the spec (`extract.settings.RCNNSettings`).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from extract.settings import BottomUpSettings, DetectorSettings, SelectionSettings
from extract.vision.detectors.base import Candidates, Detector
from extract.vision.detectors.demo import DemoDetector
from extract.vision.detectors.detectron2_backend import Detectron2Detector
from extract.vision.detectors.torchvision_rcnn import RCNNDetector
from extract.vision.detectors.weights_file import local_weights
from manifests.errors import InputError

__all__ = ["DETECTORS", "Candidates", "Detector", "load_detector"]

DETECTORS = {"demo": DemoDetector, "rcnn": RCNNDetector, "detectron2": Detectron2Detector}
_BOTTOM_UP_36 = BottomUpSettings(min_boxes=36, max_boxes=36)


def load_detector(
    spec: DetectorSettings | Mapping[str, Any],
    selection: SelectionSettings | Mapping[str, Any] = _BOTTOM_UP_36,
    device: str = "cpu",
) -> Detector:
    """Build a detector with checked weights on `device`.

    Parameters
    ----------
    spec : what `datasets.D.regions.detector` holds in params.yaml, typed or as a mapping.
    selection : what `datasets.D.regions.selection` holds; fixed 36 regions by `bottom_up` if not given.

    Raises
    ------
    InputError : an unknown or missing key of a mapping, missing weights or another hash, a checkpoint that doesn't
        fit, detectron2 where it isn't installed.
    """
    try:
        settings = TypeAdapter(DetectorSettings).validate_python(spec)
        chosen = TypeAdapter(SelectionSettings).validate_python(selection)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            first["msg"], where="detector spec, " + ".".join(map(str, first["loc"])), fix="see extract/settings.py"
        ) from None
    return DETECTORS[settings.name](settings, chosen, local_weights(settings.weights, settings.sha256), device)
