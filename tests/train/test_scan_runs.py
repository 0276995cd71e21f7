"""Each base with its published settings, at small sizes, on features of SCAN's layout: two epochs, and a checkpoint.

The features are made up; REAL_FEATURES names a folder of real ones (boxes as corners in pixels) to use in their place.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from eval.validation import validate
from extract.stages import text_features, tokens
from extract.text.settings import TextFeatureSettings, TokenSettings
from pipeline.strict_yaml import load
from tests.encoders import write_encoder
from tests.extract.exchange_files import Import
from tests.train.runs import train_run
from train.bases import BASES
from train.checkpoint import load_model
from train.data import RetrievalData
from train.settings import RunSettings

PRESETS = Path(__file__).parents[2] / "presets"
IMAGES, REGIONS, FEATURES = {"train": 24, "dev": 8}, 6, 20
WORDS = ("red", "blue", "ring", "star", "left", "of", "the", "a")
SMALL = {
    "vsrn": {"dim": 32},
    "camera": {"dim": 32, "heads": 4, "views": 3},
    "vse_infinity": {"dim": 32},
    "transformer": {"dim": 16},
}


def write_scan(folder: Path) -> Path:
    """Random features, boxes and five captions a picture."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        np.save(folder / f"{split}_ims.npy", rng.standard_normal((count, REGIONS, FEATURES)).astype(np.float32))
        corner = rng.uniform(0, 100, (count, REGIONS, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 50, corner.shape)], axis=-1)
        np.save(folder / f"{split}_boxes.npy", boxes.astype(np.float32))
        np.save(folder / f"{split}_img_sizes.npy", np.full((count, 2), 160))
        captions = [" ".join(rng.choice(WORDS, rng.integers(3, 8))) for _ in range(5 * count)]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Manifest, regions, tokens with pieces and text features, and the encoder."""
    root = tmp_path_factory.mktemp("scan")
    given = os.environ.get("REAL_FEATURES")
    scan = Path(given) if given else write_scan(root / "given")
    Import("scan", scan, root / "data", settings={"boxes": "xyxy"}).run()
    stores = {"manifest": root / "data/manifest", "regions": root / "data/regions", "tokens": root / "tokens"}
    encoder = write_encoder(root / "encoder")
    settings = TokenSettings(language="blank_en", min_count=1, tokenizer=encoder, max_pieces=32)
    tokens.run(manifest=stores["manifest"], settings=settings, out=root / "tokens")
    text_features.run(
        dataset="scan",
        tokens=root / "tokens",
        settings=TextFeatureSettings(model=str(encoder)),
        out=root / "text_features",
        cache=root / "cache",
    )
    return {**stores, "text_features": root / "text_features", "encoder": encoder}


def small(preset: str, encoder: Path) -> RunSettings:
    """The run of a preset with few dimensions, two epochs and the encoder that is here; nothing else changed."""
    (run,) = load((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"))["runs"].values()
    run |= {"epochs": 2, "batch_size": 40}
    run["base"] |= SMALL[run["base"]["name"]]
    if "encoder" in run["text"]:
        run["text"]["encoder"]["model"] = str(encoder)
    for name, sizes in {"generation": {"dim": 16}, "lca": {"num_concepts": 32}}.items():
        if name in run["losses"]:
            run["losses"][name] |= sizes
    if run["losses"].get("distillation", {}).get("teacher") == "frozen":
        run["losses"]["distillation"]["start_epoch"] = 1
    return RunSettings(**run)


# CAMERA and VSE-infinity are the same on both data sets.
NAMES = ("coco-camera", "coco-camera-selfalign", "flickr30k-vse-infinity", "coco-aladin", "coco-aladin-frozen")
NAMES += tuple(f"{dataset}-vsrn-selfalign" for dataset in ("coco", "flickr30k"))


def test_every_base_is_among_them() -> None:
    runs = [load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))["runs"] for name in NAMES]
    named = {run["base"]["name"] for own in runs for run in own.values()}
    assert named == {name for name, base in BASES.load().items() if base.__module__.startswith("train.")}


@pytest.mark.parametrize("preset", NAMES)
def test_a_preset_trains_two_epochs(imported: dict[str, Path], tmp_path: Path, preset: str) -> None:
    settings = small(preset, imported["encoder"])
    stores = {name: path for name, path in imported.items() if name not in ("text_features", "encoder")}
    if settings.text.reads == "text_features":
        stores["text_features"] = imported["text_features"]
    first, last = train_run(stores, settings, tmp_path)
    for name, loss in settings.losses.items():
        assert np.isfinite(last[name]) and (loss.start_epoch or first[name] > 0), name
    reads = {"text_features": stores["text_features"]} if "text_features" in stores else {}
    data = RetrievalData(**{**stores, **reads}, split="val", pieces=settings.text.pieces)
    assert validate(load_model(tmp_path / "model"), data, 64)["rsum"] > 0
