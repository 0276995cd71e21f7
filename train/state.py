"""What a run needs to go on where it was killed, in its own folder below the machine's staging folder.

DVC removes a stage's outs before it runs, so nothing that is unfinished lies there. The state is one safetensors file:
weights, the optimizer's moments and, in its metadata, the `Progress` as JSON; so it is whole or absent. The order of an
epoch, the learning rate and dropout follow from seed, epoch and step, and need no state of their own.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from extract.stores.tensors import load_into, read_tensors, require_shapes, shapes_of
from manifests.errors import InputError
from manifests.files import abandoned, atomic, fingerprint, room_for, whole_folder
from manifests.jsonl import parse_json
from manifests.locks import sole_writer
from manifests.typed import Count, checked
from train.checkpoint import WEIGHTS, save_model
from train.model import RetrievalModel
from train.processes import Processes

STATE, _FORMAT = "state.safetensors", 1
_AFRESH = "remove that folder; the run then starts afresh"


@dataclass
class Progress:
    """How far a run is.

    epoch, step : what comes next; totals : the sums of the loss terms over this epoch's earlier steps.
    rows : the curves' rows of the epochs done; seconds : spent so far, over all sessions.
    best_epoch, best : the epoch of the best R@sum on the validation split, and that.
    """

    epoch: Count = 0
    step: Count = 0
    totals: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best_epoch: Count | None = None
    best: float = -1.0


class StateFolder:
    """The folder of one run's state, keyed by all that decides its result.

    Parameters
    ----------
    root : the machine's staging folder.
    name : of the run.
    key : JSON of the settings and the data; another key is another folder.
    """

    def __init__(self, root: Path, name: str, key: Any):
        self._name, self._key = name, [_FORMAT, key]
        self.folder = Path(root) / f"train-{name}-{fingerprint(self._key)[:16]}"

    @contextmanager
    def alone(self, out: Path, processes: Processes) -> Iterator[bool]:
        """Hold the locks of `out` and of this folder, in the first process; gives, in every one, whether `out` is made.

        Where several processes train together, another training is an `InputError`, since not all would wait.
        """
        locked = nullcontext(False)
        if processes.first:
            work = f"training of {self._name}"
            locked = sole_writer(out, work, self._key, staging=self.folder, wait=processes.count == 1)
        with locked as made:
            yield processes.broadcast(made)

    def save(self, model: RetrievalModel, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Replace the state; only then drop the weights of epochs that are no longer the best."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": moment for name, moment in moments.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic(self.folder / STATE, make_folder=False) as temporary:
            save_file(tensors, temporary, {"progress": json.dumps(asdict(progress))})
        for old in self.folder.glob("best-*"):
            if old != self._best(progress):
                shutil.rmtree(old)

    def restore(self, model: RetrievalModel, optimizer: torch.optim.Optimizer, processes: Processes) -> Progress:
        """Bring model and optimizer to where the run was, in every process; a new `Progress` where it is new."""
        found = self._read() if processes.first else None
        facts = processes.broadcast(found and found[0])
        if facts is None:
            return Progress()
        tensors = processes.copied(found[1] if found else {})
        expected = {f"model.{name}": shape for name, shape in shapes_of(model).items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(each for group in optimizer.param_groups for each in group["params"]):
            own = {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
            names = {name: f"optimizer.{number}.{name}" for name in own}
            if any(name in tensors for name in names.values()):  # it had a gradient
                expected |= {names[name]: shape for name, shape in own.items()}
                moments[number] = {name: tensors.get(stored) for name, stored in names.items()}
        require_shapes(tensors, expected, self.folder / STATE, fix=_AFRESH)
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        load_into(model, weights, self.folder / STATE, fix=_AFRESH)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return checked(facts, Progress, where=self.folder / STATE, fix=_AFRESH)

    def restart(self, model: RetrievalModel, progress: Progress, processes: Processes) -> None:
        """Bring the model, in every process, to the best weights so far; which epoch is best is asked anew."""
        found = {}
        if processes.first:
            found, _ = read_tensors(self._best(progress) / WEIGHTS, fix=_AFRESH)
        weights = processes.copied(found)
        require_shapes(weights, shapes_of(model), self._best(progress), fix=_AFRESH)
        load_into(model, weights, self._best(progress), fix=_AFRESH)
        progress.best, progress.best_epoch = Progress.best, None

    def keep_best(self, model: RetrievalModel, record: Mapping[str, Any], progress: Progress) -> None:
        """Write the checkpoint of the best epoch; it counts once `save` names that epoch."""
        save_model(self._best(progress), model, dict(record))

    def finish(self, out: Path, progress: Progress) -> None:
        """Copy the best checkpoint to `out`, which is whole or absent."""
        best = self._best(progress)
        if not best.is_dir():
            message = f"the weights of epoch {progress.best_epoch}, which it says is the best one, aren't there"
            raise InputError(message, where=self.folder / STATE, fix=_AFRESH)
        with whole_folder(out) as ready:
            shutil.copytree(best, ready, dirs_exist_ok=True)

    def remove(self) -> None:
        """Remove the state of a run that is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _best(self, progress: Progress) -> Path:
        return self.folder / f"best-{progress.best_epoch}"

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        with room_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, *self.folder.glob("best-*")):
            for left_behind in abandoned(folder):
                left_behind.unlink(missing_ok=True)
        if not (self.folder / STATE).exists():
            return None
        tensors, metadata = read_tensors(self.folder / STATE, fix=_AFRESH)
        return parse_json(metadata.get("progress", ""), path=self.folder / STATE, fix=_AFRESH), tensors
