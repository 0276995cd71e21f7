"""`import selfalign`: ten names, imported when they are used, and other files of the packages' names are named."""

import subprocess
import sys
from pathlib import Path

import pytest

import selfalign
from tests.pipeline.project import CHECKOUT


def python(code: str, folder: Path, path: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    """Run code as a notebook in `folder` would: the folder comes first, then `path`."""
    start = f"import sys; sys.path[:0] = ['', {str(path)!r}]; "
    return subprocess.run([sys.executable, "-c", start + code], cwd=folder, capture_output=True, text=True)


def test_there_are_ten_names_and_each_is_documented() -> None:
    page = (CHECKOUT / "docs" / "python.md").read_text(encoding="utf-8")
    assert len(selfalign.__all__) == 10 and dir(selfalign) == sorted(selfalign.__all__)
    for name in selfalign.__all__:
        found = getattr(selfalign, name)
        assert found.__doc__ and found.__name__ == name
        assert name in page and f"| `{name}` |" in selfalign.__doc__
    with pytest.raises(AttributeError, match="no attribute 'serch': it has .*search"):
        selfalign.serch  # noqa: B018


def test_the_import_takes_no_time(tmp_path: Path) -> None:
    heavy = "torch", "spacy", "numpy", "eval", "train"
    done = python(f"import selfalign; print([name for name in {heavy!r} if name in sys.modules])", tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("loaded", [False, True])
def test_files_that_hide_the_packages_are_named(tmp_path: Path, loaded: bool) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").touch()
    done = python(f"{'import train, eval; ' * loaded}import selfalign; selfalign.search", tmp_path)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and message.startswith("ImportError: SelfAlign's packages are hidden")
    for file in ("train.py", "eval/__init__.py"):
        assert f"{tmp_path / file}, not {CHECKOUT / file.split('/')[0].removesuffix('.py')}" in message
    assert "extract" not in message.replace(str(CHECKOUT), "") and "Rename that file" in message


def test_a_folder_of_data_that_has_a_packages_name_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()  # without an `__init__.py`, so Python prefers the package
    done = python("import selfalign; print(selfalign.InputError.__name__)", tmp_path)
    assert done.stdout == "InputError\n"
