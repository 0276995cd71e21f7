"""docs/method.md says where each difference from the published code is, and it is there."""

import re
from pathlib import Path

from train.bases import BASES
from train.losses import LOSSES

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs/method.md").read_text(encoding="utf-8")


def test_every_line_that_is_named_is_the_one_meant() -> None:
    named = re.findall(r"`([\w/]+\.py):(\d+)` \(`([^`]+)`\)", PAGE)
    assert len(named) > 15
    for file, number, text in named:
        lines = (CHECKOUT / file).read_text(encoding="utf-8").splitlines()
        at = [n for n, line in enumerate(lines, 1) if text in line]
        assert int(number) in at, f"{file}: {text!r} is in lines {at}, docs/method.md says {number}"


def test_every_base_and_loss_is_listed() -> None:
    for registry in (BASES, LOSSES):
        for name, part in registry.load().items():
            if part.__module__.startswith("train."):
                assert f"`{name}`" in PAGE and Path(part.__module__.replace(".", "/")).name in PAGE, name
