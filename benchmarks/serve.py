"""How fast `selfalign serve` answers at 100,000 pictures, and what it holds.

    OMP_NUM_THREADS=2 python -m benchmarks.serve --folder /tmp/serve --out benchmarks/serve.json

A project is made in the folder, once. Its model is a VSRN of 1,024 dimensions that isn't trained. Its index has 100,000
images and 500,000 captions, whose vectors vary in few directions, as a trained model's do. An image has 36 regions of
256 numbers. The pictures have a photograph's size, and are hard links to a few. The command serves the project in a
process of its own, and this one asks over HTTP, one request after the other:

1. `seconds until ready`: from the command's start to the line with the address. The first time the index's files are
   hashed, too. `first ms`: the first answer after that;
2. `text`: 200 different captions, 12 images each, as the page asks for them while one types;
3. `regions`: the words' regions in the 12 images of each of 40 of these answers;
4. `thumbnail`: 200 pictures that weren't asked for before;
5. `picture`: captions for 40 images of the index.

`MB` is the most memory that the process held, after 2 and at the end. Mapped files are part of it, which the system may
take back: an index's codes and vectors.

A machine that others use too makes all of it slower: `load` is its load average. On Linux a session gets the processors
first after `echo -15 > /proc/self/autogroup`; `session's niceness` is that number. `processor ms of each` hardly
depends on either: it is the time of all cores that the server took for a request.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import click
import numpy as np
import yaml
from numpy.lib.format import open_memmap
from PIL import Image

from benchmarks.scale import CHECKOUT, sentences
from eval.search.index import finish
from extract.stages import tokens
from extract.stores.intact import INDEX
from extract.stores.norms import Norms
from extract.stores.recipe import read_recipe, write_recipe
from extract.stores.regions import FAILURES, Regions, region_index, write_shard
from extract.stores.tokens import TokenStore
from manifests.files import sha256, write_json, write_text
from manifests.imported import write_source
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from pipeline import places
from pipeline.params import read_params
from pipeline.searching import source
from train.checkpoint import save_model
from train.model import build_model

COMMAND = "OMP_NUM_THREADS=2 python -m benchmarks.serve --folder F --out benchmarks/serve.json"
RUN, DATASET = "large", "many"
CAPTIONS, PICTURES, SIZE = 5, 40, (640, 480)
DIMS, LATENT = 1024, 32
REGIONS, NUMBERS, PER_SHARD = 36, 256, 4096
BLOCK = 1 << 14
QUERIES, REPEATED, HITS = 200, 40, 12


def prepare(rows: int) -> None:
    """Make the project in the current folder."""
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    data = {
        "source": {"format": "folder", "images": "images", "captions": "captions.csv", "watch": "captions.csv"},
        "regions": params["datasets"]["demo"]["regions"],
        "tokens": {"language": "blank_en", "min_count": 1},
    }
    run = {
        "dataset": DATASET,
        "labels": "manifest",
        "epochs": 1,
        "base": {"name": "vsrn", "dim": DIMS},
        "losses": {"triplet": {}},
    }
    run |= {"text": {"reads": "tokens", "word_dim": 300}}
    empty = {name: {} for name in ("text_features", "teachers", "packs", "optional", "ensembles", "studies")}
    params |= {"datasets": {DATASET: data}, "runs": {RUN: run}, **empty}
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    texts = sentences(1)
    random = np.random.default_rng(0)
    digests = []
    Path("images").mkdir()
    for number in range(PICTURES):
        path = Path("images") / f"{number}.jpg"
        small = Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8))
        small.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        digests.append(sha256(path))
    listed = []
    for number in range(rows):
        name = f"{number % PICTURES}.jpg"
        if number >= PICTURES:
            name = f"{number // 1000:03d}/{number}.jpg"
            (Path("images") / name).parent.mkdir(exist_ok=True)
            os.link(Path("images") / f"{number % PICTURES}.jpg", Path("images") / name)
        own = tuple(next(texts) for _ in range(CAPTIONS))
        listed.append(CaptionedImage(f"{number:06d}", name, digests[number % PICTURES], *SIZE, "train", own))
    write_manifest(places.manifest(DATASET), listed)
    write_source(places.manifest(DATASET), None)
    _write_regions(listed, random)
    # The words of some captions are enough for a vocabulary.
    write_manifest(Path("sample"), listed[:5000])
    settings = read_params().dataset(DATASET).tokens
    tokens.run(manifest=Path("sample"), settings=settings, out=places.tokens(DATASET))
    _write_model()
    own = source(read_params(), RUN, DATASET)
    folder = Path("unfinished")
    folder.mkdir()
    _write_vectors(folder, rows, random)
    recipe = {"features": read_recipe(places.regions(DATASET))[0], "words": own.words.recipe["tokens"]}
    finish(folder, own, listed, splits=["train"], kind="exact", **recipe)
    places.INDEXES.mkdir()
    folder.rename(places.index(RUN, DATASET))


def _write_regions(listed: Sequence[CaptionedImage], random: np.random.Generator) -> None:
    store = places.regions(DATASET)
    recipe_hash = write_recipe(store, {"format": {"schema": 1, "features": "float16"}})
    features = random.standard_normal((PER_SHARD, REGIONS, NUMBERS), np.float32).astype(np.float16)
    corner = random.uniform(0, 0.6, (REGIONS, 2)) * SIZE
    boxes = np.concatenate([corner, corner + np.array(SIZE) * 0.3], axis=1).astype(np.float32)
    done, norms = [], Norms.of(features[0])
    for number, start in enumerate(range(0, len(listed), PER_SHARD)):
        ids = [image.id for image in listed[start : start + PER_SHARD]]
        found = [Regions(own, boxes, SIZE) for own in features[: len(ids)]]
        path = store / f"{number:06d}.h5"
        write_shard(path, ids, found, recipe_hash, dim=NUMBERS, dense=REGIONS, id_bytes=6)
        ends = {"first": ids[0], "last": ids[-1]}
        done.append({"file": path.name, "count": len(ids), **ends, "sha256": sha256(path)})
    index = region_index(done, dim=NUMBERS, dense=REGIONS, object_names=None, attribute_names=None)
    write_json(store / INDEX, index | {"norms": norms.as_json()})
    write_text(store / FAILURES, "")


def _write_model() -> None:
    settings, store = read_params().run(RUN), TokenStore(places.tokens(DATASET))
    size = len(store.vocabulary)
    recipe = {"regions": read_recipe(places.regions(DATASET))[0], "tokens": store.recipe}
    record = {"settings": settings.model_dump(mode="json"), "recipe": recipe}
    record |= {"feature_dim": NUMBERS, "vocabulary_size": size}
    save_model(places.model(RUN), build_model(settings, NUMBERS, size), record)


def _write_vectors(folder: Path, rows: int, random: np.random.Generator) -> None:
    """Unit vectors of images and captions, in few directions."""
    spread = random.standard_normal((LATENT, DIMS), np.float32)
    for name, count, shape in (("pooled", rows, (1, DIMS)), ("captions", rows * CAPTIONS, (DIMS,))):
        array = open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, *shape))
        for start in range(0, count, BLOCK):
            part = random.standard_normal((min(BLOCK, count - start), LATENT), np.float32) @ spread
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            array[start : start + len(part)] = part.reshape(-1, *shape)
        array.flush()
    np.save(folder / "context.npy", np.empty((rows, 0), np.float32))


def ask(address: str, path: str, **parameters: Any) -> bytes:
    with urlopen(f"{address}{path}?{urlencode(parameters, doseq=True)}") as answer:
        return answer.read()


def processor(process: int) -> float:
    """Count the milliseconds of all cores that a process took."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return 1000 * sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def timed(process: int, requests: Sequence[Callable[[], Any]]) -> dict[str, float]:
    """Median, 95th percentile and most of the milliseconds that requests take, and the processor's of each."""
    found, before = [], processor(process)
    for request in requests:
        start = time.perf_counter()
        request()
        found.append((time.perf_counter() - start) * 1000)
    each = (processor(process) - before) / len(requests)
    middle, high = np.percentile(found, (50, 95))
    times = {"median ms": middle, "95th percentile ms": high, "most ms": max(found), "processor ms of each": each}
    return {name: round(float(value), 1) for name, value in times.items()}


