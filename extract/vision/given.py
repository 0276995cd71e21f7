"""Boxes that a manifest gives of its pictures, with labels (`manifests.boxes`): the region stage describes them.

They travel with a picture's row, so that a worker holds those of its shard.
"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from extract.stores.regions import Regions
from manifests.errors import InputError
from manifests.files import fingerprint
from manifests.grounding import FILE, Grounding, Groundings
from manifests.schema import ImageRow


@dataclass(frozen=True, slots=True)
class BoxedImage(ImageRow):
    """An image with its given boxes, in their own order, and the numbers of their labels: none where they have none."""

    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]

    def inside(self, size: tuple[int, int]) -> np.ndarray:
        """The boxes, float32 ``[R, 4]``, in a picture of that (width, height): as given, but for parts outside."""
        return np.array(self.boxes, np.float64).reshape(-1, 4).clip(0, [*size, *size]).astype(np.float32)

    def labelled(self, regions: Regions) -> Regions:
        """The regions of the boxes, with labels as objects."""
        numbers = np.array(self.labels, np.int32)
        return replace(regions, objects_id=numbers, objects_conf=np.ones(len(numbers), np.float32))

    @property
    def digest(self) -> str:
        """The hash of all that decides its regions beside the recipe: the picture's sha256, boxes and labels."""
        return fingerprint([self.sha256, self.boxes, list(self.labels)])


@dataclass(frozen=True, slots=True)
class BoxFacts:
    """The facts of all boxes of a manifest.

    names : the labels' texts in the order in which they appear first; None where boxes have no labels.
    most : the most boxes of a picture.
    """

    names: tuple[str, ...] | None
    most: int


class GivenBoxes:
    """The boxes of a manifest's pictures, read when they are asked for; `facts` are those of them all."""

    def __init__(self, file: Path):
        labels: dict[str, int] = {}
        kinds: set[bool] = set()
        most = 0

        def visit(item: Grounding) -> None:
            nonlocal most
            most = max(most, len(item.boxes))
            for text in _texts(item):
                kinds.add(bool(text))
                labels.setdefault(text, len(labels))

        self._known = Groundings(file, visit)
        if len(kinds) > 1:
            raise InputError(
                "some of its boxes have labels, others none", where=file, fix="run the manifest stage again"
            )
        self._numbers = labels if True in kinds else {}
        self.facts = BoxFacts(tuple(self._numbers) or None, most)

    @classmethod
    def of(cls, manifest: Path) -> Self:
        """Those of a manifest. Raises InputError where it gives none, or labels of some only."""
        file = Path(manifest) / FILE
        if not file.is_file() or not len((found := cls(file))._known):
            fix = "set `source.boxes` to a file of boxes, and run the manifest stage again"
            raise InputError("it gives no boxes", where=manifest, fix=fix)
        return found

    def rows(self, rows: Iterable[ImageRow]) -> list[BoxedImage]:
        """Some images with their boxes."""
        return [self._boxed(row) for row in rows]

    def _boxed(self, row: ImageRow) -> BoxedImage:
        found = self._known.get(row.id)
        numbers = tuple(self._numbers[text] for text in _texts(found)) if found and self._numbers else ()
        return BoxedImage(*astuple(row), found.boxes if found else (), numbers)


def _texts(item: Grounding) -> Iterator[str]:
    """The label of each box: its texts, in the order of their names."""
    for label in item.labels:
        yield " ".join(label[name] for name in sorted(label))
