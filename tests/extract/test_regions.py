"""The region stage: which pictures it takes, what it refuses, the same bytes again, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from extract.settings import RegionSettings
from extract.stores.regions import FAILURES, RegionStore
from extract.vision.decode import decode
from extract.vision.loading import load_detector
from extract.vision.shards import RegionShards
from manifests import manifest
from manifests.errors import InputError
from tests.extract.region_files import (
    Pictures,
    cached,
    contents,
    encoded,
    large_png,
    mixed_files,
    quick_settings,
    region_settings,
    scene,
    scene_files,
    write_pictures,
)

# pytest undoes the filter that extract.vision.decode sets
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def awkward_files() -> dict[str, tuple[bytes, tuple[int, int] | str]]:
    """Name -> bytes of a picture file, and its (width, height) or why it can't be read; the three bad ones together."""
    picture = scene(0)[0]
    turned = Image.Exif()
    turned[0x0112] = 8
    return {
        "scene.png": (encoded(picture), (160, 160)),
        "cmyk.jpg": (encoded(Image.fromarray(picture[:100]).convert("CMYK"), "JPEG"), (160, 100)),
        "really-a-png.jpg": (encoded(picture[:, :90]), (90, 160)),
        "empty.jpg": (b"", "0 bytes"),
        "truncated.jpg": (encoded(picture, "JPEG")[:1500], "truncated"),
        "notes.png": (b"A caption, no picture.\n" * 9, "not a picture"),
        "grey16.png": (encoded(picture[..., 0].astype(np.uint16) * 257), (160, 160)),
        "palette.png": (encoded(Image.fromarray(picture).quantize(16), transparency=0), (160, 160)),
        "alpha.png": (encoded(Image.fromarray(picture).convert("RGBA")), (160, 160)),
        "turned.jpg": (encoded(np.rot90(picture[:120], -1), "JPEG", exif=turned, quality=95), (160, 120)),
        "one-pixel.png": (encoded(picture[:1, :1]), (1, 1)),
        "huge.png": (large_png(7900, 7900), (7900, 7900)),
    }


AWKWARD = awkward_files()
GOOD = {name: size for name, (_, size) in AWKWARD.items() if isinstance(size, tuple)}
BAD = {name: reason for name, (_, reason) in AWKWARD.items() if isinstance(reason, str)}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """All awkward pictures in a store, three a shard: the second shard holds none."""
    files = {name: data for name, (data, _) in AWKWARD.items()}
    pictures = write_pictures(tmp_path_factory.mktemp("awkward"), files)
    pictures.extract(region_settings(unreadable="skip", images_per_shard=3))
    return pictures


def test_readable_pictures_are_in_the_store_in_order(awkward: Pictures) -> None:
    store = RegionStore(awkward.out)
    assert store.ids == [f"id-{name}" for name in GOOD] and len(store) == len(GOOD)
    assert [store.regions(row).image_size for row in range(len(store))] == list(GOOD.values())
    assert [shard["count"] for shard in store.index["shards"]] == [3, 0, 3, 3]


def test_unreadable_pictures_are_listed_and_nothing_stands_for_them(awkward: Pictures) -> None:
    store = RegionStore(awkward.out)
    failures = [json.loads(line) for line in (awkward.out / FAILURES).read_text().splitlines()]
    assert [(failure["id"], failure["path"]) for failure in failures] == [(f"id-{name}", name) for name in BAD]
    assert all(reason in failure["reason"] for failure, reason in zip(failures, BAD.values(), strict=True))
    for name in BAD:
        assert f"id-{name}" not in store
        with pytest.raises(InputError, match=FAILURES):
            store.row(f"id-{name}")
    for row in range(len(store)):
        assert np.abs(store.regions(row).features).max(1).all()


