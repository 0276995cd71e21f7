"""How fast the exact search is, against what the machine can read and multiply.

    OMP_NUM_THREADS=2 python -m benchmarks.search --out benchmarks/search.json
    OMP_NUM_THREADS=2 python -m benchmarks.search --count 10000000 --dims 256 --out benchmarks/search_10m.json

Vectors as a trained model makes them (they vary in few directions), in a memory-mapped index. In each round, in turn:

1. `read`: as many bytes as half-precision vectors have are read once (summed as int64): the machine's read bandwidth;
2. `one`: `eval.search.exact.nearest` finds the ten best for one query. Its bandwidth is that many bytes by its time; it
   reads 8-bit codes itself, half as many (`own_GB_per_s`);
3. `product`: 256 queries times all full-precision vectors in float32, a block at a time into one buffer: the machine's
   matrix-multiply rate at this shape;
4. `many`: `nearest` finds the ten best of each of the 256 queries. Its rate is the same operations by its time.

`half`: the share of the read bandwidth that one query's plain products with half-precision vectors reach. They are an
eighth of the vectors, in memory, and no best ones are searched. This is why the search reads codes.
`found`: the share of queries whose ten best are those of a float64 product, in order. Times are wall-clock, and on a
shared machine what others do is in them: ratios of one round, and their medians.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from numpy.lib.format import open_memmap

from eval.search.candidates import Candidates, write_codes
from eval.search.exact import nearest
from manifests.files import write_json

LATENT = 32
BLOCK = 1 << 16
BEST = 10


def made(folder: Path, count: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[N, 1, E]`, written to `folder` and mapped, and queries `[256, 1, E]` like them."""
    random = np.random.default_rng(0)
    spread = random.standard_normal((LATENT, dims), np.float32)

    def unit(number: int) -> np.ndarray:
        vectors = random.standard_normal((number, LATENT), np.float32) @ spread
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors = open_memmap(folder / "full.npy", "w+", np.float32, (count, 1, dims))
    for start in range(0, count, BLOCK):
        vectors[start : start + BLOCK, 0] = unit(min(BLOCK, count - start))
    return np.load(folder / "full.npy", mmap_mode="c"), unit(256)[:, None]


def made_candidates(folder: Path, count: int, dims: int) -> tuple[Candidates, np.ndarray]:
    """The candidates of `made`, with their codes, and its queries."""
    vectors, queries = made(folder, count, dims)
    context = np.empty((count, 0), np.float32)
    write_codes(folder, vectors, context, what="vectors")
    return Candidates.open(folder, vectors, context), queries


def read(vectors: np.ndarray) -> int:
    """The first half of float32 vectors has as many bytes as all of them in half precision."""
    return int(torch.from_numpy(vectors[: len(vectors) // 2]).view(torch.int64).sum())


def product(vectors: np.ndarray, queries: np.ndarray) -> None:
    columns, out = torch.from_numpy(queries[:, 0]).T, torch.empty(BLOCK, len(queries))
    for start in range(0, len(vectors), BLOCK):
        rows = torch.from_numpy(vectors[start : start + BLOCK, 0])
        torch.mm(rows, columns, out=out[: len(rows)])


def half(vectors: np.ndarray, query: np.ndarray, repeats: int) -> dict[str, float]:
    """Of either half precision, the share of the read bandwidth that products with one query reach."""
    shares = {}
    for name, kind in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        short, column = torch.from_numpy(vectors).to(kind), torch.from_numpy(query).to(kind)
        jobs = {"read": lambda s=short: s.view(torch.int64).sum(), "product": lambda s=short, c=column: s @ c}
        seconds = rounds(jobs, repeats)
        shares[name] = compare(seconds, "read", "product", 1.0, "share")["share"]
    return shares


def share_found(candidates: Candidates, vectors: np.ndarray, queries: np.ndarray) -> float:
    scores = np.empty((len(vectors), len(queries)))
    for start in range(0, len(vectors), BLOCK):
        scores[start : start + BLOCK] = vectors[start : start + BLOCK, 0].astype(np.float64) @ queries[:, 0].T
    best = np.argsort(-scores, axis=0, kind="stable")[:BEST].T
    return float(np.mean((nearest(candidates, queries, BEST)[0] == best).all(axis=1)))


def rounds(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job in each round after one that doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(seconds: dict[str, list[float]], machine: str, ours: str, work: float, unit: str) -> dict:
    """Rates of the two and the share that ours reaches of the machine's, in each round and in the middle."""
    shares = [a / b for a, b in zip(seconds[machine], seconds[ours], strict=True)]
    return {
        f"{machine}_{unit}": round(work / statistics.median(seconds[machine]), 2),
        f"search_{unit}": round(work / statistics.median(seconds[ours]), 2),
        "search_s": round(statistics.median(seconds[ours]), 4),
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in shares],
    }


@click.command()
@click.option("--count", default=1_000_000, help="vectors")
@click.option("--dims", default=1024, help="length of a vector")
@click.option("--repeats", default=9, help="rounds of one query; of 256 queries a third")
@click.option(
    "--folder", type=Path, help="where vectors and codes are put (5 bytes a number); default: a temporary folder"
)
@click.option("--out", type=Path, help="JSON file for the figures")
def main(count: int, dims: int, repeats: int, folder: Path | None, out: Path | None) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        candidates, queries = made_candidates(Path(temporary), count, dims)
        vectors = candidates.views.full[0]
        turn = iter(range(10**9))
        one = {
            "read": lambda: read(vectors),
            "one": lambda: nearest(candidates, queries[[next(turn) % len(queries)]], BEST),
        }
        many = {"product": lambda: product(vectors, queries), "many": lambda: nearest(candidates, queries, BEST)}
        seconds = rounds(one, repeats)
        single = compare(seconds, "read", "one", 2 * count * dims / 1e9, "GB_per_s")
        single["own_GB_per_s"] = round(single["search_GB_per_s"] / 2, 2)
        single["half"] = half(vectors[: count // 8, 0], queries[0, 0], repeats)
        results = {
            "one query": single,
            "256 queries": compare(
                rounds(many, max(1, repeats // 3)), "product", "many", 2 * count * dims * len(queries) / 1e9, "GFLOPS"
            ),
        }
        results["found"] = share_found(candidates, vectors, queries[:8])
    click.echo(json.dumps(results, indent=2))
    if out:
        threads = torch.get_num_threads()
        machine = {"threads": threads, "machine": platform.machine(), "processor": _processor()}
        machine |= {"numpy": np.__version__, "torch": torch.__version__, "vectors": count, "dims": dims}
        command = f"OMP_NUM_THREADS={threads} python -m benchmarks.search " + " ".join(sys.argv[1:])
        write_json(out, {"command": command, "machine": machine, "results": results})


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return ", ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)


if __name__ == "__main__":
    main()
