"""The region store and what it is made of: HDF5 shards, recipes, staging and building."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from extract.engine.build import building, installing
from extract.engine.finished import Staging
from extract.engine.maker import Maker, ShardJob
from extract.stores import hdf5
from extract.stores.hdf5 import MappedHDF5, write_hdf5
from extract.stores.made import note_made
from extract.stores.open_files import MOST_OPEN
from extract.stores.recipe import read_recipe, require_same_recipe, write_recipe
from extract.stores.regions import INDEX, Regions, RegionStore, region_index, write_shard
from manifests.errors import InputError
from manifests.files import fingerprint, sha256, write_json
from tests.extract.region_files import Pictures, contents
from tests.pipeline.many_shards import write_data_set


@pytest.fixture
def copy(ragged: Pictures, tmp_path: Path) -> Path:
    """A copy of the ragged store, to be spoilt."""
    return shutil.copytree(ragged.out, tmp_path / "copy")


def spoil(file: Path, **values: object) -> None:
    """Change keys of a JSON file."""
    write_json(file, json.loads(file.read_text()) | values)


# -- HDF5 --------------------------------------------------------------------------------------------------------------

ARRAYS = {
    "b": np.arange(12, dtype=np.float16).reshape(2, 3, 2),
    "a": np.array([b"x", b"long"]),
    "odd": np.arange(3, dtype=np.int8),
    "unaligned": np.arange(4, dtype=np.int64),
    "empty": np.empty((0, 5), np.float32),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


def test_plain_h5py_reads_contiguous_uncompressed_datasets(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", ARRAYS, {"schema": 1, "recipe_hash": "äb"})
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == set(ARRAYS)
        assert file.attrs["schema"] == 1 and file.attrs["recipe_hash"].decode() == "äb"
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file[name][()], array)
            assert file[name].dtype == array.dtype and file[name].chunks is None and file[name].compression is None


def test_mapped_arrays_equal_what_was_written_and_cannot_be_changed(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", ARRAYS, {"schema": 1, "recipe_hash": "äb"})
    mapped = MappedHDF5(tmp_path / "a.h5")
    assert mapped.attributes == {"schema": 1, "recipe_hash": "äb"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(mapped[name], array)
        assert mapped[name].dtype == array.dtype
    with pytest.raises(ValueError, match="read-only"):
        mapped["b"][0] = 1
    assert "b" in mapped and "c" not in mapped
    with pytest.raises(KeyError, match="no dataset 'c'.*transposed"):
        mapped["c"]


def test_opened_file_is_pickled_without_its_map(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", {"features": np.arange(10_000)}, {"schema": 1})
    mapped = MappedHDF5(tmp_path / "a.h5")
    assert mapped["features"][-1] == 9999
    pickled = pickle.dumps(mapped)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)["features"][-1] == 9999


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a", ARRAYS, {"schema": 1})
    time.sleep(1.1)  # HDF5 would write whole seconds
    write_hdf5(tmp_path / "b", {name: array.copy() for name, array in ARRAYS.items()}, {"schema": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", ARRAYS, {})
    before = contents(tmp_path)
    with pytest.raises(TypeError):
        write_hdf5(tmp_path / "a.h5", {"first": np.zeros(1000), "second": np.array([object()])}, {})
    with pytest.raises(TypeError):
        write_hdf5(tmp_path / "new.h5", {"first": np.zeros(1000), "second": np.array([object()])}, {})
    assert contents(tmp_path) == before


def test_chunked_dataset_cannot_be_mapped(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((8, 8)), chunks=(4, 4))
    with pytest.raises(InputError, match="'features' is chunked"):
        MappedHDF5(tmp_path / "a.h5")["features"]


# -- Recipes -----------------------------------------------------------------------------------------------------------


def test_recipe_comes_back_and_its_hash_is_of_the_recipe_alone(tmp_path: Path) -> None:
    recipe = {"b": 1, "a": {"c": [1, 2]}}
    assert write_recipe(tmp_path, recipe) == fingerprint(recipe)
    assert read_recipe(tmp_path) == (recipe, fingerprint({"a": {"c": [1, 2]}, "b": 1}))


def test_an_attribute_that_is_no_text_leaves_other_threads_their_files(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "sound.h5", {"a": np.zeros(2)}, {"schema": 1})
    with h5py.File(tmp_path / "damaged.h5", "w") as file:
        file.attrs["recipe_hash"] = np.bytes_(b"\xff\xfe")
    # The error is held, and so is all that it came from: an iterator of h5py's among it would keep h5py's lock.
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from extract.stores.hdf5 import MappedHDF5
from manifests.errors import InputError
try:
    MappedHDF5(sys.argv[1]).attributes
except InputError as error:
    held = error
with ThreadPoolExecutor(1) as other:
    print(other.submit(lambda: MappedHDF5(sys.argv[2])["a"].tolist()).result(), held.what)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "damaged.h5"), str(tmp_path / "sound.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("[0.0, 0.0] not a readable HDF5 file ('utf-8'")


def test_threads_read_headers_while_garbage_is_collected() -> None:
    """Before Python 3.11.8, Python's parser failed where garbage collection let another thread into it."""
    script = """
import gc, io, sys, threading, time
import numpy as np
from extract.stores import npy

class Slow:
    def __del__(self):
        time.sleep(0.0001)

def litter():
    while not done:
        slow = Slow()
        slow.itself = slow
        del slow
        time.sleep(0.0002)

def read():
    for _ in range(800):
        try:
            npy.parse(data, "here", fix="none")
        except Exception as error:
            errors.append(error)

sys.setswitchinterval(1e-6)
gc.set_threshold(17)
buffer, errors, done = io.BytesIO(), [], False
np.save(buffer, np.zeros((3, 4), np.float32))
data = buffer.getvalue()
readers = [threading.Thread(target=read) for _ in range(8)]
beside = threading.Thread(target=litter)
for thread in (beside, *readers):
    thread.start()
for thread in readers:
    thread.join()
done = True
assert not errors, errors
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("text", [None, "", "{}", '{"recipe": {}}', "[1]", '{"recipe": {"a": 2}, "recipe_hash": "0"}'])
def test_missing_broken_or_altered_recipe_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_recipe(tmp_path)
    assert error.value.where == str(tmp_path / "recipe.json")


def test_different_recipes_are_named_with_the_first_differing_key() -> None:
    ours = {"a": 1, "detector": {"name": "demo", "resize": {"longest": 256, "shortest": 160}}, "z": 1}
    require_same_recipe(ours, "here", json.loads(json.dumps(ours)), "there")
    theirs = {"a": 1, "detector": {"name": "demo", "resize": {"longest": 320, "shortest": 96}}, "z": 2}
    with pytest.raises(InputError, match="here.*there.*'detector.resize.longest': 256 here, 320 there"):
        require_same_recipe(ours, "here", theirs, "there")
    with pytest.raises(InputError, match="'detector.resize'"):
        require_same_recipe(ours, "here", ours | {"detector": {"name": "demo"}}, "there")


def test_what_made_a_store_is_noted_beside_it_a_line_each_time(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        note_made(tmp_path / "regions", "0123", "numpy", device=device)
    lines = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text().splitlines()]
    assert [line["device"] for line in lines] == ["cpu", "cuda"]
    assert lines[0]["packages"] == {"numpy": np.__version__} and lines[0]["store"] == "regions"


# -- Staging -----------------------------------------------------------------------------------------------------------


def test_staged_shard_counts_only_with_a_marker_that_fits(tmp_path: Path) -> None:
    staged = Staging(tmp_path, {"threshold": 0.2})
    staged.prepare()
    assert staged.finished("first") is None
    draft = staged.draft("first")
    draft.write_bytes(b"features")
    facts = staged.publish(draft, "first", {"count": 3})
    shard = Path(facts["path"])
    assert facts["count"] == 3 and shard.parent == staged.folder and not draft.exists()
    assert Staging(tmp_path, {"threshold": 0.2}).finished("first") == facts
    assert Staging(tmp_path, {"threshold": 0.2}).finished("second") is None
    assert Staging(tmp_path, {"threshold": 0.3}).folder != staged.folder
    marker = shard.with_suffix(".json")
    marker.write_text(marker.read_text().replace('"count": 3', '"count": 4'))
    assert Staging(tmp_path, {"threshold": 0.2}).finished("first") is None
    marker.write_text(marker.read_text().replace('"count": 4', '"count": 3'))
    shard.chmod(0o644)
    shard.write_bytes(b"Features")
    again = Staging(tmp_path, {"threshold": 0.2})
    assert again.finished("first") is None
    draft.write_bytes(b"features")
    assert again.publish(draft, "first", {"count": 3}) == facts and shard.read_bytes() == b"features"


class Words(Maker[list[str]]):
    """Makes shards of words."""

    key = {}

    def __init__(self, finished: Staging):
        self.finished = finished

    def content(self, part: list[str]) -> list[str]:
        return part

    def write(self, path: Path, part: list[str], known: object, advance: Callable[[int], object]) -> tuple[dict, int]:
        path.write_text(" ".join(part))
        advance(len(part))
        return {}, len(part)


PARTS = [["one", "two"], ["three"], ["three"]]


def build_words(root: Path, spoil: Callable[[Path, list[dict]], None] = lambda folder, done: None) -> Path:
    job, out = ShardJob(Words(Staging(root / "staging", "key")), PARTS, "words", "words"), root / "out"
    with building(out, "writing of words", "key", [job], title="words tiny") as built:
        done = [shard | {"file": f"{number:06d}.h5"} for number, shard in enumerate(built[0])]
        with installing(out, done) as folder:
            index = {"shards": [{"file": shard["file"]} for shard in done]}
            (folder / INDEX).write_text(json.dumps(index))
            spoil(folder, done)
    return out


def test_a_store_is_built_without_markers_and_leftovers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    staged, out = Staging(tmp_path / "staging", "key"), tmp_path / "out"
    out.mkdir()
    (out / "old.h5").write_bytes(b"old")
    staged.prepare()
    staged.draft(["one"]).write_bytes(b"half")
    build_words(tmp_path)
    shards = {"000000.h5": b"one two", "000001.h5": b"three", "000002.h5": b"three"}
    assert {name: data for name, data in contents(out).items() if name != INDEX} == shards
    assert not any((tmp_path / "staging").rglob("*"))
    assert capsys.readouterr().out.splitlines()[-1] == "words tiny: 4 words, 3 computed, 1 reused"


@pytest.mark.parametrize("spoil", ["removed", "cut", "unlisted", "not there"])
def test_nothing_is_installed_but_what_the_index_lists(spoil: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.h5").write_bytes(b"old")

    def spoilt(folder: Path, done: list[dict]) -> None:
        listed = [shard["file"] for shard in done]
        if spoil in ("unlisted", "not there"):
            names = {"unlisted": listed[:2], "not there": [*listed, "000009.h5"]}[spoil]
            (folder / INDEX).write_text(json.dumps({"shards": [{"file": name} for name in names]}))
        elif spoil == "removed":
            (folder / listed[1]).unlink()
        else:
            (folder / "000009.h5").touch()

    with pytest.raises(InputError, match=r"00000\d\.h5"):
        build_words(tmp_path, spoilt)
    assert contents(tmp_path / "out") == {"old.h5": b"old"}


@pytest.mark.parametrize("spoil", ["removed", "cut"])
def test_a_shard_that_is_gone_or_cut_is_not_installed(spoil: str, tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    shard.write_bytes(b"whole" if spoil == "removed" else b"who")
    done = [{"path": str(shard), "size": 5, "file": "000000.h5"}]
    if spoil == "removed":
        shard.unlink()
    with pytest.raises(InputError, match="shard"), installing(tmp_path / "out", done):
        pass
    assert not (tmp_path / "out").exists()


# -- The region store --------------------------------------------------------------------------------------------------


def regions_of(count: int, boxes: int, seed: int = 0) -> list[Regions]:
    rng = np.random.default_rng(seed)
    return [
        Regions(rng.random((boxes, 6)).astype(np.float16), rng.random((boxes, 4)).astype(np.float32), (7 + i, 5))
        for i in range(count)
    ]


def write_store(folder: Path, shards: list[tuple[list[str], list[Regions]]], dense: int | None) -> RegionStore:
    folder.mkdir()
    recipe_hash = write_recipe(folder, {"made": "by hand"})
    listed = []
    for number, (ids, regions) in enumerate(shards):
        file = f"{number:06d}.h5"
        write_shard(folder / file, ids, regions, recipe_hash, dim=6, dense=dense, id_bytes=12)
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        digest = sha256(folder / file)
        listed.append({"file": file, "count": len(ids), "first": first, "last": last, "sha256": digest})
    write_json(folder / INDEX, region_index(listed, dim=6, dense=dense, object_names=None, attribute_names=None))
    return RegionStore(folder)


@pytest.mark.parametrize("dense", [4, None], ids=["dense", "ragged"])
def test_shards_with_and_without_pictures(tmp_path: Path, dense: int | None) -> None:
    first = regions_of(2, 4, seed=1)
    last = regions_of(1, 4, seed=2) if dense else [*regions_of(1, 0), *regions_of(1, 9, seed=3)]
    ids = ["bild-ü", "zweites"], [], ["3", "a b/c"][: len(last)]
    store = write_store(tmp_path / "store", [(ids[0], first), (ids[1], []), (ids[2], last)], dense)
    assert store.ids == [*ids[0], *ids[2]] and len(store) == 2 + len(last) and store.dim == 6
    for row, expected in enumerate([*first, *last]):
        found = store.regions(row)
        np.testing.assert_array_equal(found.features, expected.features)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        assert found.image_size == expected.image_size and len(found) == len(expected)
        assert found.objects_id is None and found.attrs_conf is None
        assert store.row(store.ids[row]) == row
    for row in (-1, len(store)):
        with pytest.raises(IndexError):
            store.regions(row)
    with pytest.raises(InputError, match="'gone'"):
        store.row("gone")


def test_shard_has_the_documented_datasets(dense: Pictures, ragged: Pictures) -> None:
    labels = {"objects_id", "objects_conf", "attrs_id", "attrs_conf"}
    with h5py.File(dense.out / "000000.h5") as file:
        assert set(file) == {"features", "boxes", "num_boxes", "image_size", "image_id"} | labels
        assert file["features"].shape == (4, 12, 256) and file["boxes"].shape == (4, 12, 4)
        assert file["num_boxes"][:].tolist() == [12] * 4 and file["num_boxes"].dtype == np.int16
        assert file["image_size"].dtype == np.int32 and file["image_id"][0] == b"id-000.png"
        assert all(file[name].chunks is None for name in file)
    with h5py.File(ragged.out / "000000.h5") as file:
        counts = file["num_boxes"][:]
        assert file["offsets"][:].tolist() == [0, *np.cumsum(counts)]
        assert file["features"].shape == (counts.sum(), 256) and file["boxes"].shape == (counts.sum(), 4)


@pytest.mark.parametrize("layout", ["dense", "ragged"])
def test_the_cards_example_runs(layout: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = request.getfixturevalue(layout).out
    example = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[0]
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(example, names)
    expected = RegionStore(folder).regions(0)
    np.testing.assert_array_equal(names["features"], expected.features)
    np.testing.assert_array_equal(names["boxes"], expected.boxes)
    assert names["image_id"] == "id-000.png"


def test_index_tells_the_shards_apart(ragged: Pictures) -> None:
    store = RegionStore(ragged.out)
    assert [(s["file"], s["count"], s["first"], s["last"]) for s in store.index["shards"]] == [
        ("000000.h5", 4, "id-000.png", "id-003.png"),
        ("000001.h5", 4, "id-004.png", "id-007.png"),
        ("000002.h5", 2, "id-008.png", "id-009.png"),
    ]


def test_regions_are_views_of_the_map(dense: Pictures) -> None:
    store = RegionStore(dense.out)
    first, again = store.regions(0), store.regions(0)
    assert np.shares_memory(first.features, again.features)
    assert not first.features.flags.writeable and not first.boxes.flags.writeable


@pytest.mark.parametrize("dense", [4, None], ids=["dense", "ragged"])
def test_padded_batches_are_the_regions(tmp_path: Path, dense: int | None) -> None:
    counts = [4] * 5 if dense else [2, 5, 0, 1, 3]
    pictures = [regions_of(1, count, seed)[0] for seed, count in enumerate(counts)]
    shards = [(["a", "b"], pictures[:2]), (["c", "d", "e"], pictures[2:])]
    store = write_store(tmp_path / "store", shards, dense)
    for rows in ([3], [4, 0, 4, 2, 1], [3, 0]):
        features, boxes, num_boxes, image_size = store.padded(rows)
        assert num_boxes.tolist() == [counts[row] for row in rows]
        assert features.dtype == np.float16 and boxes.dtype == np.float32
        assert features.shape[:2] == boxes.shape[:2] == (len(rows), max(counts[row] for row in rows))
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(features[i, : counts[row]], pictures[row].features)
            np.testing.assert_array_equal(boxes[i, : counts[row]], pictures[row].boxes)
            assert not features[i, counts[row] :].any() and not boxes[i, counts[row] :].any()
            assert tuple(image_size[i]) == pictures[row].image_size
    for row in (-1, len(store)):
        with pytest.raises(IndexError):
            store.padded([0, row])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is resident")
def test_padded_batches_do_not_stay_resident(tmp_path: Path) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    features = np.ones((400, 36, 1024), np.float16)
    boxes = np.zeros((36, 4), np.float32)
    recipe_hash = write_recipe(tmp_path, {"made": "by hand"})
    ids = [f"{i:03d}" for i in range(400)]
    pictures = [Regions(some, boxes, (5, 5)) for some in features]
    write_shard(tmp_path / "0.h5", ids, pictures, recipe_hash, dim=1024, dense=36, id_bytes=3)
    shard = {"file": "0.h5", "count": 400, "first": ids[0], "last": ids[-1], "sha256": sha256(tmp_path / "0.h5")}
    index = region_index([shard], dim=1024, dense=36, object_names=None, attribute_names=None)
    write_json(tmp_path / INDEX, index)
    store = RegionStore(tmp_path)
    store.padded(range(20))
    before = resident()
    for first in range(0, 400, 20):
        store.padded(range(first, first + 20))
    assert resident() - before < features.nbytes / 4


def checksum(store: RegionStore, row: int) -> float:
    return float(store.regions(row).features.astype(np.float64).sum())


def test_opened_store_can_be_pickled(ragged: Pictures) -> None:
    store = RegionStore(ragged.out)
    expected = [checksum(store, row) for row in range(len(store))]
    assert store.ids
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert [checksum(copy, row) for row in range(len(copy))] == expected and copy.ids == store.ids


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_opened_store_works_in_other_processes(ragged: Pictures, method: str) -> None:
    store = RegionStore(ragged.out)
    expected = [store.regions(row) for row in range(0, 10, 3)]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map_async(store.regions, range(0, 10, 3)).get(timeout=60)
    for there, here in zip(found, expected, strict=True):
        np.testing.assert_array_equal(there.features, here.features)
        np.testing.assert_array_equal(there.boxes, here.boxes)


def test_shard_of_another_recipe_is_refused_by_row_and_by_id(dense: Pictures, copy: Path) -> None:
    shutil.copy(dense.out / "000001.h5", copy / "000001.h5")
    theirs, ours = read_recipe(dense.out)[1], read_recipe(copy)[1]
    for use in (lambda store: store.regions(5), lambda store: store.ids, lambda store: store.row("id-000.png")):
        with pytest.raises(InputError, match=f"{theirs}.*{ours}") as error:
            use(RegionStore(copy))
        assert error.value.where == str(copy / "000001.h5")
    RegionStore(copy).regions(0)


def test_shard_of_another_length_is_refused(copy: Path) -> None:
    shutil.copy(copy / "000002.h5", copy / "000000.h5")
    with pytest.raises(InputError, match="holds 2 images, index.json lists 4") as error:
        RegionStore(copy).regions(0)
    assert error.value.where == str(copy / "000000.h5")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_truncated_shard_is_refused(copy: Path, keep: float) -> None:
    shard = copy / "000000.h5"
    data = shard.read_bytes()
    shard.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError) as error:
        RegionStore(copy).regions(0)
    assert error.value.where == str(shard)
    RegionStore(copy).regions(4)


def test_missing_shard_is_refused(copy: Path) -> None:
    (copy / "000002.h5").unlink()
    with pytest.raises(InputError) as error:
        RegionStore(copy).regions(9)
    assert error.value.where == str(copy / "000002.h5")


@pytest.mark.parametrize("text", [None, "", "{", '{"images": 3}'])
def test_missing_or_broken_index_is_refused(copy: Path, text: str | None) -> None:
    (copy / INDEX).unlink() if text is None else (copy / INDEX).write_text(text)
    with pytest.raises(InputError) as error:
        RegionStore(copy)
    assert error.value.where == str(copy / INDEX)


def test_other_schema_is_refused(copy: Path) -> None:
    spoil(copy / INDEX, schema=2)
    with pytest.raises(InputError, match="schema: 2, this program reads 1"):
        RegionStore(copy)


def test_altered_recipe_is_refused(copy: Path) -> None:
    recipe = RegionStore(copy).recipe
    spoil(copy / "recipe.json", recipe=recipe | {"selection": recipe["selection"] | {"score_threshold": 0.1}})
    with pytest.raises(InputError, match="doesn't match its own hash"):
        RegionStore(copy)


def test_altered_recipe_with_a_new_hash_does_not_fit_the_shards(copy: Path) -> None:
    recipe = RegionStore(copy).recipe | {"selection": {"rule": "mine"}}
    spoil(copy / "recipe.json", recipe=recipe, recipe_hash=fingerprint(recipe))
    with pytest.raises(InputError, match="never mixed"):
        RegionStore(copy).regions(0)


def test_recipes_of_two_stores_are_distinguished(dense: Pictures, ragged: Pictures) -> None:
    one, other = RegionStore(dense.out), RegionStore(ragged.out)
    with pytest.raises(InputError, match=r"'selection.max_boxes': 12 here, 20 there") as error:
        require_same_recipe(one.recipe, one.folder, other.recipe, other.folder)
    assert error.value.where == str(dense.out) and str(ragged.out) in error.value.what


# -- Many shards -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 100 shards of two pictures each."""
    folder = tmp_path_factory.mktemp("hundred")
    return write_data_set(folder, 100) / "regions"


