"""What one run left behind, read back for the report: settings, figures, curves, ranks, embeddings and matches."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.embeddings import Embeddings
from eval.figures import FIGURES, read_ranks
from eval.interval import rsum_draws
from eval.matching.concepts import RegionConcepts
from eval.matching.correspondence import Matches, read_matches
from eval.nearest import nearest_images
from eval.report.written import Correspondence, Cost, Metrics, Pair, Record, read_json, read_table
from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.typed import Written, checked
from train.data import RetrievalData

FIGURES_FILE = f"evaluation/{FIGURES}"
NOT_LOSSES = {"epoch", "step", "seconds", "learning_rate"}


@dataclass(frozen=True)
class RunResult:
    """The artifacts of one evaluated run.

    Attributes
    ----------
    settings : the run's settings in `params.yaml`, nested plain values.
    folder : `runs/R`.
    """

    name: str
    settings: dict
    folder: Path

    @property
    def evaluated(self) -> bool:
        """Whether the run has an evaluation."""
        return (self.folder / FIGURES_FILE).exists()

    @cached_property
    def metrics(self) -> dict:
        """The evaluation's `figures.json`."""
        return self._json(FIGURES_FILE, Metrics, stage="evaluate")

    @cached_property
    def record(self) -> dict:
        """`model/run.json`: parameters, best epoch, seconds, recipe."""
        return self._json("model/run.json", Record, stage="train")

    @cached_property
    def epochs(self) -> dict[str, list[float | None]]:
        """`epochs.csv` by column; None where a cell is empty."""
        rows = read_table(self._file("epochs.csv", stage="train"), ("epoch", "seconds"), fix=self._again("train"))
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    @property
    def val_rsum(self) -> float:
        """R@sum on the validation split, of the epoch that was kept."""
        said = self.record.get("val_rsum") if (self.folder / "model" / "run.json").exists() else None
        curve = [value for value in self.epochs.get("val_rsum", ()) if value is not None]
        return max(curve, default=0.0) if said is None else said

    @property
    def losses(self) -> list[str]:
        """The columns of `epochs` that hold a loss, the total (`loss`) first."""
        names = [name for name in self.epochs if name not in NOT_LOSSES and not name.startswith("val_")]
        return sorted(names, key=lambda name: name != "loss")

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """`evaluation/ranks.npz` by name."""
        return read_ranks(self._file("evaluation/ranks.npz", stage="evaluate"), fix=self._again("evaluate"))

    @cached_property
    def correspondence(self) -> dict:
        """`correspondence.json`: figures of words, regions and concepts."""
        return self._json("correspondence.json", Correspondence, stage="evaluate")

    @cached_property
    def cost(self) -> dict | None:
        """`cost.json`, which `selfalign cost` writes; None where there is none."""
        path = self.folder / "cost.json"
        fix = f"remove it, or measure again: `selfalign cost {self.name}`"
        return read_json(path, Cost, fix=fix) if path.exists() else None

    @property
    def modes(self) -> dict[str, dict]:
        """Ways to search with this run: each one's `rsum`, and its `query_ms` where `selfalign cost` measured it."""
        timed = (self.cost or {}).get("modes", {})
        known = self.metrics.get("modes") or ({"student": {"rsum": self.metrics["rsum"]}} if timed else {})
        return {mode: figures | {"query_ms": timed.get(mode, {}).get("query_ms")} for mode, figures in known.items()}

    @cached_property
    def concepts(self) -> RegionConcepts | None:
        """The concept of every region; None without a codebook."""
        path = self.folder / "evaluation" / "concepts.npz"
        return RegionConcepts.read(path, fix=self._again("evaluate")) if path.exists() else None

    def pair(self, caption: int) -> dict:
        """A caption with its image, word by word (`eval.matching.pairs.Pairs.row`)."""
        path, fix = self.folder / "evaluation" / "correspondence.jsonl", self._again("evaluate")
        where = f"{path} line {caption + 1}"
        value = parse_json(self._pairs[caption] if caption < len(self._pairs) else "", path=where, fix=fix)
        checked(value, Pair, where=where, fix=fix)
        return value

    @cached_property
    def _pairs(self) -> list[str]:
        path = self._file("evaluation/correspondence.jsonl", stage="evaluate")
        return read_utf8(path, fix=self._again("evaluate")).split("\n")

    @cached_property
    def matches(self) -> Matches:
        """The region of every word."""
        return read_matches(self._file("evaluation/matches.npz", stage="evaluate"), fix=self._again("evaluate"))

    @cached_property
    def embeddings(self) -> Embeddings:
        """The embeddings of the split, mapped."""
        return Embeddings.open(self.folder / "evaluation", run=self.name)

    @cached_property
    def draws(self) -> np.ndarray:
        """R@sum over resampled test images, `[draws]` (`eval.interval`)."""
        columns = (self.ranks[name] for name in ("i2t", "i2t_images", "t2i", "caption_image"))
        return rsum_draws(*columns, num_images=len(self.ranks["image_ids"]))

    def found(self, caption: int, count: int) -> list[int]:
        """The `count` images that score highest for a caption, best first; the lower index wins a tie."""
        return nearest_images(self.embeddings.part(slice(None), slice(caption, caption + 1)), count)[0].tolist()

    def require_fits(self, data: RetrievalData) -> None:
        """Raise InputError unless all of it is of the images, captions and regions of `data`."""
        images, captions = len(data.images), data.num_captions
        counts = data.region_counts()
        problems = {
            "ranks.npz": self.ranks["image_ids"].tolist() != [image.id for image in data.images]
            or not np.array_equal(self.ranks["caption_image"], data.caption_image),
            "pooled.npy": (self.embeddings.num_images, self.embeddings.num_captions) != (images, captions),
            "matches.npz": not _within(self.matches, data.caption_image, counts),
            "concepts.npz": self.concepts is not None and not np.array_equal(np.diff(self.concepts.first), counts),
        }
        for name, wrong in problems.items():
            if wrong:
                message = (
                    f"run {self.name} was evaluated on other images, captions or regions than the data set now has"
                )
                raise InputError(message, where=self.folder / "evaluation" / name, fix=self._again("evaluate"))

    def _again(self, stage: str) -> str:
        return f"dvc repro {stage}@{self.name}"

    def _json(self, name: str, kind: type[Written], *, stage: str) -> dict:
        return read_json(self._file(name, stage=stage), kind, fix=self._again(stage))

    def _file(self, name: str, *, stage: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise InputError(f"run {self.name} has no such file", where=path, fix=self._again(stage))
        return path


def _within(matches: Matches, caption_image: np.ndarray, counts: np.ndarray) -> bool:
    """Whether matches are of captions that there are, and of regions that their images have."""
    if not ((matches.caption >= 0) & (matches.caption < len(caption_image))).all():
        return False
    return bool(((matches.region >= 0) & (matches.region < counts[caption_image[matches.caption]])).all())
