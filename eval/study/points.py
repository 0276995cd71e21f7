"""The points of a study: what each of its runs reached, a line of `studies/S/points.jsonl`."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.figures import recall_figures
from eval.matching.correspondence import summary
from eval.matching.word_statistics import correspondence_figures
from eval.modes import mode_figures
from eval.recall import RECALLS
from eval.survey import survey
from manifests.files import canonical_json, fingerprint, write_json, write_text
from manifests.grounding import Grounding
from manifests.jsonl import read_rows
from train.data import RetrievalData
from train.model import RetrievalModel
from train.settings import RunSettings

_SHOWN = ("rsum", *RECALLS)


@dataclass(frozen=True)
class Point:
    """A run of a study.

    `key` is the fingerprint of all that decides its figures. `chooses` is the option that it stands for where it helps
    to choose values: the validation split alone judges such a run.
    """

    row: str
    seed: int
    settings: RunSettings
    key: str
    chooses: dict[str, Any] | None = None

    def __str__(self) -> str:
        option = f", {canonical_json(self.chooses)}" if self.chooses else ""
        return f"row {self.row!r}{option}, seed {self.seed}"


class Points:
    """The figures of points that are done: in a file each below `staging`, or in `done`, the file of a whole study."""

    def __init__(self, staging: Path, done: Path):
        self.staging, self.done = staging, done

    def file(self, point: Point) -> Path:
        return self.staging / f"{point.key}.json"

    def find(self, point: Point) -> dict[str, Any] | None:
        """The figures of a point; None while it isn't done."""
        with suppress(FileNotFoundError):  # another process may have put it into `done` by now
            return json.loads(self.file(point).read_text(encoding="utf-8"))
        for _, line in read_rows(self.done, fix="remove it") if self.done.exists() else ():
            if line.get("key") == point.key:
                return line["figures"]
        return None

    def keep(self, point: Point, figures: dict[str, Any]) -> None:
        write_json(self.file(point), figures)

    def figures(self, point: Point) -> dict[str, Any]:
        """The figures of a point that is done."""
        found = self.find(point)
        if found is None:
            raise LookupError(f"{point} isn't done")
        return found

    def write(self, points: Iterable[Point]) -> None:
        """Write `done`: of every point its row and seed, the sha256 of its settings, its key and its figures."""
        lines = []
        for point in points:
            line: dict[str, Any] = {"row": point.row, "seed": point.seed, "chooses": point.chooses, "key": point.key}
            line |= {"settings": settings_sha256(point.settings), "figures": self.figures(point)}
            lines.append(canonical_json(line))
        write_text(self.done, "".join(f"{line}\n" for line in lines))

    def remove(self, points: Iterable[Point]) -> None:
        """Remove the files of points that are in `done`; those of a process that makes others stay."""
        for point in points:
            self.file(point).unlink(missing_ok=True)
        with suppress(OSError):  # others are there, or it is gone
            self.staging.rmdir()


def settings_sha256(settings: RunSettings) -> str:
    """The fingerprint of a run's settings: a committed figure carries it."""
    return fingerprint(settings.decides())


def measure(
    model: RetrievalModel,
    data: RetrievalData,
    truth: Mapping[str, Grounding],
    *,
    batch_size: int,
    rerank: int,
    name: str,
) -> dict[str, Any]:
    """The figures of one trained model on one split.

    They are recalls, their `interval` (95 % over images) and `chance`. A model with ALADIN's teacher has `modes` as in
    `figures.json`. `correspondence` needs known truth, and `concepts` a codebook.
    """
    seen = survey(model, data, batch_size, run=name, truth=truth, quiet=True)
    ranks, found = recall_figures(seen.embeddings, data.caption_image, folds=1)
    figures: dict[str, Any] = {key: found[key] for key in _SHOWN}
    figures |= {"interval": found["interval"]["rsum"], "chance": found["chance"]["rsum"]}
    if seen.teacher is not None:
        modes = mode_figures(seen.embeddings, seen.teacher, ranks, data.caption_image, rerank)
        figures["modes"] = {mode: {key: own[key] for key in _SHOWN} for mode, own in modes.items()}
    if (known := summary(seen.pairs.judged)) is not None:
        figures["correspondence"] = known
    if (concepts := correspondence_figures(seen.pairs).get("concepts")) is not None:
        used = {key: concepts["words"][key] for key in ("in_use", "effective")}
        figures["concepts"] = {key: concepts[key] for key in ("agreement", "agreement_chance")} | used
    return figures
