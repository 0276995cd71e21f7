"""A part's file and name belong together, and what is wrong with a file is told."""

import sys
from pathlib import Path

import pytest

from manifests.errors import InputError
from manifests.registry import Registry

PART = """
from tests_parts_of import LOSSES

@LOSSES.add("{name}")
class Level:
    pass
"""


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Registry, Path]:
    """A registry with the files of a folder."""
    package = tmp_path / "tests_parts_of"
    package.mkdir()
    (package / "__init__.py").write_text(
        'from manifests.registry import Registry\nLOSSES = Registry("loss", "tests_parts_of")\n'
    )
    (package / "level.py").write_text(PART.format(name="level"))
    monkeypatch.syspath_prepend(tmp_path)
    import tests_parts_of

    yield tests_parts_of.LOSSES, package
    for module in [name for name in sys.modules if name.startswith("tests_parts_of")]:
        del sys.modules[module]


def test_a_part_is_found_by_its_files_name(losses: tuple[Registry, Path]) -> None:
    assert losses[0].find("level").name == "level" and list(losses[0].own()) == ["level"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PART.format(name="level"), "it enters the loss 'level'. Fix: give the part its file's name, 'copied'"),
        ("from torch import infonce", "the file of a loss doesn't load (cannot import name 'infonce' from 'torch'"),
        ("class Level(:", "the file of a loss doesn't load (invalid syntax"),
    ],
)
def test_a_copied_file_that_is_wrong_is_named(losses: tuple[Registry, Path], text: str, problem: str) -> None:
    registry, folder = losses
    (folder / "copied.py").write_text(text)
    with pytest.raises(InputError, match="tests_parts_of/copied.py") as error:
        registry.own()
    assert problem in f"{error.value.what}. Fix: {error.value.fix}"
