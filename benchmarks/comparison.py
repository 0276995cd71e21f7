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

from benchmarks.study import BASES, COMMON, TRIPLET, Study, data_and_results, spread, spread_text
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
SELFALIGN = {"lca": {"num_concepts": 256}, "cra": {"weight": 60.0, "temperature": 0.1}}
ALADIN = {
    "alignment": {"all_negatives_epochs": 6, "aggregation": "MrAVGw"},
    "distillation": {"weight": 100.0, "start_epoch": 2, "teacher_scale": 10.0},
}
CUSA = {
    "cusa_contrast": {"weight": 100.0, "reads": "embedding", "divided": False},
    "csa": {"weight": 100.0, "teacher_temperature": 0.1},
    "usa": {"weight": 100.0, "teacher_temperature": 0.1},
}
# The losses that are added to the base's.
ADDED: dict[str, dict[str, Any]] = {
    "base": {},
    "InfoNCE (control)": {"contrast": CONTRAST},
    "SelfAlign": SELFALIGN,
    "SelfAlign + InfoNCE (control)": SELFALIGN | {"contrast": CONTRAST},
    "ALADIN": ALADIN,
    "CUSA": CUSA,
    "SelfAlign + ALADIN": SELFALIGN | ALADIN,
    "SelfAlign + CUSA": SELFALIGN | CUSA,
    "ALADIN + CUSA": ALADIN | CUSA,
    "all three": SELFALIGN | ALADIN | CUSA,
}


class Comparison(Study):
    """A study that searches in every mode that a model has, and times it."""

    def figures(self, model: Path) -> dict[str, Any]:
        found, network = super().figures(model), load_model(model)
        data = RetrievalData(**self.stores, split="test")
        modes = {"student": {"rsum": found["rsum"]}}
        if network.alignment is not None:
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
    losses, labels = {"triplet": TRIPLET} | ADDED[name], "teachers" if "csa" in ADDED[name] else "manifest"
    return RunSettings(**COMMON, seed=seed, base=BASES["vsrn"], losses=losses, labels=labels)


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
