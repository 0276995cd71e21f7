"""How much faster the student searches than its teacher: 25,000 captions among 5,000 images, ten best each.

    python -m benchmarks.search_modes --out benchmarks/search_modes.json

Vectors are random, of a model's size: a product's cost doesn't depend on its numbers. Like is compared with like.
Captions come one by one (as in `selfalign cost`), with re-ranking: the student's 50 best, put in the teacher's order.
Or they come together, and are searched in blocks by the evaluation's own code. The student's blocks are measured whole,
the others on the first captions alone: no caption's time depends on the others.
All take turns in one run.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn import functional as F

from eval.alignments import Alignments, Locals
from eval.cost import search_again, word_region_scores
from manifests.files import write_json

IMAGES, CAPTIONS, BEST, RERANK = 5_000, 25_000, 10, 50
# dim of locals and vectors, regions an image, words a caption; how many captions the teacher is given
SIZES = {"demo": (128, 12, 14, 100), "published": (1024, 36, 12, 20)}
BLOCK, ALONE = 500, 1_000  # captions the student is given together, and one by one


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def measure(name: str, repeats: int) -> dict[str, object]:
    dim, regions, words, some = SIZES[name]
    random = torch.Generator().manual_seed(0)
    image_vectors, caption_vectors = (torch.randn(n, dim, generator=random) for n in (IMAGES, CAPTIONS))
    image_locals = F.normalize(torch.randn(IMAGES, regions, dim, generator=random), dim=-1)
    caption_locals = F.normalize(torch.randn(some, words, dim, generator=random), dim=-1)

    locals_ = [
        Locals(part.flatten(0, 1), np.arange(0, part[..., 0].numel(), part.shape[1]), np.full(len(part), part.shape[1]))
        for part in (image_locals, caption_locals)
    ]
    alignments = Alignments(*locals_)

    def student_in_blocks() -> None:
        for start in range(0, CAPTIONS, BLOCK):
            (caption_vectors[start : start + BLOCK] @ image_vectors.T).topk(BEST, dim=1)

    def teacher_in_blocks() -> None:
        torch.from_numpy(alignments.block(slice(None), slice(None))).topk(BEST, dim=0)

    def student() -> None:
        for vector in caption_vectors[:ALONE]:
            (image_vectors @ vector).topk(BEST)

    def teacher() -> None:
        for caption in caption_locals:
            word_region_scores(image_locals, caption).topk(BEST)

    def reranked() -> None:
        for query in zip(caption_vectors[:some], caption_locals, strict=True):
            search_again(image_vectors, query[0], 1, dim, image_locals, query[1], RERANK)

    # how many captions each job takes
    ways = {
        "one by one": {"student": (student, ALONE), "teacher": (teacher, some), "reranked": (reranked, some)},
        "in blocks": {"student": (student_in_blocks, CAPTIONS), "teacher": (teacher_in_blocks, some)},
    }
    rounds = [
        {
            way: {mode: 1000 * seconds(job) / count for mode, (job, count) in modes.items()}
            for way, modes in ways.items()
        }
        for _ in range(repeats + 1)
    ][1:]
    found: dict[str, object] = {
        "size": name,
        "dim": dim,
        "regions": regions,
        "words": words,
        "teacher_captions": some,
    }
    for way, modes in ways.items():
        times = {mode: [round(each[way][mode] / each[way]["student"], 1) for each in rounds] for mode in modes}
        found[way] = {
            "query_ms": {mode: round(statistics.median(each[way][mode] for each in rounds), 4) for mode in modes},
            "times the student's": {
                mode: {"median": statistics.median(all_), "all": all_}
                for mode, all_ in times.items()
                if mode != "student"
            },
        }
    click.echo(json.dumps(found))
    return found


@click.command()
@click.option("--repeats", default=5)
@click.option("--threads", default=1, help="of torch")
@click.option("--only", multiple=True, type=click.Choice(list(SIZES)), help="sizes to measure; all if not given")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(repeats: int, threads: int, only: tuple[str, ...], out: Path | None) -> None:
    """See the module's text."""
    torch.set_num_threads(threads)
    results = [measure(name, repeats) for name in only or SIZES]
    if out:
        machine = {"threads": threads, "machine": platform.machine(), "torch": torch.__version__}
        command = "OMP_WAIT_POLICY=passive python -m benchmarks.search_modes " + " ".join(sys.argv[1:])
        sizes = {"images": IMAGES, "captions": CAPTIONS, "best": BEST, "rerank": RERANK}
        write_json(out, {"command": command, "machine": machine, "sizes": sizes, "results": results})


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
