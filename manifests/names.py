"""What data sets, runs and images may be called: the names of folders and files, and the ids in every store."""

import re
import unicodedata
from typing import Any

from manifests.errors import InputError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_YAML_WORDS = {"on", "off", "yes", "no", "true", "false", "null", "y", "n"}
ALLOWED = "a name has letters (A to Z, a to z), digits, - and _, and begins with a letter"
# By Unicode's categories. Those of format (Cf) are allowed: joiners are parts of words.
_REFUSED = {
    "Cc": "a control character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
    "Cs": "half of a surrogate pair",
}


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a data set, run, ensemble or study; None if nothing is."""
    if name.lower() in _YAML_WORDS:
        return f"{name!r} is a word of YAML's own"
    return None if _NAME.fullmatch(name) else f"{name!r} is no name"


def require_name(name: str, where: object) -> None:
    """Raise `InputError` unless a data set may be called so."""
    if problem := name_problem(name):
        raise InputError(problem, where=where, fix=f"call it otherwise: {ALLOWED}")


def id_problem(id: str) -> str | None:
    """What is wrong with the characters of an image's id; None if nothing is.

    HDF5 holds an id in bytes of one length, padded with NUL, and messages and files of others hold it in a line.
    """
    for place, character in enumerate(id):
        if category := _REFUSED.get(unicodedata.category(character)):
            return f"character {place} of the id {id!r} is {category}"
    return None


def is_caption_id(value: Any) -> bool:
    """Whether a JSON value is a caption's id: a whole number of at most 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63
