"""Boxes that a manifest gives of its pictures, with labels (`manifests.boxes`): the region stage describes them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from extract.stores.regions import Regions
from manifests.errors import InputError
from manifests.files import fingerprint
from manifests.grounding import FILE, Grounding, read_grounding
from manifests.schema import ImageRow


class GivenBoxes:
    """The boxes of a manifest's pictures, each picture's in its own order.

    Attributes
    ----------
    names : the labels' texts in the order in which they appear first; None where boxes have no labels.
    most : the most boxes of a picture.
    """

    def __init__(self, known: dict[str, Grounding]):
        self._known = known
        labels = dict.fromkeys(text for item in known.values() for text in _texts(item) if text)
        self.names = tuple(labels) or None
        self._numbers = {text: number for number, text in enumerate(labels)}
        self.most = max(len(item.boxes) for item in known.values())

    @classmethod
    def of(cls, manifest: Path) -> Self:
        """Those of a manifest. Raises InputError where it gives none, or labels of some only."""
        if not (file := Path(manifest) / FILE).is_file() or not (known := read_grounding(file)):
            fix = "set `source.boxes` to a file of boxes, and run the manifest stage again"
            raise InputError("it gives no boxes", where=manifest, fix=fix)
        if len({bool(text) for item in known.values() for text in _texts(item)}) > 1:
            raise InputError(
                "some of its boxes have labels, others none", where=file, fix="run the manifest stage again"
            )
        return cls(known)

    def boxes(self, row: ImageRow, size: tuple[int, int]) -> np.ndarray:
        """float32 ``[R, 4]`` of a picture of that (width, height): as given, but for parts outside the picture."""
        found = self._known.get(row.id)
        boxes = np.array(found.boxes if found else (), np.float64).reshape(-1, 4)
        return boxes.clip(0, [*size, *size]).astype(np.float32)

    def labelled(self, row: ImageRow, regions: Regions) -> Regions:
        """A picture's regions with the labels of its boxes as objects, where boxes have labels."""
        if self.names is None:
            return regions
        numbers = np.array(list(self._labels(row)), np.int32)
        return replace(regions, objects_id=numbers, objects_conf=np.ones(len(numbers), np.float32))

    def digest(self, row: ImageRow) -> str:
        """What decides a picture's regions beside the recipe: its sha256, its boxes and the numbers of their labels."""
        found = self._known.get(row.id)
        return fingerprint([row.sha256, found.boxes if found else (), list(self._labels(row))])

    def _labels(self, row: ImageRow) -> Iterator[int]:
        if self.names is not None and row.id in self._known:
            yield from (self._numbers[text] for text in _texts(self._known[row.id]))


def _texts(item: Grounding) -> Iterator[str]:
    """The label of each box: the texts that are told of it, in the order of their names."""
    for label in item.labels:
        yield " ".join(label[name] for name in sorted(label))
