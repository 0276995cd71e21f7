"""No file, however damaged, does more than raise `InputError`: no traceback, no crash, no 20 seconds, no GB.

A try that fails is repeated alone by ``python -m tests.fuzz KIND SEED``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.errors import InputError
from tests.fuzz import examples
from tests.fuzz.children import outcomes
from tests.fuzz.kinds import KINDS, Kind

TRIES, FEW = 100, 5


@pytest.fixture(scope="module")
def example() -> Iterator[Path]:
    with examples.folder() as folder:
        yield examples.make(folder / "examples")


def few(kind: Kind, example: Path) -> str:
    """The sound example, without which the tries would show nothing, then some tries in the same child."""
    kind.sound(example)
    for seed in range(FEW):
        try:
            kind.run(example, seed)
        except InputError:
            continue
        except BaseException as error:
            error.add_note(f"{kind.name} {seed}")
            raise
    return ""


@pytest.mark.parametrize("name", KINDS)
def test_the_sound_example_and_a_few_damaged_ones(example: Path, name: str):
    (outcome,) = outcomes([0], lambda _: few(KINDS[name], example))
    assert (outcome.end, outcome.message) == ("success", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(example: Path, name: str):
    kind = KINDS[name]
    bad = [each for each in outcomes(range(TRIES), lambda seed: kind.run(example, seed)) if not each.well]
    descriptions = {each.seed: kind.damage(example, each.seed).description for each in bad}
    assert [f"{name} {each.seed} ({descriptions[each.seed]}): {each.end}: {each.message}" for each in bad] == []
