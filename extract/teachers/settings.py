"""The parameters of the teachers stage, as they stand in `params.yaml`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from extract.stores.teachers import SIDES, Side
from extract.teachers import TEACHERS
from manifests.opening import MAX_PIXELS, PILLOWS_LIMIT
from manifests.typed import Settings

_OF_MODELS = {"images": "vision", "captions": "sentences"}


def named(side: Side, entry: Any) -> dict[str, Any] | None:
    """A teacher's entry as older projects wrote it, without a name, as it is written now; None of any other value."""
    if not isinstance(entry, dict) or "name" in entry or not isinstance(model := entry.get("model"), str):
        return None
    own = {"name": model} if TEACHERS.has_own(model) else {"name": _OF_MODELS[side], "model": model}
    return own | {key: each for key, each in entry.items() if key not in ("model", "reads")}


class TeacherSettings(Settings):
    """The settings of a data set's teachers."""

    images: TEACHERS.settings = Field(description="who finds images alike")
    captions: TEACHERS.settings = Field(description="who finds captions alike")
    unreadable: Literal["stop", "skip"] = Field(
        default="stop", description="at a picture that can't be decoded; training refuses a skipped one with regions"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, le=PILLOWS_LIMIT, description="a picture of more, by its header, can't be decoded"
    )
    items_per_shard: int = Field(default=16384, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _teachers_have_names(cls, value: Any) -> Any:
        """Refuse teachers as they were written before they had names, with today's spelling."""
        for side in SIDES if isinstance(value, dict) else ():
            if own := named(side, value.get(side)):
                written = ", ".join(f"{key}: {each}" for key, each in own.items())
                raise ValueError(f"{side} has no `name`: write {side}: {{{written}}}")
        return value

    @model_validator(mode="after")
    def _of_its_side(self) -> Self:
        for side in SIDES:
            part = TEACHERS.find(getattr(self, side).name)
            if part.side() != side:
                raise ValueError(f"the teacher {part.name} finds {part.side()} alike, not {side}")
        return self
