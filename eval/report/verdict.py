"""What a comparison shows, in sentences computed from its figures, whichever way they came out.

Run names stand between backticks. The first run of a data set is the one that the others are measured against.
"""

from collections.abc import Sequence

from eval.interval import interval
from eval.report.results import RunResult

FEW_IMAGES = 100
NEAR_CHANCE = 0.05


def verdict(runs: Sequence[RunResult]) -> list[str]:
    """The sentences for the runs of one data set, the most important first."""
    base, others = runs[0], runs[1:]
    rsum = base.metrics["rsum"]
    if not others:
        sentences = [
            f"`{base.name}` reaches R@sum {rsum:.1f}, where a random order gives {base.metrics['chance']['rsum']:.1f}. "
            "It is the only run on this data, so there is nothing to compare it with."
        ]
    else:
        sentences = [_difference(run, base) for run in by_validation(others)]
        best, second = by_validation(runs)[:2]
        if base not in (best, second):
            change, low, high = difference(best, second)
            sentences.insert(
                1,
                f"Against `{second.name}`, the next best, `{best.name}` has {signed(change)} "
                f"({signed(low)} to {signed(high)}){_loss(high)}{_doubt(low, high)}.",
            )
        count = len(others) + (base not in (best, second))
        if count > 1:
            sentences.append(
                f"These are {count} comparisons, in the order of R@sum on the validation split. The chance that one "
                f"interval or more misses its true difference is up to {min(1, 0.05 * count):.0%}."
            )
    if (images := base.metrics["images"]) < FEW_IMAGES:
        counted = "1 test image" if images == 1 else f"{images} test images"
        sentences.append(f"With {counted}, this shows that the pipeline runs, not how good a model is.")
    sentences += _alignment(runs)
    if others:
        sentences.append(
            "Every row is one training with one seed. The intervals hold the luck of the test images, not that of the "
            "training: a difference is evidence only once it holds over several seeds."
        )
    return sentences


def by_validation(runs: Sequence[RunResult]) -> list[RunResult]:
    """Runs by their R@sum on the validation split, the best first."""
    return sorted(runs, key=lambda run: -run.val_rsum)


def difference(run: RunResult, base: RunResult) -> tuple[float, float, float]:
    """How much R@sum `run` has over `base`, and the ends of the 95 % interval over test images."""
    return run.metrics["rsum"] - base.metrics["rsum"], *interval(run.draws - base.draws)


def signed(value: float) -> str:
    """A number with its sign and one decimal; zero has none, minus is a minus sign."""
    text = f"{value:+.1f}"
    return "0.0" if text[1:] == "0.0" else text.replace("-", "−")


def _difference(run: RunResult, base: RunResult) -> str:
    change, low, high = difference(run, base)
    figures = f"`{run.name}` reaches R@sum {run.metrics['rsum']:.1f}, "
    against = f"{abs(change):.1f} {'more' if change >= 0 else 'less'} than `{base.name}` ({base.metrics['rsum']:.1f})"
    spread = f"Over test images, the 95 % interval of this is {signed(low)} to {signed(high)}"
    return f"{figures}{against}{_loss(high)}. {spread}{_doubt(low, high)}."


def _loss(high: float) -> str:
    """Says that a difference is a loss, if its whole interval is below 0."""
    return ": here it loses" if high < 0 else ""


def _doubt(low: float, high: float) -> str:
    """Says that a difference is none, if its interval holds 0."""
    return ": no difference that these test images can show" if low <= 0 <= high else ""


def _alignment(runs: Sequence[RunResult]) -> list[str]:
    known = [run for run in runs if "correspondence" in run.metrics]
    sentences = []
    base = runs[0]
    gained = [run for run in runs[1:] if difference(run, base)[1] > 0]
    if gained and [name for name in base.losses if name != "loss"] == ["triplet"]:
        sentences.append(
            f"A gain over `{base.name}`, which is trained by triplets alone, is not yet evidence of fine-grained "
            "alignment: any second loss might give it."
        )
    if known:
        chance = known[0].metrics["correspondence"]["chance"]
        shares = ", ".join(f"{run.metrics['correspondence']['accuracy']:.0%} with `{run.name}`" for run in known)
        sentence = f"Words find the object that they mean in {shares}; a random region would be right in {chance:.0%}."
        sentences.append(" ".join([sentence, *_by_kind(known)]))
    return sentences


def _by_kind(runs: Sequence[RunResult]) -> list[str]:
    """Which kinds of words carry a run's share: a sentence for the runs that have the same ones clearly above chance.

    A run without kinds, or without one above chance, has learnt as much as all its words together show.
    """
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[RunResult]] = {}
    for run in runs:
        found = run.metrics["correspondence"]
        kinds = found["kinds"] or {"": found}
        above = {kind: shares["accuracy"] - shares["chance"] >= NEAR_CHANCE for kind, shares in kinds.items()}
        carrying = tuple(kind for kind, clear in above.items() if clear)
        near = tuple(kind for kind, clear in above.items() if not clear)
        alike.setdefault((carrying, near), []).append(run)
    sentences = []
    for (carrying, near), group in alike.items():
        names, everyone = _names(group), len(group) == len(runs)
        if not carrying and everyone:
            sentences.append("No run has learnt which region a word means.")
        elif not carrying:
            sentences.append(f"{names} {'has' if len(group) == 1 else 'have'} not learnt which region a word means.")
        elif near:
            clear, rest = (listed(kinds) for kinds in (carrying, near))
            sentences.append(
                f"With {names}, {clear} words are clearly above chance, by {NEAR_CHANCE:.0%} of the words or more; "
                f"{rest} words are not."
            )
        elif carrying != ("",):
            sentences.append(f"With {names}, every kind of word is clearly above chance.")
    return sentences


def _names(runs: Sequence[RunResult]) -> str:
    return listed([f"`{run.name}`" for run in runs])


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them: a, b and c."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
