"""A small demo data set through the real stages, made once for all tests of this floor."""

from pathlib import Path

import pytest
import torch
import yaml

from demo.scenes import stage as scenes
from demo.scenes.settings import SceneSettings
from extract.settings import RegionSettings
from extract.stages import regions, tokens
from extract.text.settings import TokenSettings
from manifests import manifest

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())["datasets"]["demo"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> dict[str, Path]:
    """Manifest, regions and tokens of 300 training, 60 validation and 20 test scenes."""
    root = tmp_path_factory.mktemp("small")
    scenes.run(settings=SceneSettings(seed=3, train=300, val=60, test=20), out=root / "scenes")
    images = root / "scenes" / "images"
    manifest.run(format="karpathy", images=images, captions=root / "scenes" / "captions.json", out=root / "manifest")
    listed = root / "manifest"
    regions.run(
        dataset="small",
        manifest=listed,
        images=images,
        settings=RegionSettings(**PARAMS["regions"]),
        out=root / "regions",
        cache=root / "cache",
    )
    tokens.run(manifest=listed, settings=TokenSettings(**PARAMS["tokens"]), out=root / "tokens")
    return {"manifest": listed, "regions": root / "regions", "tokens": root / "tokens"}
