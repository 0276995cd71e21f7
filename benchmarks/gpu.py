"""Whether a GPU is kept busy, at the papers' sizes, and whether it finds what a processor finds.

    python -m benchmarks.gpu --out benchmarks/gpu.json          # one GPU, some minutes
    python -m benchmarks.gpu --small --device cpu               # the parity part alone, in seconds

All data is made from a seed; nothing but this checkout is needed.

- `parity`: results on the device against the processor's, all in float32. Compared are losses, embeddings, ranks,
  answers of a search and kept regions.

- `steps`: VSRN, CAMERA and VSE-infinity with SelfAlign, in each precision, on a batch that lies on the device. In
  bfloat16 they are compiled, too. `floor_ms` is the time of the step's matrix products at this card's rate for large
  matrices. `kernels_ms` is the time of all kernels, `busy` its share of the step. `operations` are those that Python
  issues, `read_backs` among them.

- `feed`: VSRN's step in bfloat16, fed from a store by the thread that reads ahead, and from features on the device.
  Figures are multiples of the step on a batch that lies there.

- `evaluation`: seconds for the ranks of 5,000 images of 12 views and 25,000 captions, D 2,048.

- `extraction`: pictures of 640 x 480 a second, R101-C4 with random weights at 600/1000, in float32 and bfloat16.
  `bare` is the network on pictures that lie on the device. `stage` is the whole stage on many pictures less the stage
  on few, so that its start doesn't count.

- `search`: milliseconds a query, alone and among 256, for the ten best of 1 and 10 million vectors of 256 numbers.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.extract import R101, bare_forward, pictures, random_c4, region_settings, stage_seconds
from benchmarks.feed import MadeData, MadeEpochs, write_store
from benchmarks.search import BEST, made_candidates
from benchmarks.step import FEATURES, PAIRS, TEXT, region_batch, run_settings, word_batch
from eval.embeddings import Embeddings
from eval.ranks import retrieval_ranks
from eval.search.exact import nearest
from extract.vision.decode import decode
from extract.vision.loading import load_detector
from manifests.files import write_json
from tests.train.readbacks import ReadBacks
from train.batches import RegionBatch, WordBatch
from train.feed import Feed
from train.model import RetrievalModel, build_model
from train.precision import GRU, Precision, autocast_to, multiplied_in
from train.processes import Processes

VOCABULARY = 10_000
BASES: dict[str, dict[str, Any]] = {
    "vsrn": {"name": "vsrn", "dim": 2048},
    "camera": {"name": "camera", "dim": 2048},
    "vse_infinity": {"name": "vse_infinity", "dim": 1024},
}
SMALL = {"vsrn": {"dim": 32}, "camera": {"dim": 32, "heads": 4, "views": 3}, "vse_infinity": {"dim": 32}}
PARTS = ["parity", "evaluation", "feed", "steps, bfloat16", "steps, bfloat16, compiled", "extraction, bfloat16"]
PARTS += ["extraction, float32", "search, 1 million", "steps, tf32", "steps, float32", "search, 10 million"]
TYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def model_of(base: dict[str, Any]) -> RetrievalModel:
    """A base with SelfAlign on cached text features; learned words for VSRN."""
    torch.manual_seed(0)
    losses = {"lca": {}, "cra": {}} | ({"diversity": {}} if base["name"] == "camera" else {})
    text = {"reads": "tokens" if base["name"] == "vsrn" else "text_features"}
    return build_model(run_settings(base, text, losses), FEATURES, VOCABULARY, text_dim=TEXT)


def stepper(model: RetrievalModel, precision: Precision) -> Callable[[RegionBatch, WordBatch], None]:
    """A training step on pairs that are on the model's device."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    device = next(model.parameters()).device
    image = torch.arange(PAIRS, device=device)
    model.begin(1)

    def step(regions: RegionBatch, words: WordBatch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast_to(precision, device):
            terms = model.terms(model(regions, words), image[: len(regions.mask)], epoch=1)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()

    return step


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of some work on the GPU, after three times that don't count."""
    times = []
    for number in range(3 + repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def products_per_second(precision: Precision, device: str) -> float:
    """Floating-point operations a second of a product of two large matrices."""
    side = 8192
    left, right = (torch.randn(side, side, device=device, dtype=TYPES[precision]) for _ in range(2))
    return 2 * side**3 / (milliseconds(lambda: left @ right, 10) / 1000)


def steps(device: str, precision: Precision, repeats: int, *, compiled: bool = False) -> dict[str, Any]:
    """Figures of a step of every base."""
    found: dict[str, Any] = {}
    with multiplied_in(precision):
        rate = products_per_second(precision, device)
        found["products_TFLOPS"] = round(rate / 1e12, 1)
        for name, base in BASES.items():
            model = model_of(base).to(device)
            batch = region_batch().to(device), word_batch(VOCABULARY).to(device)
            step = stepper(model, precision)
            work = partial(step, *batch)
            work()
            with FlopCounterMode(display=False) as counted, ReadBacks() as read, gru_products(model) as of_grus:
                work()
            floor = 1000 * (counted.get_total_flops() + sum(of_grus)) / rate
            counts = {"operations": sum(read.every.values()), "read_backs": sum(read.found.values())}
            if compiled:
                torch.compiler.reset()
                model.compile_parts()
                start = time.perf_counter()
                work()
                torch.cuda.synchronize()
                counts = {"compiling_s": round(time.perf_counter() - start, 1)}
            found[name] = timed(work, floor, repeats) | counts
            click.echo(json.dumps({name: found[name]}))
            del model, step, work
            torch.cuda.empty_cache()
    return found


@contextmanager
def gru_products(model: nn.Module) -> Iterator[list[int]]:
    """The operations of all GRUs' matrix products in a step, forward and backward: torch's counter leaves them out."""
    found: list[int] = []

    def count(gru: GRU, given: tuple[torch.Tensor, ...], states: torch.Tensor) -> None:
        found.append(18 * states.numel() * (given[0].shape[-1] + gru.hidden_size))

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, GRU)]
    yield found
    for hook in hooks:
        hook.remove()