def memory(process: int) -> dict[str, int]:
    """Megabytes: the most that a process held, and of what it holds its own and that of mapped files."""
    status = Path(f"/proc/{process}/status").read_text()
    names = {"VmHWM": "MB", "RssAnon": "MB of its own now", "RssFile": "MB of mapped files now"}
    return {name: int(re.search(rf"{key}:\s+(\d+)", status)[1]) // 1024 for key, name in names.items()}


def measure() -> dict[str, Any]:
    """Serve the project in the current folder, and ask."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "SELFALIGN_THREADS": os.environ["OMP_NUM_THREADS"]}
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0"]
    figures: dict[str, Any] = {"seconds until ready": {}}
    places.index(RUN, DATASET).with_name(f".{RUN}-{DATASET}.intact.json").unlink(missing_ok=True)
    for which in ("first time", "again"):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        address = next(found[1] for line in process.stdout if (found := re.match(r"(http://[\d.:]+)/", line)))
        figures["seconds until ready"][which] = round(time.perf_counter() - start, 1)
        if which == "first time":
            process.terminate()
            process.wait()
    try:
        manifest = Manifest.open(places.manifest(DATASET))
        picks = np.random.default_rng(1).permutation(len(manifest))[: 2 * QUERIES].tolist()
        texts = [manifest.captions_of(row)[0] for row in picks]
        figures["first ms"] = timed(process.pid, [lambda: ask(address, "/api/search", text=texts[-1], count=HITS)])[
            "most ms"
        ]
        rows = {}

        def text(query: str) -> None:
            answer = json.loads(ask(address, "/api/search", text=query, count=HITS))
            rows[query] = [hit["row"] for hit in answer["hits"]]

        figures["text"] = timed(process.pid, [lambda query=query: text(query) for query in texts[:QUERIES]])
        figures["memory after text"] = memory(process.pid)
        some = texts[:REPEATED]
        figures["regions"] = timed(
            process.pid, [lambda q=q: ask(address, "/api/regions", text=q, row=rows[q]) for q in some]
        )
        thumbnails = [f"/pictures/{RUN}-{DATASET}/{row}" for row in picks[:QUERIES]]
        figures["thumbnail"] = timed(process.pid, [lambda path=path: ask(address, path) for path in thumbnails])
        ids = [manifest.images[row].id for row in picks[:REPEATED]]
        figures["picture"] = timed(
            process.pid, [lambda id=id: ask(address, "/api/picture", id=id, count=10) for id in ids]
        )
        figures["memory at the end"] = memory(process.pid)
        return figures
    finally:
        process.terminate()
        process.wait()


def niceness() -> int | None:
    """The number that Linux schedules this session by; None where it schedules processes alone."""
    path = Path("/proc/self/autogroup")
    return int(path.read_text().split()[-1]) if path.exists() else None


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=100_000)
@click.option("--out", type=click.Path(path_type=Path))
def main(folder: Path, rows: int, out: Path | None) -> None:
    """Make the project where it isn't there yet, measure, and print."""
    project, out = folder.absolute() / f"{rows}", out and out.absolute()
    if not (project / places.INDEXES).exists():
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir(parents=True)
        os.chdir(project)
        prepare(rows)
    os.chdir(project)
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count())))
    load = os.getloadavg()[0]
    results = {
        "command": COMMAND,
        "cores": os.cpu_count(),
        "threads": threads,
        "load": load,
        "session's niceness": niceness(),
        "images": rows,
    }
    results |= {"captions": rows * CAPTIONS, "dimensions": DIMS, **measure()}
    click.echo(json.dumps(results, indent=1))
    if out:
        write_json(out, results)


if __name__ == "__main__":
    main()
