"""The fields of a region: the one table of them, which stores, shards, packs, checks and cards read.

A new field is a line of `Regions`, and whatever gives it a value (`extract.vision.detectors.base`).
"""

from dataclasses import dataclass
from typing import Annotated, get_type_hints

import numpy as np


@dataclass(frozen=True, slots=True)
class RegionField:
    """A per-region field.

    dtype : in a shard (of features float32 where an import asked for it).
    shape : of a region's part, None for D.
    least, most : the range of its numbers; of classes without names there is no end.
    names : of classes, the key of ``index.json`` with their names.
    tolerance : how far another device, batch or library moves it (features: `extract.engine.tolerance`).
    optional : whether a detector may not give it.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    least: float = -np.inf
    most: float = np.inf
    names: str | None = None
    tolerance: float = 0.0
    optional: bool = True

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.dtype)

    def outside(self, values: np.ndarray, names: list[str] | None) -> np.ndarray:
        """Which numbers are out of range, or none of `names`."""
        end = values < len(names) if names else values <= self.most  # NaN compares false
        return ~((values >= self.least) & end)

    def range(self, names: list[str] | None) -> str:
        """The range in words."""
        return f"among the {len(names)} names" if names else f"within {self.least:g} and {self.most:g}"


@dataclass(frozen=True, slots=True)
class Regions:
    """One picture's regions, as the region store keeps them.

    `features` is float16 ``[R, D]``, or float32 where an import asked for it. `boxes` is float32 ``[R, 4]``, (x1, y1,
    x2, y2) in original pixels. `image_size` is (width, height) in pixels. `objects_id` and `attrs_id` are int32
    ``[R]``, `objects_conf` and `attrs_conf` float32 ``[R]``, or None where the detector gives none.
    """

    features: Annotated[np.ndarray, RegionField("<f2", (None,), optional=False)]
    boxes: Annotated[np.ndarray, RegionField("<f4", (4,), tolerance=0.1, optional=False)]
    image_size: tuple[int, int]
    objects_id: Annotated[np.ndarray | None, RegionField("<i4", least=0, names="object_names")] = None
    objects_conf: Annotated[np.ndarray | None, RegionField("<f4", least=0, most=1, tolerance=0.01)] = None
    attrs_id: Annotated[np.ndarray | None, RegionField("<i4", least=0, names="attribute_names")] = None
    attrs_conf: Annotated[np.ndarray | None, RegionField("<f4", least=0, most=1, tolerance=0.01)] = None

    def __len__(self) -> int:
        return len(self.boxes)


FIELDS: dict[str, RegionField] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Regions, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
LABELS: dict[str, RegionField] = {name: own for name, own in FIELDS.items() if own.optional}
"""Those that a detector may not give."""
