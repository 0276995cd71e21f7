"""The study stage: a run trained and evaluated for each of several values of one parameter, one after the other.

Writes `studies/S/points.csv`, a row a value (`COLUMNS`). A point that a killed study had finished is not made again.
DVC's queue makes the same points as experiments, on several machines or GPUs: docs/evaluation.md.
"""

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.embed import embed
from eval.figures import recall_figures
from eval.matching.correspondence import summary
from eval.matching.pairs import match_pairs
from eval.matching.word_statistics import correspondence_figures
from eval.study_settings import StudySettings, label, varied
from eval.validation import validate
from extract.engine.code import code_fingerprint
from extract.stores.intact import intact_digests
from extract.stores.regions import region_stores
from manifests.files import fingerprint, write_json, write_text
from manifests.grounding import read_grounding
from manifests.locks import sole_writer
from manifests.tables import manifest_sha256
from train.checkpoint import data_recipe, load_model, read_record
from train.data import RetrievalData
from train.settings import RunSettings
from train.train import run as train

COLUMNS = (
    *("value", "rsum", "low", "high", "val_rsum", "i2t_r1", "t2i_r1"),
    *("fitting", "chance", "agreement", "agreement_chance", "in_use", "effective"),
)
QUEUED_COLUMNS = (*COLUMNS, "of")
CODE = code_fingerprint("eval.study")


def run(
    *,
    name: str,
    settings: StudySettings,
    base: RunSettings,
    manifest_dir: Path,
    regions: Path,
    tokens: Path,
    text_features: Path | None,
    teachers: Path | None,
    split: str,
    device: str,
    batch_size: int,
    staging: Path,
    out: Path,
    cache: Path | None = None,
) -> None:
    """Make every point of the study `name` and write them to the CSV file `out`.

    Parameters
    ----------
    base : the run that is varied.
    split : what the points are evaluated on.
    staging : folder of unfinished work, the points' included.
    cache : the machine's cache folder, with points that were trained before.
    """
    stores = {"manifest": manifest_dir, "regions": regions, "tokens": tokens, "text_features": text_features}
    data = RetrievalData(**stores, split=split, pieces=base.text.pieces)
    truth = manifest_dir / "grounding.jsonl"
    grounding = read_grounding(truth) if truth.exists() else {}
    finished = staging / f"study-{name}"
    read = [*region_stores(regions), *(store for store in (tokens, text_features, teachers) if store)]
    every = {"recipe": data_recipe(data), "split": split, "data": manifest_sha256(manifest_dir), "code": CODE}
    every["stores"] = intact_digests(read)
    keys = [every | {"settings": varied(base, settings, value).model_dump(mode="json")} for value in settings.values]
    with sole_writer(out, f"study {name}", keys, staging=finished, remember=True) as made:
        if made:
            return
        points = []
        for value, key in zip(settings.values, keys, strict=True):
            wanted = varied(base, settings, value)
            known = finished / f"{fingerprint(key)[:16]}.json"
            if not known.exists():
                with tempfile.TemporaryDirectory() as folder:
                    model = Path(folder) / "model"
                    train(
                        name=f"{name}-{label(value)}",
                        **stores,
                        teachers=teachers,
                        settings=wanted,
                        validate=lambda network, validation: validate(network, validation, batch_size),
                        out=model,
                        curves=Path(folder) / "epochs.csv",
                        staging=staging,
                        device=device,
                        cache=cache,
                    )
                    record, network = read_record(model), load_model(model, device)
                _, figures = recall_figures(embed(network, data, batch_size, run=name), data.caption_image, folds=1)
                pairs = match_pairs(network, data, batch_size, grounding)
                if (found := summary(pairs.judged)) is not None:
                    figures["correspondence"] = found
                told = correspondence_figures(pairs).get("concepts", {})
                write_json(known, point(value, figures, record["val_rsum"], told))
            points.append(json.loads(known.read_text(encoding="utf-8")))
        write_points(out, points)
        shutil.rmtree(finished, ignore_errors=True)


def point(value: Any, figures: Mapping, val_rsum: float | None, concepts: Mapping) -> dict[str, Any]:
    """A row of `COLUMNS` from what `metrics.json` and `correspondence.json` hold of a run; what isn't known is None."""
    low, high = figures["interval"]["rsum"]
    row = {"value": label(value), "rsum": figures["rsum"], "low": low, "high": high, "val_rsum": val_rsum}
    row |= {key: figures[key] for key in ("i2t_r1", "t2i_r1")}
    matched = figures.get("correspondence", {})
    row |= {"fitting": matched.get("fitting"), "chance": matched.get("fitting_chance")}
    row |= {key: concepts.get(key) for key in ("agreement", "agreement_chance")}
    return row | {key: concepts.get("words", {}).get(key) for key in ("in_use", "effective")}


def write_points(path: Path, points: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Write rows of `columns` as CSV, atomically; None is an empty cell.

    `QUEUED_COLUMNS` has one more, `of`: `study` for a point with the study's changes, `run` for one without them.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_text(path, text.getvalue())
