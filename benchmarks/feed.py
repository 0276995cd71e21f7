"""How fast shuffled batches come out of a region store, and that reading them takes no memory that stays.

    python -m benchmarks.feed --out benchmarks/feed.json

A store of made features (36 regions of 2,048, f16) in several shards is written to a temporary folder. Batches of
shuffled pictures are then read in two ways. One reads their features into one array of the store's own precision (up to
the collate). The other reads the whole batch as training does: boxes, sizes and padding included, before float32. In
turn as many bytes are copied from an array in memory: the same pictures one by one, and a single block. The copy's
buffer was written to before. The files lie in the page cache, so the feed is measured, not the disk. Shares are of the
total times.

`read ahead` is training's own feed (`train.feed`), two threads and the main one, against copying into as many buffers.

Resident memory is read after every epoch of a process of its own, for stores of three sizes.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.losses import resident, spread
from extract.stores.hdf5 import MappedHDF5
from extract.stores.recipe import write_recipe
from extract.stores.regions import INDEX, Regions, RegionStore, region_index, write_shard
from manifests.files import sha256, write_json
from train.batches import RegionBatch, WordBatch
from train.data import read_regions
from train.epochs import Batch
from train.feed import AHEAD, Feed
from train.processes import Processes, combined

REGIONS, DIM, BATCH, PER_SHARD = 36, 2048, 128, 256


def write_store(folder: Path, images: int) -> None:
    """A region store of random bits below 1.0, shard by shard."""
    recipe_hash = write_recipe(folder, {"made": "for benchmarks.feed"})
    boxes, shards, rng = np.tile(np.float32([0, 0, 9, 9]), (REGIONS, 1)), [], np.random.default_rng(0)
    for start in range(0, images, PER_SHARD):
        count = min(PER_SHARD, images - start)
        features = rng.integers(0, 15360, (count, REGIONS, DIM), dtype=np.uint16).view(np.float16)
        ids = [f"{start + i:06d}" for i in range(count)]
        regions, path = [Regions(some, boxes, (640, 480)) for some in features], folder / f"{start // PER_SHARD:06d}.h5"
        write_shard(path, ids, regions, recipe_hash, dim=DIM, dense=REGIONS, id_bytes=6)
        shard = {"file": path.name, "count": count, "first": ids[0], "last": ids[-1], "sha256": sha256(path)}
        shards.append(shard)
    index = region_index(shards, dim=DIM, dense=REGIONS, object_names=None, attribute_names=None)
    write_json(folder / INDEX, index)


def batches(images: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(images).tolist()
    return [order[i : i + BATCH] for i in range(0, images - BATCH + 1, BATCH)]


def speed(folder: Path, images: int, epochs: int) -> dict[str, object]:
    """Milliseconds a batch, and copying's time as a share of reading's."""
    store = RegionStore(folder)
    memory = np.random.default_rng(1).integers(0, 15360, (images, REGIONS, DIM), dtype=np.uint16).view(np.float16)
    buffer = np.ones((BATCH, REGIONS, DIM), np.float16)

    def same_pictures(rows: list[int]) -> None:
        for place, row in zip(buffer, rows, strict=True):
            np.copyto(place, memory[row])

    def one_block(rows: list[int]) -> None:
        start = rows[0] % (images - BATCH)
        np.copyto(buffer, memory[start : start + BATCH])

    readers = [MappedHDF5(folder / shard["file"]).row_reader("features") for shard in store.index["shards"]]

    def features(rows: list[int]) -> None:
        for place, row in zip(np.empty_like(buffer), rows, strict=True):
            readers[row // PER_SHARD](row % PER_SHARD * REGIONS, place)

    ways: dict[str, Callable[[list[int]], object]] = {
        "features": features,
        "batch": store.padded,
        "copy of the same pictures": same_pictures,
        "copy of one block": one_block,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for epoch in range(epochs):
        for rows in batches(images, epoch):
            for way, function in ways.items():
                start = time.perf_counter()
                function(rows)
                seconds[way].append(time.perf_counter() - start)
    total = {way: sum(each) for way, each in seconds.items()}
    count = len(seconds["features"])
    return {
        "batches": count,
        "milliseconds a batch": {way: round(1000 * all_of_it / count, 2) for way, all_of_it in total.items()},
        "GB/s": round(count * buffer.nbytes / total["features"] / 1e9, 2),
        **{
            f"speed, {ours} / {way}": round(total[way] / total[ours], 3)
            for ours in ("features", "batch")
            for way in ("copy of the same pictures", "copy of one block")
        },
    }


class MadeData:
    """As many captions as images of a made store, with what `train.feed` asks of `RetrievalData`."""

    text_store = None

    def __init__(self, folder: Path, words: WordBatch):
        self.region_store, self.words = RegionStore(folder), words
        self.caption_image = np.arange(len(self.region_store))

    @property
    def num_captions(self) -> int:
        return len(self.caption_image)

    def region_counts(self) -> np.ndarray:
        return self.region_store.num_boxes

    def region_features(self, image: int) -> np.ndarray:
        return self.region_store.read(image).features

    def region_batch(self, images: np.ndarray, into: Callable | None = np.empty) -> RegionBatch:
        return read_regions(self.region_store, images, into)

    def word_batch(self, captions: np.ndarray, *, states: bool = True) -> WordBatch:
        return combined(lambda tensor: tensor[: len(captions)], self.words)

    def teacher_batch(self, captions: np.ndarray) -> None:
        return None


class MadeEpochs:
    """Shuffled batches of a made store."""

    sharded = False

    def __init__(self, data: MadeData):
        self.data = data

    def __len__(self) -> int:
        return len(self.data.caption_image) // BATCH

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(len(self) * BATCH).reshape(-1, BATCH)
        for captions in order[first:]:
            yield captions, self.data.region_batch


def read_ahead(folder: Path, images: int, epochs: int) -> dict[str, float]:
    """Milliseconds a batch of `train.feed.Feed`, which reads ahead, against copying into as many buffers; in turn."""
    words = torch.ones(BATCH, 12, dtype=torch.int64)
    batch = WordBatch(words, words.byte(), words.bool(), words)
    data = MadeData(folder, batch)
    feed = Feed(data, MadeEpochs(data), Processes(0, 1, torch.device("cpu")), chunks=1, resident="off")
    memory = np.random.default_rng(1).integers(0, 15360, (images, REGIONS, DIM), dtype=np.uint16).view(np.float16)
    buffers = [np.ones((BATCH, REGIONS, DIM), np.float16) for _ in range(AHEAD + 2)]
    copied, fed = [], []
    for epoch in range(epochs + 1):
        start = time.perf_counter()
        for number, rows in enumerate(batches(images, epoch)):
            for place, row in zip(buffers[number % len(buffers)], rows, strict=True):
                np.copyto(place, memory[row])
        middle = time.perf_counter()
        for _ in feed(epoch):
            pass
        if epoch:  # the first one allocates
            copied.append(middle - start)
            fed.append(time.perf_counter() - middle)
    count = len(feed.epochs)
    milliseconds = [1000 * statistics.median(times) / count for times in (copied, fed)]
    shares = [one / other for one, other in zip(copied, fed, strict=True)]
    return {
        "milliseconds a batch": {"copy": round(milliseconds[0], 2), "read ahead": round(milliseconds[1], 2)},
        "speed, read ahead / copy into as many buffers": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
    }


def resident_while_reading(folder: Path, images: int, epochs: int) -> list[float]:
    """MB resident after each epoch."""
    store, after = RegionStore(folder), []
    for epoch in range(epochs):
        for rows in batches(images, epoch):
            store.padded(rows)
        after.append(round(resident("VmRSS") / 1e6, 1))
    return after


@click.command()
@click.option("--images", default=2000)
@click.option("--epochs", default=4)
@click.option("--repeats", default=3, help="times the speed is measured")
@click.option("--resident", "reading", type=(Path, int), help="print MB resident while reading FOLDER of N images")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(images: int, epochs: int, repeats: int, reading: tuple[Path, int] | None, out: Path | None) -> None:
    torch.set_num_threads(1)
    if reading:
        click.echo(json.dumps(resident_while_reading(*reading, epochs)))
        return
    memory, runs, ahead = {}, [], {}
    for size in (images // 4, images // 2, images):
        with tempfile.TemporaryDirectory() as temporary:
            write_store(Path(temporary), size)
            command = [
                sys.executable,
                "-m",
                "benchmarks.feed",
                "--epochs",
                str(epochs),
                "--resident",
                temporary,
                str(size),
            ]
            memory[f"{size} images, {size * REGIONS * DIM * 2 // 10**6} MB"] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            if size == images:
                runs = [speed(Path(temporary), size, epochs) for _ in range(repeats)]
                ahead = read_ahead(Path(temporary), size, 2 * epochs)
    shares = {key: spread([run[key] for run in runs]) for key in runs[0] if key.startswith("speed")}
    result = {"shares": shares, "runs": runs, "read ahead": ahead, "MB resident after each epoch": memory}
    click.echo(json.dumps(result, indent=1))
    if out:
        machine = {"machine": platform.machine(), "numpy": np.__version__, "threads": 1}
        command = "python -m benchmarks.feed " + " ".join(sys.argv[1:])
        sizes = {"batch": BATCH, "regions": REGIONS, "dim": DIM, "images": images, "images a shard": PER_SHARD}
        write_json(out, {"command": command, "machine": machine, "sizes": sizes} | result)


if __name__ == "__main__":
    main()
