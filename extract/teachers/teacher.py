"""What the teachers stage asks of a teacher, of images or of captions alike."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


class Teacher(Protocol):
    """Gives every row of a manifest's images, or captions, a vector.

    Attributes
    ----------
    recipe : what decides the vectors, as JSON.
    dim : W, their length.
    failures : of the images without a vector the reason, by row; filled while embedding.
    """

    recipe: dict[str, Any]
    dim: int
    failures: dict[int, str]

    def embed(self, rows: range) -> Iterator[tuple[list[int], np.ndarray]]:
        """Some of the rows with their vectors float32 ``[n, W]`` of any length, in any order, until all were given.

        What has no vector is zeros.
        """
        ...
