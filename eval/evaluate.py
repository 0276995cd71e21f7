"""The evaluation stage: how well one trained run finds images by caption and captions by image.

Writes `runs/R/metrics.json` (the recalls, which DVC shows), `runs/R/correspondence.json` (words and concepts), and the
folder `runs/R/evaluation`. It has all figures (`figures.json`, docs/evaluation.md), the embeddings (`pooled.npy`,
`context.npy`, `captions.npy`) and `ranks.npz`, every query's rank with the ids of the split. `matches.npz` has the
region that each word matches, `correspondence.jsonl` the same as JSON, one caption a line. `concepts.npz` has the
concept of every region, for a model with a codebook. Which captions belong to an image comes from the manifest, never
from an index divided by five.
"""

import logging
from pathlib import Path
from typing import Any

from eval.evaluated import Evaluated
from eval.figures import FIGURES, headline, recall_figures, save_ranks
from eval.matching.correspondence import summary
from eval.matching.word_statistics import correspondence_figures
from eval.metrics import METRICS
from eval.modes import mode_figures
from eval.settings import EvaluationSettings
from eval.survey import survey
from extract.engine.code import code_fingerprint
from extract.stores.intact import intact_digests
from extract.stores.regions import region_stores
from manifests.files import sha256, whole_folder, write_json
from manifests.grounding import read_grounding
from manifests.locks import one_writer
from manifests.registry import identity
from manifests.tables import Manifest, manifest_sha256
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData

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
    metrics = [METRICS.find(name) for name in settings.metrics]
    return {
        "manifest": manifest_sha256(manifest_dir),
        "stores": intact_digests(stores),
        "files": [[path.name, sha256(path)] for path in read if path.is_file()],
        "settings": settings.model_dump(mode="json"),
        "pieces": pieces,
        "code": [CODE, code_fingerprint(*(metric.__module__ for metric in metrics))],
        "metrics": [[identity(each), each(settings.metrics[each.name]).lacking()] for each in metrics],
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
    """Evaluate the run `name` on one split and write its files; returns all figures.

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
    figures |= _metric_figures(Evaluated(network, data, embeddings, Manifest.open(manifest_dir)), settings)

    if (known := summary(pairs.judged)) is not None:
        figures["correspondence"] = known

    with whole_folder(out) as folder:
        write_json(folder / FIGURES, figures)
        embeddings.save(folder)
        save_ranks(folder / "ranks.npz", ranks, data.caption_image, [image.id for image in data.images])
        pairs.save(folder)
    write_json(correspondence, correspondence_figures(pairs))
    write_json(metrics, headline(figures))
    return figures


def _metric_figures(run: Evaluated, settings: EvaluationSettings) -> dict[str, Any]:
    """The figures of all metrics, below their places in ``figures.json``."""
    figures: dict[str, Any] = {}
    for name, own in settings.metrics.items():
        part = METRICS.find(name)
        metric = part(own)
        found = metric.lacking() or metric.figures(run)
        if isinstance(found, str):
            log.warning("metric %s is left out: %s", name, found)
            found = {"left_out": found}
        if found is not None:
            *above, last = part.place or ("others", name)
            below = figures
            for key in above:
                below = below.setdefault(key, {})
            below[last] = found
    return figures
