"""What one run left behind, read back for the report: settings, figures, curves, ranks, embeddings and matches."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.embeddings import Embeddings
from eval.interval import rsum_draws
from eval.matching.concepts import RegionConcepts
from eval.matching.correspondence import Matches, read_matches
from eval.nearest import nearest_images
from manifests.errors import InputError

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

    @cached_property
    def metrics(self) -> dict:
        """`metrics.json`."""
        return self._json("metrics.json", stage="evaluate")

    @cached_property
    def record(self) -> dict:
        """`model/run.json`: parameters, best epoch, seconds, recipe."""
        return self._json("model/run.json", stage="train")

    @cached_property
    def epochs(self) -> dict[str, list[float | None]]:
        """`epochs.csv` by column; None where a cell is empty."""
        with open(self._file("epochs.csv", stage="train"), newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return {
                name: [float(row[name]) if row[name] not in ("", None) else None for row in rows]
                for name in reader.fieldnames or ()
            }

    @property
    def losses(self) -> list[str]:
        """The columns of `epochs` that hold a loss, the total (`loss`) first."""
        names = [name for name in self.epochs if name not in NOT_LOSSES and not name.startswith("val_")]
        return sorted(names, key=lambda name: name != "loss")

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """`evaluation/ranks.npz` by name."""
        with np.load(self._file("evaluation/ranks.npz", stage="evaluate")) as stored:
            return dict(stored)

    @cached_property
    def correspondence(self) -> dict:
        """`correspondence.json`: figures of words, regions and concepts."""
        return self._json("correspondence.json", stage="evaluate")

    @cached_property
    def cost(self) -> dict | None:
        """`cost.json`, which `selfalign cost` writes; None where there is none."""
        path = self.folder / "cost.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

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
        return RegionConcepts.read(path) if path.exists() else None

    def pair(self, caption: int) -> dict:
        """A caption with its image, word by word (`eval.matching.pairs.Pairs.row`)."""
        return json.loads(self._pairs[caption])

    @cached_property
    def _pairs(self) -> list[str]:
        path = self._file("evaluation/correspondence.jsonl", stage="evaluate")
        return path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def matches(self) -> Matches:
        """The region of every word."""
        return read_matches(self._file("evaluation/matches.npz", stage="evaluate"))

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

    def _json(self, name: str, *, stage: str) -> dict:
        return json.loads(self._file(name, stage=stage).read_text(encoding="utf-8"))

    def _file(self, name: str, *, stage: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise InputError(f"run {self.name} has no such file", where=path, fix=f"dvc repro {stage}@{self.name}")
        return path
