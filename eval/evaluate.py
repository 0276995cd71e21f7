"""The evaluation stage: how well one trained run finds images by caption and captions by image.

Writes `runs/R/metrics.json` and `runs/R/correspondence.json` (the figures, docs/evaluation.md), and
`runs/R/evaluation/`: the embeddings (`pooled.npy`, `context.npy`, `captions.npy`), `ranks.npz` (every query's rank,
with the ids of the split), `matches.npz` (the region that each word matches), `concepts.npz` (of every region, for a
model with a codebook) and the matches as JSON, `correspondence.jsonl`, one caption a line. Which captions belong to an
image comes from the manifest, never from an index divided by five.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.eccv import eccv_recalls
from eval.embeddings import Embeddings
from eval.figures import recall_figures, save_ranks
from eval.graded import likeness_ndcg, relevance_ndcg
from eval.matching.correspondence import summary
from eval.matching.word_statistics import correspondence_figures
from eval.modes import mode_figures
from eval.ndcg import CUTOFF
from eval.nearest import nearest_captions, nearest_images
from eval.rouge import RougeL
from eval.settings import EvaluationSettings
from eval.siblings import caption_recalls, nearest_siblings
from eval.spice import reason_to_skip, spice_relevance
from eval.survey import survey
from extract.engine.code import code_fingerprint
from extract.stores.intact import intact_digests
from extract.stores.regions import region_stores
from manifests.errors import InputError
from manifests.files import sha256, whole_folder, write_json
from manifests.grounding import read_grounding
from manifests.locks import one_writer
from manifests.tables import Manifest, manifest_sha256
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData
from train.losses.loss import Side
from train.model import RetrievalModel

log = logging.getLogger(__name__)
CODE = code_fingerprint("eval.evaluate")


def _decides(
    *,
    manifest_dir: Path,
    regions: Path,
    tokens: Path,
    model: Path,
    settings: EvaluationSettings,
    pieces: bool = False,
    text_features: Path | None = None,
    **places: Any,
) -> dict[str, Any]:
    """What decides an evaluation, as JSON."""
    stores = [*region_stores(regions, settings.split), tokens, *([text_features] if text_features else [])]
    read = [*sorted(model.iterdir()), manifest_dir / "grounding.jsonl"]
    return {
        "manifest": manifest_sha256(manifest_dir),
        "stores": intact_digests(stores),
        "files": [[path.name, sha256(path)] for path in read if path.is_file()],
        "settings": settings.model_dump(mode="json"),
        "pieces": pieces,
        "code": CODE,
    }


@one_writer("evaluation", _decides, beside=lambda metrics, correspondence, **others: (metrics, correspondence))
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
    correspondence: Path,
    pieces: bool = False,
    text_features: Path | None = None,
) -> dict:
    """Evaluate the run `name` on one split and write its files; returns what `metrics` holds.

    Parameters
    ----------
    manifest_dir : `data/D/manifest`, with its tables and, where the true objects are known, `grounding.jsonl`.
    regions, tokens : the data set's stores.
    model : `runs/R/model`.
    batch_size : items encoded at a time; it changes the speed only.
    out, metrics, correspondence : the folder `runs/R/evaluation`, the files `runs/R/metrics.json` and
        `runs/R/correspondence.json`.
    pieces, text_features : whether the run reads word pieces, and the text feature store that it reads, if any.

    Raises
    ------
    InputError for an empty split, for a model that was trained on other features or words, and for embeddings that
    are not finite.
    """
    data = RetrievalData(manifest_dir, regions, tokens, settings.split, pieces=pieces, text_features=text_features)
    if data.left_out:
        log.warning(
            "%s: %d images of split %s have no region features and are left out: %s",
            name, len(data.left_out), settings.split, ", ".join(data.left_out[:10]),
        )  # fmt: skip
    require_recipe(model, data)
    network = load_model(model, device)
    truth = manifest_dir / "grounding.jsonl"
    found = survey(network, data, batch_size, run=name, truth=read_grounding(truth) if truth.exists() else {})
    embeddings, pairs = found.embeddings, found.pairs
    ranks, figures = recall_figures(embeddings, data.caption_image, settings.folds)
    figures |= {"split": settings.split, "left_out": len(data.left_out)}
    if found.teacher is not None:
        figures["modes"] = mode_figures(embeddings, found.teacher, ranks, data.caption_image, settings.rerank)
    figures |= _graded(embeddings, _within(network, embeddings), data, settings.spice)
    figures |= _eccv(embeddings, data, Manifest.open(manifest_dir))

    with whole_folder(out) as folder:
        embeddings.save(folder)
        save_ranks(folder / "ranks.npz", ranks, data.caption_image, [image.id for image in data.images])
        pairs.save(folder)
    write_json(correspondence, correspondence_figures(pairs))
    if (known := summary(pairs.judged)) is not None:
        figures["correspondence"] = known
    write_json(metrics, figures)
    return figures


@torch.inference_mode()
def _within(network: RetrievalModel, embeddings: Embeddings) -> dict[Side, np.ndarray]:
    """The vectors `[N, W]` that images, and captions, are compared with each other by: CUSA has heads for that."""
    device = next(network.parameters()).device
    found = {}
    for side, vectors in (("images", embeddings.images), ("captions", embeddings.captions)):
        parts = torch.from_numpy(np.ascontiguousarray(vectors)).split(4096)
        found[side] = torch.cat([network.within(side, part.to(device)).float().cpu() for part in parts]).numpy()
    return found


def _graded(
    embeddings: Embeddings, within_vectors: dict[Side, np.ndarray], data: RetrievalData, spice: Path | None
) -> dict:
    """NDCG in all directions, and recalls of captions by captions."""
    texts = [data.caption_text(caption) for caption in range(data.num_captions)]
    across = {"i2t": nearest_captions(embeddings, CUTOFF), "t2i": nearest_images(embeddings, CUTOFF)}
    within = {
        direction: nearest
        for direction, vectors in (("i2i", within_vectors["images"]), ("t2t", within_vectors["captions"]))
        if (nearest := nearest_siblings(vectors, CUTOFF)) is not None
    }
    rouge = likeness_ndcg(RougeL(texts), data.caption_image, len(data.images), across | within)
    ndcg: dict = {"rouge_l": {direction: rouge[direction] for direction in across}}
    unimodal = {f"{direction}_ndcg": rouge[direction] for direction in within}
    unimodal |= caption_recalls(within_vectors["captions"], data.caption_image) or {}
    if spice is not None:
        reason = reason_to_skip(spice)
        if reason is None:
            captions_of = [data.captions_of(image) for image in range(len(data.images))]
            ndcg["spice"] = relevance_ndcg(spice_relevance(texts, captions_of, spice), **across)
        else:
            log.warning("NDCG by SPICE is left out: %s", reason)
            ndcg["spice"] = {"left_out": reason}
    return {"ndcg": ndcg, "unimodal": unimodal}


def _eccv(embeddings: Embeddings, data: RetrievalData, listed: Manifest) -> dict:
    """ECCV Caption's figures where the images and captions are COCO's; otherwise nothing."""
    ids = listed.caption_ids(0, listed.num_captions)
    if None in ids or not ids:
        return {}
    ends = listed.first_caption.tolist()
    for image in data.images:
        if not image.id.isdecimal():
            told = f"its captions have COCO's ids, and image {image.id!r} has none"
            raise InputError(told, where=listed.place, fix="run the manifest stage again")
    caption_ids = [id for row in data.image_rows.tolist() for id in ids[ends[row] : ends[row + 1]]]
    found = eccv_recalls(embeddings, [int(image.id) for image in data.images], caption_ids)
    if isinstance(found, str):
        log.warning("ECCV Caption is left out: %s", found)
        found = {"left_out": found}
    return {"eccv": found}
