"""Which file of a source tree imports which: the graph that the tests of floors and of stage dependencies look at.

An import counts wherever it stands, in a function too. A package's `__init__.py` counts where something is imported
from it, not where a module beside it is.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

FLOORS = ("manifests", "extract", "demo", "train", "eval", "pipeline")

Graph = Mapping[str, frozenset[str]]


def import_graph(root: Path) -> Graph:
    """Every Python file of the floors with the files there that it imports, as POSIX paths relative to `root`."""
    known = _modules(root)
    return {
        file: frozenset(_imported(ast.parse((root / file).read_text(encoding="utf-8")), file, known))
        for file in known.values()
    }


def upward(graph: Graph) -> list[tuple[str, str]]:
    """The imports (importer, imported) that point to a floor above the importer's own."""
    return [(file, other) for file, others in graph.items() for other in sorted(others) if _floor(other) > _floor(file)]


def cycle(graph: Graph) -> list[str]:
    """The files of one import cycle, in the order of importing; empty where there is none."""
    finished: set[str] = set()

    def visit(file: str, path: list[str]) -> list[str]:
        if file in path:
            return path[path.index(file) :]
        if file in finished:
            return []
        for other in sorted(graph[file]):
            if found := visit(other, [*path, file]):
                return found
        finished.add(file)
        return []

    return next((found for file in graph if (found := visit(file, []))), [])


def closure(graph: Graph, roots: Iterable[str]) -> set[str]:
    """`roots` and all that they import, directly or not."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(graph[file])
    return found


def imports_of(tree: ast.AST, file: str, root: Path) -> set[str]:
    """The files of the floors that a part of `file` imports."""
    return set(_imported(tree, file, _modules(root)))


def _modules(root: Path) -> dict[str, str]:
    """Every module's dotted name with its file."""
    files = sorted(file.relative_to(root) for floor in FLOORS for file in (root / floor).rglob("*.py"))
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file.as_posix() for file in files}


def _imported(tree: ast.AST, file: str, known: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (known[alias.name] for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            folders = file.split("/")[:-1]
            package = folders[: len(folders) - node.level + 1] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{source}.{alias.name}"
                if name in known or source in known:
                    yield known.get(name) or known[source]


def _floor(file: str) -> int:
    return FLOORS.index(file.split("/")[0])
