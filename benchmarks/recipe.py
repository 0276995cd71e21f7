"""The demo's SelfAlign recipe (run `vsrn-selfalign` of params.yaml), part by part, at the demo's own size.

    python -m benchmarks.recipe run   --results /tmp/recipe          # every run once; a killed one goes on
    python -m benchmarks.recipe table --results /tmp/recipe --out benchmarks/recipe.json

What `benchmarks/study.py` measures, over three seeds. Weights are those of params.yaml, chosen on the validation split.
"""

from functools import cache
from pathlib import Path

import click
import torch

from benchmarks.study import Study, data_and_results, line, summary
from manifests.files import write_json
from pipeline.params import read_params
from train.settings import RunSettings

SEEDS = (0, 1, 2)
# What a row has of the recipe. "codebook": the concept bag in the place of as many plain dimensions.
PARTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "InfoNCE (control)": ("contrast",),
    "InfoNCE + equal dimensions (control)": ("contrast", "bag"),
    "InfoNCE + equal dimensions + CRA (control)": ("contrast", "bag", "cra"),
    "InfoNCE + equal dimensions + CRA + word-region": ("contrast", "bag", "cra", "word_region"),
    "InfoNCE + equal dimensions + CRA + word-region + LCA": ("contrast", "bag", "cra", "word_region", "lca"),
    "InfoNCE + bag + CRA + word-region": ("contrast", "bag", "codebook", "cra", "word_region"),
}


@cache
def recipe() -> RunSettings:
    return read_params().runs["vsrn-selfalign"]


def wanted(parts: tuple[str, ...], seed: int) -> RunSettings:
    """The recipe with these parts alone."""
    told = recipe().model_dump(exclude_none=True)
    losses, bag = told.pop("losses"), told.pop("bag") | {"codebook": "codebook" in parts}
    kept = {name: value for name, value in losses.items() if name in ("triplet", *parts)}
    return RunSettings(**told | {"seed": seed}, losses=kept, bag=bag if "bag" in parts else None)


@click.group()
def main() -> None:
    """See the module's text."""


@main.command()
@data_and_results
def run(data: Path, results: Path) -> None:
    """Train what is missing, seed by seed."""
    torch.set_num_threads(1)
    study = Study(data, results)
    for seed in SEEDS:
        for name, parts in PARTS.items():
            study.run(f"{name} {seed}", wanted(parts, seed))


@main.command()
@data_and_results
@click.option("--out", type=click.Path(path_type=Path))
def table(data: Path, results: Path, out: Path | None) -> None:
    """Print, and write, mean and standard deviation of what is there."""
    study, rows = Study(data, results), {}
    for name, parts in PARTS.items():
        runs = study.runs(name, {seed: wanted(parts, seed) for seed in SEEDS})
        if runs:
            rows[name] = summary(runs)
            click.echo(line(name, rows[name]))
    if out:
        command = "python -m benchmarks.recipe run --results R; python -m benchmarks.recipe table --results R"
        settings = recipe().model_dump(exclude_none=True)
        write_json(out, {"command": f"{command} --out {out}", "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
