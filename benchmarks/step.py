"""What SelfAlign's losses and a text encoder cost of a training step, at the papers' sizes.

    python -m benchmarks.step --out benchmarks/step.json

A step is forward, losses, backward, clipping and Adam on a batch of 128 made pairs. An image has 36 regions of 2,048
numbers, a caption has 6 to 32 words, and D is 2,048.

1. VSRN with four graph layers and SelfAlign: the time of L_LCA and L_CRA as a share of the step's. They run forward and
   backward on inputs of the step's own.
2. CAMERA: a step with cached text features against one with BERT-base (random weights) in the loop. BERT is frozen, as
   in the paper, at D 2,048 and 1,024, and tuned.
3. VSRN, D 128, with SelfAlign, trained by `train.loop` from a store: the time outside the step as a share of an
   epoch's. That is reading ahead, sending, counting and progress.

The two sides of a comparison are run in turn, in one process.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import click
import torch
from torch import nn

from benchmarks.feed import MadeData, write_store
from benchmarks.losses import spread
from manifests.files import write_json
from train import loop as loop_module
from train.batches import RegionBatch, WordBatch
from train.loop import Loop
from train.model import RetrievalModel, build_model
from train.processes import Processes
from train.settings import RunSettings
from train.state import Progress

PAIRS, REGIONS, FEATURES, WORDS, TEXT = 128, 36, 2048, 32, 768


def region_batch() -> RegionBatch:
    corner = torch.rand(PAIRS, REGIONS, 2) * 300
    return RegionBatch(
        features=torch.rand(PAIRS, REGIONS, FEATURES),
        boxes=torch.cat([corner, corner + 20 + torch.rand_like(corner) * 100], dim=-1),
        image_size=torch.full((PAIRS, 2), 420.0),
        mask=torch.ones(PAIRS, REGIONS, dtype=torch.bool),
    )


def word_batch(vocabulary_size: int) -> WordBatch:
    """Captions with word ids, cached states, and whole captions of pieces: each of them with two special tokens."""
    lengths = torch.randint(6, WORDS + 1, (PAIRS, 1))
    lengths[0] = WORDS
    positions = torch.arange(WORDS).expand(PAIRS, -1)
    mask = positions < lengths
    pieces = torch.randint(1, vocabulary_size, (PAIRS, WORDS + 2))
    return WordBatch(
        words=torch.randint(1, vocabulary_size, mask.shape) * mask,
        pos=torch.zeros(mask.shape, dtype=torch.uint8),
        mask=mask,
        word=positions,
        features=torch.randn(*mask.shape, TEXT),
        pieces=pieces.masked_fill(torch.arange(WORDS + 2) >= lengths + 2, -1),
        place=positions + 1,
    )


def run_settings(base: dict[str, object], text: dict[str, object], losses: dict[str, object]) -> RunSettings:
    return RunSettings(dataset="made", epochs=1, base=base, text=text, losses={"triplet": {}} | losses)


def stepper(model: RetrievalModel, regions: RegionBatch, words: WordBatch) -> Callable[[], None]:
    """A function that runs one training step."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model.train()

    def step() -> None:
        terms = model.terms(model(regions, words), torch.arange(PAIRS), epoch=1)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()

    return step


def loss_terms(model: RetrievalModel, regions: RegionBatch, words: WordBatch) -> Callable[[], None]:
    """A function that runs SelfAlign's two losses alone, forward and backward, on what the model made of a batch."""
    with torch.no_grad():
        pairs = model(regions, words)

    def leaves(encoding):
        parts = {name: part.clone().requires_grad_() for name, part in encoding.parts.items()}
        return replace(encoding, locals=encoding.locals.clone().requires_grad_(), parts=parts)

    alone = replace(pairs, images=leaves(pairs.images), captions=leaves(pairs.captions))

    def terms() -> None:
        for side in (alone.images, alone.captions):
            for tensor in (side.locals, *side.parts.values()):
                tensor.grad = None
        found = model.terms(alone, torch.arange(PAIRS), epoch=1)
        (found["lca"] + found["cra"]).backward()

    return terms


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(ours: Callable[[], None], theirs: Callable[[], None], repeats: int) -> list[tuple[float, float]]:
    ours()
    theirs()
    return [(seconds(ours), seconds(theirs)) for _ in range(repeats)]


