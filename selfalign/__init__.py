"""SelfAlign in a notebook or a script: ten names (docs/python.md).

| name | does |
|---|---|
| `open_manifest` | opens a data set's list of images and captions |
| `open_store` | opens region features, tokens, text features or teachers |
| `load_model` | loads a trained run of the project in the current folder |
| `extract_regions` | extracts the regions of pictures as those of a data set were |
| `embed_images` | encodes images, from their regions |
| `embed_captions` | encodes texts |
| `open_index` | opens an index for search |
| `search` | finds images for a text, and captions or images for a picture |
| `match_words` | finds the region of a picture that each word of a text matches |
| `InputError` | says what is wrong with an input, where, and how to mend it |

A name is imported when it is first used, so that ``import selfalign`` takes no time.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifests.errors import InputError
    from pipeline.notebook import (
        embed_captions,
        embed_images,
        extract_regions,
        load_model,
        match_words,
        open_index,
        open_manifest,
        open_store,
        search,
    )

__all__ = [
    "InputError",
    "embed_captions",
    "embed_images",
    "extract_regions",
    "load_model",
    "match_words",
    "open_index",
    "open_manifest",
    "open_store",
    "search",
]
_PACKAGES = ("manifests", "extract", "train", "eval", "pipeline")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'selfalign' has no attribute {name!r}: it has {', '.join(__all__)}")
    _require_own_packages()
    module = import_module("manifests.errors" if name == "InputError" else "pipeline.notebook")
    found = globals()[name] = getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _require_own_packages() -> None:
    """Raise ImportError with the files that Python would import, or has, in the place of SelfAlign's packages."""
    root = Path(__file__).resolve().parents[1]
    others = []
    for package in _PACKAGES:
        file = _file_of(package)
        if file is None or not file.resolve().is_relative_to(root / package):
            others.append(f"`{package}` is {file or 'nowhere'}, not {root / package}")
    if others:
        fix = "Rename that file or folder, or start Python in another folder; then restart it."
        raise ImportError(f"SelfAlign's packages are hidden by others of the same names: {'; '.join(others)}. {fix}")


def _file_of(package: str) -> Path | None:
    """The file that a package's name means here; a folder for a package without an `__init__.py`."""
    loaded = sys.modules.get(package)
    spec = loaded.__spec__ if loaded is not None else find_spec(package)
    if spec is None:
        return None
    if spec.origin:
        return Path(spec.origin)
    return next(map(Path, spec.submodule_search_locations or ()), None)
