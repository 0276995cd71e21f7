"""A process held at the moment at which it opens a picture: what tests of killed runs stop at a known point with."""

import os
import sys
from pathlib import Path
from typing import Any

_SITE = "from tests.extract.held import hold\nhold({picture!r}, {pipe!r})\n"


def hold(picture: str, pipe: str) -> None:
    """Have this process wait on `pipe`, as long as there is one, before it opens `picture`."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]) == picture and os.path.exists(pipe):
            with open(pipe, "rb") as waiting:
                waiting.read()

    sys.addaudithook(hook)


def holding(folder: Path, picture: Path, pipe: Path) -> str:
    """What PYTHONPATH must begin with, below the checkout, for every new Python process to `hold`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE.format(picture=str(picture), pipe=str(pipe)), encoding="utf-8")
    return str(folder)
