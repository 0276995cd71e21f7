"""The house stands: imports only point down the floors, and no files import each other."""

from pathlib import Path

import pytest

from tests.pipeline.imports import FLOORS, closure, cycle, import_graph, upward
from tests.pipeline.project import CHECKOUT


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write source files; every floor gets its package."""
    for name, text in {**{f"{floor}/__init__.py": "" for floor in FLOORS}, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_imports_only_point_down() -> None:
    assert upward(import_graph(CHECKOUT)) == []


def test_no_files_import_each_other() -> None:
    assert cycle(import_graph(CHECKOUT)) == []


def test_every_floor_is_looked_at() -> None:
    graph = import_graph(CHECKOUT)
    for floor in FLOORS:
        assert len([file for file in graph if file.startswith(f"{floor}/")]) > 3
    assert "train/train.py" in graph["pipeline/cli.py"]  # imported in a function
    assert "manifests/errors.py" in graph["extract/stages/regions.py"]


@pytest.mark.parametrize(
    "statement",
    [
        "import train.loop",
        "from train import loop",
        "from train.loop import go",
        "def f():\n    from train.loop import go",
        "if True:\n    import train.loop as t",
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, statement: str) -> None:
    plant(tmp_path, {"train/loop.py": "def go(): ...", "extract/stage.py": statement})
    assert upward(import_graph(tmp_path)) == [("extract/stage.py", "train/loop.py")]


def test_an_import_of_a_package_above_is_found(tmp_path: Path) -> None:
    plant(tmp_path, {"manifests/a.py": "from extract import anything"})
    assert upward(import_graph(tmp_path)) == [("manifests/a.py", "extract/__init__.py")]


def test_a_downward_import_is_fine(tmp_path: Path) -> None:
    plant(tmp_path, {"extract/stage.py": "import manifests.rows\nimport numpy", "manifests/rows.py": "import json"})
    graph = import_graph(tmp_path)
    assert upward(graph) == [] and cycle(graph) == []


def test_a_cycle_is_found(tmp_path: Path) -> None:
    files = {
        "train/a.py": "from train.b import b",
        "train/b.py": "def f():\n    from .deep import c",
        "train/deep/__init__.py": "",
        "train/deep/c.py": "from ..a import a",
    }
    plant(tmp_path, files)
    assert sorted(cycle(import_graph(tmp_path))) == ["train/a.py", "train/b.py", "train/deep/c.py"]


def test_two_files_of_one_folder_that_import_each_other_are_found(tmp_path: Path) -> None:
    plant(tmp_path, {"eval/a.py": "from eval import b", "eval/b.py": "import eval.a"})
    assert sorted(cycle(import_graph(tmp_path))) == ["eval/a.py", "eval/b.py"]


def test_a_package_that_imports_a_module_importing_it_is_a_cycle(tmp_path: Path) -> None:
    files = {"train/models/__init__.py": "from train.models.m import M", "train/models/m.py": "import train.models"}
    plant(tmp_path, files)
    assert sorted(cycle(import_graph(tmp_path))) == ["train/models/__init__.py", "train/models/m.py"]


def test_closure_follows_imports_of_imports(tmp_path: Path) -> None:
    plant(tmp_path, {"eval/a.py": "import train.b", "train/b.py": "import manifests.c", "manifests/c.py": ""})
    graph = import_graph(tmp_path)
    assert closure(graph, ["eval/a.py"]) == {"eval/a.py", "train/b.py", "manifests/c.py"}
