"""docs/method.md says where each difference from the published code is, and it is there.

``python -m tests.train.test_method_page`` writes the numbers of lines that have moved.
"""

import re
from pathlib import Path

from train.bases import BASES
from train.losses import LOSSES

CHECKOUT = Path(__file__).parents[2]
FILE = CHECKOUT / "docs" / "method.md"
PLACE = re.compile(r"`([\w/]+\.py):(\d+)` \(`([^`]+)`\)")


def numbered(page: str) -> str:
    """The page with the line of every place that it names: that of the text in brackets, the nearest one of several."""

    def place(found: re.Match[str]) -> str:
        file, number, text = found.groups()
        lines = (CHECKOUT / file).read_text(encoding="utf-8").splitlines()
        at = [n for n, line in enumerate(lines, 1) if text in line]
        assert at, f"{file} has no line with {text!r}"
        return f"`{file}:{min(at, key=lambda n: abs(n - int(number)))}` (`{text}`)"

    return PLACE.sub(place, page)


def differences(page: str) -> list[list[str]]:
    """The cells of the table of differences: the difference, ours, of, option."""
    rows = page.partition("| difference | ours | of | option |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]


def test_every_line_that_is_named_is_the_one_meant() -> None:
    page = FILE.read_text(encoding="utf-8")
    now, named = numbered(page), PLACE.findall(page)
    moved = [
        f"{file}:{n}, now {m}" for (file, n, _), (_, m, _) in zip(named, PLACE.findall(now), strict=True) if n != m
    ]
    assert not moved, "run `python -m tests.train.test_method_page`: " + "; ".join(moved)


def test_every_difference_has_its_line_and_what_it_differs_from() -> None:
    rows = differences(FILE.read_text(encoding="utf-8"))
    assert len(rows) > 15
    for difference, ours, of, *_ in rows:
        assert PLACE.fullmatch(ours) and of, difference


def test_every_base_and_loss_is_listed() -> None:
    page = FILE.read_text(encoding="utf-8")
    for registry in (BASES, LOSSES):
        for name, part in registry.load().items():
            if part.__module__.startswith("train."):
                there = f"`{name}`" in page and Path(part.__module__.replace(".", "/")).name in page
                assert there, f"add a row for `{name}` to docs/method.md"


if __name__ == "__main__":
    FILE.write_text(numbered(FILE.read_text(encoding="utf-8")), encoding="utf-8")
