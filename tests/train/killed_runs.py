"""Runs in processes of their own: to the end, killed again and again, two together. Prints how often it killed.

python -m tests.train.killed_runs FOLDER whole|killed|together SETTINGS PATHS
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from eval.validation import validate
from tests.train.forked import run_together
from train.settings import RunSettings
from train.state import STATE
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


def train_until_killed(work: Callable[[], None], staging: Path, saves: int, delay: float) -> bool:
    """Whether `work`, in a process that is killed so many seconds after so many saves, came to its end before."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    seen = set()
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and len(seen) <= saves:
        with suppress(FileNotFoundError):
            seen |= {path.stat().st_mtime_ns for path in staging.rglob(STATE)}
        time.sleep(0.001)
    if not ended[0]:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    if os.WIFEXITED(ended[1]) and os.WEXITSTATUS(ended[1]):
        sys.exit("the run failed")
    return os.WIFEXITED(ended[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, mode, settings, paths = Path(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
    if mode == "together":
        run_together(2, partial(train, folder, settings, paths, 10))
    whole, killed = folder / "whole", folder / "killed"
    assert train_until_killed(partial(train, whole, settings, paths, 10), whole / "staging", 10**9, 0)
    kills, chance = 0, random.Random(settings.get("seed", 0))
    work = partial(train, killed, settings, paths, 0)
    while not train_until_killed(work, killed / "staging", chance.randint(2, 5), chance.uniform(0, 0.1)):
        kills += 1
    print(json.dumps({"kills": kills}))
