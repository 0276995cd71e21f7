"""Where artifacts lie, as `dvc.yaml` says: the one map of `data/`, `runs/`, `ensembles/` and `report/`."""

from pathlib import Path

DATA, RUNS, ENSEMBLES, REPORT = Path("data"), Path("runs"), Path("ensembles"), Path("report")
SCENES = DATA / "scenes"
DEMO_WEIGHTS = Path("extract/detectors/weights/demo.safetensors")


def images(dataset: str) -> Path:
    return DATA / dataset / "images"


def manifest_folder(dataset: str) -> Path:
    return DATA / dataset / "manifest"


def manifest(dataset: str) -> Path:
    return manifest_folder(dataset) / "manifest.jsonl"


def regions(dataset: str) -> Path:
    return DATA / dataset / "regions"


def tokens(dataset: str) -> Path:
    return DATA / dataset / "tokens"


def text_features(dataset: str) -> Path:
    return DATA / dataset / "text_features"


def pack(dataset: str) -> Path:
    return DATA / dataset / "pack"


def model(run: str) -> Path:
    return RUNS / run / "model"


def curves(run: str) -> Path:
    return RUNS / run / "epochs.csv"


def evaluation(run: str) -> Path:
    return RUNS / run / "evaluation"


def metrics(run: str) -> Path:
    return RUNS / run / "metrics.json"


def correspondence(run: str) -> Path:
    return RUNS / run / "correspondence.json"


def ensemble(name: str) -> Path:
    return ENSEMBLES / name
