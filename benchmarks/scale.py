"""Time and memory of every stage at as many rows as one likes: what grows with the data set, and what doesn't.

    python -m benchmarks.scale run --folder /tmp/scale --rows 100000
    python -m benchmarks.scale run --folder /tmp/scale --rows 1000000 --only manifest --only tokens
    python -m benchmarks.scale table --folder /tmp/scale --out benchmarks/scale.json

A row is a picture with five captions. All pictures are hard links to a thousand tiny ones, and the detector costs next
to nothing. So seconds are those of the pipeline itself: reading, hashing, checking, writing, and all that handles rows.
Each stage runs in a process of its own. Results are kept in the folder, and a killed run goes on with the next stage.
`table` adds a stage's growth between its smallest and its largest size.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import yaml
from PIL import Image

from extract.settings import PackSettings, RegionSettings
from extract.stores.regions import Regions
from extract.stores.tokens import TokenStore
from extract.text.settings import TextFeatureSettings, TokenSettings
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Detector
from manifests.files import sha256, write_json
from manifests.tables import Manifest
from manifests.typed import Settings

CHECKOUT = Path(__file__).parents[1]
PICTURES, CAPTIONS, FOLDER = 1000, 5, 1000  # distinct pictures, captions of each, pictures a folder
SAMPLE = 5000  # rows of text features
WORDS = 30_000
TOKENS = TokenSettings(language="blank_en", min_count=2)
MEASURED: dict[str, Callable[[Path], dict[str, Any] | None]] = {}


def measured(stage: Callable[[Path], dict[str, Any] | None]) -> Callable[[Path], dict[str, Any] | None]:
    """Enter a stage, a function of the data set's folder, under its name."""
    MEASURED[stage.__name__] = stage
    return stage


class MeansSettings(Settings):
    name: Literal["means"] = "means"


@DETECTORS.add("means")
class Means(Detector):
    """Four regions a picture, each a quarter's mean colour."""

    Settings = MeansSettings
    object_names = attribute_names = None
    fixed = most = 4
    dim = 3

    def __init__(self, settings: MeansSettings, selection: None, device: str):
        self.device, self.recipe = device, settings.decides()

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        return 16, 16

    def detect(self, pictures: Any, sizes: Any, given: Any = None) -> list[Regions]:
        means = pictures.float().unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(2).transpose(1, 2) / 255
        boxes = np.float32([(0, 0, 16, 16), (16, 0, 32, 16), (0, 16, 16, 32), (16, 16, 32, 32)])
        return [Regions(own, boxes, size) for own, size in zip(means.half().numpy(), sizes, strict=True)]


def sentences(seed: int) -> Iterator[str]:
    """Captions of 7 to 14 words, whose frequencies fall as those of English do."""
    rng = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bcdfghklmnprstvwyz" for b in "aeiou" for c in range(WORDS // 90)]
    while True:
        picks = (words[int(len(words) * rng.random() ** 6)] for _ in range(rng.randint(7, 14)))
        yield f"A {' '.join(picks)}."


def prepare(data: Path, rows: int) -> None:
    """The pictures and the captions file of a data set."""
    if (data / "captions.jsonl").is_file():
        return
    base = data.parent / "pictures"
    base.mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        path = base / f"{number}.png"
        if not path.is_file():
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    texts, temporary = sentences(1), data / "captions.part"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    with temporary.open("w", encoding="utf-8") as file:
        for number in range(rows):
            folder = data / "images" / f"{number // FOLDER:05d}"
            if not number % FOLDER:
                folder.mkdir(parents=True)
            os.link(base / f"{number % PICTURES}.png", folder / f"{number:08d}.png")
            split = "test" if number % 100 == 99 else "val" if number % 100 == 98 else "train"
            row = {"image": f"{folder.name}/{number:08d}.png", "captions": [next(texts) for _ in range(CAPTIONS)]}
            file.write(json.dumps(row | {"split": split}) + "\n")
    temporary.rename(data / "captions.jsonl")


def fresh(out: Path) -> Path:
    """A store's place, without what an earlier run made there."""
    shutil.rmtree(out, ignore_errors=True)
    out.with_name(f".{out.name}.made.json").unlink(missing_ok=True)
    return out


@measured
def manifest(data: Path) -> None:
    from manifests.manifest import run

    # The same pictures are in all splits.
    own = {"captions": data / "captions.jsonl", "format": "folder", "duplicates": "allow"}
    run(images=data / "images", out=fresh(data / "manifest"), **own)


@measured
def opening_manifest(data: Path) -> None:
    Manifest.open(data / "manifest").checked()


