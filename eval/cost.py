"""What retrieval costs with one model on this machine: the time of encoding an item, of searching for a query, and of
scoring every pair. Pairs are scored by cross-attention, or by ALADIN's teacher. All are measured in one run, in turn.

Timings change each time, so they are no metric of a DVC stage: `selfalign cost RUN` prints them and writes a file.
Candidates are synthetic vectors of the model's size: what a product costs doesn't depend on what is multiplied.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.cross_attention import cross_attention_scores
from eval.report.speed import MEASURED_IMAGES
from manifests.files import write_json
from manifests.host import host_facts
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData

CANDIDATES = (1_000, 5_000, 100_000, 1_000_000)
SCORED_BY_PAIRS = (1_000, 5_000)  # beyond, what scores pairs is reckoned from these
BEST = 10
HELD_BYTES = 1 << 30  # synthetic vectors held at a time; more candidates are several passes over them


def run(
    *,
    name: str,
    manifest: Path,
    regions: Path,
    tokens: Path,
    model: Path,
    split: str,
    device: str,
    repeats: int = 5,
    candidates: tuple[int, ...] = CANDIDATES,
    rerank: int = 50,
    figures: Path | None = None,
    out: Path | None = None,
    pieces: bool = False,
    text_features: Path | None = None,
) -> dict[str, Any]:
    """Measure the run `name`; gives the figures below, and writes them to `out`.

    In mode `reranked` the teacher scores `rerank` candidates. `figures` is the run's `figures.json`, whose R@sum stand
    beside the times. `pieces` and `text_features` are as in `eval.evaluate.run`.

    Returns
    -------
    `encode_ms` of an image and a caption in batches of 128, and of a caption alone. `search_ms` and
    `cross_attention_ms` a query by number of candidates, and how many `times` the first the second is. `pair_us` of
    cross-attention. The sizes `dims`, `views`, `regions`, `words`. `made` says on which machine. `modes` has each way
    to search (`eval.modes`; without ALADIN `student` alone). Its keys are `query_ms` of one caption among the split's
    images, `times` the student's, and `rsum` from `figures`. All are medians of `repeats`.
    """
    data = RetrievalData(manifest, regions, tokens, split, pieces=pieces, text_features=text_features)
    require_recipe(model, data)
    network = load_model(model, device)
    images = data.region_batch(range(min(MEASURED_IMAGES, len(data.images)))).to(device)
    captions = data.word_batch(range(min(MEASURED_IMAGES, data.num_captions))).to(device)
    alone = data.word_batch([0]).to(device)
    with torch.inference_mode():
        seen, read = network.encode_images(images), network.encode_captions(captions)
        views, dims = seen.pooled.shape[1:]
        num_regions, num_words = (round(side.mask.sum(1).float().mean().item()) for side in (seen, read))
        local = seen.locals.shape[2]
        items = _synthetic(max(candidates), views * dims + seen.context.shape[1], device)
        query = _synthetic(1, dims + seen.context.shape[1], device)[0]
        pairs = _unit(max(SCORED_BY_PAIRS), num_regions, local, device=device)
        words = _unit(num_words, local, device=device)
        jobs: dict[str, Callable[[], object]] = {
            "image": lambda: network.encode_images(images),
            "caption": lambda: network.encode_captions(captions),
            "caption_alone": lambda: network.encode_captions(alone),
        }
        jobs |= {
            f"search {count}": lambda count=count: search(items, query, views, dims, count) for count in candidates
        }
        jobs |= {
            f"pairs {count}": lambda count=count: cross_attention_scores(pairs[:count], words).topk(BEST)
            for count in SCORED_BY_PAIRS
        }
        here = len(data.images)
        modes = {"student": lambda: search(items, query, views, dims, here)}
        if network.alignment is not None:
            regions_here = _unit(here, num_regions, local, device=device)
            modes["teacher"] = lambda: word_region_scores(regions_here, words).topk(min(BEST, here))
            modes["reranked"] = lambda: search_again(items, query, views, dims, regions_here, words, rerank)
        jobs |= {f"mode {mode}": job for mode, job in modes.items()}
        seconds = _medians(jobs, repeats, device)
    pair = statistics.median(seconds[f"pairs {count}"] / count for count in SCORED_BY_PAIRS)
    searched = {count: seconds[f"search {count}"] for count in candidates}
    attended = {count: seconds.get(f"pairs {count}", pair * count) for count in candidates}
    found = {
        "run": name,
        "device": _device_name(device),
        "made": host_facts(),
        "threads": torch.get_num_threads(),
        "views": views,
        "dims": views * dims + seen.context.shape[1],
        "regions": num_regions,
        "words": num_words,
        "encode_ms": {
            "image": _ms(seconds["image"] / len(images.mask)),
            "caption": _ms(seconds["caption"] / len(captions.mask)),
            "caption_alone": _ms(seconds["caption_alone"]),
        },
        "search_ms": {str(count): _ms(value) for count, value in searched.items()},
        "cross_attention_ms": {str(count): _ms(value) for count, value in attended.items()},
        "cross_attention_reckoned": [str(count) for count in candidates if count not in SCORED_BY_PAIRS],
        "pair_us": round(1e6 * pair, 2),
        "times": {str(count): round(attended[count] / searched[count]) for count in candidates},
        "images": here,
        "modes": {
            mode: {
                "query_ms": _ms(seconds[f"mode {mode}"]),
                "times": round(seconds[f"mode {mode}"] / seconds["mode student"], 1),
            }
            for mode in modes
        },
    }
    if figures and figures.exists():
        whole = json.loads(figures.read_text(encoding="utf-8"))
        for mode, own in found["modes"].items():
            own["rsum"] = whole.get("modes", {}).get(mode, whole)["rsum"]
    if out:
        write_json(out, found)
    return found


def search(
    items: torch.Tensor, query: torch.Tensor, views: int, dims: int, count: int, best_of: int = BEST
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores and rows of a query's `best_of` best of `count` candidates; `items [M, views·P + S]` are passed over
    anew where there are fewer."""
    best: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first in range(0, count, len(items)):
        part = items[: min(len(items), count - first)]
        if views == 1:
            scores = part @ query
        else:
            scores = (part[:, : views * dims].reshape(len(part), views, dims) @ query[:dims]).amax(dim=1)
            scores = scores + part[:, views * dims :] @ query[dims:]
        top = scores.topk(min(best_of, len(part)))
        best.append((top.values, top.indices + first))
    values, rows = (torch.cat(parts) for parts in zip(*best, strict=True))
    top = values.topk(min(best_of, len(values)))
    return top.values, rows[top.indices]


