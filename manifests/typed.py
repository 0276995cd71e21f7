"""The base of every floor's typed parameters, and of the types that files must have."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

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
            context = {"value": value, "number": number}
            raise PydanticCustomError("schema", "{value}, this program reads {number}", context)
        return value

    return Annotated[int, AfterValidator(same)]


class Settings(BaseModel):
    """A section of `params.yaml`: typed, and closed to unknown keys, which are errors that name the nearest known one.

    `later` names keys that are younger than the features people have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()

    def decides(self) -> dict[str, Any]:
        """Keys and values for a recipe, as JSON. A later key at its default isn't in it: it invalidates nothing."""
        default = {key for key in self.later if getattr(self, key) == type(self).model_fields[key].default}
        found = self.model_dump(mode="json", exclude=default)
        for key, value in self:
            if key in default:
                continue
            if isinstance(value, Settings):
                found[key] = value.decides()
            elif isinstance(value, dict):
                found[key] |= {name: own.decides() for name, own in value.items() if isinstance(own, Settings)}
        return found

    @model_validator(mode="wrap")
    @classmethod
    def _nearest_key(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
            if not any(item["type"] == "extra_forbidden" for item in found):
                raise
            raise ValidationError.from_exception_data(
                cls.__name__, [_with_nearest_key(item, cls) for item in found]
            ) from None


def one_of(key: str, *sections: type[Settings]) -> Any:
    """The type of a section that `key`, a literal of each of `sections`, chooses."""
    by_name = {get_args(section.model_fields[key].annotation)[0]: section for section in sections}

    def chosen(value: Any) -> Settings:
        if isinstance(value, Settings):
            return value
        name = value.get(key) if isinstance(value, Mapping) else None
        if name not in by_name:
            message = f"{key} is {name!r}" if name is not None else f"a mapping with its `{key}` is missing"
            raise PydanticCustomError("choice", f"{message}: choose one of {', '.join(by_name)}")
        return by_name[name].model_validate(value)

    return Annotated[SerializeAsAny[Settings], PlainValidator(chosen)]


def _with_nearest_key(item: Any, section: type[BaseModel]) -> InitErrorDetails:
    """An error of pydantic's with the nearest known key, where it is about an unknown one of this section."""
    message = item["msg"]
    if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
        close = difflib.get_close_matches(str(item["loc"][0]), section.model_fields, n=1, cutoff=0.5)
        message = f"unknown key (did you mean {close[0]!r}?)" if close else "unknown key"
    return InitErrorDetails(type=PydanticCustomError(item["type"], message), loc=item["loc"], input=item["input"])


class Written(BaseModel):
    """What the pipeline wrote as JSON, read back: types are exact, and keys that nobody reads may be there."""

    model_config = ConfigDict(strict=True)


def read_checked(path: Path, kind: type[T], *, fix: str) -> tuple[T, Any]:
    """The value of a JSON file as `kind` (a `Written`, or another type that pydantic knows), and as it stands there.

    Raises InputError, with `fix`, for a file that can't be read, that isn't JSON, or that has a value of another type.
    The error names the file and the first such key.
    """
    value = parse_json(read_utf8(path), path=path, fix=fix)
    return checked(value, kind, where=path, fix=fix), value


def checked(value: Any, kind: type[T], *, where: object, fix: str) -> T:
    """A JSON value as `kind`. Raises InputError as `read_checked` does."""
    try:
        text = canonical_json(value).encode("utf-8")  # no infinite number, no half of a surrogate pair
        # A `Written` is strict of itself; the parameters in one were typed by hand, once.
        strict = None if isinstance(kind, type) and issubclass(kind, BaseModel) else True
        return TypeAdapter(kind).validate_json(text, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        message = f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise InputError(message, where=where, fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON that can be written ({error})", where=where, fix=fix) from None