def back_to_back(work: Callable[[], object], repeats: int) -> float:
    """The mean time of some work on the GPU, in milliseconds, without a wait between two, after three times."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / repeats


def timed(work: Callable[[], object], floor: float, repeats: int) -> dict[str, float]:
    """The time of a step among others, that of its kernels, and both against the matrix products' alone, `floor` ms."""
    taken = back_to_back(work, repeats)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    kernels = sum(event.self_device_time_total for event in profiled.key_averages()) / 1e3 / repeats
    return {
        "ms": round(taken, 2),
        "kernels_ms": round(kernels, 2),
        "floor_ms": round(floor, 2),
        "times_floor": round(taken / floor, 2),
        "kernels_times_floor": round(kernels / floor, 2),
        "busy": round(min(1.0, kernels / taken), 3),
    }


def feed(device: str, images: int) -> dict[str, float]:
    """Times of a step on a batch that lies on the device, of VSRN in bfloat16."""
    model = model_of(BASES["vsrn"]).to(device)
    step = stepper(model, "bfloat16")
    batch = region_batch().to(device), word_batch(VOCABULARY).to(device)
    alone = back_to_back(lambda: step(*batch), 20)
    found = {"step_ms": round(alone, 2)}
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), images)
        data = MadeData(Path(folder), word_batch(VOCABULARY))
        epochs, processes = MadeEpochs(data), Processes(0, 1, torch.device(device))
        for name, resident in (("read ahead", "off"), ("on the device", "on")):
            fed = Feed(data, epochs, processes, chunks=1, resident=resident)
            for epoch in range(2):  # the first fills the page cache
                torch.cuda.synchronize()
                start = time.perf_counter()
                for part in fed(epoch):
                    step(part.regions[0], part.words[0])
                torch.cuda.synchronize()
                taken = 1000 * (time.perf_counter() - start) / len(epochs)
            found[name] = round(taken / alone, 3)
    return found


def evaluation(device: str, images: int, views: int, dims: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(shape, np.float32) for shape in ((images, views, dims), (5 * images, dims))]
    parts = [part / np.linalg.norm(part, axis=-1, keepdims=True) for part in parts]
    embeddings = Embeddings(parts[0], np.empty((images, 0), np.float32), parts[1], device)
    start = time.perf_counter()
    retrieval_ranks(embeddings, np.arange(images).repeat(5), np.arange(5 * images))
    return {"seconds": round(time.perf_counter() - start, 2)}


