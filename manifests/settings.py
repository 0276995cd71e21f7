"""The typed parameters of floor 1: what the demo's scenes are, and where a data set is."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from manifests.errors import InputError
from manifests.imported import FORMATS
from manifests.readers import READERS
from manifests.typed import Settings


class DatasetSource(Settings):
    """Where a data set's pictures and captions are, and how it is split (`datasets.NAME.source` in params.yaml)."""

    format: str = Field(
        description="of the captions file (a name of `manifests.readers.READERS`), or of imported regions "
        "(`manifests.imported.FORMATS`)"
    )
    images: Path = Field(description="the image root; the file or folder of the regions where they are imported")
    captions: Path = Field(description="the captions file")
    boxes: Path | None = Field(None, description="file of given boxes (`manifests.boxes`); may be the captions file")
    watch: Path | None = Field(
        None, description="what DVC looks at beside the captions: images, or else captions again"
    )
    val_fraction: float = Field(0.1, ge=0, lt=1, description="part to validate on, if the file has no splits")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="part to test on, if the file has no splits")
    duplicates: Literal["refuse", "allow"] = Field("refuse", description="the same bytes in two splits")
    missing: Literal["refuse", "skip"] = Field(
        "refuse", description="captions of pictures, or regions, that aren't there"
    )
    unreadable: Literal["refuse", "skip"] = Field(
        "refuse", description="broken and repeated rows, and captions without a word"
    )
    pictures: Path | None = Field(None, description="the image root of imported regions, for the report")

    @field_validator("format")
    @classmethod
    def _known(cls, format: str) -> str:
        if not READERS.has_own(format):
            try:
                if not FORMATS.has_own(format) and format not in READERS.load():
                    FORMATS.find(format)
            except InputError as error:
                known = ", ".join([*READERS, *FORMATS])
                raise PydanticCustomError(
                    "format", "{message}: choose one of {known}", {"message": error.what, "known": known}
                ) from None
        return format

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self

    @model_validator(mode="after")
    def _imports_have_their_own_keys(self) -> Self:
        others = {"boxes", "duplicates"} if self.imported else {"pictures"}
        for key in sorted(others & self.model_fields_set):
            raise ValueError(f"`{key}` is not for format {self.format}")
        return self

    @model_validator(mode="after")
    def _watches_its_own(self) -> Self:
        own = {"images": self.images} if self.imported else {"captions": self.captions, "images": self.images}
        if self.boxes not in (None, self.captions):
            own = {"boxes": self.boxes}
        if self.watch is not None and self.watch not in own.values():
            choices = " or ".join(f"{path} (as `{key}`)" for key, path in own.items())
            raise ValueError(f"`watch` must be {choices}")
        return self

    @property
    def imported(self) -> bool:
        """Whether regions come from files instead of pictures."""
        return not READERS.has_own(self.format)

    @property
    def picture_root(self) -> Path:
        """The folder of a report's pictures: they may not be there."""
        return self.pictures or self.images
