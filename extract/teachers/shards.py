"""The shards of a teacher store: vectors of images or of captions, made by one teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from extract.engine.cache import Cache
from extract.engine.code import code_fingerprint
from extract.engine.device import environment
from extract.engine.finished import Staging
from extract.engine.maker import Advance, ItemMaker
from extract.engine.tolerance import difference_beyond
from extract.stores.hdf5 import MappedHDF5
from extract.stores.teachers import SCHEMA, unit, write_shard
from extract.teachers import TEACHERS
from extract.teachers.teacher import Inputs, Teacher
from manifests.errors import InputError
from manifests.registry import identity
from manifests.typed import Settings


@cache
def teacher_code(name: str) -> str:
    """The fingerprint of the code that makes vectors with a teacher."""
    return code_fingerprint("extract.teachers.shards", TEACHERS.find(name).__module__)


def load_teacher(settings: Settings, inputs: Inputs) -> Teacher:
    """The teacher of some settings. Raises InputError if its model or its data isn't on this machine."""
    part = TEACHERS.find(settings.name)
    teacher = part(settings, inputs)
    teacher.recipe |= identity(part)
    return teacher


class TeacherShards(ItemMaker[list[Any], np.ndarray]):
    """Makes shards of one side's vectors; a part is a list of the manifest's rows, or of captions.

    Parameters
    ----------
    teacher, inputs : the teacher, and the inputs that it was made with.
    recipe_hash : of the whole store.
    finished : the machine's cache folder; of a teacher that is fitted on the data set, a staging folder.
    exact : take only results of this `environment`.
    """

    def __init__(
        self,
        *,
        teacher: Teacher,
        inputs: Inputs,
        recipe_hash: str,
        finished: Path | Staging,
        exact: bool = False,
    ):
        self.teacher, self.inputs, self.recipe_hash = teacher, inputs, recipe_hash
        self.side, code = teacher.side(), teacher_code(teacher.name)
        self.key = {"recipe": teacher.recipe, "store": recipe_hash, "code": code}
        # A model is its weights, whatever its folder is called.
        decides = {"schema": SCHEMA} | {key: value for key, value in teacher.recipe.items() if key != "name"}
        self.finished = finished if isinstance(finished, Staging) else None
        if self.finished is None:
            of, own = f"teacher {teacher.recipe['name']}", self.environment if exact else None
            self.finished = Cache(finished, "teachers", decides, code, of=of, exact=own)

    @property
    def environment(self) -> dict[str, Any]:
        """Facts that may move the last bits."""
        return environment(self.inputs.device, self.inputs.batch_size, "transformers")

    def done(self, part: list[Any]) -> dict[str, Any] | None:
        done = super().done(part)
        again = done and done["failures"] and not self.inputs.skip and not self.teacher.fitted
        return None if again else done

    def content(self, part: list[Any]) -> dict[str, Any]:
        content = {"recipe": self.recipe_hash, "side": self.side, "items": self.digests(part)}
        return content | ({"max_pixels": self.inputs.max_pixels} if self.side == "images" else {})

    def digests(self, part: list[Any]) -> list[str]:
        if self.side == "images":
            return [row.sha256 for row in part]
        return [sha256(text.encode()).hexdigest() for text in part]

    def read(self, shard: MappedHDF5, row: int) -> np.ndarray:
        return shard["embeddings"][row]

    def difference(self, known: np.ndarray, again: np.ndarray) -> str | None:
        largest = difference_beyond(known, again, features=True)
        return None if largest is None else f"the vector differs by {largest:.3g}"

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


def loaded(*, settings: Settings, inputs: Inputs, device: str, **own: Any) -> TeacherShards:
    """A maker with a teacher of its own, for a worker."""
    inputs = replace(inputs, device=device)
    return TeacherShards(teacher=load_teacher(settings, inputs), inputs=inputs, **own)
