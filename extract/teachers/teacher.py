"""A teacher: images in, or captions in, a vector of each out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from extract.stores.teachers import Side
from manifests.opening import MAX_PIXELS
from manifests.typed import Settings


@dataclass(frozen=True)
class Inputs:
    """The inputs of a teacher, and the settings of its speed.

    Parameters
    ----------
    manifest, regions, images : the manifest's folder, the region stores' and the image root.
    skip : pictures that can't be decoded have no vector; else they stop the stage.
    max_pixels : pictures with more can't be decoded.
    device, batch_size, readers : torch device, items a batch, threads that read pictures.
    """

    manifest: Path
    regions: Path
    images: Path
    skip: bool = False
    max_pixels: int = MAX_PIXELS
    device: str = "cpu"
    batch_size: int = 256
    readers: int = 2


class Teacher(ABC):
    """Gives images (`manifests.schema.ImageRow`), or captions (text), a vector each.

    Made by ``part(settings, inputs)``, with settings of the type `Settings`. Raises `InputError` if its model or its
    data isn't on this machine.

    Attributes
    ----------
    reads : the kind of its inputs; pictures and regions are images'.
    fitted : whether an item's vector depends on the data set that it is in. Such vectors aren't kept in the cache.
    recipe : all that decides the vectors, as JSON, with the teacher's ``name``.
    dim : W, their length.
    failures : of the items without a vector the reason, by their place in the `embed` at hand.
    """

    Settings: ClassVar[type[Settings]]
    reads: ClassVar[Literal["pictures", "regions", "captions"]]
    fitted: ClassVar[bool] = False
    name: ClassVar[str]
    version: ClassVar[int]

    recipe: dict[str, Any]
    dim: int
    failures: dict[int, str]

    @abstractmethod
    def embed(self, items: Sequence[Any]) -> Iterator[tuple[list[int], np.ndarray]]:
        """The places of some items with their vectors float32 ``[n, W]`` of any length, until all were given.

        An item without a vector has zeros.
        """

    @classmethod
    def require(cls, settings: Settings) -> None:
        """Raise `InputError` if a model of these settings isn't on this machine; `selfalign doctor` asks."""
        return None

    @classmethod
    def side(cls) -> Side:
        """The side of the data set that has its vectors."""
        return "captions" if cls.reads == "captions" else "images"
