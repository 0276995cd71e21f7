"""The fingerprint of code: of its syntax trees, without comments, docstrings and blank lines.

Results are kept by the code that made them. An edited comment makes DVC run a stage; it must not make anybody's
features anew.
"""

import ast
import hashlib
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from manifests.locks import PYTHON_PARSER

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("manifests", "extract", "demo", "train", "eval", "pipeline")
_ENGINE = ("build", "cache", "code", "device", "finished", "maker", "tolerance", "workers")
# No number depends on these: fetching, writing and locking of files, messages, progress.
_PLUMBING = {
    "extract.vision.fetching",
    *("manifests.errors", "manifests.files", "manifests.locks", "manifests.progress", "manifests.jsonl"),
    *("manifests.typed", "manifests.registry"),
    *(f"extract.engine.{name}" for name in _ENGINE),
}


def code_fingerprint(*modules: str, without: Collection[str] = ()) -> str:
    """SHA-256, in hex, of the meaning of `modules` and of all modules of this project that they import.

    Files of a folder `templates` beside a module belong to it. Of a loaded module of another package, all files of its
    folder count.
    `without` names modules that are not followed: parts that weren't asked for.
    """
    whole, left_out = hashlib.sha256(), _PLUMBING.union(without)
    seen, waiting = set(), list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or name in left_out or _file(name) is None:
            continue
        seen.add(name)
        waiting += _imports(_file(name))
    for name in sorted(seen):
        whole.update(f"{name}\0{_meaning(_file(name))}\0".encode())
        for text in sorted(_file(name).parent.glob("templates/*")):
            whole.update(f"{text.name}\0".encode() + text.read_bytes())
    for name, file in sorted({pair for module in modules for pair in _plugin_files(module)}):
        whole.update(f"{name}\0{_meaning_or_bytes(file)}\0".encode())
    return whole.hexdigest()


@cache
def _file(module: str) -> Path | None:
    """The source of a module of this project; None of any other."""
    if module.partition(".")[0] not in _PACKAGES:
        return None
    path = _ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _plugin_files(module: str) -> list[tuple[str, Path]]:
    """The Python files of the folder of a module of another package, by their places in it; a module that is in no
    package has one file."""
    loaded = sys.modules.get(module)
    path = getattr(loaded, "__file__", None)
    if path is None or module.partition(".")[0] in _PACKAGES:
        return []
    if "." not in module and not hasattr(loaded, "__path__"):
        return [(Path(path).name, Path(path))]
    folder = Path(path).parent
    return [(file.relative_to(folder).as_posix(), file) for file in {Path(path), *folder.rglob("*.py")}]


@cache
def _meaning_or_bytes(file: Path) -> str:
    """`_meaning`, or the SHA-256 of a file that is no Python."""
    try:
        return _meaning(file)
    except (SyntaxError, ValueError):
        return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _tree(file: Path) -> ast.Module:
    with PYTHON_PARSER:
        return ast.parse(file.read_bytes())


@cache
def _meaning(file: Path) -> str:
    """The syntax tree of a file as text, without docstrings."""
    tree = _tree(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = node.body[1:]
    return _text(tree)


def _text(node: Any) -> str:
    """A syntax tree as text that is the same in every Python: `ast.dump` names fields that only some have."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    return repr(node)


@cache
def _imports(file: Path) -> list[str]:
    """The modules that a file imports, in functions too."""
    return list(_imported(_tree(file)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
