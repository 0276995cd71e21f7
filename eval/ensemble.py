"""The ensemble stage: several runs' scores averaged, from the embeddings that their evaluation left behind.

Writes `metrics.json`, `figures.json` and `ranks.npz` into `ensembles/E`, as `evaluate@R` does for one run. The scores
are added up a block at a time; no matrix of them is ever whole.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.embeddings import Embeddings
from eval.figures import FIGURES, headline, read_ranks, recall_figures, save_ranks
from eval.scores import Ensemble
from eval.settings import EvaluationSettings
from extract.engine.code import code_fingerprint
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.locks import one_writer

CODE = code_fingerprint("eval.ensemble")


def _decides(*, name: str, runs: Sequence[str], runs_dir: Path, settings: EvaluationSettings, **places: Any) -> Any:
    """What decides an ensemble's figures, as JSON."""
    files = [path for run in runs for path in sorted((runs_dir / run / "evaluation").glob("*"))]
    read = [[str(path.relative_to(runs_dir)), sha256(path)] for path in files]
    return {"name": name, "runs": list(runs), "files": read, "settings": settings.model_dump(mode="json"), "code": CODE}


@one_writer("ensemble", _decides)
def run(*, name: str, runs: Sequence[str], runs_dir: Path, settings: EvaluationSettings, out: Path) -> dict:
    """Evaluate the mean scores of `runs` and write `out`; returns what its `figures.json` holds.

    `runs_dir` holds `R/evaluation` of each run. Raises InputError where runs were evaluated on different images or
    captions.
    """
    split = _split(name, runs[0], runs_dir)
    for other in runs[1:]:
        theirs = _split(name, other, runs_dir)
        if any(not np.array_equal(split[key], theirs[key]) for key in split):
            raise InputError(
                f"runs {runs[0]} and {other} were evaluated on different images or captions",
                where=f"ensemble {name}",
                fix="combine runs of one data set, evaluated with the same parameters",
            )
    members = [Embeddings.open(runs_dir / member / "evaluation", run=member) for member in runs]
    for member, embeddings in zip(runs, members, strict=True):
        embeddings.require_finite(member)
        sizes = len(split["image_ids"]), len(split["caption_image"])
        if (embeddings.num_images, embeddings.num_captions) != sizes:
            raise InputError(
                f"embeddings of {embeddings.num_images} images and {embeddings.num_captions} captions, ranks.npz has "
                f"{sizes[0]} and {sizes[1]}",
                where=runs_dir / member / "evaluation",
                fix=f"dvc repro evaluate@{member}",
            )
    ranks, figures = recall_figures(Ensemble(members), split["caption_image"], settings.folds)
    save_ranks(out / "ranks.npz", ranks, split["caption_image"], split["image_ids"].tolist())
    figures |= {"split": settings.split, "runs": list(runs)}
    write_json(out / FIGURES, figures)
    write_json(out / "metrics.json", headline(figures))
    return figures


def _split(name: str, run: str, runs_dir: Path) -> dict[str, np.ndarray]:
    """Which images and captions a run was evaluated on."""
    path = runs_dir / run / "evaluation" / "ranks.npz"
    if not path.exists():
        raise InputError(f"ensemble {name} needs run {run}", where=path, fix=f"dvc repro evaluate@{run}")
    found = read_ranks(path, fix=f"dvc repro evaluate@{run}")
    return {key: found[key] for key in ("image_ids", "caption_image")}
