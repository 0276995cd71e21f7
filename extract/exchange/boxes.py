"""The conventions that boxes' numbers allow, for formats that don't state one."""

from collections.abc import Iterable

import numpy as np

CONVENTIONS = ("xyxy", "xywh", "relative_xyxy", "relative_xywh")
_SLACK = 1.0  # pixels that a box may reach beyond its picture


def conventions(images: Iterable[tuple[np.ndarray, tuple[float, float]]]) -> set[str]:
    """Those of `CONVENTIONS` by which every box has an extent and lies in its picture.

    Parameters
    ----------
    images : boxes ``[R, 4]`` of each image, with its picture's (width, height) in pixels.
    """
    left = set(CONVENTIONS)
    for boxes, (width, height) in images:
        left -= {name for name in left if not _fits(boxes.astype(np.float64), name, width, height)}
    return left


def _fits(boxes: np.ndarray, convention: str, width: float, height: float) -> bool:
    size = np.array((width, height), np.float64)
    if convention.startswith("relative_"):
        boxes = boxes * np.tile(size, 2)
    elif (boxes <= 1).all():  # parts of a picture, not pixels
        return False
    start, end = boxes[:, :2], boxes[:, 2:]
    extent = end if convention.endswith("xywh") else end - start
    return bool((start >= -_SLACK).all() and (extent > 0).all() and (start + extent <= size + _SLACK).all())
