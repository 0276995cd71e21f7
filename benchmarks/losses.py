"""How fast the losses are and what they hold, against their formulas written out plainly and against their floor.

    python -m benchmarks.losses --out benchmarks/losses.json

Each loss is run forward and backward three ways, in turn, in one process.

- ours: this project's code.

- plain: the formulas as published code computes them. LCA is a loop over pairs, CRA expands the negatives for every
  local, and word-region scores take the whole ``[I, R, C, T]``.

- floor: only the matrix products that every implementation needs, forward and backward. The gradients among them are
  kept to the end, as they have to be.

Times are wall-clock and processor time: on a busy machine only the latter distinguish the ways.

Memory is the highest resident memory of a process of its own while it computes, gradients of the inputs included.
Memory that was resident before doesn't count: inputs, libraries, BLAS buffers of a first run. The allocator returns
freed blocks at once there, so resident memory is memory in use.
"""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from manifests.files import write_json
from train.all_pairs import alignment_scores
from train.losses.cra import context_alignment_loss
from train.losses.lca import ConceptAlignment, ConceptSettings
from train.losses.loss import Shape

PAIRS, REGIONS, WORDS, DIM, CONCEPTS = 128, 36, 32, 1024, 1024
TEMPERATURE, NEGATIVES = 0.7, 512
WAYS = ("ours", "plain", "floor")


@dataclass
class Loss:
    """A loss to measure: a function a way, and the tensors that gradients are taken in."""

    ways: dict[str, Callable[[], Tensor | list[Tensor]]]
    leaves: list[Tensor]

    def run(self, way: str) -> tuple[float, float, float]:
        """Forward and backward once; seconds on the clock, seconds of the processor, and the value."""
        for leaf in self.leaves:
            leaf.grad = None
        start, busy = time.perf_counter(), time.process_time()
        result = self.ways[way]()
        if isinstance(result, Tensor):
            result.backward()
        seconds = time.perf_counter() - start, time.process_time() - busy
        return *seconds, result.item() if isinstance(result, Tensor) else 0.0


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def lengths(pairs: int) -> Tensor:
    """A mask ``[B, T]`` of captions of 6 to 32 words."""
    count = torch.randint(6, WORDS + 1, (pairs,))
    count[0] = WORDS
    return torch.arange(WORDS) < count[:, None]


def plain_concept_alignment(
    module: ConceptAlignment, regions: Tensor, words: Tensor, word_lengths: list[int]
) -> Tensor:
    module.codebook.data.copy_(F.normalize(module.codebook.data, dim=-1))
    scores = F.linear(regions, module.codebook)
    logits = F.linear(words, module.codebook) / module.options.temperature
    with torch.no_grad():
        q = (scores.flatten(0, 1) / module.options.epsilon).exp().T
        q /= q.sum()
        for _ in range(module.options.sinkhorn_iterations):
            q /= q.sum(1, keepdim=True) * len(q)
            q /= q.sum(0, keepdim=True) * q.shape[1]
        q = (q * q.shape[1]).T.view_as(scores)
    total = 0.0
    for i, count in enumerate(word_lengths):
        nearest = (words[i, :count] @ regions[i].T).argmax(1)
        total = total - (q[i][nearest] * logits[i, :count].log_softmax(1)).sum(1).mean()
    return total / len(words)


def concept_alignment() -> Loss:
    module = ConceptAlignment(ConceptSettings(num_concepts=CONCEPTS), Shape(DIM, DIM, 1, 1, (2, 3)), {})
    regions, words, mask = unit(PAIRS, REGIONS, DIM), unit(PAIRS, WORDS, DIM).requires_grad_(), lengths(PAIRS)
    region_mask = torch.ones(PAIRS, REGIONS, dtype=torch.bool)
    word_lengths = mask.sum(1).tolist()
    valid, codebook = words.detach()[mask], module.codebook.detach()
    slope = torch.randn(len(valid), CONCEPTS)

    def floor() -> list[Tensor]:
        regions.view(-1, DIM) @ codebook.T
        words.detach() @ regions.transpose(1, 2)
        valid @ codebook.T
        return [slope @ codebook, slope.T @ valid]

    ways = {
        "ours": lambda: module.aligned(regions, words, mask, region_mask),
        "plain": lambda: plain_concept_alignment(module, regions, words, word_lengths),
        "floor": floor,
    }
    return Loss(ways, [words, module.codebook])


def plain_context_alignment(locals_: Tensor, global_: Tensor, mask: Tensor) -> Tensor:
    pairs, width, _ = locals_.shape
    positives = (locals_ @ global_[..., None]) / TEMPERATURE
    negatives = (global_ @ locals_.flatten(0, 1).T / TEMPERATURE).view(pairs, pairs, width)
    excluded = torch.eye(pairs, dtype=torch.bool)[..., None] | ~mask
    negatives = negatives.masked_fill(excluded, torch.finfo(negatives.dtype).min / 2)
    expanded = negatives.view(pairs, 1, -1).expand(-1, width, -1)
    hardest = expanded.topk(NEGATIVES, dim=2).values
    each = -torch.cat([positives, hardest], dim=2).log_softmax(2)[..., 0]
    return ((each * mask).sum(1) / mask.sum(1)).mean()