def share_of_losses(repeats: int) -> dict[str, object]:
    regions, words = region_batch(), word_batch(10_000)
    settings = run_settings(
        {"name": "vsrn", "dim": 2048, "graph_layers": 4}, {"reads": "tokens"}, {"lca": {}, "cra": {}}
    )
    model = build_model(settings, FEATURES, 10_000)
    times = compare(loss_terms(model, regions, words), stepper(model, regions, words), repeats)
    return {
        "what": "VSRN + SelfAlign, D 2048: L_LCA + L_CRA / whole step",
        "seconds": {
            "losses": round(statistics.median(a for a, _ in times), 3),
            "step": round(statistics.median(b for _, b in times), 3),
        },
        "share": spread([a / b for a, b in times]),
    }


def gain_of_cached_text(dim: int, tune: bool, repeats: int) -> dict[str, object]:
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig())
    vocabulary_size = bert.config.vocab_size
    regions, words = region_batch(), word_batch(vocabulary_size)
    base = {"name": "camera", "dim": dim}
    cached = build_model(run_settings(base, {"reads": "text_features"}, {}), FEATURES, vocabulary_size, text_dim=TEXT)
    text = {"reads": "tokens", "encoder": {"model": "bert-base-uncased", "tune": tune}}
    in_loop = build_model(run_settings(base, text, {}), FEATURES, vocabulary_size, encoder=bert)
    times = compare(stepper(cached, regions, words), stepper(in_loop, regions, words), repeats)
    kind = "tuned" if tune else "frozen"
    return {
        "what": f"CAMERA, D {dim}: step with {kind} BERT-base in the loop / with cached features",
        "seconds": {
            "cached": round(statistics.median(a for a, _ in times), 3),
            "in the loop": round(statistics.median(b for _, b in times), 3),
        },
        "ratio": spread([b / a for a, b in times]),
    }


def share_outside(epochs: int) -> dict[str, object]:
    """The share of an epoch's time outside the step's own work; the first epoch doesn't count."""
    inside = 0.0

    def timed(work: Callable) -> Callable:
        def run(*args: object, **options: object) -> object:
            nonlocal inside
            start = time.perf_counter()
            found = work(*args, **options)
            inside += time.perf_counter() - start
            return found

        return run

    settings = run_settings({"name": "vsrn", "dim": 128}, {"reads": "tokens"}, {"lca": {}, "cra": {}})
    settings = settings.model_copy(update={"epochs": epochs + 1})
    model = build_model(settings, FEATURES, 10_000)
    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "share": 1.0}], fused=True)
    shares, whole = [], 0.0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        write_store(Path(folder), 10 * PAIRS)
        data = MadeData(Path(folder), word_batch(10_000))
        loop = Loop("made", model, optimizer, data, settings, Processes(0, 1, torch.device("cpu")))
        for owner, name in ((loop_module, "joint_gradients"), (nn.utils, "clip_grad_norm_"), (optimizer, "step")):
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        for epoch in range(epochs + 1):
            inside, start = 0.0, time.perf_counter()
            loop.epoch(Progress(epoch=epoch))
            whole = time.perf_counter() - start
            shares.append(1 - inside / whole)
    return {
        "what": "VSRN + SelfAlign, D 128, from a store: time outside a step's own work / an epoch",
        "seconds": {"step": round(whole / len(loop.epochs), 3)},
        "share": spread(shares[1:]),
    }


@click.command()
@click.option("--repeats", default=3)
@click.option("--threads", default=1, help="of torch")
@click.option("--only", type=click.Choice(["losses", "text", "outside"]), help="one of them")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(repeats: int, threads: int, only: str | None, out: Path | None) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    comparisons: list[tuple[str, Callable[[], dict[str, object]]]] = [("losses", partial(share_of_losses, repeats))]
    for dim, tune in ((1024, False), (2048, False), (2048, True)):
        comparisons.append(("text", partial(gain_of_cached_text, dim, tune, repeats)))
    comparisons.append(("outside", partial(share_outside, repeats)))
    earlier = json.loads(out.read_text())["results"] if out and out.exists() else []
    results = {result["what"]: result for result in earlier}
    machine = {"threads": threads, "machine": platform.machine(), "torch": torch.__version__}
    command = "OMP_WAIT_POLICY=passive python -m benchmarks.step " + " ".join(sys.argv[1:])
    for name, comparison in comparisons:
        if only in (None, name):
            result = comparison() | {"command": command, "machine": machine}
            results[result["what"]] = result
            click.echo(json.dumps(result))
    if out:
        sizes = {"pairs": PAIRS, "regions": REGIONS, "features": FEATURES, "words": WORDS}
        write_json(out, {"sizes": sizes, "results": list(results.values())})


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
