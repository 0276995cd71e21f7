"""The options of `selfalign import`: they are keys of params.yaml's `source` and `regions`, named as options."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pydantic import ValidationError

from extract.settings import ImportSettings
from manifests.errors import InputError
from manifests.settings import DatasetSource

_KEY = re.compile(r"`(?:source|regions)\.(\w+)(?:: (\w+))?`")


def read_options(source: dict[str, Any], options: dict[str, Any]) -> tuple[DatasetSource, ImportSettings]:
    """Both sections, made of what the command is given. Raises InputError that names the option."""
    # `boxes` is a key of both: of imported regions it says what theirs are.
    own = DatasetSource.model_fields.keys() - ImportSettings.model_fields.keys()
    ours = {name: value for name, value in options.items() if name in own}
    try:
        return DatasetSource(**source, **ours), ImportSettings(
            **{name: value for name, value in options.items() if name not in ours}
        )
    except ValidationError as error:
        mistakes = [[*(_option(str(key)) for key in item["loc"][:1]), item["msg"]] for item in error.errors()]
        problems = "; ".join(": ".join(parts) for parts in mistakes)
        raise InputError(problems, where="selfalign import", fix="see `selfalign import --help`") from None


@contextmanager
def keys_as_options(images: str = "IMAGES") -> Iterator[None]:
    """An InputError of the block names the option wherever it names a key, such as `source.missing: skip`; `images` is
    that of `source.images`."""
    try:
        yield
    except InputError as error:
        what, where, fix = (_KEY.sub(partial(_named, images), text) for text in (error.what, error.where, error.fix))
        raise type(error)(what, where=where, fix=fix) from error


def _named(images: str, key: re.Match[str]) -> str:
    name, value = key.groups()
    if name == "images":
        return f"`{images}`"
    return f"`{_option(name)} {value}`" if value else f"`{_option(name)}`"


def _option(name: str) -> str:
    return "IMAGES" if name == "images" else f"--{name.replace('_', '-')}"
