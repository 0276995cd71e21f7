"""The study stage: trains and evaluates the runs of a study and puts them in one table.

Writes `studies/S/points.jsonl`, a line a run, and `studies/S/table.csv`, a line a row (`eval.study.table`). First the
validation split chooses the values that are to be chosen, row by row; then every row is trained with every seed. A run
that is done stays done: a killed study goes on, and one more seed trains one run more a row. A run that another study
or `train@R` trained comes out of the cache of runs. Processes that are given the same study share its runs out.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.study.points import Point, Points, measure
from eval.study.settings import Changes, Choices, StudySettings, varied
from eval.study.table import table, table_text, write_table
from eval.validation import validate
from extract.engine.code import code_fingerprint
from extract.stores.intact import intact_digests
from extract.stores.regions import region_stores
from manifests.errors import InputError
from manifests.files import fingerprint
from manifests.grounding import Grounding, read_grounding
from manifests.locks import sole_writer
from manifests.tables import manifest_sha256
from train.checkpoint import load_model, read_record
from train.data import RetrievalData
from train.feed import Resident
from train.reuse import run_code
from train.settings import RunSettings
from train.train import run as train

POINTS, TABLE = "points.jsonl", "table.csv"
CODE = code_fingerprint("eval.study.points")


def run(*, out: Path, **study: Any) -> str:
    """Make every point of a study (the fields of `Study`), write both files into `out`, and give the table as text.

    Raises InputError for a row that is no run, and as training does.
    """
    work = Study(**study, points=Points(study["staging"] / f"study-{study['name']}", out / POINTS))
    chosen = work.choose()
    measured = work.measured(chosen)
    work.make(row[place] for place in range(len(work.settings.seeds)) for row in measured.values())
    found = {row: [work.points.figures(point) for point in points] for row, points in measured.items()}
    rows = table(work.settings, found, chosen)
    every = [*work.choosing(chosen), *(point for points in measured.values() for point in points)]
    with sole_writer(out / POINTS, f"study {work.name}"):
        work.points.write(every)
        write_table(out / TABLE, rows)
    work.points.remove(every)
    return table_text(rows)


@dataclass
class Study:
    """The work of one study.

    Parameters
    ----------
    base : the run that is varied.
    manifest, regions, tokens : the data set's manifest and stores.
    text_features, teachers : its further stores, where a row reads them.
    split : what the points are measured on; values are chosen on the validation split.
    rerank : candidates that ALADIN's teacher puts in order once more.
    staging : folder of unfinished work, the points' included.
    cache : the machine's cache folder, with runs that were trained before.
    resident, checkpoint_minutes : as `train.train.run` takes them.
    """

    name: str
    settings: StudySettings
    base: RunSettings
    manifest: Path
    regions: Path
    tokens: Path
    text_features: Path | None
    teachers: Path | None
    split: str
    rerank: int
    device: str
    batch_size: int
    staging: Path
    cache: Path | None
    points: Points
    resident: Resident = "auto"
    checkpoint_minutes: float = 10.0

    def choose(self) -> dict[str, Changes]:
        """Of every row with values to choose from those of the best mean R@sum on the validation split."""
        chosen: dict[str, Changes] = {}
        for name, row in self.settings.table.items():
            if not row.choose:
                continue
            options = list(self._options(name, chosen))
            self.make(point for points in options for point in points)
            means = [statistics.mean(self.points.figures(point)["val_rsum"] for point in points) for points in options]
            chosen[name] = row.options[means.index(max(means))]
        return chosen

    def choosing(self, chosen: Choices) -> Iterator[Point]:
        """The points that the values were chosen by."""
        for name in chosen:
            for points in self._options(name, chosen):
                yield from points

    def measured(self, chosen: Choices) -> dict[str, list[Point]]:
        """The points of every row's figures, in the order of the seeds."""
        return {
            name: [self._point(name, seed, self.settings.changes_of(name, chosen)) for seed in self.settings.seeds]
            for name in self.settings.table
        }

    def make(self, points: Iterable[Point]) -> None:
        """Train and measure the points that nobody has made yet. One that another process makes is waited for last."""
        waiting = [point for point in points if self.points.find(point) is None]
        total, made, start, wait = len(waiting), 0, time.monotonic(), False
        while waiting:
            busy = []
            for point in waiting:
                with ExitStack() as held:
                    lock = sole_writer(self.points.file(point), f"training of {point}", wait=wait)
                    try:
                        held.enter_context(lock)
                    except InputError:
                        if wait:
                            raise
                        busy.append(point)
                        continue
                    wait = False
                    if self.points.find(point) is None:
                        self.points.keep(point, self._figures(point))
                        made += 1
                        left = (time.monotonic() - start) / made * (total - made)
                        tqdm.write(f"study {self.name}: {made} of {total} runs, about {left / 60:.0f} minutes left")
            wait = len(busy) == len(waiting)
            waiting = busy

    def _options(self, name: str, chosen: Choices) -> Iterator[list[Point]]:
        for option in self.settings.table[name].options:
            changes = self.settings.changes_of(name, chosen, option)
            yield [self._point(name, seed, changes, option) for seed in self.settings.choosing_seeds]

    def _point(self, row: str, seed: int, changes: Changes, chooses: Changes | None = None) -> Point:
        settings = varied(self.base, changes, seed)
        decides = self._decides | {"settings": settings.decides(), "chooses": chooses is not None}
        return Point(row, seed, settings, fingerprint(decides | {"training": run_code(settings)})[:32], chooses)

    @cached_property
    def _decides(self) -> Mapping[str, Any]:
        """What decides the figures of every point alike, as JSON."""
        stores = [*region_stores(self.regions), self.tokens, self.text_features, self.teachers]
        return {
            "manifest": manifest_sha256(self.manifest),
            "stores": intact_digests([store for store in stores if store]),
            "split": self.split,
            "rerank": self.rerank,
            "code": CODE,
        }

    @cached_property
    def _truth(self) -> Mapping[str, Grounding]:
        truth = self.manifest / "grounding.jsonl"
        return read_grounding(truth) if truth.exists() else {}

    def trained(self, point: Point, out: Path) -> Path:
        """Train a run into the folder `out`, or take it from the cache; gives its model."""
        train(
            name=self._run_name(point),
            **self._stores(point),
            teachers=self.teachers if point.settings.labels == "teachers" else None,
            settings=point.settings,
            validate=lambda network, validation: validate(network, validation, self.batch_size),
            out=out / "model",
            curves=out / "epochs.csv",
            staging=self.staging,
            device=self.device,
            cache=self.cache,
            resident=self.resident,
            checkpoint_minutes=self.checkpoint_minutes,
        )
        return out / "model"

    def data(self, point: Point) -> RetrievalData:
        """The split that a run is measured on."""
        return RetrievalData(**self._stores(point), split=self.split, pieces=point.settings.text.pieces)

    def _run_name(self, point: Point) -> str:
        return f"{self.name}-{point.key[:8]}"

    def _stores(self, point: Point) -> dict[str, Any]:
        features = self.text_features if point.settings.text.reads == "text_features" else None
        return {
            "manifest": self.manifest,
            "regions": self.regions,
            "tokens": self.tokens,
            "text_features": features,
        }

    def _figures(self, point: Point) -> dict[str, Any]:
        """Train a run, or take it from the cache, and measure it."""
        tqdm.write(f"study {self.name}: {point}")
        with tempfile.TemporaryDirectory() as folder:
            model = self.trained(point, Path(folder))
            record = read_record(model)
            found = {key: record[key] for key in ("val_rsum", "best_epoch")}
            if point.chooses is not None:
                return found
            network = load_model(model, self.device)
            sizes = {"batch_size": self.batch_size, "rerank": self.rerank}
            return found | measure(network, self.data(point), self._truth, name=self._run_name(point), **sizes)
