"""The evaluation stage: how well one trained run finds images by caption and captions by image.

Writes `runs/R/metrics.json` (the figures) and `runs/R/evaluation/`: `images.npy`, `captions.npy` (embeddings),
`ranks.npz` (every query's rank, with the ids of the split) and `matches.npz` (the region that each word matches).
Which captions belong to an image comes from the manifest, never from an index divided by five.
"""

import logging
from pathlib import Path

import numpy as np

from eval.correspondence import accuracy, match_words
from eval.embed import embed, save_array, save_arrays
from eval.recall import both_ranks, chance_recalls, recalls
from eval.settings import EvaluationSettings
from manifests.files import write_json
from manifests.grounding import read_grounding
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData

log = logging.getLogger(__name__)


def run(
    *,
    name: str,
    manifest_dir: Path,
    regions: Path,
    tokens: Path,
    model: Path,
    settings: EvaluationSettings,
    device: str,
    batch_size: int,
    out: Path,
    metrics: Path,
    pieces: bool = False,
    text_features: Path | None = None,
) -> dict:
    """Evaluate the run `name` on one split and write its files; returns what `metrics` holds.

    Parameters
    ----------
    manifest_dir : `data/D/manifest`, with `manifest.jsonl` and, where the true objects are known, `grounding.jsonl`.
    regions, tokens : the data set's stores.
    model : `runs/R/model`.
    batch_size : items encoded at a time; it changes the speed only.
    out, metrics : the folder `runs/R/evaluation` and the file `runs/R/metrics.json`.
    pieces, text_features : whether the run reads word pieces, and the text feature store that it reads, if any.

    Raises
    ------
    InputError for an empty split, for a model that was trained on other features or words, and for embeddings that
    are not finite.
    """
    data = RetrievalData(
        manifest_dir / "manifest.jsonl", regions, tokens, settings.split, pieces=pieces, text_features=text_features
    )
    if data.left_out:
        log.warning(
            "%s: %d images of split %s have no region features and are left out: %s",
            name, len(data.left_out), settings.split, ", ".join(data.left_out[:10]),
        )  # fmt: skip
    require_recipe(model, data)
    network = load_model(model, device)
    images, captions = embed(network, data, batch_size, run=name)
    out.mkdir(parents=True, exist_ok=True)
    save_array(out / "images.npy", images)
    save_array(out / "captions.npy", captions)

    captions_of = [data.captions_of(image) for image in range(len(data.images))]
    i2t, asked, t2i = both_ranks(images, captions, captions_of, data.caption_image)
    save_arrays(
        out / "ranks.npz",
        {
            "i2t": i2t,
            "i2t_images": asked,
            "t2i": t2i,
            "caption_image": np.asarray(data.caption_image),
            "image_ids": np.array([image.id for image in data.images]),
        },
    )
    matches = match_words(network, data, batch_size)
    save_arrays(out / "matches.npz", matches.arrays())

    figures = recalls(i2t, t2i) | {
        "split": settings.split,
        "images": len(data.images),
        "captions": data.num_captions,
        "left_out": len(data.left_out),
        "chance": chance_recalls([len(own) for own in captions_of]),
    }
    truth = manifest_dir / "grounding.jsonl"
    correspondence = accuracy(matches, data, read_grounding(truth)) if truth.exists() else None
    if correspondence is not None:
        figures["correspondence"] = correspondence
    write_json(metrics, figures)
    return figures
