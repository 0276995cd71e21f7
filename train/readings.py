"""Losses and gradient norms of the last steps, which stay on the device until some steps are read back together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

EVERY = 16  # steps that a GPU, which runs ahead of Python, is asked about at once


@dataclass(frozen=True, slots=True)
class Reading:
    """A step's loss terms, by name, and its gradient's norm; `captions` are its batch's."""

    epoch: int
    step: int
    captions: np.ndarray
    terms: dict[str, float]
    norm: float


class Readings:
    """Values that wait to be read, of `every` steps at most."""

    def __init__(self, device: torch.device):
        self.every = 1 if device.type == "cpu" else EVERY
        self._waiting: list[tuple[int, int, np.ndarray, Sequence[str], Tensor]] = []

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self.every

    def add(self, epoch: int, step: int, captions: np.ndarray, terms: dict[str, Tensor], norm: Tensor) -> None:
        """Take the values of a step: scalars, left where they are."""
        values = [*terms.values(), norm]
        dtype = reduce(torch.promote_types, (value.dtype for value in values))
        self._waiting.append((epoch, step, captions, list(terms), torch.stack([value.to(dtype) for value in values])))

    def read(self) -> list[Reading]:
        """All that waits, in one transfer."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        values = iter(torch.cat([values for *_, values in waiting]).tolist())
        return [
            Reading(epoch, step, captions, {name: next(values) for name in names}, next(values))
            for epoch, step, captions, names, _ in waiting
        ]