def extraction(device: str, precision: str, few: int, many: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = region_settings(random_c4(folder / "r101.pth", R101) | {"precision": precision})
        rows, seconds = {}, {}
        for count in (few, many):
            (folder / str(count)).mkdir()
            rows[count] = pictures(folder / str(count), count, (640, 480))
            seconds[count] = stage_seconds(folder / str(count), settings, 8, device, readers=8)
        forward = bare_forward(folder / str(few), rows[few], settings, 10, device)  # as many as the stage takes
        forward()
        bare, stage = few / min(forward(), forward()), (many - few) / (seconds[many] - seconds[few])
    return {"bare": round(bare, 2), "stage": round(stage, 2), "share": round(stage / bare, 3)}


def kept_regions_that_differ(device: str) -> int:
    """Of 2 small pictures' 36 kept boxes by R50-C4, how many are another one on the device, by a pixel or more."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = region_settings(
            random_c4(folder / "r50.pth") | {"shortest": 96, "longest": 160, "proposals_after": 64}
        )
        rows = pictures(folder, 2, None)
        boxes = []
        for where in ("cpu", device):
            detector = load_detector(settings.detector, settings.selection, where)
            read = [decode((folder / row.path).read_bytes()) for row in rows]
            batch = torch.stack([detector.prepare(rgb) for rgb in read])
            sizes = [(rgb.shape[1], rgb.shape[0]) for rgb in read]
            boxes.append(np.stack([regions.boxes for regions in detector.detect(batch, sizes)]))
    return int((np.abs(boxes[0] - boxes[1]).max(-1) >= 1).sum())


def search(device: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        candidates, queries = made_candidates(Path(folder), count, 256)
        candidates = candidates.on(device)
        one = milliseconds(lambda: nearest(candidates, queries[:1], BEST), 20)
        many = milliseconds(lambda: nearest(candidates, queries, BEST), 5)
    return {"on": str(candidates.device), "one_ms": round(one, 2), "of_256_ms": round(many / len(queries), 3)}


def parity(device: str, bases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Greatest relative differences of losses and absolute ones of embeddings; how many ranks differ."""
    found = {}
    regions, words = region_batch(), word_batch(VOCABULARY)
    for name, base in bases.items():
        model = model_of(base).eval()
        terms, vectors = {}, {}
        for where in ("cpu", device):
            model = model.to(where)
            pairs = model(regions.to(where), words.to(where))
            found_terms = model.terms(pairs, torch.arange(PAIRS, device=where), epoch=1)
            terms[where] = {key: term.item() for key, term in found_terms.items()}
            vectors[where] = pairs.images.embedding.detach().cpu(), pairs.captions.embedding.detach().cpu()
        here, there = (terms[where] for where in ("cpu", device))
        pairs = zip(vectors["cpu"], vectors[device], strict=True)
        found[name] = {
            "loss": max(abs(there[key] - value) / max(abs(value), 1e-6) for key, value in here.items()),
            "embedding": max(float((one - other).abs().max()) for one, other in pairs),
        }
    rng = np.random.default_rng(0)
    parts = [rng.integers(-2, 3, shape).astype(np.float32) for shape in ((400, 3, 64), (400, 16), (2000, 80))]
    ranks = [
        retrieval_ranks(Embeddings(*parts, where), np.arange(400).repeat(5), np.arange(2000))
        for where in ("cpu", device)
    ]
    one, other = ((found.i2t, found.t2i) for found in ranks)
    differ = sum(int((left != right).sum()) for left, right in zip(one, other, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        candidates, queries = made_candidates(Path(folder), 20_000, 64)
        here, there = (nearest(each, queries, BEST)[0] for each in (candidates, candidates.on(device)))
    return {"bases": found, "ranks_that_differ": differ, "hits_that_differ": int((here != there).sum())}


@click.command()
@click.option("--device", default="cuda")
@click.option("--small", is_flag=True, help="the parity part alone, at small size")
@click.option("--repeats", default=20)
@click.option("--images", default=4096, help="of the store that is read")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="a part to measure; the file keeps the others")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(device: str, small: bool, repeats: int, images: int, only: tuple[str, ...], out: Path | None) -> None:
    bases = {name: base | SMALL[name] for name, base in BASES.items()} if small else BASES
    works: list[Callable[[], dict[str, Any]]] = [
        lambda: parity(device, bases) | {"regions_that_differ": kept_regions_that_differ(device)},
        lambda: evaluation(device, 5000, 12, 2048),
        lambda: feed(device, images),
        lambda: steps(device, "bfloat16", repeats),
        lambda: steps(device, "bfloat16", repeats, compiled=True),
        lambda: extraction(device, "bfloat16", 80, 400),
        lambda: extraction(device, "float32", 80, 240),
        lambda: search(device, 10**6),
        lambda: steps(device, "tf32", repeats),
        lambda: steps(device, "float32", repeats),
        lambda: search(device, 10**7),
    ]
    parts = dict(zip(PARTS, works, strict=True))
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    origin = {"card": card, "torch": torch.__version__, "python": platform.python_version()}
    result = json.loads(out.read_text(encoding="utf-8")) if only and out and out.exists() else {}
    result["command"] = f"python -m benchmarks.gpu --repeats {repeats} --images {images} --out benchmarks/gpu.json"
    for name in only or PARTS[: 1 if small else None]:
        start = time.perf_counter()
        with multiplied_in("float32"):
            result[name] = {"on": origin} | parts[name]()
        click.echo(json.dumps({name: result[name], "seconds": round(time.perf_counter() - start, 1)}))
        if out:
            write_json(out, result)


if __name__ == "__main__":
    main()
