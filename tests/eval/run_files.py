"""Writes run folders in the pipeline's layout from embeddings that a test makes up."""

from pathlib import Path

import numpy as np

from eval.arrays import save_arrays
from eval.correspondence import Matches
from eval.embeddings import Embeddings
from eval.figures import recall_figures, save_ranks
from eval.results import RunResult
from manifests.files import write_json, write_text


def write_run(
    folder: Path,
    *,
    images: np.ndarray,
    captions: np.ndarray,
    image_of: np.ndarray,
    ids: list[str],
    losses: tuple[str, ...] = ("triplet",),
    matches: Matches | None = None,
    correspondence: dict | None = None,
    settings: dict | None = None,
) -> RunResult:
    """Write everything that the report reads of a run; its figures follow from the embeddings."""
    embeddings = Embeddings(images[:, None], images[:, :0], captions)
    ranks, figures = recall_figures(embeddings, image_of, folds=1)
    out = folder / "evaluation"
    embeddings.save(out)
    save_ranks(out / "ranks.npz", ranks, image_of, ids)
    if matches is not None:
        save_arrays(out / "matches.npz", matches.arrays())
    figures |= {"split": "test", "left_out": 0}
    write_json(folder / "metrics.json", figures | ({"correspondence": correspondence} if correspondence else {}))
    write_json(
        folder / "model" / "run.json",
        {"settings": settings or {}, "parameters": 1234, "best_epoch": 2, "val_rsum": 100.0, "seconds": 3.5},
    )
    header = ",".join(["epoch", "step", "seconds", "learning_rate", "loss", *losses, "val_rsum"])
    rows = [",".join(["1", "8", "1", "0.1", "5", *("3" for _ in losses), "90"])]
    rows += [",".join(["2", "16", "2", "0.1", "4", *("2" for _ in losses), "100"])]
    write_text(folder / "epochs.csv", "\n".join([header, *rows]) + "\n")
    return RunResult(folder.name, settings or {}, folder)