def test_empty_files_of_two_splits_are_failures_and_no_leak(tmp_path: Path) -> None:
    """As failed downloads leave them; equal pictures in two splits are a leak all the same."""
    pictures = write_pictures(tmp_path, scene_files(4) | {"e.png": b"", "f.jpg": b"", "g.jpg": b"no picture"})
    rows = [*((name, "train" if n % 2 else "test") for n, name in enumerate(scene_files(4)))]
    rows += [("e.png", "train"), ("f.jpg", "test"), ("g.jpg", "val")]
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption,split\n" + "".join(f"{name},A ring.,{split}\n" for name, split in rows))
    listed = {"images": pictures.images, "captions": captions, "format": "folder", "out": pictures.manifest}
    manifest.run(**listed)
    pictures.extract(quick_settings(unreadable="skip"))
    failures = {
        split: [
            json.loads(line)["path"] for line in (pictures.out.with_name(split) / FAILURES).read_text().splitlines()
        ]
        for split in ("train", "val", "test")
    }
    assert failures == {"train": ["e.png"], "val": ["g.jpg"], "test": ["f.jpg"]}
    assert len(RegionStore(pictures.out.parent)) == 4
    (pictures.images / "001.png").write_bytes((pictures.images / "000.png").read_bytes())
    with pytest.raises(InputError, match="same bytes as '000.png'"):
        manifest.run(**listed)


def test_boxes_lie_inside_every_picture(awkward: Pictures) -> None:
    store = RegionStore(awkward.out)
    for row in range(len(store)):
        found = store.regions(row)
        assert found.features.shape == (12, store.dim) and found.boxes.shape == (12, 4)
        assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, 2:] <= found.image_size).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_regions_are_of_the_decoded_picture(awkward: Pictures) -> None:
    settings = region_settings()
    detector, store = load_detector(settings.detector, settings.selection), RegionStore(awkward.out)
    for name in ("cmyk.jpg", "really-a-png.jpg", "grey16.png", "turned.jpg", "one-pixel.png"):
        picture = decode((awkward.images / name).read_bytes())
        (expected,) = detector.detect(detector.prepare(picture)[None], [picture.shape[1::-1]])
        found = store.regions(store.row(f"id-{name}"))
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(found.features.astype(float), expected.features.astype(float), atol=2e-2)


@pytest.mark.parametrize("name", list(BAD))
def test_stop_names_the_picture_and_the_fix_and_leaves_no_store(tmp_path: Path, name: str) -> None:
    pictures = write_pictures(tmp_path, {"a.png": encoded(scene(0)[0]), name: AWKWARD[name][0]})
    with pytest.raises(InputError, match=BAD[name]) as error:
        pictures.extract(region_settings(unreadable="stop"))
    assert error.value.where == str(pictures.images / name) and f"id-{name}" in error.value.what
    assert "unreadable: skip" in error.value.fix
    assert not pictures.out.exists()


@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_changed_and_missing_pictures_stop_the_stage(tmp_path: Path, unreadable: str) -> None:
    pictures = write_pictures(tmp_path, scene_files(3))
    picture = pictures.images / "001.png"
    picture.write_bytes(encoded(scene(9)[0]))
    with pytest.raises(InputError, match="'id-001.png' has changed since the manifest") as error:
        pictures.extract(region_settings(unreadable=unreadable))
    assert error.value.where == str(picture) and "manifest" in error.value.fix
    picture.unlink()
    with pytest.raises(InputError, match="'id-001.png' is in the manifest but can't be opened") as error:
        pictures.extract(region_settings(unreadable=unreadable))
    assert error.value.where == str(picture)
    assert not pictures.out.exists()


def test_all_unreadable_is_an_error(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, {"a.png": b"", "b.png": b"no picture"})
    with pytest.raises(InputError, match="none of its 2 pictures could be read.*0 bytes"):
        pictures.extract(region_settings(unreadable="skip", images_per_shard=1))
    assert not pictures.out.exists()


def test_empty_manifest_is_an_error(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, {})
    with pytest.raises(InputError, match="no image"):
        pictures.extract(region_settings())


def test_wrong_weights_are_an_error_before_any_picture_is_read(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, {"a.png": b""})
    settings = region_settings()
    wrong = settings.detector.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(InputError, match="asks for 0{64}"):
        pictures.extract(settings.model_copy(update={"detector": wrong}))
    assert not pictures.out.exists()


def test_an_earlier_store_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, scene_files(2))
    pictures.extract(region_settings())
    before = contents(pictures.out)
    moved = (pictures.images / "001.png").rename(tmp_path / "moved.png")
    with pytest.raises(InputError):
        pictures.extract(region_settings(score_threshold=0.4))
    assert contents(pictures.out) == before
    moved.rename(pictures.images / "001.png")
    pictures.extract(region_settings(score_threshold=0.4))
    assert RegionStore(pictures.out).recipe["selection"]["score_threshold"] == 0.4
    assert contents(pictures.out) != before


