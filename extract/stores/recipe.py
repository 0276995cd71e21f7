"""Recipes: all that decides the numbers in a store.

A recipe is JSON, and its canonical text gives the recipe hash. A store's origin is noted outside it
(`extract.stores.made`). Stores of different recipes are never mixed (docs/architecture.md, "Stores").
"""

from pathlib import Path
from typing import Any

from manifests.errors import InputError
from manifests.files import fingerprint, write_json
from manifests.typed import Written, read_checked

FILE = "recipe.json"


class _Written(Written):
    recipe: dict[str, Any]
    recipe_hash: str


def write_recipe(folder: Path, recipe: dict[str, Any]) -> str:
    """Write `folder`/recipe.json and return the recipe hash."""
    recipe_hash = fingerprint(recipe)
    write_json(Path(folder) / FILE, {"recipe": recipe, "recipe_hash": recipe_hash})
    return recipe_hash


def read_recipe(folder: Path) -> tuple[dict[str, Any], str]:
    """The recipe of a store and its hash. Raises `InputError` where the file is missing or doesn't match its hash."""
    path = Path(folder) / FILE
    try:
        written, _ = read_checked(path, _Written, fix="run the stage that makes this store")
    except InputError as error:
        raise InputError(f"no readable recipe ({error.what})", where=path, fix=error.fix) from error
    recipe, recipe_hash = written.recipe, written.recipe_hash
    if fingerprint(recipe) != recipe_hash:
        raise InputError(
            "the recipe doesn't match its own hash", where=path, fix="restore the file, or make the store again"
        )
    return recipe, recipe_hash


def read_recipe_of(folder: Path, form: str, schema: int, fix: str) -> tuple[dict[str, Any], str]:
    """`read_recipe` of a store of format `form` and that schema. Raises `InputError`, with `fix`, of any other."""
    recipe, recipe_hash = read_recipe(folder)
    if (recipe.get("format"), recipe.get("schema")) != (form, schema):
        raise InputError(
            f"format {recipe.get('format')!r}, schema {recipe.get('schema')!r}; this program reads {form!r}, "
            f"schema {schema}",
            where=Path(folder) / FILE,
            fix=fix,
        )
    return recipe, recipe_hash


def require_same_recipe(ours: dict[str, Any], where_ours: object, theirs: dict[str, Any], where_theirs: object) -> None:
    """Raise `InputError` naming both places and the first differing key, unless the two recipes are equal."""
    difference = first_difference(ours, theirs)
    if difference is not None:
        key, a, b = difference
        raise InputError(
            f"its recipe differs from that of {where_theirs} at {key!r}: {a!r} here, {b!r} there",
            where=where_ours,
            fix="use stores of one recipe, or rerun the stages that depend on the one that changed",
        )


def first_difference(a: Any, b: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key (dotted, in alphabetical order) at which two recipes differ, with both values; None if equal."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            found = first_difference(a.get(name), b.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    return None if a == b else (key, a, b)
