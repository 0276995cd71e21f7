"""Does a run that streams its training regions reach what one that reads the store reaches, and what does it cost?

    python -m benchmarks.stream --out benchmarks/stream.json     (after `dvc repro pack@demo`)

The demo's run `vsrn` is trained with several seeds, in turn from the store and streamed over HTTP on loopback. Figures
are the test R@sum of the best epoch on the validation split, and seconds an epoch. The latter are ratios of runs that
follow each other. `--few` also streams once with a window of 500 captions, to show the effect of a small one.
"""

import csv
import json
import platform
import statistics
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import torch

from eval.validation import validate
from manifests.files import write_json
from pipeline import places
from pipeline.params import read_params
from train.checkpoint import load_model
from train.data import RetrievalData
from train.settings import RunSettings
from train.train import run


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def trained(data: Path, settings: RunSettings) -> dict[str, float]:
    """Train once: R@sum on the test split, and the median of the epochs' seconds (validation included)."""
    stores = {"manifest": data / "manifest", "regions": data / "regions", "tokens": data / "tokens"}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        run(
            name="benchmark",
            **stores,
            settings=settings,
            validate=lambda model, split: validate(model, split, 256),
            out=out / "model",
            curves=out / "epochs.csv",
            staging=out / "staging",
        )
        with open(out / "epochs.csv", encoding="utf-8") as file:
            ends = [0.0, *(float(row["seconds"]) for row in csv.DictReader(file))]
        rsum = validate(load_model(out / "model"), RetrievalData(**stores, split="test"), 256)["rsum"]
    return {
        "test_rsum": round(rsum, 1),
        "seconds": round(statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False)), 2),
    }


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=places.DATA / "demo", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--few", is_flag=True, help="Stream with a window of 500 captions, too.")
@click.option("--out", type=click.Path(path_type=Path))
def main(data: Path, seeds: int, few: bool, out: Path | None) -> None:
    """Run it and write the figures."""
    torch.set_num_threads(1)
    settings = read_params().run("vsrn")
    names = [entry["file"] for entry in json.loads((data / "pack" / "index.json").read_text())["shards"]]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(data / "pack")))
    Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in names if "-train-" in name]
    stored: list[dict[str, float]] = []
    streamed: dict[int, list[dict[str, float]]] = {}
    for seed in range(seeds):
        stored.append(trained(data, settings.model_copy(update={"seed": seed})))
        for window in (5000, 500) if few and not seed else (5000,):
            values: dict[str, Any] = settings.model_dump() | {"seed": seed, "stream": {"urls": urls, "window": window}}
            streamed.setdefault(window, []).append(trained(data, RunSettings(**values)))
    server.shutdown()
    found = {
        "command": f"python -m benchmarks.stream --seeds {seeds}{' --few' if few else ''} --out benchmarks/stream.json",
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}, torch {torch.__version__}",
        "run": "vsrn of params.yaml",
        "stored": stored,
        "streamed": {f"window {window}": runs for window, runs in streamed.items()},
        "mean_test_rsum": {
            "stored": round(statistics.mean(each["test_rsum"] for each in stored), 1),
            "streamed, window 5000": round(statistics.mean(each["test_rsum"] for each in streamed[5000]), 1),
        },
        "epoch_seconds_streamed_over_stored": round(
            statistics.median(b["seconds"] / a["seconds"] for a, b in zip(stored, streamed[5000], strict=True)), 3
        ),
    }
    click.echo(json.dumps(found, indent=2))
    if out:
        write_json(out, found)


if __name__ == "__main__":
    main()