def test_two_runs_give_equal_bytes(dense: Pictures, tmp_path: Path) -> None:
    places = {"out": tmp_path / "again", "cache": tmp_path / "cache"}
    again = dense.extract(region_settings(images_per_shard=4), batch_size=3, readers=1, **places)
    assert contents(again) == contents(dense.out)
    beside = {"index.json", "recipe.json", "failures.jsonl", "README.md", "croissant.json"}
    assert {name for name in contents(again) if not name.endswith(".h5")} == beside


def test_pictures_of_several_shapes_keep_manifest_order(dense: Pictures) -> None:
    store = RegionStore(dense.out)
    assert store.ids == [f"id-{name}" for name in mixed_files()]
    for row in range(len(store)):
        with Image.open(dense.images / f"{row:03d}.png") as image:
            assert store.regions(row).image_size == image.size
    assert len({store.regions(row).image_size for row in range(4)}) > 1


def test_dense_and_ragged_say_what_they_are(dense: Pictures, ragged: Pictures) -> None:
    assert RegionStore(dense.out).index["layout"] == "dense"
    store = RegionStore(ragged.out)
    counts = [len(store.regions(row)) for row in range(len(store))]
    assert store.index["layout"] == "ragged"
    assert min(counts) >= 3 and max(counts) <= 20 and len(set(counts)) > 1


