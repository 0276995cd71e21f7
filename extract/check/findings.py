"""The findings of `selfalign verify` in a store: each with its file, the picture's row and id, and the mistake."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from extract.stores.intact import INDEX
from extract.stores.recipe import FILE as RECIPE
from extract.stores.recipe import read_recipe
from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8

Index = TypeVar("Index", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake: the file, the picture's row in it (from 0) and id, if it is of a picture, and `what` is wrong."""

    file: str
    what: str
    row: int | None = None
    image_id: str | None = None

    def __str__(self) -> str:
        row = "" if self.row is None else f" row {self.row}"
        image = "" if self.image_id is None else f" ({self.image_id})"
        text = f"{self.file}{row}{image}: {self.what}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass
class Verification:
    """The result of `run`. `findings` are the first `limit` of `total`; the store is sound if `total` is 0."""

    store: Path
    manifest: Path | None
    limit: int
    findings: list[Finding] = field(default_factory=list)
    total: int = 0
    images: int = 0
    regions: int = 0
    captions: int = 0
    vectors: int = 0
    shards: int = 0
    split: str | None = None  # of a store of one split
    # Which of these counts the store is made of.
    holds: tuple[str, ...] = ("images", "regions")

    def add(self, file: str, what: str, row: int | None = None, image_id: str | None = None) -> None:
        """Count a finding, and keep it if there is room."""
        self.total += 1
        if len(self.findings) < self.limit:
            self.findings.append(Finding(file, what, row, image_id))

    def text(self) -> str:
        """The findings a line each, and a last line that sums up."""
        facts = ", ".join(f"{getattr(self, what):,} {what}" for what in (*self.holds, "shards"))
        images = f"{self.split} image" if self.split else "image"
        against = f"every {images} of {self.manifest} accounted for" if self.manifest else "no manifest to compare with"
        if not self.total:
            return f"sound: {self.store} ({facts}; {against})"
        lines = [str(finding) for finding in self.findings]
        if self.total > len(lines):
            lines.append(f"... and {self.total - len(lines):,} more")
        return "\n".join([*lines, f"not sound: {self.store} ({facts} read), {self.total:,} findings"])


def reason(error: Exception) -> str:
    """An error as part of a finding."""
    return error.what if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def read_index(found: Verification, model: type[Index]) -> Index | None:
    """The store's ``index.json`` as `model` describes it; None, with findings, where it isn't so."""
    path = found.store / INDEX
    try:
        return model.model_validate(parse_json(read_utf8(path), path=path, fix="make the store again"))
    except ValidationError as error:
        for problem in error.errors():
            found.add(INDEX, f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}")
    except InputError as error:
        found.add(INDEX, f"not a store: {reason(error)}")
    return None


def recipe_holds(found: Verification) -> bool:
    """Whether the store's recipe can be read and matches its hash; a finding where not."""
    try:
        read_recipe(found.store)
    except (ValueError, RecursionError) as error:
        found.add(RECIPE, reason(error))
        return False
    return True


def add_unlisted(found: Verification, pattern: str, listed: Iterable[str]) -> None:
    """A finding for every file of a pattern that the index doesn't list."""
    known = set(listed)
    for path in sorted(found.store.glob(pattern)):
        if path.name not in known:
            found.add(path.name, f"{INDEX} doesn't list this file")
