"""Where artifacts lie, as `dvc.yaml` says: the one map of `data/`, `runs/`, `ensembles/`, `studies/` and `report/`.

`indexes/`, `searches/` and `inspections/` are no stage's: `selfalign index`, `search` and `inspect` fill them.
"""

from pathlib import Path

DATA, RUNS, ENSEMBLES, STUDIES = Path("data"), Path("runs"), Path("ensembles"), Path("studies")
REPORT, BENCHMARKS = Path("report"), Path("benchmarks")
INDEXES, SEARCHES, INSPECTIONS = Path("indexes"), Path("searches"), Path("inspections")
SCENES = DATA / "scenes"
DEMO_WEIGHTS = Path("demo/weights/demo.safetensors")


def images(dataset: str) -> Path:
    return DATA / dataset / "images"


def manifest(dataset: str) -> Path:
    return DATA / dataset / "manifest"


def regions(dataset: str) -> Path:
    return DATA / dataset / "regions"


def tokens(dataset: str) -> Path:
    return DATA / dataset / "tokens"


def text_features(dataset: str) -> Path:
    return DATA / dataset / "text_features"


def teachers(dataset: str) -> Path:
    return DATA / dataset / "teachers"


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


def figures(run: str) -> Path:
    return evaluation(run) / "figures.json"


def cost(run: str) -> Path:
    return RUNS / run / "cost.json"


def correspondence(run: str) -> Path:
    return RUNS / run / "correspondence.json"


def ensemble(name: str) -> Path:
    return ENSEMBLES / name


def index(run: str, dataset: str) -> Path:
    return INDEXES / f"{run}-{dataset}"


def study(name: str) -> Path:
    return STUDIES / name