def test_ragged_store_gives_back_what_was_detected(ragged: Pictures) -> None:
    settings = region_settings(min_boxes=3, max_boxes=20)
    detector, store = load_detector(settings.detector, settings.selection), RegionStore(ragged.out)
    assert [shard["count"] for shard in store.index["shards"]] == [4, 4, 2]
    for row in range(10):
        (expected,) = detector.detect(detector.prepare(scene(row)[0])[None], [(160, 160)])
        found = store.regions(row)
        for name in ("features", "boxes", "objects_id", "objects_conf", "attrs_id", "attrs_conf"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
            assert getattr(found, name).dtype == getattr(expected, name).dtype


# -- Resume ------------------------------------------------------------------------------------------------------------


def interrupt(pictures: Pictures, settings: RegionSettings) -> Path:
    """Let a run fail in its second shard, for want of a picture; give the first, staged shard."""
    missing = pictures.images / "005.png"
    moved = missing.rename(pictures.folder / "moved.png")
    with pytest.raises(InputError, match="can't be opened"):
        pictures.extract(settings)
    moved.rename(missing)
    ((name, shard),) = cached(pictures.cache, 4).items()
    assert name == "000000.h5" and len(list(shard.parent.iterdir())) == 2
    assert not pictures.out.exists()
    return shard


@pytest.fixture
def nine(tmp_path: Path) -> Pictures:
    """9 scenes: with 4 a shard, three shards."""
    return write_pictures(tmp_path / "nine", scene_files(9))


def fresh(pictures: Pictures, settings: RegionSettings) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    return contents(pictures.extract(settings, out=pictures.folder / "fresh", cache=pictures.folder / "cache-of-fresh"))


def test_finished_shards_are_not_made_again(nine: Pictures) -> None:
    settings = region_settings(images_per_shard=4)
    shard = interrupt(nine, settings)
    before = shard.stat()
    nine.extract(settings)
    after = (nine.out / "000000.h5").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert contents(nine.out) == fresh(nine, settings)


@pytest.mark.parametrize("damaged", ["shard", "marker", "no marker"])
def test_damaged_staged_shard_is_made_again(nine: Pictures, damaged: str) -> None:
    settings = region_settings(images_per_shard=4)
    shard = interrupt(nine, settings)
    if damaged == "shard":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.chmod(0o644)
        shard.write_bytes(data)
    elif damaged == "marker":
        shard.with_suffix(".json").write_text('{"file": "0000')
    else:
        shard.with_suffix(".json").unlink()
    before = shard.stat().st_mtime_ns
    nine.extract(settings)
    assert (nine.out / "000000.h5").stat().st_mtime_ns != before
    assert contents(nine.out) == fresh(nine, settings)


@pytest.mark.parametrize("change", [{"score_threshold": 0.4}, {"min_boxes": 3, "max_boxes": 20}])
def test_another_recipe_reuses_nothing(nine: Pictures, change: dict, capfd: pytest.CaptureFixture[str]) -> None:
    interrupt(nine, region_settings(images_per_shard=4))
    changed = region_settings(images_per_shard=4, **change)
    nine.extract(changed)
    assert "9 pictures, 9 computed, 0 reused" in capfd.readouterr().out
    assert contents(nine.out) == fresh(nine, changed)


_RUN = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.extract.held import hold
from tests.extract.region_files import Pictures, region_settings
hold(*sys.argv[2:])
Pictures(Path(sys.argv[1])).extract(region_settings(images_per_shard=4))
"""


def test_killed_run_goes_on_where_it_was(nine: Pictures) -> None:
    settings = region_settings(images_per_shard=4)
    expected = fresh(nine, settings)
    # At a picture of the third shard the run waits, with two shards done, until it dies.
    pipe = nine.folder / "pipe"
    os.mkfifo(pipe)
    with open(nine.folder / "log", "wb") as log:
        command = [sys.executable, "-c", _RUN, nine.folder, nine.images / "008.png", pipe]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path.cwd())
    seen: dict[str, bytes] = {}
    deadline = time.monotonic() + 120
    try:
        while len(list(nine.cache.glob("regions/*/*/*.json"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline, (nine.folder / "log").read_text()
            for name, path in cached(nine.cache, 4).items():
                seen.setdefault(name, path.read_bytes())
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL and not nine.out.exists()
    shards = cached(nine.cache, 4)
    assert list(shards) == ["000000.h5", "000001.h5"]
    # Whatever stood under its final name was whole from the first moment.
    assert "000000.h5" in seen and all(expected[name] == data for name, data in seen.items())
    before = [(shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards.values()]
    nine.extract(settings)
    after = [(nine.out / name).stat() for name in shards]
    assert [(stat.st_ino, stat.st_mtime_ns) for stat in after] == before
    assert contents(nine.out) == expected


def test_pictures_with_too_few_proposals_are_left_out_as_unreadable_ones(tmp_path: Path) -> None:
    thin = encoded(np.full((4, 400, 3), 90, np.uint8))
    pictures = write_pictures(tmp_path, scene_files(1) | {"thin.png": thin, "thin too.png": thin} | scene_files(1, 1))
    with pytest.raises(InputError, match=r"'id-thin\.png' has too few regions: .* 128 regions .*unreadable: skip"):
        pictures.extract(region_settings(min_boxes=200, max_boxes=200))
    store = RegionStore(pictures.extract(region_settings(min_boxes=200, max_boxes=200, unreadable="skip")))
    assert store.ids == ["id-000.png", "id-001.png"]
    failures = [json.loads(line) for line in (pictures.out / FAILURES).read_text().splitlines()]
    assert [failure["path"] for failure in failures] == ["thin.png", "thin too.png"]
    assert all("fewer than the 200 asked for" in failure["reason"] for failure in failures)


def test_truncated_pictures_are_taken_as_far_as_they_go_where_asked(tmp_path: Path) -> None:
    whole = encoded(scene(3)[0], "JPEG", quality=95)
    pictures = write_pictures(tmp_path, {"whole.jpg": whole, "cut.jpg": whole[: len(whole) * 2 // 3]})
    strict = RegionStore(pictures.extract(region_settings(unreadable="skip")))
    assert strict.ids == ["id-whole.jpg"]
    store = RegionStore(pictures.extract(region_settings(truncated="take")))
    assert store.ids == ["id-whole.jpg", "id-cut.jpg"] and store.recipe["truncated"] == "take"
    np.testing.assert_array_equal(store.regions(0).features, strict.regions(0).features)
    cut = decode((pictures.images / "cut.jpg").read_bytes(), truncated=True)
    assert (cut[-20:] == 128).mean() > 0.9 and np.abs(cut[:60].astype(int) - scene(3)[0][:60]).mean() < 4
    assert "truncated" not in strict.recipe


@pytest.mark.parametrize(
    ("device", "shape", "pictures"),
    [
        ("cpu", (3, 160, 160), 16),
        ("cuda", (3, 600, 1000), 16),
        ("cuda", (3, 300, 500), 64),
        ("cuda", (3, 9000, 9000), 1),
    ],
)
def test_a_gpus_batch_is_counted_in_pixels(device: str, shape: tuple[int, ...], pictures: int) -> None:
    assert RegionShards.pictures_per_batch(SimpleNamespace(device=device, batch_size=16), shape) == pictures
