"""Checks of every image's regions, for all formats; an error names the image's place in the files."""

import numpy as np

from extract.exchange.source import Record, Source
from extract.stores.fields import LABELS
from manifests.errors import InputError

_MOST_BOXES = np.iinfo(np.int16).max
_LARGEST = {precision: float(np.finfo(precision).max) for precision in ("float16", "float32")}


class Checks:
    """Checks records of one source. All images must have the width and the labels of the first one with a region.

    sizes : "wh" or "hw", the order of a record's size.
    precision : of the features in the store.

    Attributes: dim, the length of a feature, and labels, the names of those that images have; None before `first`.
    """

    def __init__(self, source: Source, sizes: str, precision: str):
        self.source, self.sizes, self.precision = source, sizes, precision
        self.dim: int | None = None
        self.labels: list[str] = []

    def first(self, record: Record) -> None:
        """Take the width and the labels of an image with regions."""
        self.dim, self.labels = record.features.shape[1], sorted(record.labels)

    def require_sound(self, record: Record, where: str) -> None:
        """Raise InputError unless an image's regions can be imported, their numbers included."""
        if self.dim is None and len(record.features):
            self.first(record)
        self.require_alike(record, where)
        self.boxes(record, where)
        self.kept_labels(record, where)
        if len(record.features):
            self.require_numbers(record.features, where)

    def require_alike(self, record: Record, where: str) -> None:
        """Raise InputError unless a record has the shape and the labels of the others."""
        rows, dim = record.features.shape
        if rows and not dim:
            raise InputError(f"{rows} regions of no numbers", where=where, fix="extract or fetch this image again")
        if (rows and dim != self.dim) or rows > _MOST_BOXES:
            raise InputError(
                f"{rows} regions of {dim} numbers, the first image's have {self.dim}",
                where=where,
                fix=f"import files of one detector, with at most {_MOST_BOXES} regions an image",
            )
        if rows and sorted(record.labels) != self.labels:
            raise InputError(
                f"it has the labels {sorted(record.labels)}, the first image has {self.labels}",
                where=where,
                fix="give all images the same",
            )

    def require_numbers(self, values: np.ndarray, where: str) -> None:
        """Raise InputError for features ``[R, D]`` that are NaN, zero throughout, or too large for the precision."""
        values = values if values.dtype.kind == "f" else values.astype(np.float64)
        with np.errstate(invalid="ignore"):
            largest = np.maximum(values.max(1), -values.min(1))  # NaN where one is
        if not np.isfinite(largest).all():
            raise InputError(
                f"features are NaN or infinite: region {np.flatnonzero(~np.isfinite(largest))[0]}",
                where=where,
                fix="extract or fetch this image again",
            )
        if not largest.all():
            raise zero_feature(np.flatnonzero(largest == 0)[0], where)
        if (most := float(largest.max())) > _LARGEST[self.precision]:
            raise too_large(most, self.precision, where)

    def boxes(self, record: Record, where: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Boxes absolute (x1, y1, x2, y2), and (width, height). Without boxes: all of a picture of one pixel."""
        if record.boxes is None or record.size is None:
            return np.tile(np.array([0, 0, 1, 1], np.float32), (len(record.features), 1)), (1, 1)
        size = record.size if self.sizes == "wh" else record.size[::-1]
        if not all(0 < side < 2**31 and side == int(side) for side in size):
            raise InputError(f"the picture's size is {size}", where=where, fix="give whole pixels, (width, height)")
        width, height = (int(side) for side in size)
        boxes = np.array(record.boxes, np.float32)
        if boxes.size != 4 * len(record.features):
            raise InputError(
                f"boxes {list(boxes.shape)} of {len(record.features)} regions",
                where=where,
                fix="give four numbers a region",
            )
        boxes = boxes.reshape(-1, 4)
        convention = self.source.boxes or "xyxy"
        if convention.startswith("relative"):
            boxes *= np.array([width, height, width, height], np.float32)
        if convention.endswith("xywh"):
            boxes[:, 2:] += boxes[:, :2]
        limits = np.array([width, height], np.float32)
        inside = (boxes[:, :2] >= -1) & (boxes[:, :2] <= boxes[:, 2:]) & (boxes[:, 2:] <= limits + 1)
        if not inside.all():  # NaN compares false
            region = int(np.flatnonzero(~inside.all(1))[0])
            x1, y1, x2, y2 = boxes[region].tolist()
            asked = "`regions.boxes` and `regions.sizes`" if "boxes" in self.source.options else "the file"
            raise InputError(
                f"box {region} is ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) in a picture of {width} x {height}",
                where=where,
                fix=f"check {asked}: boxes lie in their picture, give or take a pixel",
            )
        return np.clip(boxes, 0, np.tile(limits, 2)), (width, height)

    def kept_labels(self, record: Record, where: str) -> dict[str, np.ndarray]:
        """Classes as int32 (of the source's names, where it has some), confidences as float32, ``[R]`` each."""
        rows = len(record.features)
        labels = record.labels if rows else dict.fromkeys(self.labels, np.empty(0, np.int32))
        return {name: self._label(values, name, rows, where) for name, values in labels.items()}

    def _label(self, values: np.ndarray, name: str, rows: int, where: str) -> np.ndarray:
        own, fix = LABELS[name], "fetch or export the file again"
        names = getattr(self.source, own.names) if own.names else None
        if values.shape != (rows,) or values.dtype.kind not in "iuf":
            raise InputError(f"{name} is {values.dtype} {list(values.shape)} of {rows} regions", where=where, fix=fix)
        with np.errstate(invalid="ignore"):
            kept = values.astype(own.numpy)
        if own.numpy.kind == "i" and not (kept == values).all():
            raise InputError(f"{name} doesn't fit {own.numpy}", where=where, fix=fix)
        wrong, allowed = own.outside(kept, names), "a class" if own.names else own.range(None)
        if wrong.any():
            region = int(np.flatnonzero(wrong)[0])
            raise InputError(f"{name} of region {region} is {values[region]:g}, not {allowed}", where=where, fix=fix)
        return kept


def zero_feature(region: int, where: str) -> InputError:
    """Of a feature that is zero throughout."""
    return InputError(
        f"features are all zero: region {region}",
        where=where,
        fix="extract or fetch this image again; where regions are padded, give it as many as it has",
    )


def too_large(most: float, precision: str, where: str) -> InputError:
    """Of a number that the precision can't hold."""
    more = "extract this image again" if precision == "float32" else "set `regions.precision: float32`"
    return InputError(f"a feature is {most:g}, {precision} ends at {_LARGEST[precision]:g}", where=where, fix=more)