def test_an_epoch_of_random_batches_parses_each_shard_once_and_keeps_few_open(
    hundred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def counted(path: Path) -> object:
        parsed.append(path.name)
        return read_layout(path)

    read_layout = hdf5.read_layout
    monkeypatch.setattr(hdf5, "read_layout", counted)
    before = len(os.listdir("/proc/self/fd"))
    store, order = RegionStore(hundred), np.random.default_rng(3).permutation(200)
    expected = np.stack([store.regions(row).features for row in order])
    for start in range(0, 200, 25):
        rows = order[start : start + 25]
        np.testing.assert_array_equal(store.padded(rows.tolist())[0], expected[start : start + 25])
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * MOST_OPEN
    assert sorted(parsed) == [f"{number:06d}.h5" for number in range(100)]
    del store
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_what_is_read_at_the_moment_stays_open_when_others_are_opened(hundred: Path) -> None:
    store = RegionStore(hundred)
    view, first = store.regions(0).features, store.regions(0).features.copy()
    read, out = store.shard(0).row_reader("features"), np.empty((3, 8), np.float16)
    for row in range(200):
        store.regions(row)
    np.testing.assert_array_equal(view, first)
    read(0, out)
    np.testing.assert_array_equal(out, first)


def test_a_shard_that_was_replaced_while_it_was_in_use_is_refused(hundred: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(hundred, tmp_path / "copy")
    store = RegionStore(copy)
    store.regions(0)
    for row in range(2, 200):
        store.regions(row)
    shutil.copy(copy / "000001.h5", copy / "new")
    os.replace(copy / "new", copy / "000000.h5")
    with pytest.raises(InputError, match=r"000000\.h5: it was replaced while it was in use"):
        store.regions(0)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(hundred: Path, tmp_path: Path) -> None:
    store = RegionStore(shutil.copytree(hundred, tmp_path / "copy"))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        with pytest.raises(InputError, match=r"can't be opened \(Too many open files\).*ulimit -n"):
            store.regions(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    (tmp_path / "copy" / "000000.h5").unlink()
    with pytest.raises(InputError, match=r"can't be opened \(No such file or directory\).*fetch the store again"):
        store.regions(0)
    assert len(store.regions(2)) == 3


def test_a_link_in_a_file_leads_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["numbers"] = np.arange(4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"] = h5py.ExternalLink("secret.h5", "numbers")
        file["own"] = np.arange(3)
    mapped = MappedHDF5(tmp_path / "a.h5")
    assert "numbers" not in mapped and mapped["own"].tolist() == [0, 1, 2]


def test_a_file_that_somebody_else_has_open_is_read(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.h5", {"x": np.arange(3)}, {"schema": 1})
    with h5py.File(tmp_path / "a.h5"):
        assert MappedHDF5(tmp_path / "a.h5")["x"].tolist() == [0, 1, 2]
