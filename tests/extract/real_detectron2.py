"""The real detectron2 without a compiler: version 0.6's Python from PyPI's source archive, with two stand-ins.

The archive lacks the C++ sources. On a CPU, detectron2 takes RoIAlign and NMS from torchvision, so an empty module
stands for `detectron2._C`; Pillow's `LINEAR`, which 0.6 names, is `BILINEAR` today. Where detectron2 is installed, that
one is tested.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from manifests.files import sha256
from tests.archives import extract_all
from tests.pipeline.project import CHECKOUT

_ARCHIVE = "pb1-detectron2==0.6 --hash=sha256:5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29\n"
_OTHERS = CHECKOUT / "tests/data/detectron2.txt"


@contextmanager
def detectron2() -> Iterator[None]:
    """Makes detectron2 importable.

    Skips the test where neither it nor the package index is there, unless REQUIRE_DETECTRON2 says that it must be
    (.ci/run does).
    """
    if find_spec("detectron2"):
        yield
        return
    try:
        folder = _folder()
    except subprocess.CalledProcessError as error:
        message = f"detectron2 can't be had from the package index: {error.stderr.strip()[-500:]}"
        pytest.fail(message) if os.environ.get("REQUIRE_DETECTRON2") else pytest.skip(message)
    before = set(sys.modules)
    had = hasattr(Image, "LINEAR")
    Image.LINEAR = Image.Resampling.BILINEAR
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if not had:
            del Image.LINEAR
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


def _folder() -> Path:
    """Where detectron2 and what it needs lie: in the user's cache, made once for these files and this Python."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    tag = f"{sysconfig.get_python_version()}-{sha256(_OTHERS)[:12]}"
    place = home / "selfalign" / "tests" / f"detectron2-0.6-{tag}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        work = Path(temporary)
        (work / "archive.txt").write_text(_ARCHIVE)
        pip = [sys.executable, "-m", "pip", "--quiet", "--timeout", "20", "--retries", "1"]
        own = ["--no-deps", "--no-build-isolation", "--require-hashes"]
        _run([*pip, "download", *own, "--no-binary", ":all:", "-r", "archive.txt", "-d", "archive"], work)
        _run([*pip, "install", *own, "--use-pep517", "--target", "new", "-r", str(_OTHERS)], work)
        (archive,) = (work / "archive").iterdir()
        with tarfile.open(archive) as file:
            extract_all(file, work / "sources")
        (sources,) = (work / "sources").iterdir()
        (sources / "detectron2").rename(work / "new" / "detectron2")
        (work / "new" / "detectron2" / "_C.py").touch()
        try:
            (work / "new").rename(place)
        except OSError:  # another process was first
            assert place.is_dir()
    return place


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
