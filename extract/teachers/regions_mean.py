"""The built-in image teacher `regions-mean`, for when no vision model is at hand.

An image's vector is the mean of its region features, less the mean over the train split. Without this subtraction all
images would be alike. The teacher knows the detector's classes, and nothing of where things are.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from extract.stores.intact import require_intact
from extract.stores.regions import RegionStore
from extract.teachers import TEACHERS
from extract.teachers.teacher import Inputs, Teacher
from manifests.progress import progress
from manifests.schema import ImageRow
from manifests.tables import Manifest
from manifests.typed import Settings

_BATCH = 256


class RegionsMeanSettings(Settings):
    """Means of the region stores' features."""

    name: Literal["regions-mean"] = "regions-mean"


@TEACHERS.add("regions-mean")
class RegionsMean(Teacher):
    """Means of the features of all images' regions."""

    Settings = RegionsMeanSettings
    reads = "regions"
    fitted = True

    def __init__(self, settings: RegionsMeanSettings, inputs: Inputs):
        self.store, self.rows = RegionStore(inputs.regions), Manifest.open(inputs.manifest).images
        for store in self.store.folders:
            require_intact(store)
        self.dim = self.store.dim
        self.failures = {}
        self.recipe = {"name": self.name, "less": "mean of the train split", "regions": self.store.recipe_hash}

    def embed(self, items: Sequence[ImageRow]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Batches of consecutive images."""
        self.failures = {}
        for first in range(0, len(items), _BATCH):
            batch = items[first : first + _BATCH]
            found = np.zeros((len(batch), self.dim), np.float32)
            for place, image in enumerate(batch):
                mean = self._mean(image)
                if mean is None:
                    self.failures[first + place] = "the region store has no regions of it"
                else:
                    found[place] = mean - self.centre
            yield list(range(first, first + len(batch))), found

    def vector(self, features: np.ndarray) -> np.ndarray:
        """Float32 `[D]`: one more image, of regions `[R, D]`."""
        return features.mean(0, dtype=np.float32) - self.centre

    @cached_property
    def centre(self) -> np.ndarray:
        """Float32 `[D]`: the mean over the train split."""
        train = [image for image in self.rows if image.split == "train"]
        total, count = np.zeros(self.dim), 0
        for image in progress(train, what="mean of the train split", unit="images"):
            mean = self._mean(image)
            if mean is not None:
                total, count = total + mean, count + 1
        return (total / max(count, 1)).astype(np.float32)

    def _mean(self, image: ImageRow) -> np.ndarray | None:
        if image.id not in self.store:
            return None
        features = self.store.regions(self.store.row(image.id)).features
        return features.mean(0, dtype=np.float32) if len(features) else None