def context_alignment() -> Loss:
    regions, words = unit(PAIRS, REGIONS, DIM).requires_grad_(), unit(PAIRS, WORDS, DIM).requires_grad_()
    image, caption = unit(PAIRS, DIM).requires_grad_(), unit(PAIRS, DIM).requires_grad_()
    sides = ((regions, caption, torch.ones(PAIRS, REGIONS, dtype=torch.bool)), (words, image, lengths(PAIRS)))
    slopes = [torch.randn(PAIRS, PAIRS * locals_.shape[1]) for locals_, _, _ in sides]

    def floor() -> list[Tensor]:
        gradients = []
        for (locals_, global_, _), slope in zip(sides, slopes, strict=True):
            flat, query = locals_.detach().flatten(0, 1), global_.detach()
            query @ flat.T
            gradients += [slope @ flat, slope.T @ query]
        return gradients

    ways = {
        "ours": lambda: sum(context_alignment_loss(x, g, TEMPERATURE, NEGATIVES, mask) for x, g, mask in sides) / 2,
        "plain": lambda: sum(plain_context_alignment(x, g, mask) for x, g, mask in sides) / 2,
        "floor": floor,
    }
    return Loss(ways, [regions, words, image, caption])


def word_region_scores() -> Loss:
    pairs = PAIRS // 2
    regions, words = torch.randn(pairs, REGIONS, DIM).requires_grad_(), torch.randn(pairs, WORDS, DIM).requires_grad_()
    mask, weight = lengths(pairs), torch.randn(pairs, pairs)
    slope = torch.randn(pairs * REGIONS, pairs * WORDS)

    def plain() -> Tensor:
        x, y = F.normalize(regions, dim=-1).flatten(0, 1), F.normalize(words, dim=-1).flatten(0, 1)
        cosines = (x @ y.T).view(pairs, REGIONS, pairs, WORDS)
        return ((cosines.amax(1).clamp(min=0) * mask).sum(-1) * weight).sum()

    def floor() -> list[Tensor]:
        x, y = regions.detach().flatten(0, 1), words.detach().flatten(0, 1)
        x @ y.T
        return [slope @ y, slope.T @ x]

    ways = {
        "ours": lambda: (alignment_scores(regions, words, None, mask) * weight).sum(),
        "plain": plain,
        "floor": floor,
    }
    return Loss(ways, [regions, words])


LOSSES: dict[str, Callable[[], Loss]] = {
    "LCA": concept_alignment,
    "CRA": context_alignment,
    "word-region scores": word_region_scores,
}


def resident(field: str) -> int:
    """Bytes of this process: VmRSS is what is resident, VmHWM the most since the mark was last set back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_memory(loss: Loss, way: str) -> int:
    """Highest resident bytes of one forward and backward above what was resident before."""
    loss.run(way)
    for leaf in loss.leaves:
        leaf.grad = None
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    loss.run(way)
    return resident("VmHWM") - before


def peak_memory_apart(name: str, way: str, threads: int) -> int:
    """`peak_memory` in a process of its own, whose allocator maps and unmaps every large block."""
    command = [sys.executable, "-m", "benchmarks.losses", "--threads", str(threads), "--memory", name, way]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def spread(values: list[float]) -> dict[str, object]:
    rounded = [round(value, 3) for value in values]
    return {"median": round(statistics.median(values), 3), "all": rounded}


def measure(name: str, repeats: int, threads: int) -> dict[str, object]:
    loss = LOSSES[name]()
    values = {way: loss.run(way)[2] for way in WAYS}
    if abs(values["ours"] - values["plain"]) > 1e-4 * abs(values["plain"]):
        raise SystemExit(f"{name}: ours gives {values['ours']}, the plain form {values['plain']}")
    runs = [{way: loss.run(way)[:2] for way in WAYS} for _ in range(repeats)]
    memory = {way: peak_memory_apart(name, way, threads) for way in ("ours", "plain")}
    result: dict[str, object] = {"loss": name}
    for which, clock in enumerate(("clock", "processor")):
        result[clock] = {
            "milliseconds": {way: round(1000 * statistics.median(run[way][which] for run in runs), 1) for way in WAYS},
            "plain / ours": spread([run["plain"][which] / run["ours"][which] for run in runs]),
            "ours / floor": spread([run["ours"][which] / run["floor"][which] for run in runs]),
        }
    result |= {
        "peak_memory_mb": {way: round(memory[way] / 1e6, 1) for way in memory},
        "peak memory, ours / plain": round(memory["ours"] / memory["plain"], 3),
    }
    if name == "word-region scores":
        product = (PAIRS // 2) ** 2 * REGIONS * WORDS * 4
        result["peak memory, ours / one [I, R, C, T]"] = round(memory["ours"] / product, 3)
    click.echo(json.dumps(result))
    return result


@click.command()
@click.option("--repeats", default=9)
@click.option("--threads", default=1, help="of torch")
@click.option("--only", multiple=True, type=click.Choice(list(LOSSES)), help="losses to measure; all if not given")
@click.option("--memory", nargs=2, help="print the peak memory of a loss computed one way, in bytes")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(repeats: int, threads: int, only: tuple[str, ...], memory: tuple[str, str] | None, out: Path | None) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if memory:
        click.echo(peak_memory(LOSSES[memory[0]](), memory[1]))
        return
    results = [measure(name, repeats, threads) for name in only or LOSSES]
    if out:
        sizes = {"pairs": PAIRS, "regions": REGIONS, "words": WORDS, "dim": DIM, "concepts": CONCEPTS}
        machine = {"threads": threads, "machine": platform.machine(), "torch": torch.__version__}
        command = "OMP_WAIT_POLICY=passive python -m benchmarks.losses " + " ".join(sys.argv[1:])
        write_json(out, {"command": command, "machine": machine, "sizes": sizes, "results": results})


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
