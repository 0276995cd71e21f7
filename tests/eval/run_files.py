"""Writes run folders in the pipeline's layout from embeddings that a test makes up."""

from pathlib import Path

import numpy as np

from eval.correspondence import Matches
from eval.embed import save_array, save_arrays
from eval.recall import both_ranks, chance_recalls, recalls
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
    captions_of = [np.flatnonzero(image_of == image) for image in range(len(images))]
    i2t, asked, t2i = both_ranks(images, captions, captions_of, image_of)
    out = folder / "evaluation"
    save_array(out / "images.npy", images.astype(np.float32))
    save_array(out / "captions.npy", captions.astype(np.float32))
    save_arrays(
        out / "ranks.npz",
        {"i2t": i2t, "i2t_images": asked, "t2i": t2i, "caption_image": image_of, "image_ids": np.array(ids)},
    )
    if matches is not None:
        save_arrays(out / "matches.npz", matches.arrays())
    figures = recalls(i2t, t2i) | {
        "split": "test", "images": len(images), "captions": len(captions), "left_out": 0,
        "chance": chance_recalls([len(own) for own in captions_of]),
    }  # fmt: skip
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
