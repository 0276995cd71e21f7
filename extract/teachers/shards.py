"""The shards of a teacher store: vectors of images or of captions, made by one teacher."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.engine.cache import Cache
from extract.engine.code import code_fingerprint
from extract.engine.finished import Staging
from extract.engine.maker import Advance, ItemMaker
from extract.engine.tolerance import off
from extract.stores.hdf5 import MappedHDF5
from extract.stores.teachers import SCHEMA, Side, unit, write_shard
from extract.teachers.sentences import SentenceTeacher
from extract.teachers.settings import TeacherSettings
from extract.teachers.teacher import Teacher
from extract.teachers.vision import VisionTeacher
from manifests.errors import InputError

CODE = {
    "images": code_fingerprint("extract.teachers.shards", without={"extract.teachers.sentences"}),
    "captions": code_fingerprint("extract.teachers.shards", without={"extract.teachers.vision"}),
}


def load_teacher(
    side: Side, settings: TeacherSettings, *, images: Path, device: str, batch_size: int, readers: int
) -> Teacher:
    """The model that the settings name for that side. Raises InputError where it isn't on this machine."""
    if side == "captions":
        return SentenceTeacher(settings.captions, device=device, batch_size=batch_size)
    how = {"device": device, "batch_size": batch_size, "readers": readers, "max_pixels": settings.max_pixels}
    return VisionTeacher(settings.images, images, skip=settings.unreadable == "skip", **how)


class TeacherShards(ItemMaker[list[Any], np.ndarray]):
    """Makes shards of one side's vectors; a part is a list of the manifest's rows, or of captions.

    Parameters
    ----------
    teacher : of that side.
    recipe_hash : of the whole store.
    finished : the machine's cache folder; of a teacher that is fitted on the data set, a staging folder.
    device, batch_size : that the teacher has.
    exact : take only what was computed in this `environment`.
    """

    def __init__(
        self,
        *,
        side: Side,
        settings: TeacherSettings,
        recipe_hash: str,
        finished: Path | Staging,
        teacher: Teacher,
        device: str,
        batch_size: int,
        exact: bool = False,
    ):
        self.side, self.settings, self.recipe_hash, self.teacher = side, settings, recipe_hash, teacher
        self.device, self.batch_size = device, batch_size
        self.key = {"recipe": teacher.recipe, "store": recipe_hash, "code": CODE[side]}
        # A model is its weights, whatever its folder is called.
        decides = {"schema": SCHEMA} | {key: value for key, value in teacher.recipe.items() if key != "name"}
        self.finished = finished if isinstance(finished, Staging) else None
        if self.finished is None:
            of, own = f"teacher {teacher.recipe['name']}", self.environment if exact else None
            self.finished = Cache(finished, "teachers", decides, CODE[side], of=of, exact=own)

    @property
    def environment(self) -> dict[str, Any]:
        """What may move the last bits."""
        return {
            "device": self.device.partition(":")[0],
            "threads": torch.get_num_threads(),
            "batch_size": self.batch_size,
            **{name: version(name) for name in ("torch", "transformers")},
        }

    def done(self, part: list[Any]) -> dict[str, Any] | None:
        done = super().done(part)
        again = done and done["failures"] and self.settings.unreadable == "stop" and not self.teacher.fitted
        return None if again else done

    def content(self, part: list[Any]) -> dict[str, Any]:
        content = {"recipe": self.recipe_hash, "side": self.side, "items": self.digests(part)}
        return content | ({"max_pixels": self.settings.max_pixels} if self.side == "images" else {})

    def digests(self, part: list[Any]) -> list[str]:
        if self.side == "images":
            return [row.sha256 for row in part]
        return [sha256(text.encode()).hexdigest() for text in part]

    def read(self, shard: MappedHDF5, row: int) -> np.ndarray:
        return shard["embeddings"][row]

    def difference(self, known: np.ndarray, again: np.ndarray) -> str | None:
        apart = off(known, again, features=True)
        return None if apart is None else f"the vector differs by {apart:.3g}"

    def name(self, part: list[Any], place: int) -> str:
        return f"image {part[place].id!r}" if self.side == "images" else f"caption {part[place]!r}"

    def compute(self, part: list[Any], places: Sequence[int], advance: Advance) -> dict[int, np.ndarray]:
        """Vectors of length 1 (or 0), float16 ``[W]``."""
        found: dict[int, np.ndarray] = {}
        self.failures: dict[int, str] = {}
        with self.timed("compute"):
            for own, vectors in self.teacher.embed([part[place] for place in places]):
                wrong = ~np.isfinite(vectors).all(1)
                if wrong.any():
                    raise InputError(
                        f"the vector of {self.name(part, places[own[int(wrong.argmax())]])} is NaN or infinite",
                        where=f"teacher {self.teacher.recipe['name']!r}",
                        fix="choose another teacher",
                    )
                found |= zip((places[place] for place in own), unit(vectors), strict=True)
                advance(len(own))
        self.failures = {places[place]: reason for place, reason in self.teacher.failures.items()}
        return {place: vector for place, vector in found.items() if place not in self.failures}

    def save(self, path: Path, part: list[Any], results: Mapping[int, np.ndarray]) -> dict[str, Any]:
        embeddings = np.zeros((len(part), self.teacher.dim), np.float16)
        for place, vector in results.items():
            embeddings[place] = vector
        write_shard(path, embeddings, self.recipe_hash)
        return {
            "of": self.side,
            "count": len(part),
            "items": [digest if place in results else None for place, digest in enumerate(self.digests(part))],
            "failures": [{"place": place, "reason": reason} for place, reason in sorted(self.failures.items())],
            "environment": self.environment,
        }


def loaded(
    *,
    side: Side,
    settings: TeacherSettings,
    recipe_hash: str,
    finished: Path,
    images: Path,
    device: str,
    batch_size: int,
    readers: int,
    exact: bool,
) -> TeacherShards:
    """A maker with a model of its own, for a worker."""
    teacher = load_teacher(side, settings, images=images, device=device, batch_size=batch_size, readers=readers)
    own = {"side": side, "settings": settings, "recipe_hash": recipe_hash, "finished": finished, "exact": exact}
    return TeacherShards(**own, teacher=teacher, device=device, batch_size=batch_size)
