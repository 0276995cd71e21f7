"""One epoch of training, from any of its steps on.

A step follows from weights, optimizer's moments, seed, epoch and number alone. The order of the captions, the learning
rate and what dropout draws are computed, not carried along. So a run can stop anywhere and go on as if it hadn't.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from manifests.errors import InputError
from manifests.progress import progress as show_progress
from train.data import RetrievalData
from train.epochs import epochs_of
from train.feed import FedBatch, Feed, Resident
from train.joint import joint_gradients
from train.model import RetrievalModel
from train.precision import autocast_to, multiplied_in
from train.processes import GradientMean, Processes
from train.readings import Reading, Readings
from train.settings import RunSettings
from train.state import Progress


class Loop:
    """Trains a model on the captions of a split.

    Parameters
    ----------
    name : of the run, for messages.
    optimizer : its learning rate is set before every step.
    resident : whether the split's features lie on the device (`train.feed.Feed`).
    is_due, save : `save` is called with the `Progress` after a step, but for an epoch's last, where `is_due` says so.
    """

    def __init__(
        self,
        name: str,
        model: RetrievalModel,
        optimizer: torch.optim.Optimizer,
        data: RetrievalData,
        settings: RunSettings,
        processes: Processes,
        is_due: Callable[[], bool] = lambda: False,
        save: Callable[[Progress], None] = lambda progress: None,
        resident: Resident = "auto",
    ):
        self.name, self.model, self.optimizer, self.data = name, model, optimizer, data
        self.settings, self.processes, self.is_due, self.save = settings, processes, is_due, save
        self.readings = Readings(processes.device)
        self.mean = GradientMean(model.parameters(), processes)
        self.epochs = epochs_of(data, settings)
        self.feed = Feed(data, self.epochs, processes, chunks=settings.accumulate, resident=resident)
        if settings.compile:
            model.compile_parts()
        self._autocast = partial(autocast_to, settings.precision, processes.device)

    def learning_rate(self, epoch: int, step: int) -> float:
        """The learning rate of an epoch's step, where the encoder in the loop has none of its own.

        It counts from the epoch at which training last began anew.
        """
        settings = self.settings
        epoch -= max(other for other in range(epoch + 1) if other == 0 or self.model.restarts(other))
        done = epoch * len(self.epochs) + step
        warm = min(1.0, (done + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        return settings.learning_rate * settings.decay ** (epoch // settings.decay_epochs) * warm

    def epoch(self, progress: Progress) -> dict[str, float]:
        """The rest of the epoch that `progress` is in; returns the mean of every loss term over all of it."""
        self.model.begin(progress.epoch)
        count = len(self.epochs)
        what = f"{self.name} epoch {progress.epoch + 1}/{self.settings.epochs}"
        with (
            show_progress(
                what=what, unit="batches", total=count, initial=progress.step, quiet=not self.processes.first
            ) as bar,
            multiplied_in(self.settings.precision),
        ):
            for step, part in enumerate(self.feed(progress.epoch, progress.step), progress.step):
                for reading in self.step(progress.epoch, step, part):
                    self._count(reading, progress)
                    bar.set_postfix(loss=f"{sum(reading.terms.values()):.2f}", refresh=False)
                progress.step = step + 1
                bar.update()
                if progress.step < count and self.is_due():
                    self._count_all(progress)
                    self.save(progress)
        self._count_all(progress)
        return progress.totals

    def step(self, epoch: int, step: int, part: FedBatch) -> list[Reading]:
        """Train on this process's part of a batch; gives what was read back after it, of this step or of several.

        Raises InputError for one that isn't finite, before it can be saved. Where every step is read, that is before it
        reaches the weights.
        """
        settings, processes, model = self.settings, self.processes, self.model
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.learning_rate(epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        terms = joint_gradients(
            model,
            part,
            epoch=epoch,
            seed=(settings.seed, epoch, step),
            processes=processes,
            autocast=self._autocast,
            last=self.mean.during_backward,
        )
        self.mean.finish()
        model.drop_gradients(epoch)
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        self.readings.add(epoch, step, part.captions, terms, norm)
        read = self._read() if self.readings.full else []
        self.optimizer.step()
        return read

    def _count_all(self, progress: Progress) -> None:
        for reading in self._read():
            self._count(reading, progress)

    def _count(self, reading: Reading, progress: Progress) -> None:
        for key, value in reading.terms.items():
            progress.totals[key] = progress.totals.get(key, 0.0) + value / len(self.epochs)

    def _read(self) -> list[Reading]:
        """What waits to be read, if all of it is finite."""
        read = self.readings.read()
        for reading in read:
            loss = sum(reading.terms.values())
            what, value = ("gradient's norm", reading.norm) if math.isfinite(loss) else ("loss", loss)
            if not math.isfinite(value):
                ids = [self.data.images[image].id for image in self.data.caption_image[reading.captions]]
                raise InputError(
                    f"the {what} is {value} ({', '.join(f'{key} {term:g}' for key, term in reading.terms.items())})"
                    f" on images {', '.join(ids)}",
                    where=f"run {self.name}, epoch {reading.epoch + 1}, batch {reading.step + 1}",
                    fix="lower the learning rate, or look at the features of these images",
                )
        return read
