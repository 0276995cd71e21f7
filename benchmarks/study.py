"""What each part of the method is worth on the demo, over seeds, for the three bases.

    python -m benchmarks.study run  --results /tmp/study          # every run once; a killed study goes on
    python -m benchmarks.study table --results /tmp/study --out benchmarks/study.json

`run` first tries every value of `GRID` with one seed that is not used again and keeps the best R@sum of the validation
split; then it trains each of `ADDED` on top of each base with the other seeds. R@sum and the correspondence of words
and regions (against the scenes' truth) are of the test split.
"""

import fcntl
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from eval.matching.correspondence import accuracy, match_words
from eval.validation import validate
from manifests.files import write_json
from manifests.grounding import read_grounding
from train.checkpoint import load_model, read_record
from train.data import RetrievalData
from train.settings import RunSettings
from train.train import run as train

TUNING_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
EPOCHS = 6
COMMON = {
    "dataset": "demo",
    "epochs": EPOCHS,
    "batch_size": 128,
    "learning_rate": 0.002,
    "decay_epochs": 5,
    "text": {"reads": "tokens", "word_dim": 64},
}
TRIPLET = {"all_negatives_epochs": EPOCHS}
BASES = {
    "vsrn": {"name": "vsrn", "dim": 64, "graph_layers": 2},
    "camera": {"name": "camera", "dim": 64, "heads": 4, "views": 12, "dropout": 0.0},
    "vse_infinity": {"name": "vse_infinity", "dim": 64},
}
OWN: dict[str, dict[str, Any]] = {"camera": {"diversity": {}}}
# The weights to choose from, smallest first; the summed triplet loss is in the hundreds.
GRID: dict[str, list[Any]] = {
    "contrast": [{"weight": weight, "temperature": 0.1} for weight in (30.0, 100.0)],
    "lca": [{"weight": weight, "num_concepts": 256} for weight in (1.0, 30.0)],
    "cra": [{"weight": weight, "temperature": 0.1} for weight in (60.0, 200.0)],
    "word_region": [{"weight": weight} for weight in (100.0, 1000.0)],
}
BAG = {"num_concepts": 256}
# Correspondence: the region of the very object meant; fitting: of any object that the word is true of; pointing: with
# its centre in one. `kinds` and `pointing_kinds` are shares of the latter two.
KEYS = (
    "val_rsum",
    "rsum",
    "t2i_r1",
    "correspondence",
    "chance",
    "fitting",
    "fitting_chance",
    "pointing",
    "pointing_chance",
)
KINDS = ("kinds", "pointing_kinds")
# What is trained on top of each base: the chosen losses, and what is taken as it is.
ADDED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "base": ((), {}),
    "+ InfoNCE (control)": (("contrast",), {}),
    "+ LCA": (("lca",), {}),
    "+ CRA": (("cra",), {}),
    "+ LCA + CRA": (("lca", "cra"), {}),
    "+ InfoNCE + word-region": (("contrast", "word_region"), {}),
    "+ InfoNCE + equal dimensions (control)": (("contrast",), {"bag": BAG | {"codebook": False}}),
    "+ InfoNCE + bag": (("contrast",), {"bag": BAG}),
    "+ InfoNCE + bag + CRA": (("contrast", "cra"), {"bag": BAG}),
    "+ InfoNCE + equal dimensions + CRA (control)": (("contrast", "cra"), {"bag": BAG | {"codebook": False}}),
    "+ InfoNCE + equal dimensions + CRA + word-region + LCA": (
        ("contrast", "cra", "word_region", "lca"),
        {"bag": BAG | {"codebook": False}},
    ),
    "+ InfoNCE + bag + CRA + word-region": (("contrast", "cra", "word_region"), {"bag": BAG}),
    "+ InfoNCE + bag + CRA + word-region + LCA": (("contrast", "cra", "word_region", "lca"), {"bag": BAG}),
}


