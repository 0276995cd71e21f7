"""Stage `train@R`: trains one run and keeps its best checkpoint by R@sum on the validation split.

    selfalign train vsrn-selfalign

An epoch shows every caption once, with its image, in an order that the run's seed decides.
"""

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from manifests.errors import InputError
from manifests.files import atomic
from manifests.progress import progress
from train.checkpoint import data_recipe, save_model
from train.data import RetrievalData
from train.models import RetrievalModel, build_model
from train.settings import RunSettings

Validate = Callable[[RetrievalModel, RetrievalData], Mapping[str, float]]


def run(
    *,
    name: str,
    manifest: Path,
    regions: Path,
    tokens: Path,
    settings: RunSettings,
    validate: Validate,
    out: Path,
    curves: Path,
    device: str = "cpu",
) -> None:
    """Train the run `name` and write its best checkpoint to `out`, its curves to the CSV file `curves`.

    Parameters
    ----------
    manifest, regions, tokens : the data set's manifest and stores.
    validate : gives the recalls of a model on a split, ``rsum`` among them; the stage hands in the evaluation's own,
        which lives a floor above.
    device : a torch device; it changes the speed and the last bits.

    Raises
    ------
    InputError : a loss that is not finite, with its step, its terms and the batch's image ids.
    """
    torch.manual_seed(settings.seed)
    data = RetrievalData(manifest, regions, tokens, "train")
    validation = RetrievalData(manifest, regions, tokens, "val")
    model = build_model(settings, data.region_store.dim, len(data.token_store.vocabulary)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, settings.decay_epochs, settings.decay)
    record = {
        "settings": settings.model_dump(),
        "feature_dim": data.region_store.dim,
        "vocabulary_size": len(data.token_store.vocabulary),
        "recipe": data_recipe(data),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    start, best = time.perf_counter(), -1.0
    rows: list[dict[str, float]] = []
    for epoch in range(settings.epochs):
        rate = optimizer.param_groups[0]["lr"]
        terms = _epoch(name, model, optimizer, data, settings, epoch, device)
        schedule.step()
        recalls = validate(model, validation)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "epoch": epoch,
                "seconds": round(seconds, 2),
                "learning_rate": rate,
                "loss": sum(terms.values()),
                **terms,
                **{f"val_{key}": value for key, value in recalls.items()},
            }
        )
        write_curves(curves, rows)
        if recalls["rsum"] > best:
            best = recalls["rsum"]
            save_model(out, model, {**record, "best_epoch": epoch, "val_rsum": best, "seconds": round(seconds, 2)})


def _epoch(
    name: str,
    model: RetrievalModel,
    optimizer: torch.optim.Optimizer,
    data: RetrievalData,
    settings: RunSettings,
    epoch: int,
    device: str,
) -> dict[str, float]:
    """One pass over the captions; returns the mean of every loss term."""
    model.train()
    order = np.random.default_rng([settings.seed, epoch]).permutation(data.num_captions)
    batches = [order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)]
    # One pair has no negatives, and batch norm needs two values.
    batches = [batch for batch in batches if len(batch) > 1]
    totals: dict[str, float] = {}
    bar = progress(batches, what=f"{name} epoch {epoch + 1}/{settings.epochs}", unit="batches")
    for step, captions in enumerate(bar):
        images = data.caption_image[captions]
        pairs = model(data.region_batch(images).to(device), data.word_batch(captions).to(device))
        terms = model.losses(pairs, torch.from_numpy(images).to(device), epoch)
        loss = sum(terms.values())
        if not torch.isfinite(loss):
            ids = [data.images[i].id for i in images]
            raise InputError(
                f"the loss is {loss.item()} ({', '.join(f'{key} {value.item():g}' for key, value in terms.items())})"
                f" on images {', '.join(ids)}",
                where=f"run {name}, epoch {epoch}, step {step}",
                fix="lower the learning rate, or look at the features of these images",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        model.freeze_gradients(epoch)
        nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step()
        for key, value in terms.items():
            totals[key] = totals.get(key, 0.0) + value.item() / len(batches)
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return totals


def write_curves(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one CSV row an epoch, atomically."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
