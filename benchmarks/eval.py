"""How fast ranks are counted, against sorting, and how much memory that takes.

    OMP_NUM_THREADS=1 python -m benchmarks.eval --out benchmarks/eval.json

Three comparisons, each interleaved in one process, medians of the ratios. Both sides give the same ranks (checked).

1. `matrix`: 5,000 x 25,000 scores at hand. Counting (`eval.ranks.ranks`) is compared with an argsort of each row.
2. `embeddings`: 5,000 images and 25,000 captions. One pass over blocks (`eval.ranks.retrieval_ranks`) gives both
   directions' ranks. It is compared with one product, and an argsort for every image and caption.
3. `views`: 1,000 images of 12 views and 5,000 captions. The same pass is compared with a loop over captions that scores
   all images' views (as published for CAMERA). That loop sorts once a caption and once an image.

The peak of memory beyond the inputs is measured for each of ours in a process of its own.
"""

import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from eval.embeddings import Embeddings
from eval.ranks import ranks, retrieval_ranks
from manifests.files import write_json

CAPTIONS_AN_IMAGE = 5
LATENT = 32
Answer = tuple[np.ndarray, ...]


def made(images: int, views: int, dims: int) -> Embeddings:
    """Unit vectors as a trained model makes them: they vary in few directions. Some half of the captions rank their own
    image first; the figure is printed."""
    random = np.random.default_rng(0)
    spread = random.standard_normal((LATENT, dims), np.float32)

    def unit(latent: np.ndarray) -> np.ndarray:
        vectors = latent @ spread
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    image = random.standard_normal((images, 1, LATENT), np.float32)
    pooled = unit(image + 0.5 * random.standard_normal((images, views, LATENT), np.float32) * (views > 1))
    captions = unit(image + 1.4 * random.standard_normal((images, CAPTIONS_AN_IMAGE, LATENT), np.float32))
    return Embeddings(pooled, np.empty((images, 0), np.float32), captions.reshape(-1, dims))


def owners(embeddings: Embeddings) -> np.ndarray:
    return np.repeat(np.arange(embeddings.num_images), CAPTIONS_AN_IMAGE)


def count_matrix(scores: np.ndarray) -> Answer:
    own = np.arange(scores.shape[1]).reshape(-1, CAPTIONS_AN_IMAGE)
    return (ranks(scores, list(own)),)


def sort_matrix(scores: np.ndarray) -> Answer:
    return (np.array([_place(row, range(5 * image, 5 * image + 5)) for image, row in enumerate(scores)]),)


def count_embeddings(embeddings: Embeddings) -> Answer:
    found = retrieval_ranks(embeddings, owners(embeddings), np.arange(embeddings.num_captions))
    return found.i2t, found.t2i


def sort_embeddings(embeddings: Embeddings) -> Answer:
    images, captions = embeddings.pooled[:, 0], embeddings.captions
    i2t = [_place(captions @ vector, range(5 * image, 5 * image + 5)) for image, vector in enumerate(images)]
    t2i = [_place(images @ vector, [caption // 5]) for caption, vector in enumerate(captions)]
    return np.array(i2t), np.array(t2i)


def sort_views(embeddings: Embeddings) -> Answer:
    views, captions = torch.from_numpy(embeddings.pooled), torch.from_numpy(embeddings.captions)
    columns = []
    for caption in captions:
        expanded = caption[None, None].expand(len(views), -1, -1)
        columns.append(torch.matmul(expanded, views.transpose(-2, -1)).squeeze(1).max(1)[0])
    scores = torch.stack(columns).numpy()
    t2i = [_place(row, [caption // 5]) for caption, row in enumerate(scores)]
    return _plain_rows(scores.T), np.array(t2i)


def _plain_rows(scores: np.ndarray) -> np.ndarray:
    return np.array([_place(row, range(5 * image, 5 * image + 5)) for image, row in enumerate(scores)])


def _place(row: np.ndarray, relevant: range | list[int]) -> int:
    order = np.argsort(row)[::-1]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return int(place[list(relevant)].min())


def compare(ours: Callable, theirs: Callable, given: object, repeats: int) -> dict:
    """Seconds of the two in turn, their median ratio, and the share of ranks that are the same."""
    ours_s, theirs_s, equal, recall = [], [], 0.0, 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        first = ours(given)
        middle = time.perf_counter()
        second = theirs(given)
        ours_s.append(middle - start)
        theirs_s.append(time.perf_counter() - middle)
        equal = float(np.mean(np.concatenate(first) == np.concatenate(second)))
        recall = 100 * float(np.mean(first[-1] == 0))
    ratios = [b / a for a, b in zip(ours_s, theirs_s, strict=True)]
    return {
        "counting_s": round(statistics.median(ours_s), 3),
        "sorting_s": round(statistics.median(theirs_s), 3),
        "ratio": round(statistics.median(ratios), 1),
        "ratios": [round(ratio, 1) for ratio in ratios],
        "same_ranks": round(equal, 5),
        "recall_at_1": round(recall, 1),
    }


def inputs(name: str, images: int, views: int, dims: int) -> object:
    embeddings = made(images, views, dims)
    if name != "matrix":
        return embeddings
    return embeddings.pooled[:, 0] @ embeddings.captions.T


def _peak(name: str, ours: Callable, size: tuple[int, int, int], queue: multiprocessing.Queue) -> None:
    given = inputs(name, *size)
    ours(made(60, size[1], size[2]) if name != "matrix" else np.asarray(given)[:50, :250])  # libraries' own buffers
    # Raises the high-water mark to just what is in use, so that only a rise above it counts.
    before = _resident()
    Path("/proc/self/clear_refs").write_text("5")
    ours(given)
    queue.put((_high_water() - before) / 1e6)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def extra_megabytes(name: str, ours: Callable, size: tuple[int, int, int]) -> int:
    """The most that `ours` holds beyond its inputs, in a process of its own (Linux)."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(name, ours, size, queue))
    process.start()
    found = queue.get(timeout=300)
    process.join()
    return round(found)


COMPARISONS = {
    "matrix": (count_matrix, sort_matrix, 1, 1),
    "embeddings": (count_embeddings, sort_embeddings, 1, 1),
    "views": (count_embeddings, sort_views, 12, 5),
}


@click.command()
@click.option("--images", default=5000, help="of the first two comparisons; the third has a fifth of them")
@click.option("--dims", default=1024, help="length of an embedding; twice that for views")
@click.option("--repeats", default=5, help="of the first; the others, which take longer, fewer")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(images: int, dims: int, repeats: int, out: Path | None) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))  # as many as numpy's product
    results = {}
    for name, (ours, theirs, views, part) in COMPARISONS.items():
        size = (images // part, views, dims * (2 if views > 1 else 1))
        result = compare(ours, theirs, inputs(name, *size), repeats if name == "matrix" else max(1, repeats // 2))
        result |= {"images": size[0], "captions": 5 * size[0], "views": views, "dims": size[2]}
        result["extra_megabytes"] = extra_megabytes(name, ours, size)
        results[name] = result
        click.echo(f"{name}: {json.dumps(result)}")
    if out:
        machine = {"threads": torch.get_num_threads(), "machine": platform.machine(), "numpy": np.__version__}
        command = "OMP_NUM_THREADS=1 python -m benchmarks.eval --out benchmarks/eval.json"
        write_json(out, {"command": command, "machine": machine | {"torch": torch.__version__}, "results": results})


if __name__ == "__main__":
    main()
