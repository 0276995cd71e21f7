"""The base of every floor's typed parameters, and of the types that files must have."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from manifests.errors import InputError
from manifests.files import canonical_json
from manifests.jsonl import parse_json, read_utf8

T = TypeVar("T")
Count = Annotated[int, Field(ge=0, le=2**40)]
"""A number of things on a disk."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A sha256 in hex."""


def schema(number: int) -> Any:
    """The type of a file's schema, which must be `number`."""

    def same(value: int) -> int:
        if value != number:
            told = {"value": value, "number": number}
            raise PydanticCustomError("schema", "{value}, this program reads {number}", told)
        return value

    return Annotated[int, AfterValidator(same)]


class Settings(BaseModel):
    """A section of `params.yaml`: typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Written(BaseModel):
    """What the pipeline wrote as JSON, read back: types are exact, and keys that nobody reads may be there."""

    model_config = ConfigDict(strict=True)


def read_checked(path: Path, kind: type[T], *, fix: str) -> tuple[T, Any]:
    """The value of a JSON file as `kind` (a `Written`, or another type that pydantic knows), and as it stands there.

    Raises InputError, with `fix`, for a file that can't be read, that isn't JSON, or that has a value of another type:
    it names the file and the first such key.
    """
    value = parse_json(read_utf8(path), path=path, fix=fix)
    return checked(value, kind, where=path, fix=fix), value


def checked(value: Any, kind: type[T], *, where: object, fix: str) -> T:
    """A JSON value as `kind`. Raises InputError as `read_checked` does."""
    try:
        text = canonical_json(value).encode("utf-8")  # no infinite number, no half of a surrogate pair
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        told = f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise InputError(told, where=where, fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON that can be written ({error})", where=where, fix=fix) from None
