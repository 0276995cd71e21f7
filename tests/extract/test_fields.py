"""A new per-region field is a line of the table and a line of whatever makes it: nothing else is to know of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.project import CHECKOUT

FIELD = '    depth: Annotated[np.ndarray | None, RegionField("<f4", least=0, most=8, tolerance=0.5)] = None\n'
GIVEN = "            depth=np.arange(len(rows), dtype=np.float32) % 8,\n"
USED = """
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from extract.check import compare, verify
from extract.exchange import manifest
from extract.settings import ImportSettings, PackSettings
from extract.stages import import_regions, pack, tokens
from extract.stores.regions import RegionStore
from extract.text.settings import TokenSettings
from extract.vision.shards import difference
from tests.extract.region_files import quick_settings, scene_files, write_pictures

pictures = write_pictures(Path(sys.argv[1]) / "tiny", scene_files(6))
pictures.extract(quick_settings(images_per_shard=3))
train = pictures.folder / "regions" / "train"
found = RegionStore(train).regions(5)
assert found.depth.tolist() == [n % 8 for n in range(len(found))] and found.depth.dtype == np.float32
assert difference(found, replace(found, depth=found.depth + np.float32(0.4))) is None
assert difference(found, replace(found, depth=found.depth + 1)) == "depth differ by 1"
assert verify.run(store=train).total == 0

folder, listed = pictures.folder, pictures.manifest
tokens.run(manifest=listed, settings=TokenSettings(language="blank_en", min_count=1), out=folder / "tokens")
stores = {"manifest": listed, "regions": folder / "regions", "tokens": folder / "tokens"}
pack.run(dataset="tiny", **stores, settings=PackSettings(images_per_shard=3), out=folder / "pack")
assert verify.run(store=folder / "pack").total == 0
assert "`attrs_conf`, `depth`" in (folder / "pack" / "README.md").read_text()

back = folder / "back"
manifest.run(format="wds", images=folder / "pack", captions=folder / "pack", out=back / "manifest")
import_regions.run(
    dataset="back", manifest=back / "manifest", images=folder / "pack", settings=ImportSettings(images_per_shard=4),
    out=back / "regions", staging=back / "staging",
)
again = back / "regions" / "train"
np.testing.assert_array_equal(RegionStore(again).regions(5).depth, found.depth)
assert compare.run(a=train, b=again, tolerances=compare.Tolerances()).verdict == "identical"

shard = train / "000001.h5"
shard.chmod(0o644)
data = shard.read_bytes()
shard.unlink()
shard.write_bytes(data)
with h5py.File(shard, "r+") as file:
    file["depth"][2, 1] = 9
messages = [str(finding) for finding in verify.run(store=train).findings]
assert any("depth are not within 0 and 8: region 1" in line for line in messages), messages
assert compare.run(a=train, b=again, tolerances=compare.Tolerances()).verdict != "identical"
print("all of them know it")
"""


@pytest.mark.slow
def test_a_new_field_touches_the_table_and_its_producer_alone(tmp_path: Path) -> None:
    for name in ("manifests", "extract", "demo", "tests", "eval", "train", "pipeline"):
        shutil.copytree(CHECKOUT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, new in (
        ("extract/stores/fields.py", "    def __len__(self) -> int:\n        return len(self.boxes)", FIELD + "\n"),
        ("extract/vision/detectors/base.py", "            objects_id=objects_id.int()", GIVEN),
    ):
        path = tmp_path / "code" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1
        path.write_text(text.replace(before, new + before), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USED, str(tmp_path)],
        cwd=tmp_path / "code",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("all of them know it\n"), done.stderr
