"""Code counts by what it means: comments, docstrings and blank lines change no fingerprint, numbers do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

from extract.engine import code
from extract.engine.code import code_fingerprint
from extract.vision.detectors import DETECTORS
from extract.vision.shards import detector_code
from tests.pipeline.project import CHECKOUT
from train.reuse import run_code, unused_modules
from train.settings import RunSettings

T = TypeVar("T")
BASES = {"vsrn": {"name": "vsrn", "dim": 8, "graph_layers": 1}, "camera": {"name": "camera", "dim": 64}}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True
    )
    for name in files.stdout.splitlines():
        if name.endswith(".py") and not name.startswith(("tests", "benchmarks")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((CHECKOUT / name).read_bytes())
    return folder


def run_settings(base: dict) -> RunSettings:
    losses = {"triplet": {}} | ({"diversity": {}} if base["name"] == "camera" else {})
    return RunSettings(dataset="d", epochs=1, base=base, text={"reads": "tokens", "word_dim": 8}, losses=losses)


@pytest.fixture
def fingerprints(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """Gives what the copied code means: of each detector, and of a run of each of two bases."""
    monkeypatch.setattr(code, "_ROOT", copied)
    code._file.cache_clear()

    def by_content(read: Callable[[Path], T]) -> Callable[[Path], T]:
        """Reads a file again only where its bytes are others: parsing all of them takes a second."""
        known: dict[tuple[Path, bytes], T] = {}

        def kept(file: Path) -> T:
            key = file, file.read_bytes()
            if key not in known:
                code._tree.cache_clear()
                known[key] = read.__wrapped__(file)
            return known[key]

        return kept

    for name in ("_meaning", "_imports"):
        monkeypatch.setattr(code, name, by_content(getattr(code, name)))

    def found() -> dict[str, str]:
        detectors = {
            name: code_fingerprint("extract.vision.shards", part.__module__) for name, part in DETECTORS.load().items()
        }
        return detectors | {name: run_code(run_settings(base)) for name, base in BASES.items()}

    yield found
    monkeypatch.undo()
    for kept in (code._file, code._tree, code._meaning, code._imports):
        kept.cache_clear()


def test_comments_change_nothing_and_numbers_what_uses_them(
    copied: Path, fingerprints: Callable[[], dict[str, str]]
) -> None:
    before = fingerprints()
    assert {name: before[name] for name in DETECTORS} == {name: detector_code(name) for name in DETECTORS}
    for path in copied.rglob("*.py"):
        path.write_text(f"# A comment.\n\n{path.read_text()}\n\n# Another.\n")
    assert fingerprints() == before

    def changed(name: str, old: str, new: str) -> set[str]:
        """The fingerprints that an edit changes; it is taken back."""
        path = copied / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        after = fingerprints()
        path.write_text(text)
        return {name for name in before if after[name] != before[name]}

    assert changed("demo/detector/demo.py", '"after_nms": 48', '"after_nms": 49') == {"demo"}
    assert changed("extract/vision/rcnn/network.py", "side, stride = 14, 16", "side, stride = 14, 32") == {"rcnn"}
    assert changed("extract/vision/selection.py", "import torch\n", "import torch\n\nX = 1\n") == {
        "demo",
        "grid",
        "rcnn",
        "torchvision",
        "detectron2",
    }
    assert changed("train/bases/camera.py", "import torch\n", "import torch\n\nX = 1\n") == {"camera"}
    assert changed("train/ranking.py", "import torch\n", "import torch\n\nX = 1\n") == {"camera", "vsrn"}
    assert changed("train/losses/diversity.py", "import torch\n", "import torch\n\nX = 1\n") == {"camera"}
    assert changed("train/losses/usa.py", "weight: float", "wait: float") == set()
    assert changed("train/bag.py", "import torch\n", "import torch\n\nX = 1\n") == set()
    assert changed("extract/stages/regions.py", '"regions"', '"regions "') == set()


def test_every_module_that_a_run_may_leave_out_is_there() -> None:
    for module in unused_modules(run_settings({"name": "vse_infinity", "dim": 8})):
        assert (CHECKOUT / f"{module.replace('.', '/')}.py").is_file(), module


def test_a_cards_template_counts(copied: Path, fingerprints: Callable[[], dict[str, str]]) -> None:
    before, card = fingerprints(), code_fingerprint("extract.cards.render")
    (copied / "extract" / "cards" / "templates").mkdir()
    (copied / "extract" / "cards" / "templates" / "regions.md.jinja").write_text("# {{ dataset }}")
    assert fingerprints() == before and code_fingerprint("extract.cards.render") != card


def test_the_files_beside_another_packages_part_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fingerprint(part: str, helper: str, template: str = "{{name}} = 1") -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "part.py").write_text(part)
        (folder / "helper.py").write_text(helper)
        (folder / "templates").mkdir()
        (folder / "templates" / "new.py").write_text(template)
        module = ModuleType("theirs.part")
        module.__file__ = str(folder / "part.py")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return code_fingerprint("extract.cards.render", module.__name__)

    first = fingerprint("x = 1", "y = 2")
    assert fingerprint("x = 1  # one", '"""Helps."""\ny = 2') == first != code_fingerprint("extract.cards.render")
    others = {fingerprint("x = 2", "y = 2"), fingerprint("x = 1", "y = 3"), fingerprint("x = 1", "y = 2", "{{no}}")}
    assert len({first, *others}) == 4