@measured
def regions(data: Path) -> None:
    from extract.stages.regions import run

    shutil.rmtree(data / "cache", ignore_errors=True)
    settings = RegionSettings(detector={"name": "means"})
    places = {"manifest": data / "manifest", "images": data / "images", "out": fresh(data / "regions")}
    run(dataset="scale", **places, settings=settings, cache=data / "cache", batch_size=64)


@measured
def tokens(data: Path) -> None:
    from extract.stages.tokens import run

    run(manifest=data / "manifest", settings=TOKENS, out=fresh(data / "tokens"))


def _tokens_by(workers: int, data: Path) -> dict[str, Any]:
    """The word stage on local workers: what each of them spent and held, and how long it stood idle between shards."""
    from extract.stages.tokens import run
    from pipeline.cluster import open_workers
    from pipeline.machine import Machine

    out = data / f"tokens-{workers}"
    shutil.rmtree(out, ignore_errors=True)
    with open_workers(Machine(cluster=f"local:{workers}", threads=1, device="cpu")) as opened:
        before, start = time.process_time(), time.perf_counter()
        run(manifest=data / "manifest", settings=TOKENS, out=out, workers=opened)
        times = {"seconds without the cluster's start": time.perf_counter() - start}
        times["processor seconds of the stage itself"] = time.process_time() - before
        times["processor seconds of each worker"] = sorted(opened.client.run(time.process_time).values())
        times["MB of each worker"] = sorted(opened.client.run(peak).values())
    same = sha256(out / "tokens.h5") == sha256(data / "tokens" / "tokens.h5")
    shutil.rmtree(out)
    return times | {"same bytes": same}


@measured
def tokens_by_1_worker(data: Path) -> dict[str, Any]:
    return _tokens_by(1, data)


@measured
def tokens_by_2_workers(data: Path) -> dict[str, Any]:
    return _tokens_by(2, data)


@measured
def opening_tokens(data: Path) -> None:
    TokenStore(data / "tokens").text(0)


@measured
def text_features(data: Path) -> dict[str, Any]:
    """Of the captions of `SAMPLE` rows, by a tiny encoder."""
    from extract.stages import text_features, tokens
    from manifests.tables import write_manifest
    from tests.encoders import write_encoder

    shutil.rmtree(data / "sample", ignore_errors=True)
    folder, rows = data / "sample", Manifest.open(data / "manifest").captioned[:SAMPLE]
    encoder = write_encoder(folder / "encoder")
    write_manifest(folder / "manifest", rows)
    own = TOKENS.model_copy(update={"tokenizer": encoder})
    tokens.run(manifest=folder / "manifest", settings=own, out=folder / "tokens")
    settings, start = TextFeatureSettings(model=str(encoder)), time.perf_counter()
    places = {"tokens": folder / "tokens", "out": folder / "text_features", "cache": folder / "cache"}
    text_features.run(dataset="scale", settings=settings, **places, batch_size=64)
    return {"sample rows": len(rows), "seconds of the sample": time.perf_counter() - start}


@measured
def pack(data: Path) -> None:
    from extract.stages.pack import run

    stores = {name: data / name for name in ("manifest", "regions", "tokens")}
    run(dataset="scale", **stores, settings=PackSettings(), out=fresh(data / "pack"))


@measured
def opening_for_training(data: Path) -> None:
    from train.data import RetrievalData

    RetrievalData(data / "manifest", data / "regions", data / "tokens", "train").region_batch(range(128))


@measured
def index(data: Path) -> None:
    """Embeddings of all rows by a model that isn't trained, and the index of them."""
    from eval.search.index import run
    from train.checkpoint import data_recipe, save_model
    from train.data import RetrievalData
    from train.model import build_model
    from train.settings import RunSettings

    opened = RetrievalData(data / "manifest", data / "regions", data / "tokens", "val")
    base, text = {"name": "vse_infinity", "dim": 64}, {"reads": "tokens", "word_dim": 64}
    settings = RunSettings(dataset="scale", epochs=1, base=base, text=text, losses={"triplet": {}})
    model = build_model(settings, opened.region_store.dim, opened.vocabulary_size)
    record = {"settings": settings.model_dump(mode="json"), "recipe": data_recipe(opened)}
    record |= {"feature_dim": opened.region_store.dim, "vocabulary_size": opened.vocabulary_size}
    save_model(data / "model", model, record)
    run(source=_source(data), out=data / "index", device="cpu", batch_size=256)


@measured
def search(data: Path) -> dict[str, Any]:
    """Opening the index and two questions, of which the second finds it open."""
    from eval.search.index import Index
    from eval.search.search import Searcher

    found, seconds = Searcher(Index.open(data / "index"), _source(data)), []
    for text in ("a red ring", "two stars"):
        query = f"{found.index.rows[0].captions[0]} {text}"
        start = time.perf_counter()
        found.images(query)
        seconds.append(time.perf_counter() - start)
    return {"seconds of the second question": seconds[1]}


