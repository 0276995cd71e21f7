"""Writes run folders in the pipeline's layout from embeddings that a test makes up."""

import json
from pathlib import Path

import numpy as np

from eval.embeddings import Embeddings
from eval.figures import recall_figures, save_ranks
from eval.matching.correspondence import summary
from eval.matching.pairs import Pairs
from eval.matching.word_statistics import correspondence_figures
from eval.report.results import RunResult
from manifests.files import write_json, write_text
from manifests.host import host_facts

COST = Path(__file__).parents[2] / "benchmarks" / "search_cost.json"


def write_run(
    folder: Path,
    *,
    images: np.ndarray,
    captions: np.ndarray,
    image_of: np.ndarray,
    ids: list[str],
    losses: tuple[str, ...] = ("triplet",),
    pairs: Pairs | None = None,
    correspondence: dict | None = None,
    modes: dict | None = None,
    settings: dict | None = None,
    val_rsum: float = 100.0,
) -> RunResult:
    """Write everything that the report reads of a run; its figures follow from the embeddings."""
    embeddings = Embeddings(images[:, None], images[:, :0], captions)
    ranks, figures = recall_figures(embeddings, image_of, folds=1)
    out = folder / "evaluation"
    embeddings.save(out)
    save_ranks(out / "ranks.npz", ranks, image_of, ids)
    figures |= {"split": "test", "left_out": 0}
    if modes:
        figures["modes"] = {mode: {"rsum": own["rsum"]} for mode, own in modes.items()}
        write_json(
            folder / "cost.json",
            json.loads(COST.read_text()) | {"run": folder.name, "modes": modes, "made": host_facts()},
        )
    figures |= {"correspondence": correspondence} if correspondence else {}
    if pairs is not None:
        pairs.save(out)
        write_json(folder / "correspondence.json", correspondence_figures(pairs))
        figures |= {"correspondence": known} if (known := summary(pairs.judged)) else {}
    write_json(out / "figures.json", figures)
    write_json(
        folder / "model" / "run.json",
        {"settings": settings or {}, "parameters": 1234, "best_epoch": 2, "val_rsum": val_rsum, "seconds": 3.5},
    )
    header = ",".join(["epoch", "step", "seconds", "learning_rate", "loss", *losses, "val_rsum"])
    rows = [",".join(["1", "8", "1", "0.1", "5", *("3" for _ in losses), "90"])]
    rows += [",".join(["2", "16", "2", "0.1", "4", *("2" for _ in losses), str(val_rsum)])]
    write_text(folder / "epochs.csv", "\n".join([header, *rows]) + "\n")
    return RunResult(folder.name, settings or {}, folder)
