"""Regions are computed once: what goes through the network after each change, counted on the detector itself."""

import dataclasses
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from demo.detector.demo import DemoDetector
from extract.check import verify
from extract.engine.cache import damaged, entries, in_use, prune
from extract.settings import RegionSettings
from extract.stages import region_stores
from extract.stores.regions import RegionStore
from extract.vision import shards as shards_module
from extract.vision.shards import RegionShards
from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from tests.extract.region_files import WEIGHTS, Pictures, contents, quick_settings, scene_files, write_pictures

COUNT, PER_SHARD = 40, 8
DemoDetectorPrepare = DemoDetector.prepare
SETTINGS = quick_settings(images_per_shard=PER_SHARD)


def listed(manifest: Path) -> list[CaptionedImage]:
    return list(Manifest.open(manifest).captioned)


class Counter:
    """Runs the stage, and says how many pictures went through the network, which the stage's last line must say too."""

    def __init__(self, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self.pictures, self.capfd, self.computed = pictures, capfd, 0
        plain = DemoDetector.candidates

        def candidates(detector: DemoDetector, batch: Tensor, given: list[Tensor] | None = None) -> list:
            self.computed += len(batch)
            return plain(detector, batch, given)

        monkeypatch.setattr(DemoDetector, "candidates", candidates)

    def __call__(self, settings: RegionSettings = SETTINGS, **others: object) -> int:
        self.computed = 0
        self.capfd.readouterr()
        self.pictures.extract(settings, **others)
        self.said = self.capfd.readouterr().out
        said = re.search(r"regions tiny: (\d+) pictures, (\d+) computed, \d+ reused(?:, .*)?\n$", self.said)
        pictures, computed = map(int, said.groups())
        assert computed == self.computed and pictures == len(listed(self.pictures.manifest))
        assert verify.run(store=self.pictures.out, manifest=self.pictures.manifest).total == 0
        return computed

    def rows(self, change: Callable[[list[CaptionedImage]], list[CaptionedImage]]) -> None:
        """Change the manifest's rows."""
        write_manifest(self.pictures.manifest, change(listed(self.pictures.manifest)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    pictures = write_pictures(tmp_path_factory.mktemp("made") / "forty", scene_files(COUNT + 1))
    rows = listed(pictures.manifest)
    write_manifest(pictures.manifest, rows[:COUNT])
    pictures.extract(SETTINGS)
    return pictures


@pytest.fixture
def count(
    made: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Counter:
    return Counter(Pictures(shutil.copytree(made.folder, tmp_path / "forty")), monkeypatch, capfd)


def test_a_first_run_computes_all_and_a_second_nothing(count: Counter) -> None:
    before = contents(count.pictures.out)
    shutil.rmtree(count.pictures.cache)
    shutil.rmtree(count.pictures.out)
    assert count() == COUNT and contents(count.pictures.out) == before
    assert count() == 0 and contents(count.pictures.out) == before


def test_one_picture_more_and_one_less(count: Counter) -> None:
    before, one_more = contents(count.pictures.out), count.pictures.images / f"{COUNT:03d}.png"
    more = CaptionedImage(f"id-{one_more.name}", one_more.name, sha256(one_more), None, None, "train", ())
    count.rows(lambda rows: [*rows, more])
    assert count() == 1 and len(RegionStore(count.pictures.out)) == COUNT + 1
    count.rows(lambda rows: rows[1:])
    assert count() == 0 and len(RegionStore(count.pictures.out)) == COUNT
    count.rows(lambda rows: [listed(count.pictures.manifest)[0], *rows][1:])
    assert count() == 0
    assert contents(count.pictures.out) != before


def test_order_split_and_ids(count: Counter) -> None:
    before = contents(count.pictures.out)
    expected = {row.id: RegionStore(count.pictures.out).regions(n).features.copy() for n, row in _numbered(count)}
    count.rows(lambda rows: rows[::-1])
    assert count() == 0 and contents(count.pictures.out) != before
    for n, row in _numbered(count):
        np.testing.assert_array_equal(RegionStore(count.pictures.out).regions(n).features, expected[row.id])
    count.rows(lambda rows: [dataclasses.replace(row, split="test") for row in rows])
    assert count() == 0 and len(RegionStore(count.pictures.out)) == 0
    assert list(RegionStore(count.pictures.out.parent).ids) == [row.id for row in listed(count.pictures.manifest)]
    count.rows(lambda rows: [dataclasses.replace(row, id=f"a longer {row.id}", split="train") for row in rows])
    assert count() == 0 and RegionStore(count.pictures.out).ids[0].startswith("a longer")
    count.rows(lambda rows: [dataclasses.replace(row, id=row.id[9:]) for row in rows[::-1]])
    assert count() == 0 and contents(count.pictures.out) == before


def _numbered(count: Counter) -> list[tuple[int, CaptionedImage]]:
    return list(enumerate(listed(count.pictures.manifest)))


def test_where_weights_lie_shards_sizes_and_what_unreadable_pictures_do(count: Counter, tmp_path: Path) -> None:
    before = contents(count.pictures.out)
    weights = shutil.copy(WEIGHTS, tmp_path / "elsewhere.safetensors")
    moved = SETTINGS.detector.model_copy(update={"weights": str(weights)})
    assert count(SETTINGS.model_copy(update={"detector": moved})) == 0
    assert contents(count.pictures.out) == before
    assert count(SETTINGS.model_copy(update={"unreadable": "skip"})) == 0
    assert contents(count.pictures.out) == before
    assert count(SETTINGS.model_copy(update={"images_per_shard": 7})) == 0
    assert count() == 0 and contents(count.pictures.out) == before


def test_the_same_pictures_in_another_data_set(count: Counter, tmp_path: Path) -> None:
    other = Pictures(tmp_path / "other")
    shutil.copytree(count.pictures.images, other.images)
    rows = [dataclasses.replace(row, id=f"other {row.id}") for row in listed(count.pictures.manifest)[5:25]]
    write_manifest(other.manifest, rows)
    cache, count.pictures = count.pictures.cache, other
    assert count(cache=cache) == 0


def test_shards_are_links_to_the_cache_and_cannot_be_written_to(count: Counter) -> None:
    count()
    shards = list(count.pictures.out.rglob("*.h5"))
    assert len(shards) > 2 and all(shard.stat().st_nlink == 2 for shard in shards)
    assert not any(shard.stat().st_mode & 0o222 for shard in shards)


def test_new_code_with_the_same_numbers_computes_a_sample(count: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(count.pictures.out)
    monkeypatch.setattr(shards_module, "detector_code", lambda name: "f" * 64)
    assert count() == 8 and "new code, the same numbers in 8 pictures" in count.said
    assert contents(count.pictures.out) == before
    assert count() == 0
    monkeypatch.undo()


def test_new_code_with_other_numbers_computes_all_once_killed_or_not(
    count: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, cache = contents(count.pictures.out), count.pictures.folder / "copy"
    shutil.copytree(count.pictures.cache, cache, copy_function=os.link)
    monkeypatch.setattr(shards_module, "detector_code", lambda name: "e" * 64)
    plain = DemoDetector.prepare
    monkeypatch.setattr(DemoDetector, "prepare", lambda detector, rgb: plain(detector, np.ascontiguousarray(255 - rgb)))
    assert count() == COUNT and "new code, other numbers (image 'id-" in count.said
    after = contents(count.pictures.out)
    assert after != before

    save, saved = RegionShards.save, []

    def killed(maker: RegionShards, path: Path, *others: object) -> dict:
        saved.append(path)
        if len(saved) == 8:  # a sample's shards come first
            raise KeyboardInterrupt
        return save(maker, path, *others)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RegionShards, "save", killed)
        count(cache=cache)
    first = count.computed
    assert 8 < first < COUNT
    assert count(cache=cache) in range(COUNT - first, COUNT - first + PER_SHARD + 1)
    assert contents(count.pictures.out) == after


def test_exactly_this_environment_is_a_setting(count: Counter) -> None:
    assert count(batch_size=16) == 0
    assert count(batch_size=5) == 0 and count(batch_size=5, exact=True) == COUNT
    assert count(batch_size=5, exact=True) == 0 and count(batch_size=16, exact=True) == 0
    before = contents(count.pictures.out)
    count.rows(lambda rows: rows[1:])
    assert count(batch_size=5, exact=True) == 0
    count.rows(lambda rows: rows[1:])
    assert count(batch_size=3, exact=True) == COUNT - 2 and count(batch_size=3) == 0
    assert contents(count.pictures.out) != before


def test_a_damaged_shard_of_the_cache_is_computed_again(count: Counter) -> None:
    before, shard = contents(count.pictures.out), min(count.pictures.cache.glob("regions/*/*/*.h5"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.chmod(0o644)
    shard.unlink()
    shard.write_bytes(data)
    assert count() == PER_SHARD and contents(count.pictures.out) == before


# -- The cache as a whole ----------------------------------------------------------------------------------------------


def filled(root: Path, name: str, size: int, last: float) -> Path:
    """An entry of a cache that holds `size` bytes and was used last at that time."""
    entry = root / "runs" / (name * 32)
    entry.mkdir(parents=True)
    (entry / "model").write_bytes(bytes(size))
    (entry / "about.json").touch()
    os.utime(entry, (last, last))
    return entry


def test_what_was_used_longest_ago_is_removed_first_and_never_what_is_in_use_or_linked(tmp_path: Path) -> None:
    cache, now = tmp_path / "cache", time.time()
    oldest, linked, used, newest = (filled(cache, name, 1000, now - 100 + k) for k, name in enumerate("abcd"))
    os.link(linked / "model", tmp_path / "a store's shard")
    with in_use(used):
        assert [(entry.folder, entry.own, entry.used) for entry in entries(cache)][:2] == [
            (oldest, 1000, False),
            (linked, 0, False),
        ]
        os.utime(used, (now - 98, now - 98))
        assert prune(cache, 3000) == []
        assert [entry.folder for entry in prune(cache, 2000)] == [oldest]
        assert [entry.folder for entry in prune(cache, 0)] == [newest]
    assert linked.exists() and [entry.folder for entry in prune(cache, 0)] == [used]
    assert not list(linked.parent.glob("*/.used*"))


def test_folders_that_are_not_the_caches_are_left_alone(tmp_path: Path) -> None:
    for name in ("thesis/chapters", "runs/mine", f"runs/{'a' * 32}"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "text").write_bytes(bytes(1000))
    assert entries(tmp_path) == [] and prune(tmp_path, 0) == []
    assert len(list(tmp_path.rglob("text"))) == 3


def test_a_long_run_stays_in_use(tmp_path: Path) -> None:
    entry = filled(tmp_path, "a", 10, 0)
    with in_use(entry):
        for marker in entry.glob(".used*"):
            os.utime(marker, (0, 0))
        assert prune(tmp_path, 0) == []


def test_a_process_that_publishes_second_takes_the_first_ones_shard(count: Counter) -> None:
    """Two processes of other last bits: a shard that is there is never replaced by another sound one."""
    pictures, cache = count.pictures, count.pictures.folder / "both"
    work = {"images": pictures.images, "settings": SETTINGS}
    work |= {"cache": cache, "id_bytes": 10}
    part = Manifest.open(pictures.manifest).images[:PER_SHARD]
    both = [RegionShards(**work, device="cpu", batch_size=8, readers=1) for _ in range(2)]
    for maker in both:
        maker.finished.open(maker.digests(part), partial(maker.again, [part]), maker.keep, "pictures")
    first = both[0].make(part, {}).done
    plain = RegionShards.done
    with pytest.MonkeyPatch.context() as patch:  # the second has begun before the first had ended
        patch.setattr(RegionShards, "done", lambda *_: None)
        patch.setattr(DemoDetector, "prepare", lambda _, rgb: DemoDetectorPrepare(_, np.ascontiguousarray(255 - rgb)))
        second = both[1].make(part, {}).done
    assert second["sha256"] == first["sha256"] == plain(both[1], part)["sha256"]
    assert Path(first["path"]).stat().st_size == first["size"] and sha256(Path(first["path"])) == first["sha256"]


def test_numbers_that_are_all_a_fifth_smaller_are_other_numbers(count: Counter) -> None:
    regions = RegionStore(count.pictures.out).regions(0)
    unit = dataclasses.replace(regions, features=(regions.features / 100).astype(np.float16))
    assert shards_module.difference(unit, unit) is None
    other = dataclasses.replace(unit, features=(unit.features * np.float16(0.8)).astype(np.float16))
    assert "features differ by" in shards_module.difference(unit, other)


def test_a_marker_of_a_dead_process_keeps_nothing(tmp_path: Path) -> None:
    entry = filled(tmp_path, "a", 10, 0)
    (entry / f".used.{platform.node()}.{2**22 + 1}.tmp").touch()
    assert [removed.folder for removed in prune(tmp_path, 0)] == [entry]


def test_damage_in_the_cache_is_found(count: Counter) -> None:
    assert list(damaged(count.pictures.cache)) == []
    shard = max(count.pictures.cache.glob("regions/*/*/*.h5"))
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert list(damaged(count.pictures.cache)) == [shard]


@pytest.mark.parametrize("spoil", ["another shard", "a shard less"])
def test_a_store_is_installed_as_its_index_lists_it_or_not_at_all(
    count: Counter, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    before, plain = contents(count.pictures.out), region_stores.write_card

    def spoilt(folder: Path) -> None:
        plain(folder)
        if spoil == "another shard":
            (folder / "000099.h5").write_bytes(b"x")
        elif folder.name == "train":
            (folder / "000001.h5").unlink()

    monkeypatch.setattr(region_stores, "write_card", spoilt)
    with pytest.raises(InputError, match=r"its index lists 5 shards, [46] are there: 0000\d\d\.h5"):
        count.pictures.extract(SETTINGS)
    assert contents(count.pictures.out) == before


def test_a_marker_of_a_dead_process_is_removed_by_the_next_user(tmp_path: Path) -> None:
    entry = filled(tmp_path, "a", 10, 0)
    dead = entry / f".used.{platform.node()}.{2**22 + 1}.tmp"
    dead.touch()
    with in_use(entry):
        assert not dead.exists() and len(list(entry.glob(".used*"))) == 1
