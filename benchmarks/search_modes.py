"""How much faster the student searches than its teacher: 25,000 captions among 5,000 images, ten best each.

    python -m benchmarks.search_modes --out benchmarks/search_modes.json

Vectors are random, of a model's size: what a product costs doesn't depend on what is multiplied. The student is
measured whole, 500 captions at a time. Teacher and re-ranking (the student's 50 best, put in the teacher's order) take
a caption at a time, as `selfalign cost` does; they are measured on the first captions alone, and multiplied by how many
times more captions there are: no caption's time depends on the others. All take turns in one run.
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
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.cost import search_again, word_region_scores
from manifests.files import write_json

IMAGES, CAPTIONS, BEST, RERANK = 5_000, 25_000, 10, 50
# dim of locals and vectors, regions an image, words a caption; how many captions the teacher is given
SIZES = {"demo": (128, 12, 14, 100), "published": (1024, 36, 12, 20)}
BLOCK = 500  # captions searched for at a time


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

    def student() -> list[tuple[Tensor, Tensor]]:
        starts = range(0, CAPTIONS, BLOCK)
        return [(caption_vectors[start : start + BLOCK] @ image_vectors.T).topk(BEST, dim=1) for start in starts]

    def teacher() -> list[tuple[Tensor, Tensor]]:
        return [word_region_scores(image_locals, caption).topk(BEST) for caption in caption_locals]

    def reranked() -> list[tuple[Tensor, Tensor]]:
        queries = zip(caption_vectors[:some], caption_locals, strict=True)
        return [search_again(image_vectors, query, 1, dim, image_locals, caption, RERANK) for query, caption in queries]

    jobs = {"student": student, "teacher": teacher, "reranked": reranked}
    share = {"student": 1.0, "teacher": CAPTIONS / some, "reranked": CAPTIONS / some}
    rounds = [{mode: seconds(job) * share[mode] for mode, job in jobs.items()} for _ in range(repeats + 1)][1:]
    ratios = {mode: [round(each[mode] / each["student"], 1) for each in rounds] for mode in ("teacher", "reranked")}
    found = {
        "size": name,
        "dim": dim,
        "regions": regions,
        "words": words,
        "teacher_captions": some,
        "seconds": {mode: round(statistics.median(each[mode] for each in rounds), 3) for mode in jobs},
        "query_ms": {
            mode: round(1000 * statistics.median(each[mode] for each in rounds) / CAPTIONS, 4) for mode in jobs
        },
        "times the student's": {mode: {"median": statistics.median(r), "all": r} for mode, r in ratios.items()},
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