def _source(data: Path) -> Any:
    from eval.search.index import Source
    from eval.search.words import RunWords
    from train.checkpoint import read_record

    stores = {name: data / name for name in ("manifest", "regions", "tokens")}
    vocabulary, recipe = data / "tokens" / "vocabulary.json", read_record(data / "model")["recipe"]
    words = RunWords(tokens=TOKENS, pieces=False, encoder=None, vocabulary=vocabulary, recipe=recipe)
    return Source(run="scale", dataset="scale", model=data / "model", **stores, text_features=None, words=words)


@measured
def dvc_status(data: Path) -> dict[str, Any]:
    """`dvc status` with nothing to do, in a copy of this checkout whose one data set this is."""
    project, environment = data / "project", os.environ | {"DVC_NO_ANALYTICS": "1"}

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    shutil.rmtree(project, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{CHECKOUT}", str(project)], check=True)
    (project / "dvc.lock").unlink()
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    source = {"format": "folder", "images": "../images", "captions": "../captions.jsonl", "watch": "../captions.jsonl"}
    own = {"regions": {"detector": {"name": "means"}}, "tokens": TOKENS.model_dump(mode="json")}
    params |= {"datasets": {"scale": {"source": source | {"duplicates": "allow"}} | own}}
    params |= {name: {} for name in ("text_features", "teachers", "optional", "runs", "ensembles", "studies")}
    params |= {"packs": {"scale": {}}}
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for name in ("manifest", "regions", "tokens", "pack"):
        shutil.copytree(data / name, project / "data" / "scale" / name, copy_function=os.link)
        (project / "data" / "scale").joinpath("made.jsonl").touch()
    stages = [f"{name}@scale" for name in ("manifest", "regions", "tokens", "pack")]
    dvc("commit", "-f", "-q", *stages)
    files = sum(len(names) for _, _, names in os.walk(project / "data" / "scale"))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        status = dvc("status", *stages)
        seconds.append(time.perf_counter() - start)
    shutil.rmtree(project)
    clean = "up to date" in status
    return {"seconds of each": seconds, "files of the data set": files, "nothing to do": clean or status[-500:]}


def peak() -> int:
    """Most megabytes that this process held so far."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


@click.group()
def main() -> None:
    """See the module's text."""


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=100_000)
@click.option("--only", multiple=True, type=click.Choice(list(MEASURED)), help="This stage; may be given again.")
def run(folder: Path, rows: int, only: tuple[str, ...]) -> None:
    """Measure what hasn't been measured at this size, stage by stage."""
    data = folder.absolute() / f"{rows}"
    prepare(data, rows)
    for stage in only or MEASURED:
        result = folder / "results" / f"{rows}-{stage}.json"
        if result.is_file():
            continue
        command = [sys.executable, "-m", "benchmarks.scale", "one", stage, str(data)]
        start, load = time.perf_counter(), os.getloadavg()[0]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{stage} ended with status {status}")
        figures = {"stage": stage, "rows": rows, "seconds": time.perf_counter() - start}
        figures |= {
            "processor seconds": used.ru_utime + used.ru_stime,
            "load": load,
            **json.loads(out.splitlines()[-1]),
        }
        write_json(result, figures)
        click.echo(json.dumps(figures))


@main.command()
@click.argument("stage")
@click.argument("data", type=click.Path(path_type=Path))
def one(stage: str, data: Path) -> None:
    """Run one stage on a data set's folder, and print what it held."""
    idle = peak()
    measured = MEASURED[stage](data) or {}
    click.echo(json.dumps({"MB": peak(), "MB before": idle, **measured}))


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path))
def table(folder: Path, out: Path | None) -> None:
    """Print, and write, all figures with the growth of each stage per million rows."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]
    growth = {}
    for stage in MEASURED:
        sizes = sorted((each for each in found if each["stage"] == stage), key=lambda each: each["rows"])
        if len(sizes) > 1 and stage != "text_features":  # of as many rows at every size
            small, large = sizes[0], sizes[-1]
            millions = (large["rows"] - small["rows"]) / 1e6
            keys = ("seconds", "processor seconds", "MB")
            growth[stage] = {key: round((large[key] - small[key]) / millions, 2) for key in keys}
            click.echo(f"{stage:24} {growth[stage]}")
    command = "python -m benchmarks.scale run --folder F --rows N; python -m benchmarks.scale table --folder F"
    if out:
        write_json(out, {"command": command, "cores": os.cpu_count(), "growth per million rows": growth, "runs": found})


if __name__ == "__main__":
    main()
