"""Memory doesn't grow with the data set: the stage holds a shard's regions and a few batches, never more."""

import subprocess
import sys
from pathlib import Path

import pytest

from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from tests.extract.region_files import encoded, quick_settings, scene

CHECKOUT = Path(__file__).parents[2]
RUN = """
import resource, sys
from pathlib import Path
from extract.stages.regions import run
from extract.settings import RegionSettings

folder = Path(sys.argv[1])
settings = RegionSettings.model_validate_json(sys.argv[2])
run(
    dataset="many", manifest=folder / "manifest", images=folder.parent, settings=settings,
    out=folder / "regions", cache=folder / "cache",
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_megabytes(folder: Path, count: int, settings: str) -> int:
    """Peak memory of a process that extracts `count` pictures, in MB."""
    paths = sorted(folder.parent.glob("*.png"))
    digests = [sha256(path) for path in paths]
    rows = [
        CaptionedImage(f"{i}", paths[i % len(paths)].name, digests[i % len(paths)], 160, 160, "train", ())
        for i in range(count)
    ]
    folder.mkdir()
    write_manifest(folder / "manifest", rows)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), settings], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_5000_pictures_take_no_more_memory_than_500(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:03d}.png").write_bytes(encoded(scene(number)[0]))
    settings = quick_settings().model_copy(update={"images_per_shard": 256}).model_dump_json()
    few, many = (peak_megabytes(tmp_path / str(count), count, settings) for count in (500, 5000))
    assert many - few < 200
