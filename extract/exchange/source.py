"""The base of exchange formats: a survey of the files from start to end, then each image's regions by their place.

The survey is the manifest stage's: it hashes every file and says where each image's regions lie. The region stage goes
straight to these places, and hashes the files again beside it.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from extract.stores.open_files import Descriptor, opened
from manifests.errors import InputError
from manifests.files import sha256
from manifests.source import LeftOut, SourceImage

LABELS = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")


@dataclass(frozen=True, slots=True)
class Found:
    """An image as the survey meets it.

    Parameters
    ----------
    key : the file's name of the image.
    where : file and row, for messages.
    place : numbers by which `Source.read` finds it again.
    boxes : how many regions it has.
    size : (width, height) in pixels, where the file says so in a known order.
    load : reads them, while the survey stands at this image.
    """

    key: str
    where: str
    place: tuple[int, ...]
    boxes: int
    size: tuple[int, int] | None
    load: Callable[[], "Record"]


@dataclass(frozen=True, slots=True)
class Record:
    """One image's regions as the file has them.

    `features` is float ``[R, D]``. `boxes` is ``[R, 4]`` and `size` two numbers in the file's own convention, or None.
    `labels` has any of `LABELS`, ``[R]`` each.
    """

    features: np.ndarray
    boxes: np.ndarray | None
    size: tuple[float, float] | None
    labels: dict[str, np.ndarray] = field(default_factory=dict)


class Source(ABC):
    """The files of one format.

    Parameters
    ----------
    root : a file, or a folder of them.
    captions : where the captions are; a survey of a format that has its own may look there.
    given : the user's options for the format (`extract.settings.ImportSettings`): keys of `options`.

    Attributes
    ----------
    options : the names of the format's options.
    boxes : the convention of the records' boxes, as `ImportSettings.boxes`; None without boxes.
    precision : in which a store loses nothing of the features, as far as the files say so.
    paths : the files that hold regions.
    files : name -> sha256 of every one of them, once `survey` has ended.
    captions_in_survey : whether a survey must come before `entries` are asked for the first one.
    notes : remarks on these files for people, once `survey` has ended.
    object_names, attribute_names : the names of class numbers; known after `survey`, or set before `read`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    options: ClassVar[frozenset[str]] = frozenset()
    captions_in_survey: ClassVar[bool] = False
    write: ClassVar[Callable[..., None] | None] = None
    paths: list[Path]
    boxes: str | None = "xyxy"
    precision: str = "float16"

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        self.root = Path(root)
        self.captions = Path(captions or root)
        self.given = given
        self.files: dict[str, str] = {}
        self.notes: list[str] = []
        self.object_names: list[str] | None = None
        self.attribute_names: list[str] | None = None

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether a file or a folder is of this format, by names and first bytes alone."""
        return False

    @abstractmethod
    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        """Read all files from start to end. Unreadable rows are `LeftOut`.

        `advance` is called with the number of bytes. InputError, with file, row and fix, is of the whole file.
        """

    @abstractmethod
    def where(self, place: list[int]) -> str:
        """File and row of a place, for messages."""

    @abstractmethod
    def read(self, place: list[int]) -> Record:
        """The regions at a place; safe to call in threads. Raises InputError with file, row and fix."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def hash_again(self, advance: Callable[[int], object]) -> dict[str, str]:
        """The files' sha256, as `files` has them after the survey; `advance` is called with the number of bytes."""
        return {path.name: sha256(path, advance) for path in self.paths}

    def entries(self) -> Iterator[SourceImage] | None:
        """Ids, splits and captions where `captions` is of this format too, else None."""
        return None


class Bytes:
    """A file to read parts of in threads; few are open at a time. A missing or too short file is an InputError."""

    def __init__(self, path: Path, fix: str):
        self.path, self._fix = Path(path), fix
        file = self._open()
        self.size = os.fstat(file.number).st_size

    def _open(self) -> Descriptor:
        try:
            return Descriptor(self.path)
        except OSError as error:
            raise InputError(f"can't be read ({error.strerror})", where=self.path, fix=self._fix) from error

    def read(self, offset: int, length: int, where: object) -> bytes:
        """`length` bytes from `offset` on."""
        if min(offset, length) < 0 or offset + length > self.size:
            raise InputError(f"the file ends at byte {self.size}, inside this row", where=where, fix=self._fix)
        file = opened(self, self._open)
        data = os.pread(file.number, length, offset)
        while len(data) < length:  # one call gives 2 GB at most
            more = os.pread(file.number, length - len(data), offset + len(data))
            if not more:
                raise InputError("the file ends before this row does", where=where, fix=self._fix)
            data += more
        return data


def files_in(root: Path, *patterns: str) -> list[Path]:
    """The path `root` if it is no folder, else the paths in it with these patterns, by name.

    InputError if there is none. A path that isn't a file is refused when it is opened.
    """
    root = Path(root)
    found = sorted(path for pattern in patterns for path in root.glob(pattern)) if root.is_dir() else [root]
    if not found:
        names = " or ".join(patterns)
        raise InputError(f"there is no {names}", where=root, fix="check `source.images`, the path of the regions")
    return found
