"""Runs in processes of their own: to the end, killed again and again, two together. Prints how often it killed.

python -m tests.train.killed_runs FOLDER whole|killed|together SETTINGS PATHS
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch

from eval.validation import validate
from tests.train.forked import run_together
from train.settings import RunSettings
from train.train import run


def train(folder: Path, settings: dict, paths: dict[str, str], minutes: float) -> None:
    run(
        name="test",
        **{name: Path(path) for name, path in paths.items()},
        settings=RunSettings(**settings),
        validate=lambda model, data: validate(model, data, 64),
        out=folder / "model",
        curves=folder / "epochs.csv",
        staging=folder / "staging",
        checkpoint_minutes=minutes,
    )


def train_until_killed(seconds: float | None, work) -> bool:
    """Whether `work`, in a process that is killed after so many seconds, came to its end before."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the run failed")
    return os.WIFEXITED(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, mode, settings, paths = Path(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
    if mode == "together":
        run_together(2, partial(train, folder, settings, paths, 10))
    start = time.monotonic()
    assert train_until_killed(None, partial(train, folder / "whole", settings, paths, 10))
    whole = time.monotonic() - start
    kills, chance = 0, random.Random(int(settings.get("seed", 0)))
    work = partial(train, folder / "killed", settings, paths, 0)
    # Late enough to get on each time, whatever the machine is busy with; the last kills come less often.
    while not train_until_killed(chance.uniform(0.1, 0.6) * whole * (1 + kills / 4) if kills < 12 else None, work):
        kills += 1
    print(json.dumps({"kills": kills}))
