"""Region stores made once for all tests, and torch on one thread."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from extract.settings import PackSettings
from extract.stages import pack, tokens
from extract.text.settings import TokenSettings
from tests.extract.disks import Disk, mounted
from tests.extract.region_files import Pictures, mixed_files, region_settings, scene_files, write_pictures

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """10 scenes in a store of 3 to 20 regions each, 4 images a shard."""
    pictures = write_pictures(tmp_path_factory.mktemp("ragged"), scene_files(10))
    pictures.extract(region_settings(min_boxes=3, max_boxes=20, images_per_shard=4), batch_size=1)
    return pictures


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """15 pictures of four shapes in a store of 12 regions each, 4 images a shard."""
    pictures = write_pictures(tmp_path_factory.mktemp("dense"), mixed_files())
    pictures.extract(region_settings(images_per_shard=4), batch_size=3)
    return pictures


@pytest.fixture(scope="session")
def data_set(dense: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `data/D`: manifest, regions and tokens of `dense`, packed 6 images a shard."""
    folder = tmp_path_factory.mktemp("data_set") / "tiny"
    manifest = Path(shutil.copytree(dense.manifest, folder / "manifest"))
    shutil.copytree(dense.out.parent, folder / "regions")
    tokens.run(manifest=manifest, settings=TokenSettings(language="blank_en", min_count=1), out=folder / "tokens")
    pack.run(
        dataset="tiny",
        manifest=manifest,
        regions=folder / "regions",
        tokens=folder / "tokens",
        settings=PackSettings(images_per_shard=6),
        out=folder / "pack",
    )
    return folder


@pytest.fixture
def data_set_copy(data_set: Path, tmp_path: Path) -> Path:
    """A copy of `data_set`, to be spoilt."""
    return shutil.copytree(data_set, tmp_path / "tiny")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that a test can fill; skipped where it can't be mounted."""
    with mounted(tmp_path / "disk") as disk:
        yield disk
