"""``python -m tests.fuzz [KIND [SEED]]``: tries of one kind, or of all, and what became of each; one seed in full."""

import sys
from collections import Counter
from time import monotonic

from tests.fuzz import examples
from tests.fuzz.children import outcomes
from tests.fuzz.kinds import KINDS
from tests.fuzz.test_fuzz import TRIES


def main(name: str | None = None, seed: str | None = None) -> None:
    with examples.folder() as folder:
        example = examples.make(folder / "examples")
        for kind in KINDS.values() if name is None else [KINDS[name]]:
            began, ends = monotonic(), Counter()
            for outcome in outcomes([int(seed)] if seed else range(TRIES), lambda seed: kind.run(example, seed)):  # noqa: B023 (used at once)
                ends[outcome.end] += 1
                if seed or not outcome.well:
                    damage = kind.damage(example, outcome.seed)
                    print(f"{kind.name} {outcome.seed}: {damage.file}: {damage.description}; renewed: {damage.renewed}")
                    print(f"{outcome.end}: {outcome.message}")
            print(f"{kind.name}: {dict(ends)} in {monotonic() - began:.0f} s", flush=True)


main(*sys.argv[1:])
