"""What the teachers stage asks of a teacher, of images or of captions alike."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np


class Teacher(Protocol):
    """Gives images (`manifests.schema.ImageRow`), or captions (text), a vector each.

    Attributes
    ----------
    recipe : what decides the vectors, as JSON.
    dim : W, their length.
    fitted : whether an item's vector depends on the data set that it is in.
    failures : of the items without a vector the reason, by their place in the `embed` at hand.
    """

    recipe: dict[str, Any]
    dim: int
    fitted: bool
    failures: dict[int, str]

    def embed(self, items: Sequence[Any]) -> Iterator[tuple[list[int], np.ndarray]]:
        """The places of some items with their vectors float32 ``[n, W]`` of any length, until all were given.

        What has no vector is zeros.
        """
        ...
