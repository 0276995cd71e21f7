"""What a worker holds doesn't grow with the data set: rows of its shard alone travel to it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from extract.engine.maker import Parts, ShardJob
from extract.engine.workers import on_workers
from extract.text.settings import TokenSettings
from extract.text.shards import PER_SHARD, Captions, WordShards
from extract.vision.shards import RegionShards
from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from pipeline.cluster import open_workers
from pipeline.machine import Machine
from tests.extract.alone import run_alone
from tests.extract.region_files import quick_settings, scene_files

ROWS, PICTURES, PER_REGION_SHARD = 1_000_000, 16, 1024
TOKENS = """
import sys
from pathlib import Path
from extract.stages import tokens
from extract.text.settings import TokenSettings

root = Path(sys.argv[1])
tokens.run(manifest=root / "manifest", settings=TokenSettings(language="blank_en", min_count=1), out=root / "tokens")
print(peak())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def peak() -> int:
    """Most megabytes that this process held so far."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def rows_of(images: Path, count: int, captions: int) -> Iterator[CaptionedImage]:
    files = [(path.name, sha256(path)) for path in sorted(images.glob("*.png"))] or [("a.png", "0" * 64)]
    for number in range(count):
        name, digest = files[number % len(files)]
        colours = ("red", "blue", "green", "grey", "pale")[:captions]
        texts = tuple(f"the {colour} ring of star {number % 500} above a square" for colour in colours)
        yield CaptionedImage(f"{number:07d}", name, digest, 160, 160, "train", texts)


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million rows, of 16 pictures, a caption each."""
    root = tmp_path_factory.mktemp("million")
    (root / "images").mkdir()
    for name, data in scene_files(PICTURES).items():
        (root / "images" / name).write_bytes(data)
    write_manifest(root / "manifest", rows_of(root / "images", ROWS, 1))
    return root


def words(root: Path, work: Path) -> ShardJob:
    listed = Manifest.open(root / "manifest")
    own = {"settings": TokenSettings(language="blank_en"), "manifest": root / "manifest"}
    own |= {"staging": work / "staging", "key": {"of": "memory"}}
    starts = [(0, 1), (ROWS // 2, ROWS // 2 + PER_SHARD)]
    parts = Parts(2, lambda number: Captions(starts[number][0], listed.texts(*starts[number])))
    return ShardJob(WordShards(**own), parts, "tokens", "captions", WordShards, own, on_device=False)


def regions(root: Path, work: Path) -> ShardJob:
    listed = Manifest.open(root / "manifest")
    own = {"images": root / "images", "settings": quick_settings()}
    own |= {"cache": work / "cache"}
    own |= {"id_bytes": listed.id_bytes, "batch_size": 4, "readers": 1}
    maker, middle = RegionShards(**own, device="cpu"), ROWS // 2
    parts = Parts(2, lambda number: listed.images[middle : middle + (1, PER_REGION_SHARD)[number]])
    maker.finished.open([], maker.again, maker.keep, "pictures")
    return ShardJob(maker, parts, "regions", "pictures", RegionShards, own)


@pytest.mark.parametrize("lot_of", [words, regions])
def test_a_shard_of_a_million_rows_costs_a_worker_little(million: Path, tmp_path: Path, lot_of) -> None:
    held = []
    for parts in ([0], [0, 1]):  # an item, after which a worker is idle with all that it needs; then a whole shard
        job = lot_of(million, tmp_path / f"{len(parts)}")
        job.maker.finished.prepare()
        with open_workers(Machine(cluster="local:1", threads=1, device="cpu")) as workers:
            outcomes = dict(on_workers(workers, job, [(number, (job.parts[number], {})) for number in parts]))
            assert [outcomes[number].computed for number in parts] == [len(job.parts[number]) for number in parts]
            held += workers.client.run(peak).values()
    print(f"{lot_of.__name__}: idle {held[0]} MB, a shard of {len(job.parts[1])}: {held[1]} MB")
    assert held[1] - held[0] < 60


def test_tokens_take_no_more_memory_for_more_captions(tmp_path: Path) -> None:
    peaks = []
    for images in (4_000, 60_000):
        root = tmp_path / f"{images}"
        write_manifest(root / "manifest", rows_of(root, images, 5))
        peaks.append(int(run_alone(TOKENS, root).splitlines()[-1]))
    print(f"20,000 captions {peaks[0]} MB, 300,000 captions {peaks[1]} MB")
    assert peaks[1] - peaks[0] < 30
