"""Files of installed Python packages, written ``package:MODULE/FILE``: models that come from PyPI."""

from importlib.util import find_spec
from pathlib import Path

from manifests.errors import InputError

_SCHEME = "package:"


def local_path(text: str) -> Path:
    """The path that `text` is, or of the package's file that it names.

    Raises InputError where that package isn't installed.
    """
    if not text.startswith(_SCHEME):
        return Path(text)
    module, _, file = text.removeprefix(_SCHEME).partition("/")
    found = find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        fix = f"run `pip install {module.replace('_', '-')}`"
        raise InputError(f"the package {module!r} isn't installed", where=text, fix=fix)
    return Path(found.submodule_search_locations[0], file)
