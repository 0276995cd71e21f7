"""Tokens, text features and packs that are killed at any of their steps end with an uninterrupted run's bytes."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from extract.settings import PackSettings
from extract.stages import pack, text_features, tokens
from extract.text.settings import TextFeatureSettings, TokenSettings
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from tests.encoders import write_encoder
from tests.extract.region_files import contents, quick_settings, scene_files, write_pictures

KILLS, WAIT = 10, 120
WORDS = ("the", "blue", "star", "left", "of", "ring", "zebra", "a", "red", "above", "square")
STEPS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate")  # audit events
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["extract.stages.pack", "extract.stages.text_features", "tests.extract.region_files"])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def make_tokens(world: Path, root: Path) -> None:
    tokens.PER_SHARD = 16
    settings = TokenSettings(language="blank_en", min_count=2, tokenizer=world / "encoder")
    tokens.run(manifest=world / "manifest", settings=settings, out=root / "out", staging=root / "staging")


def make_text_features(world: Path, root: Path) -> None:
    settings = TextFeatureSettings(model=str(world / "encoder"), captions_per_shard=16)
    own = {"tokens": world / "tokens", "cache": root / "cache", "batch_size": 4}
    text_features.run(dataset="many", settings=settings, out=root / "out", **own)


def make_pack(world: Path, root: Path) -> None:
    stores = {name: world / name for name in ("manifest", "regions", "tokens")}
    settings = PackSettings(images_per_shard=3)
    pack.run(dataset="many", **stores, settings=settings, out=root / "out", staging=root / "staging")


def work(make: Callable[[Path, Path], None], world: Path, root: Path, last: int, steps: Any) -> None:
    """What a process does: make a store, and kill itself at its step number `last`; it counts its `steps`."""
    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def count(event: str, _: object) -> None:
        if event in STEPS:
            steps.value += 1
            if steps.value == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    make(world, root)


def run(make: Callable[[Path, Path], None], world: Path, root: Path, last: int = 0) -> tuple[int | None, int]:
    """The exit status of a process that does the work, and how many steps it took."""
    steps = FORKS.Value("i", 0, lock=False)
    process = FORKS.Process(target=work, args=(make, world, root, last, steps))
    process.start()
    process.join(WAIT)
    assert not process.is_alive()
    return process.exitcode, steps.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of 12 scenes, about 100 captions, some of them twice; regions and tokens of them."""
    root, draw = tmp_path_factory.mktemp("world"), random.Random(0)
    files = list(scene_files(12).values())
    pictures = write_pictures(root, {f"{number:02d}.png": files[number % 12] for number in range(30)})
    rows = []
    for number, row in enumerate(Manifest.open(pictures.manifest).images):
        texts = tuple(" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(draw.randint(2, 5)))
        facts = (row.id, row.path, row.sha256, row.width, row.height)
        rows.append(CaptionedImage(*facts, ("train", "train", "val", "test")[number % 4], texts))
    write_manifest(pictures.manifest, rows)
    pictures.extract(quick_settings(images_per_shard=8))
    encoder = write_encoder(root / "encoder")
    settings = TokenSettings(language="blank_en", min_count=1, tokenizer=encoder)
    tokens.run(manifest=pictures.manifest, settings=settings, out=root / "tokens")
    return root


@pytest.mark.parametrize("make", [make_tokens, make_text_features, make_pack])
def test_killed_at_ten_steps_the_bytes_are_an_uninterrupted_runs(
    make: Callable[[Path, Path], None], world: Path, tmp_path: Path
) -> None:
    run(make, world, tmp_path / "first")  # notes beside its inputs that they are intact
    status, steps = run(make, world, tmp_path / "whole")
    expected = contents(tmp_path / "whole" / "out")
    assert status == 0 and steps > 50 and len(expected) > 3
    draw = random.Random(7)
    for number in range(KILLS):
        root = tmp_path / "killed"
        last = draw.randrange(number * steps // KILLS + 1, (number + 1) * steps // KILLS + 1)
        assert run(make, world, root, last) == (-signal.SIGKILL, last)
        assert run(make, world, root)[0] == 0
        assert contents(root / "out") == expected, f"killed at step {last} of {steps}"
        assert not list(root.glob(".out.*.tmp")) and not list(root.glob("staging/*/*"))
        shutil.rmtree(root)
