"""The only way to a detector; it checks the weights against their sha256 before anything reads them.

detector = load_detector(
    {"name": "rcnn", "weights": "R50-C4.pth", "sha256": "…", "shortest": 600, "longest": 1000},
    {"rule": "bottom_up", "min_boxes": 36, "max_boxes": 36},
)
picture = detector.prepare(rgb)                       # uint8 [H, W, 3] RGB to uint8 [3, h, w]
(regions,) = detector.detect(picture[None], [(W, H)])  # features, boxes, classes, attributes
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from extract.settings import BottomUpSettings, SelectionSettings
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Detector
from manifests.errors import InputError
from manifests.registry import identity
from manifests.typed import Settings

_BOTTOM_UP_36 = BottomUpSettings(min_boxes=36, max_boxes=36)


def load_detector(
    spec: Settings | Mapping[str, Any],
    selection: Settings | Mapping[str, Any] | None = _BOTTOM_UP_36,
    device: str = "cpu",
) -> Detector:
    """Build a detector with checked weights on `device`.

    Parameters
    ----------
    spec : the value of `datasets.D.regions.detector` in params.yaml, typed or as a mapping.
    selection : the value of `datasets.D.regions.selection`, by default 36 regions by `bottom_up`. None for a detector
        that makes no proposals, or that describes given boxes.

    Raises
    ------
    InputError : an unknown or missing key of a mapping, missing weights or another hash, a checkpoint that doesn't
        fit, a library that isn't installed.
    """
    try:
        settings = TypeAdapter(DETECTORS.settings).validate_python(spec)
        chosen = TypeAdapter(SelectionSettings | None).validate_python(selection)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            first["msg"],
            where="detector spec, " + ".".join(map(str, first["loc"])),
            fix="correct it as docs/detectors.md says",
        ) from None
    part = DETECTORS.find(settings.name)
    detector = part(settings, chosen, device)
    detector.recipe |= identity(part)
    return detector
