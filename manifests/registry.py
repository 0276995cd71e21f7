"""Registries: the parts of one kind by name. A part is one file: its typed settings, its code, its name.

    DETECTORS = Registry("detector", "extract.vision.detectors")

    @DETECTORS.add("grid")
    class GridDetector:
        Settings = GridSettings

A name is looked for among the files of the registry's own folder. Then come the modules that installed packages list in
their entry points of the group ``selfalign.parts``; importing such a module runs its decorators. An entry point called
KIND-NAME, "detector-grid", is imported before all others.
"""

import difflib
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, TypeVar

from pydantic import PlainValidator, SerializeAsAny, create_model
from pydantic_core import PydanticCustomError

from manifests.errors import InputError
from manifests.typed import Settings

GROUP = "selfalign.parts"
T = TypeVar("T")
_OURS = "selfalign"


class Registry(dict[str, T]):
    """A dictionary of parts by name, filled by a decorator.

    Parameters
    ----------
    kind : of its parts, for messages: "detector".
    folder : the package that has this project's own, a part NAME in its module NAME; None if it has none.
    """

    def __init__(self, kind: str, folder: str | None = None):
        super().__init__()
        self.kind, self.folder = kind, folder

    def add(self, name: str, version: int = 1) -> Callable[[T], T]:
        """Enter a class or a function under `name`.

        version : of what it computes; a higher one makes everybody's results of this part anew. Raises `InputError`
        where another module has entered that name, or where a file of this project enters another name than its own.
        """

        def enter(part: T) -> T:
            folder, _, file = part.__module__.rpartition(".")
            if folder == self.folder and file != name.replace("-", "_"):
                raise InputError(
                    f"it enters the {self.kind} {name!r}",
                    where=f"{part.__module__.replace('.', '/')}.py",
                    fix=f"give the part its file's name, {file!r}",
                )
            other = self.get(name)
            if other is not None and other.__module__ != part.__module__:
                raise InputError(
                    f"two parts are called {self.kind} {name!r}: {other.__module__} and {part.__module__}",
                    where=f"entry points {GROUP}",
                    fix="uninstall one of the two packages",
                )
            part.name, part.version = name, version
            self[name] = part
            return part

        return enter

    def find(self, name: str) -> T:
        """The part `name`. Raises `InputError` with the nearest of all names where there is none."""
        if not self.has_own(name):
            _load_packages(f"{self.kind}-{name}".replace(" ", "-"))
        if name not in self:
            self.load()
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1, cutoff=0.5)
            near = f" (did you mean {close[0]!r}?)" if close else ""
            raise InputError(f"no {self.kind} {name!r}{near}", where="name", fix=f"choose one of {', '.join(self)}")
        return self[name]

    def has_own(self, name: str) -> bool:
        """Whether `name` is entered already, or is that of a file of this project, which is entered then."""
        module = f"{self.folder}.{name.replace('-', '_')}"
        if name not in self and self.folder and name.replace("-", "_").isidentifier() and find_spec(module):
            self._enter(module)
        return name in self

    def own(self) -> "Registry[T]":
        """Enter this project's own parts: other packages may take long to import."""
        for module in iter_modules(find_spec(self.folder).submodule_search_locations) if self.folder else ():
            self._enter(f"{self.folder}.{module.name}")
        return self

    def _enter(self, module: str) -> None:
        """Import a file of this project, whose decorators enter its parts."""
        try:
            import_module(module)
        except (ImportError, SyntaxError) as error:
            where = f"{module.replace('.', '/')}.py"
            raise InputError(
                f"the file of a {self.kind} doesn't load ({error})", where=where, fix="correct it"
            ) from error

    def load(self) -> "Registry[T]":
        """Enter all parts: this project's own and those of installed packages."""
        self.own()
        _load_packages()
        return self

    @property
    def settings(self) -> Any:
        """The type of a key in `params.yaml` that names one part and has this part's settings (its ``Settings``)."""
        return Annotated[SerializeAsAny[Settings], PlainValidator(self._settings)]

    def settings_by_name(self, always: Collection[str] = ()) -> Any:
        """The type of a mapping in `params.yaml` of parts' names and their keys, sorted.

        A part that is null isn't there; those of `always` are there unless they are null.
        """

        def chosen(value: Any) -> dict[str, Settings]:
            if not isinstance(value, Mapping):
                raise _wrong(f"expected a mapping of {self.kind}s' names and their keys")
            if wrong := [name for name in value if not isinstance(name, str)]:
                raise _wrong(f"{wrong[0]!r} is no name of a {self.kind}: write it in quotes")
            keys = {name: own for name, own in ({name: {} for name in always} | {**value}).items() if own is not None}
            try:
                parts = {name: (self.find(name).Settings, ...) for name in sorted(keys)}
            except InputError as error:
                raise _unfound(error) from None
            found = create_model(self.kind, __base__=Settings, **parts).model_validate(keys)
            return {name: getattr(found, name) for name in parts}

        return Annotated[dict[str, SerializeAsAny[Settings]], PlainValidator(chosen)]

    def _settings(self, value: Any) -> Settings:
        if isinstance(value, Settings):
            return value
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str):
            raise _wrong(f"a {self.kind} is a mapping with its `name`, one of {', '.join(self.load())}")
        try:
            part = self.find(name)
        except InputError as error:
            raise _unfound(error) from None
        return part.Settings.model_validate(value)


def identity(part: Any) -> dict[str, Any]:
    """An addition to the recipe of a part: its version from 2 on, and the package and version of a part from elsewhere.

    Empty for the first version of this project's own parts.
    """
    top = part.__module__.partition(".")[0]
    recipe = {"version": part.version} if part.version > 1 else {}
    own = Path(__file__).parents[1] / top  # what lies elsewhere in the checkout may be another package's
    if own not in Path(getattr(sys.modules[part.__module__], "__file__", "") or "/").parents:
        # All of Python's packages are read for this: half a second.
        names = packages_distributions().get(top, [])
        if theirs := [name for name in names if name != _OURS]:
            recipe["package"] = f"{theirs[0]} {version(theirs[0])}"
    return {"part": recipe} if recipe else {}


@cache
def _load_packages(name: str | None = None) -> None:
    """Import the modules of all entry points, or of those of one name: one for each part spares the others' imports."""
    for entry in entry_points(group=GROUP, **({"name": name} if name else {})):
        try:
            entry.load()
        except ImportError as error:
            raise InputError(
                f"its parts don't load ({error})",
                where=f"package {entry.dist.name if entry.dist else entry.name}, entry point {entry.value}",
                fix="install what it needs, or uninstall it",
            ) from error


def _unfound(error: InputError) -> PydanticCustomError:
    """The error of a key that names a part; a file or a package is named, too."""
    where = "" if error.where == "name" else f" ({error.where})"
    return _wrong(f"{error.what}{where}: {error.fix}")


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("part", message.replace("{", "{{").replace("}", "}}"))