def settings(base: str, losses: dict[str, Any], seed: int) -> RunSettings:
    """The run of a base with some losses, and with the concept bag where `losses` has one."""
    added = {name: value for name, value in losses.items() if name != "bag"} | OWN.get(base, {})
    return RunSettings(
        **COMMON, seed=seed, base=BASES[base], losses={"triplet": TRIPLET} | added, bag=losses.get("bag")
    )


class Study:
    """Runs on one data set, each remembered in a file of its own below `results`."""

    def __init__(self, data: Path, results: Path):
        self.data, self.results = data, results
        self.stores = {"manifest": data / "manifest", "regions": data / "regions"}
        self.stores["tokens"] = data / "tokens"

    def result(self, name: str, wanted: RunSettings) -> dict[str, Any] | None:
        """What `name` gave with these settings; None while it isn't done."""
        path = self._path(name)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        if RunSettings(**found["settings"]) != wanted:
            raise click.ClickException(f"{path} is of other settings: remove it, or give another --results")
        return found

    def run(self, name: str, wanted: RunSettings) -> dict[str, Any] | None:
        """Train and measure a run, unless that is done or another process is at it; what died at it has let go."""
        self.results.mkdir(parents=True, exist_ok=True)
        with open(self._path(name).with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            if self.result(name, wanted) is None:
                write_json(self._path(name), self._measure(name, wanted))
        return self.result(name, wanted)

    def runs(self, name: str, wanted: Mapping[int, RunSettings]) -> list[dict[str, Any]]:
        """What a row's runs gave, of the seeds that are done."""
        return [found for seed, each in wanted.items() if (found := self.result(f"{name} {seed}", each))]

    def _path(self, name: str) -> Path:
        return self.results / f"{name.replace(' ', '_').replace('/', '-')}.json"

    def _measure(self, name: str, wanted: RunSettings) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            train(
                name=name,
                **self.stores,
                teachers=self.data / "teachers" if wanted.labels == "teachers" else None,
                settings=wanted,
                validate=lambda model, data: validate(model, data, 256),
                out=model,
                curves=Path(folder) / "epochs.csv",
                staging=Path(folder) / "staging",
            )
            found = self.figures(model)
        return found | {"settings": wanted.model_dump(exclude_none=True)}

    def figures(self, model: Path) -> dict[str, Any]:
        """What a trained model reaches."""
        record, network = read_record(model), load_model(model)
        test = RetrievalData(**self.stores, split="test")
        recalls = validate(network, test, 256)
        truth = read_grounding(self.data / "manifest/grounding.jsonl")
        matched = accuracy(match_words(network, test, 256), test, truth)
        return {
            "val_rsum": record["val_rsum"],
            "rsum": recalls["rsum"],
            "t2i_r1": recalls["t2i_r1"],
            "correspondence": matched["accuracy"],
            "chance": matched["chance"],
            "fitting": matched["fitting"],
            "fitting_chance": matched["fitting_chance"],
            "pointing": matched["pointing"],
            "pointing_chance": matched["pointing_chance"],
            "kinds": {kind: share["fitting"] for kind, share in matched["kinds"].items()},
            "pointing_kinds": {kind: share["pointing"] for kind, share in matched["kinds"].items()},
        }


def chosen(base: str, tried: Callable[[str, RunSettings], dict[str, Any] | None]) -> dict[str, Any] | None:
    """For each loss the values of the grid that are best on the validation split; `tried` gives a run's result. None
    while one is not there."""
    best = {}
    for loss, values in GRID.items():
        found = [tried(f"tune {base} {loss} {n}", tuning(base, loss, value)) for n, value in enumerate(values)]
        if None in found:
            return None
        best[loss] = max(zip(found, values, strict=True), key=lambda pair: pair[0]["val_rsum"])[1]
    return best


def tuning(base: str, loss: str, value: Any) -> RunSettings:
    """A run that tries one value of the grid; a word-region score is tried beside an InfoNCE of the largest weight."""
    beside = {"contrast": GRID["contrast"][-1]} if loss == "word_region" else {}
    return settings(base, beside | {loss: value}, TUNING_SEED)


def data_and_results(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command of a study has."""
    command = click.option("--results", type=click.Path(path_type=Path), required=True)(command)
    return click.option("--data", type=click.Path(path_type=Path), default=Path("data/demo"))(command)


@click.group()
def main() -> None:
    """See the module's text."""


@main.command()
@data_and_results
@click.option("--base", "bases", multiple=True, type=click.Choice(list(BASES)), default=list(BASES))
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ADDED)), default=list(ADDED))
@click.option("--seed", "seeds", multiple=True, type=click.Choice(SEEDS), default=SEEDS)
def run(data: Path, results: Path, bases: tuple[str, ...], rows: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train what is missing, seed by seed."""
    torch.set_num_threads(1)
    study = Study(data, results)
    best = {base: chosen(base, study.run) for base in bases}
    if waiting := [base for base in bases if best[base] is None]:
        raise click.ClickException(f"another process still chooses the weights of {', '.join(waiting)}: start later")
    for seed in seeds:
        for name in rows:
            losses, extra = ADDED[name]
            for base in bases:
                wanted = settings(base, {loss: best[base][loss] for loss in losses} | extra, seed)
                study.run(f"{base} {name} {seed}", wanted)


@main.command()
@data_and_results
@click.option("--out", type=click.Path(path_type=Path))
def table(data: Path, results: Path, out: Path | None) -> None:
    """Print, and write, mean and standard deviation of what is there."""
    study = Study(data, results)
    found: dict[str, Any] = {}
    for base in BASES:
        best, rows = chosen(base, study.result), {}
        if best is None:
            click.echo(f"{base}: its weights are not chosen yet")
            continue
        for name, (losses, extra) in ADDED.items():
            wanted = {seed: settings(base, {loss: best[loss] for loss in losses} | extra, seed) for seed in SEEDS}
            runs = study.runs(f"{base} {name}", wanted)
            if not runs:
                continue
            rows[name] = summary(runs)
            click.echo(f"{base:13} {line(name, rows[name])}")
        found[base] = {"chosen": best, "settings": COMMON | {"base": BASES[base]}, "rows": rows}
    if out:
        command = (
            f"python -m benchmarks.study run --results R; python -m benchmarks.study table --results R --out {out}"
        )
        write_json(out, {"command": command, "bases": found})


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every figure that all `runs` of a row have: some were added to `KEYS` later."""
    known = set.intersection(*map(set, runs))
    row: dict[str, Any] = {"seeds": len(runs)}
    row |= {key: spread([run[key] for run in runs]) for key in KEYS if key in known}
    for key in KINDS:
        if key in known:
            row[key] = {kind: spread([run[key][kind] for run in runs]) for kind in runs[0][key]}
    return row


def line(name: str, row: dict[str, Any]) -> str:
    """A row's summary, to print."""
    kinds = {key: [f"{kind} {share['mean']:.2f}" for kind, share in row.get(key, {}).items()] for key in KINDS}
    return (
        f"{name:45} {row['seeds']} seeds  val {row['val_rsum']['mean']:6.1f}  R@sum {spread_text(row['rsum']):14} "
        f"correspondence {row['correspondence']['mean']:.3f} fitting {' '.join(kinds['kinds'])} "
        f"pointing {' '.join(kinds['pointing_kinds'])}"
    )


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation; of one value there is none."""
    deviation = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 4), "sd": deviation}


def spread_text(found: dict[str, float | None], digits: int = 1) -> str:
    return f"{found['mean']:.{digits}f}" + ("" if found["sd"] is None else f" ± {found['sd']:.{digits}f}")


if __name__ == "__main__":
    main()
