"""SelfAlign, ALADIN, CUSA and their combinations on one base and one set of features, searched in three modes.

    python -m benchmarks.comparison run   --results /tmp/comparison      # every run once; a killed one goes on
    python -m benchmarks.comparison table --results /tmp/comparison --out benchmarks/comparison.json

VSRN with D 64 for six epochs (`benchmarks/study.py`), three seeds. R@sum is of the test split; `query_ms` what one
caption takes among its images, by one thread (`eval.cost`).
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.study import BASES, COMMON, Study, data_and_results, spread, spread_text
from eval import cost
from eval.alignments import embed_locals
from eval.embed import embed
from eval.modes import mode_figures
from eval.ranks import retrieval_ranks
from manifests.files import write_json
from train.checkpoint import load_model
from train.data import RetrievalData
from train.settings import RunSettings

SEEDS = (0, 1, 2)
RERANK = 50
CONTRAST = {"weight": 100.0, "temperature": 0.1}
# The paper's two terms; CUSA has a contrast of its own, and so a control stands beside each.
SELFALIGN = {"concept": {"num_concepts": 256}, "context": {"weight": 60.0, "temperature": 0.1}}
ALADIN = {
    "alignment": {"all_negatives_epochs": 6, "over_words": "mean", "locals": "contextual"},
    "distillation": {"weight": 100.0, "start_epoch": 2},
}
CUSA = {
    "labels": "teachers",
    "cusa": {
        "contrast": {"weight": 100.0},
        "cross_modal": {"weight": 100.0, "teacher_temperature": 0.1},
        "uni_modal": {"weight": 100.0, "teacher_temperature": 0.1},
    },
}
# What is added to the base, as keys of a run.
ADDED: dict[str, dict[str, Any]] = {
    "base": {},
    "InfoNCE (control)": {"contrast": CONTRAST},
    "SelfAlign": {"selfalign": SELFALIGN},
    "SelfAlign + InfoNCE (control)": {"selfalign": SELFALIGN, "contrast": CONTRAST},
    "ALADIN": {"aladin": ALADIN},
    "CUSA": CUSA,
    "SelfAlign + ALADIN": {"selfalign": SELFALIGN, "aladin": ALADIN},
    "SelfAlign + CUSA": {"selfalign": SELFALIGN} | CUSA,
    "ALADIN + CUSA": {"aladin": ALADIN} | CUSA,
    "all three": {"selfalign": SELFALIGN, "aladin": ALADIN} | CUSA,
}


class Comparison(Study):
    """A study that searches in every mode that a model has, and times it."""

    def figures(self, model: Path) -> dict[str, Any]:
        found, network = super().figures(model), load_model(model)
        data = RetrievalData(**self.stores, split="test")
        modes = {"student": {"rsum": found["rsum"]}}
        if network.settings.aladin:
            embeddings = embed(network, data, 256, run="comparison", quiet=True)
            first = retrieval_ranks(embeddings, data.caption_image, range(data.num_captions))
            teacher = embed_locals(network, data, 256, quiet=True)
            modes = mode_figures(embeddings, teacher, first, data.caption_image, RERANK)
        timed = cost.run(
            name="comparison",
            **self.stores,
            model=model,
            split="test",
            device="cpu",
            repeats=9,
            candidates=(1_000,),
            rerank=RERANK,
        )["modes"]
        shown = {
            mode: {"rsum": figures["rsum"], "query_ms": timed[mode]["query_ms"]} for mode, figures in modes.items()
        }
        return found | {"modes": shown}


def wanted(name: str, seed: int) -> RunSettings:
    """The run `name` of `ADDED` with a seed."""
    return RunSettings(**COMMON, seed=seed, base=BASES["vsrn"], **ADDED[name])


@click.group()
def main() -> None:
    """See the module's text."""


@main.command()
@data_and_results
@click.option("--seeds", type=int, multiple=True, default=SEEDS)
def run(data: Path, results: Path, seeds: tuple[int, ...]) -> None:
    """Train what is missing, seed by seed."""
    torch.set_num_threads(1)
    study = Comparison(data, results)
    for seed in seeds:
        for name in ADDED:
            study.run(f"{name} {seed}", wanted(name, seed))


@main.command()
@data_and_results
@click.option("--out", type=click.Path(path_type=Path))
def table(data: Path, results: Path, out: Path | None) -> None:
    """Print, and write, mean and standard deviation of what is there."""
    study, rows = Comparison(data, results), {}
    for name, added in ADDED.items():
        runs = study.runs(name, {seed: wanted(name, seed) for seed in SEEDS})
        if not runs:
            continue
        modes = {
            mode: {
                "rsum": spread([found["modes"][mode]["rsum"] for found in runs]),
                "query_ms": round(statistics.median(found["modes"][mode]["query_ms"] for found in runs), 4),
            }
            for mode in runs[0]["modes"]
        }
        told = {key: spread([found[key] for found in runs]) for key in ("val_rsum", "correspondence", "fitting")}
        rows[name] = {"seeds": len(runs), "added": added, "modes": modes} | told
        for mode, figures in modes.items():
            click.echo(
                f"{name:30} {mode:9} {len(runs)} seeds  R@sum {spread_text(figures['rsum']):14} "
                f"{figures['query_ms']:8.3f} ms a caption"
            )
    if out:
        command = "python -m benchmarks.comparison run --results R; python -m benchmarks.comparison table --results R"
        settings = json.loads(json.dumps(COMMON | {"base": BASES["vsrn"]}))
        write_json(out, {"command": f"{command} --out {out}", "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
