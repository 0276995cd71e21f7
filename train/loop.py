"""One epoch of training, from any of its steps on.

What a step does follows from the weights, the optimizer's moments, the seed, the epoch and the step alone: the order of
the captions, the learning rate and what dropout draws are computed, not carried along. So a run can stop anywhere and
go on as if it hadn't.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import nn

from manifests.errors import InputError
from manifests.progress import progress as show_progress
from train.data import RetrievalData
from train.epochs import Batch, epochs_of
from train.joint import joint_gradients
from train.model import RetrievalModel
from train.processes import Processes
from train.settings import RunSettings
from train.state import Progress


class Loop:
    """Trains a model on the captions of a split.

    Parameters
    ----------
    name : of the run, for messages.
    optimizer : its learning rate is set before every step.
    after_step : called with the `Progress` after every step but an epoch's last.
    """

    def __init__(
        self,
        name: str,
        model: RetrievalModel,
        optimizer: torch.optim.Optimizer,
        data: RetrievalData,
        settings: RunSettings,
        processes: Processes,
        after_step: Callable[[Progress], None],
    ):
        self.name, self.model, self.optimizer, self.data = name, model, optimizer, data
        self.settings, self.processes, self.after_step = settings, processes, after_step
        self.epochs = epochs_of(data, settings)
        if settings.compile:
            model.compile_encoders()
        self._autocast: Callable[[], AbstractContextManager] = partial(
            torch.autocast, processes.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"
        )

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
        with show_progress(
            what=what, unit="batches", total=count, initial=progress.step, quiet=not self.processes.first
        ) as bar:
            for step, batch in enumerate(self.epochs(progress.epoch, progress.step), progress.step):
                terms = self._step(progress.epoch, step, batch)
                for key, value in terms.items():
                    progress.totals[key] = progress.totals.get(key, 0.0) + value / count
                progress.step = step + 1
                bar.set_postfix(loss=f"{sum(terms.values()):.2f}", refresh=False)
                bar.update()
                if progress.step < count:
                    self.after_step(progress)
        return progress.totals

    def _step(self, epoch: int, step: int, batch: Batch) -> dict[str, float]:
        captions, regions = batch
        settings, processes, model = self.settings, self.processes, self.model
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.learning_rate(epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        terms = joint_gradients(
            model,
            self.data,
            captions,
            regions,
            epoch=epoch,
            chunks=settings.accumulate,
            seed=(settings.seed, epoch, step),
            processes=processes,
            autocast=self._autocast,
            parted=self.epochs.parted,
        )
        self._require_finite("loss", sum(terms.values()), terms, captions, epoch, step)
        model.drop_gradients(epoch)
        processes.average(model.parameters())
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        self._require_finite("gradient's norm", norm.item(), terms, captions, epoch, step)
        self.optimizer.step()
        return terms

    def _require_finite(
        self, what: str, value: float, terms: dict[str, float], captions: np.ndarray, epoch: int, step: int
    ) -> None:
        """Refuse a step before it reaches the weights, and so before they can be saved."""
        if not math.isfinite(value):
            ids = [self.data.images[image].id for image in self.data.caption_image[captions]]
            raise InputError(
                f"the {what} is {value} ({', '.join(f'{key} {term:g}' for key, term in terms.items())})"
                f" on images {', '.join(ids)}",
                where=f"run {self.name}, epoch {epoch + 1}, batch {step + 1}",
                fix="lower the learning rate, or look at the features of these images",
            )