def word_region_scores(regions: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """The teacher's scores `[M]` of one caption's words `[T, D]` with the regions `[M, R, D]` of M images, all of unit
    length (`train.all_pairs.alignment_scores`)."""
    cosines = (regions.flatten(0, 1) @ words.T).unflatten(0, regions.shape[:2])
    return cosines.amax(1).clamp(min=0).sum(1)


def search_again(
    items: torch.Tensor,
    query: torch.Tensor,
    views: int,
    dims: int,
    regions: torch.Tensor,
    words: torch.Tensor,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores and rows of the ten best of M candidates: a `search` for `count`, then `word_region_scores` of those;
    `regions [M, R, D]`, `words [T, D]`."""
    _, rows = search(items, query, views, dims, len(regions), count)
    top = word_region_scores(regions[rows], words).topk(min(BEST, len(rows)))
    return top.values, rows[top.indices]


def table(found: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    encode = found["encode_ms"]
    lines = [
        f"{found['run']} on {found['device']}, {found['threads']} threads: {found['dims']} numbers an image "
        f"({found['views']} views), {found['regions']} regions, {found['words']} words",
        f"encoding: {encode['image']} ms an image, {encode['caption']} a caption, {encode['caption_alone']} one alone",
        f"{'candidates':>12}{'search, ms':>14}{'cross-attention, ms':>22}{'times':>10}",
    ]
    for count, searched in found["search_ms"].items():
        reckoned = "*" if count in found["cross_attention_reckoned"] else " "
        attended = f"{found['cross_attention_ms'][count]:,}{reckoned}"
        lines.append(f"{int(count):>12,}{searched:>14,}{attended:>22}{found['times'][count]:>10,}")
    lines.append("* reckoned from the time a pair")
    for mode, figures in found["modes"].items():
        rsum = f", R@sum {figures['rsum']}" if "rsum" in figures else ""
        lines.append(f"{mode}: {figures['query_ms']} ms a caption among {found['images']:,} images{rsum}")
    return "\n".join(lines)


def _medians(jobs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Seconds of each job, the median of `repeats` rounds over all of them after one that doesn't count."""
    rounds = [{name: _seconds(job, device) for name, job in jobs.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(each[name] for each in rounds[1:]) for name in jobs}


def _seconds(job: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    job()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _synthetic(count: int, length: int, device: str) -> torch.Tensor:
    """Vectors `[M, length]`, M at most `count` and as many as may be held."""
    held = min(count, max(1, HELD_BYTES // (4 * length)))
    return torch.rand(held, length, generator=torch.Generator().manual_seed(0)).sub_(0.5).to(device)


def _unit(*shape: int, device: str) -> torch.Tensor:
    vectors = torch.rand(shape, generator=torch.Generator().manual_seed(1)).sub_(0.5)
    return torch.nn.functional.normalize(vectors, dim=-1).to(device)


def _ms(seconds: float) -> float:
    return float(np.format_float_positional(1000 * seconds, precision=3, fractional=False))


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
