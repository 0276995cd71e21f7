"""A progress bar with rate and time left on standard error; a line every ten seconds where that is no terminal."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T] | None = None,
    *,
    what: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    scale: bool = False,
    quiet: bool = False,
) -> "tqdm[T]":
    """Wrap `items` (or count up to `total` by hand with ``.update(n)``) in a bar named `what`, counted in `unit`. There
    is no bar where it is to be `quiet`. `scale` writes large numbers short: 1.2G of unit B."""
    live = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        initial=initial,
        desc=what,
        unit=unit if scale else f" {unit}",
        unit_scale=scale,
        mininterval=0.2 if live else 10,
        dynamic_ncols=live,
        leave=True,
        disable=quiet,
    )
