"""Stage `train@R`: trains one run and keeps its best checkpoint by R@sum on the validation split.

    selfalign train vsrn-selfalign                                              one process, a CPU or a GPU
    SELFALIGN_PROCESSES=4 selfalign train vsrn-selfalign                        four GPUs
    torchrun --nproc-per-node 4 -m pipeline.cli train vsrn-selfalign            the same
    accelerate launch --multi_gpu -m pipeline.cli train vsrn-selfalign         the same, on all GPUs

An epoch shows every caption once, with its image, in an order that the run's seed decides. A killed run goes on where
its last state was saved (`train.state`).
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from manifests.errors import InputError
from manifests.host import host_facts
from manifests.tables import images_sha256
from train.bases import BASES
from train.checkpoint import data_recipe
from train.curves import TensorBoard, epoch_line, final_line, write_curves
from train.data import RetrievalData
from train.feed import Resident
from train.loop import Loop
from train.masking import share_momentum
from train.model import RetrievalModel, build_model
from train.processes import Processes, join, leave
from train.reuse import TrainedRun, run_code, run_key
from train.settings import RunSettings
from train.state import Progress, StateFolder
from train.words import Transformer

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
    staging: Path,
    text_features: Path | None = None,
    teachers: Path | None = None,
    device: str = "cpu",
    checkpoint_minutes: float = 10.0,
    tensorboard: Path | None = None,
    resident: Resident = "auto",
    cache: Path | None = None,
) -> None:
    """Train the run `name` and write its best checkpoint to `out`, its curves to the CSV file `curves`.

    Parameters
    ----------
    manifest, regions, tokens : the data set's manifest and stores.
    text_features : the data set's text feature store, where ``settings.text`` reads it.
    teachers : the data set's teacher store, for a run with CUSA.
    validate : gives the recalls of a model on a split, ``rsum`` among them. The stage passes the evaluation's own,
        which lives a floor above.
    staging : folder where the unfinished run lies, to be continued after a kill.
    device : a torch device; it changes the speed and the last bits.
    checkpoint_minutes : the state is saved after every epoch, and within one after so many minutes.
    tensorboard : folder for TensorBoard's files, if any.
    resident : whether the training split's features lie on the device (`train.feed.Feed`); it changes the speed only.
    cache : the machine's cache folder, where a run that was trained before is taken from, if any (`train.reuse`).

    Raises
    ------
    InputError : a loss or gradient that is not finite, with its step, its terms and the batch's image ids. Regions
        without boxes for a base that reads boxes.
    """
    code = run_code(settings)
    processes = join(device)
    torch.manual_seed(settings.seed)
    text = {"pieces": settings.text.pieces, "text_features": text_features}
    if settings.labels == "teachers" and teachers is None:
        raise InputError(
            "it learns from teachers, and was given none",
            where=f"run {name}",
            fix="add the data set below teachers: in params.yaml and run `dvc repro teachers@<data set>`",
        )
    streamed = settings.stream is not None
    data = RetrievalData(manifest, regions, tokens, "train", **text, teachers=teachers, streamed=streamed)
    _require_chosen_words(name, settings, data, tokens)
    _require_boxes(name, settings, data)
    validation = RetrievalData(manifest, regions, tokens, "val", **text)
    dims = (data.region_store.dim, data.vocabulary_size)
    model = build_model(settings, *dims, text_dim=data.text_dim, boundary_ids=data.boundary_ids).to(processes.device)
    share_momentum(model, settings.accumulate)
    optimizer = _optimizer(model, settings)
    record = {
        "settings": settings.model_dump(exclude_none=True),
        "feature_dim": data.region_store.dim,
        "vocabulary_size": data.vocabulary_size,
        "recipe": data_recipe(data),
        "parameters": sum(p.numel() for p in model.parameters()),
        "made": host_facts() | {"device": str(processes.device)},
    }
    if data.teacher_store:
        record["teachers"] = data.teacher_store.recipe
    stores = {"regions": regions, "tokens": tokens, "text_features": text_features, "teachers": teachers}
    key = run_key(settings, code, images_sha256(manifest), stores)
    state = StateFolder(staging, name, key)
    # What a run streams isn't in its key.
    known = TrainedRun(cache, key) if cache and not streamed else None
    with state.alone(out, processes) as made:
        if not made and processes.broadcast(processes.first and known is not None and known.install(out, curves)):
            made = True
            if processes.first:
                tqdm.write(f"run {name}: trained before with this data, settings and code, and reused ({known.folder})")
        if made:
            leave()
            return
        progress = state.restore(model, optimizer, processes)
        clock = _Clock(progress.seconds)

        def save(progress: Progress) -> None:
            if processes.first:
                progress.seconds = clock.seconds()
                state.save(model, optimizer, progress)
            clock.saved = time.monotonic()

        def is_due() -> bool:
            return time.monotonic() - clock.saved >= 60 * checkpoint_minutes

        board = TensorBoard(tensorboard if processes.first else None, name, progress.epoch)
        loop = Loop(name, model, optimizer, data, settings, processes, is_due, save, resident)
        if processes.first and (progress.epoch or progress.step):
            tqdm.write(f"continuing: epoch {progress.epoch + 1}, batch {progress.step + 1}, from {state.folder}")
        while not _done(progress, settings, model):
            if model.restarts(progress.epoch) and progress.step == 0:
                state.restart(model, progress, processes)
                optimizer.state.clear()
            judged_by = model.judged_by(progress.epoch)
            terms = loop.epoch(progress)
            recalls = _recalls(validate, model, validation, processes)
            row = {
                "epoch": progress.epoch,
                "seconds": round(clock.seconds(), 2),
                "learning_rate": optimizer.param_groups[-1]["lr"],
                "loss": sum(terms.values()),
                **terms,
                **{f"val_{key}": value for key, value in recalls.items()},
            }
            progress.rows.append(row)
            board.write(row)
            reached = sum(recalls[key] for key in judged_by)
            if reached > progress.best:
                progress.best, progress.best_epoch = reached, progress.epoch
                if processes.first:
                    best = {"best_epoch": progress.epoch, "val_rsum": recalls["rsum"], "seconds": row["seconds"]}
                    state.keep_best(model, {**record, **best}, progress)
            progress.epoch, progress.step, progress.totals = progress.epoch + 1, 0, {}
            save(progress)
            if processes.first:
                tqdm.write(epoch_line(name, progress.rows, settings.losses, settings.epochs, progress.best_epoch or 0))
        board.close()
        if processes.first:
            write_curves(curves, progress.rows)
            state.finish(out, progress)
            if known:
                known.keep(out, curves)
            state.remove()
            tqdm.write(final_line(name, progress.rows, progress.best_epoch or 0))
    leave()


def _require_chosen_words(name: str, settings: RunSettings, data: RetrievalData, tokens: Path) -> None:
    """Raise `InputError` where no word has a part of speech that the concept loss is to learn from."""
    lca = settings.losses.get("lca")
    chosen = set((lca and lca.parts_of_speech) or ())
    captions = range(data.num_captions)
    if chosen and not any(word.pos in chosen for caption in captions for word in data.caption_words(caption)):
        raise InputError(
            f"no word of a caption is {' or '.join(sorted(chosen))}, and so nothing would be learned",
            where=f"run {name}, losses.lca.parts_of_speech; {tokens}",
            fix="make the tokens with a `language` that has parts of speech (docs/text.md), or leave the key out",
        )


def _require_boxes(name: str, settings: RunSettings, data: RetrievalData) -> None:
    """Raise `InputError` if the base reads boxes and the regions were imported without any."""
    if BASES[settings.base.name].reads_boxes and not data.region_store.has_boxes:
        raise InputError(
            f"{settings.base.name} looks at the regions' boxes, and these were imported without any",
            where=f"run {name}, base.name; {data.region_store.folder}",
            fix="import the features with their boxes (docs/exchange.md), or use a base that doesn't, as vsrn",
        )


class _Clock:
    """Seconds of training over all sessions of a run, and when its state was last saved."""

    def __init__(self, earlier: float):
        self._start = time.monotonic() - earlier
        self.saved = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start


def _optimizer(model: RetrievalModel, settings: RunSettings) -> torch.optim.Optimizer:
    """Adam, or AdamW; a group's `share` is what it has of the learning rate. A text encoder in the loop comes first."""
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    rest, groups = list(model.parameters()), []
    if settings.encoder_rate != 1 and isinstance(model.words, Transformer):
        encoder = list(model.words.parameters())
        own = {id(parameter) for parameter in encoder}
        rest = [parameter for parameter in rest if id(parameter) not in own]
        groups.append({"params": encoder, "share": settings.encoder_rate})
    groups.append({"params": rest, "share": 1.0})
    return kind(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def _done(progress: Progress, settings: RunSettings, model: RetrievalModel) -> bool:
    if progress.epoch >= settings.epochs:
        return True
    if any(model.restarts(epoch) for epoch in range(progress.epoch, settings.epochs)):
        return False
    waited = progress.epoch - 1 - progress.best_epoch if progress.best_epoch is not None else 0
    return settings.patience is not None and waited >= settings.patience


def _recalls(
    validate: Validate, model: RetrievalModel, validation: RetrievalData, processes: Processes
) -> Mapping[str, float]:
    """The first process's recalls, in every process; all of them take part."""
    return processes.broadcast(dict(validate(model, validation)))
