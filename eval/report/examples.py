"""The captions that a report shows: the largest gains, the largest losses and some on which the runs agree.

A rule chooses, not a taste. The first run of a data set is compared with the best of the others by validation. A change
is the ratio of their ranks, and no image is shown twice. The extremes are extreme by construction: the report says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eval.report.results import RunResult


@dataclass(frozen=True)
class Example:
    """A caption to show and why: `kind` is "better", "same", "worse" (best other run against first) or "alone"."""

    caption: int
    kind: str


def choose(runs: Sequence[RunResult], count: int) -> list[Example]:
    """Choose up to `count` captions of the split; fewer where the split has fewer images with captions.

    `runs` are those that are compared (`eval.report.page.compared`): two, or one that is alone.

    A run that is alone shows its best captions, its worst and some between.
    """
    image_of = runs[0].ranks["caption_image"]
    first, last = runs[0].ranks["t2i"], runs[-1].ranks["t2i"]
    if len(runs) == 1:
        best = list(_apart(np.argsort(first, kind="stable"), image_of, set()))
        places = np.linspace(0, len(best) - 1, num=min(count, len(best)))
        return [Example(best[place], "alone") for place in places.astype(int)]
    gain = np.log1p(first) - np.log1p(last)
    better = np.flatnonzero(gain > 0)
    worse = np.flatnonzero(gain < 0)
    same = np.flatnonzero(gain == 0)
    queues = {
        "better": better[np.argsort(-gain[better], kind="stable")],
        "worse": worse[np.argsort(gain[worse], kind="stable")],
        "same": same[np.argsort(first[same], kind="stable")],
    }
    used: set[int] = set()
    streams = {kind: _apart(captions, image_of, used) for kind, captions in queues.items()}
    chosen: list[Example] = []
    while streams and len(chosen) < count:
        for kind in list(streams):
            caption = next(streams[kind], None)
            if caption is None:
                del streams[kind]
            elif len(chosen) < count:
                chosen.append(Example(caption, kind))
    return sorted(chosen, key=lambda example: ("better", "worse", "same").index(example.kind))


def _apart(captions: np.ndarray, image_of: np.ndarray, used: set[int]) -> Iterator[int]:
    """The captions in their order, leaving out those of an image that is in `used`, which grows."""
    for caption in captions.tolist():
        if int(image_of[caption]) not in used:
            used.add(int(image_of[caption]))
            yield caption
