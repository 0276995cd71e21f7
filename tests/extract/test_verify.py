"""`selfalign verify`: a sound store has no findings, and each kind of damage is named with its file, row and id."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from extract.check.verify import Verification, run, stores_in
from extract.stores.recipe import read_recipe, write_recipe
from extract.stores.regions import FAILURES, INDEX
from manifests.errors import InputError
from manifests.files import sha256, write_json, write_text
from manifests.schema import SPLITS
from manifests.tables import Manifest, write_manifest
from pipeline.cli import main
from tests.extract.exchange_files import Import
from tests.extract.region_files import Pictures, encoded, region_settings, scene, write_pictures
from tests.extract.test_intact import flip

SPLIT_STORES = [f"regions/{split}" for split in SPLITS]


@pytest.fixture(params=["ragged", "dense"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a store, to be spoilt, with its manifest where `run` finds it by itself."""
    return copied(request.getfixturevalue(request.param), tmp_path)


@pytest.fixture
def dense_copy(dense: Pictures, tmp_path: Path) -> Path:
    return copied(dense, tmp_path)


@pytest.fixture
def ragged_copy(ragged: Pictures, tmp_path: Path) -> Path:
    return copied(ragged, tmp_path)


def copied(pictures: Pictures, folder: Path) -> Path:
    shutil.copytree(pictures.manifest, folder / "manifest")
    return shutil.copytree(pictures.out, folder / "regions")


def change(store: Path, shard: str, name: str, edit: Callable[[np.ndarray], object], *, sign: bool = True) -> None:
    """Edit a dataset of a shard in place, and unless `sign` is off write its new sha256 into the index."""
    with h5py.File(store / shard, "r+") as file:
        array = file[name][()]
        edit(array)
        file[name][...] = array
    if sign:
        resign(store, shard)


def resign(store: Path, shard: str, **facts: object) -> None:
    index = json.loads((store / INDEX).read_text())
    (entry,) = (entry for entry in index["shards"] if entry["file"] == shard)
    entry.update({"sha256": sha256(store / shard)} | facts)
    write_json(store / INDEX, index)


def found(store: Path) -> list[str]:
    """All findings, as they are printed."""
    verification = run(store=store)
    assert verification.total == len(verification.findings)
    return [str(finding) for finding in verification.findings]


def test_a_store_of_the_stage_is_sound(copy: Path) -> None:
    verification = run(store=copy)
    assert verification.findings == [] and verification.total == 0
    rows = list(Manifest.open(copy.parent / "manifest").captioned)
    assert verification.images == len(rows) and verification.shards == -(-len(rows) // 4)
    assert verification.text().startswith("sound: ") and "\n" not in verification.text()


def test_a_folder_of_stores_is_verified_store_by_store(data_set_copy: Path) -> None:
    said = CliRunner().invoke(main, ["verify", str(data_set_copy)])
    assert said.exit_code == 0
    assert [line.split(" (")[0] for line in said.stdout.splitlines()] == [
        f"sound: {data_set_copy / store}" for store in ("pack", *SPLIT_STORES, "tokens")
    ]
    said = CliRunner().invoke(main, ["verify", str(data_set_copy / "regions")])
    assert [line.split(" (")[0] for line in said.stdout.splitlines()] == [
        f"sound: {data_set_copy / store}" for store in SPLIT_STORES
    ]
    (data_set_copy / "regions/train" / INDEX).unlink()
    flip(data_set_copy / "tokens" / "tokens.h5", 0.5)
    said = CliRunner().invoke(main, ["verify", str(data_set_copy)])
    assert said.exit_code == 1
    assert f"sound: {data_set_copy / 'pack'} (" in said.stdout and "index.json: not a store" in said.stdout
    assert "tokens.h5: sha256 is" in said.stdout


@pytest.mark.parametrize("folder", ["manifest", "nowhere"])
def test_a_path_that_is_no_store_says_what_to_name(data_set_copy: Path, folder: str) -> None:
    said = CliRunner().invoke(main, ["verify", str(data_set_copy / folder)])
    assert said.exit_code == 1 and "data/D/regions" in said.stderr and said.stdout == ""


def test_without_a_manifest_the_rest_is_verified(copy: Path) -> None:
    shutil.rmtree(copy.parent / "manifest")
    verification = run(store=copy)
    assert verification.total == 0 and "no manifest" in verification.text()


def test_another_manifest_can_be_named(dense_copy: Path, ragged: Pictures) -> None:
    verification = run(store=dense_copy, manifest=ragged.manifest)
    assert verification.total and verification.manifest == ragged.manifest


def test_a_flipped_byte_names_the_shard(copy: Path) -> None:
    data = bytearray((copy / "000001.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "000001.h5").write_bytes(data)
    findings = found(copy)
    assert findings[0].startswith("000001.h5: sha256 is ") and INDEX in findings[0]


def test_a_missing_shard_is_one_finding(copy: Path) -> None:
    (copy / "000001.h5").unlink()
    assert found(copy) == ["000001.h5: the shard is missing, index.json lists it with 4 images"]


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.9])
def test_a_truncated_shard_is_named(copy: Path, part: float) -> None:
    path = copy / "000000.h5"
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    findings = found(copy)
    assert len(findings) == 2 and all(finding.startswith("000000.h5: ") for finding in findings)
    assert "sha256" in findings[0] and "can't be read" in findings[1]


def test_an_unlisted_shard_is_named(copy: Path) -> None:
    shutil.copy(copy / "000000.h5", copy / "000099.h5")
    assert found(copy) == ["000099.h5: index.json doesn't list this shard"]


def test_an_image_that_is_nowhere_is_named_with_its_row(copy: Path) -> None:
    path = copy.parent / "manifest"
    rows = list(Manifest.open(path).captioned)
    new = replace(rows[0], id="new", path="n")
    write_manifest(path, [*rows[:3], new, *rows[3:]])
    assert found(copy) == [f"{path} row 3 (new): neither in the store nor in {FAILURES}"]


def test_an_image_that_the_manifest_lacks_is_named(copy: Path) -> None:
    path = copy.parent / "manifest"
    rows = list(Manifest.open(path).captioned)
    write_manifest(path, [row for row in rows if row.id != "id-005.png"])
    assert found(copy) == ["000001.h5 row 1 (id-005.png): the manifest has no such image in split 'train'"]


def test_another_order_than_the_manifests_is_named(copy: Path) -> None:
    path = copy.parent / "manifest"
    rows = list(Manifest.open(path).captioned)
    write_manifest(path, [rows[1], rows[0], *rows[2:]])
    (finding,) = found(copy)
    assert finding.startswith("000000.h5 row 1 (id-001.png): not in the manifest's order")


def test_a_doubled_id_is_named_with_both_places_and_the_lost_one(copy: Path) -> None:
    change(copy, "000001.h5", "image_id", lambda ids: ids.__setitem__(2, b"id-001.png"))
    findings = found(copy)
    assert "000001.h5 row 2 (id-001.png): this image is in the store already, at 000000.h5 row 1" in findings
    assert any("(id-006.png): neither in the store" in finding for finding in findings) and len(findings) == 2


def test_the_first_and_last_id_agree_with_the_index(dense_copy: Path) -> None:
    resign(dense_copy, "000002.h5", first="other", last="id-012.png")
    findings = found(dense_copy)
    assert findings == [
        "000002.h5: its first id is 'id-008.png', index.json says 'other'",
        "000002.h5: its last id is 'id-011.png', index.json says 'id-012.png'",
    ]


def test_counts_agree_with_the_index(dense_copy: Path) -> None:
    resign(dense_copy, "000002.h5", count=5)
    assert found(dense_copy) == [
        "index.json: images is 15, its shards add up to 16",
        "000002.h5: holds 4 images, index.json says 5",
    ]


@pytest.mark.parametrize(("value", "row"), [(np.nan, 3), (np.inf, 0), (-np.inf, 2)])
def test_features_that_are_not_numbers_name_picture_and_region(dense_copy: Path, value: float, row: int) -> None:
    change(dense_copy, "000001.h5", "features", lambda f: f.__setitem__((row, 7, 100), value))
    assert found(dense_copy) == [f"000001.h5 row {row} (id-00{4 + row}.png): features are NaN or infinite: region 7"]


def test_all_zero_features_are_named(ragged_copy: Path) -> None:
    def edit(features: np.ndarray) -> None:
        features[0] = 0
        features[2] = -0.0

    change(ragged_copy, "000000.h5", "features", edit)
    assert found(ragged_copy) == ["000000.h5 row 0 (id-000.png): features are all zero: region 0, 2"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, -0.5, "not inside the picture"),
        (2, 1000, "not inside the picture"),
        (3, 161, "not inside the picture"),
        (1, 160, "not inside the picture"),  # y1 above y2
        (1, np.nan, "NaN or infinite"),
        (2, np.inf, "NaN or infinite"),
    ],
)
def test_a_box_outside_its_picture_is_named(ragged_copy: Path, column: int, value: float, message: str) -> None:
    with h5py.File(ragged_copy / "000001.h5") as file:
        start = int(file["offsets"][2])
    change(ragged_copy, "000001.h5", "boxes", lambda boxes: boxes.__setitem__((start + 1, column), value))
    (finding,) = found(ragged_copy)
    assert finding.startswith("000001.h5 row 2 (id-006.png): boxes are ") and message in finding
    assert finding.endswith(": region 1")


def test_confidences_and_classes_out_of_range_are_named(dense_copy: Path) -> None:
    change(dense_copy, "000000.h5", "objects_conf", lambda c: c.__setitem__((1, 2), 1.5))
    change(dense_copy, "000000.h5", "attrs_conf", lambda c: c.__setitem__((1, 3), np.nan))
    change(dense_copy, "000000.h5", "objects_id", lambda c: c.__setitem__((1, 4), 5))
    assert found(dense_copy) == [
        "000000.h5 row 1 (id-001.png): objects_id are not among the 5 names: region 4",
        "000000.h5 row 1 (id-001.png): objects_conf are not within 0 and 1: region 2",
        "000000.h5 row 1 (id-001.png): attrs_conf are not within 0 and 1: region 3",
    ]


def test_an_image_size_other_than_the_manifests_is_named(dense_copy: Path) -> None:
    path = dense_copy.parent / "manifest"
    rows = list(Manifest.open(path).captioned)
    write_manifest(path, [replace(rows[0], width=77, height=160), *rows[1:]])
    (finding,) = found(dense_copy)
    assert finding.startswith("000000.h5 row 0 (id-000.png): image_size is ")
    assert finding.endswith("the manifest says 77 x 160")


@pytest.mark.parametrize("values", [[1, 5], [0, -1], [0, 10**6]])
def test_offsets_that_do_not_rise_are_named(ragged_copy: Path, values: list[int]) -> None:
    change(ragged_copy, "000000.h5", "offsets", lambda offsets: offsets.__setitem__(slice(0, 2), values))
    (finding,) = found(ragged_copy)
    assert finding.startswith("000000.h5: offsets don't rise from 0")


def test_box_counts_agree_with_the_arrays(copy: Path) -> None:
    change(copy, "000000.h5", "num_boxes", lambda counts: counts.__iadd__(1))
    (finding,) = found(copy)
    assert finding.startswith("000000.h5: num_boxes isn't ")


def test_a_dataset_of_another_kind_is_named(copy: Path) -> None:
    with h5py.File(copy / "000000.h5", "r+") as file:
        boxes = file["boxes"][()]
        del file["boxes"]
        file.create_dataset("boxes", data=boxes.astype(np.float64))
    with h5py.File(copy / "000001.h5", "r+") as file:
        del file["num_boxes"]
    resign(copy, "000000.h5")
    resign(copy, "000001.h5")
    findings = found(copy)
    assert findings[0].startswith("000000.h5: boxes is float64 [") and "not float32 [" in findings[0]
    assert findings[1:] == ["000001.h5: it has no dataset num_boxes"]


def test_a_swapped_recipe_names_every_shard(ragged_copy: Path, dense: Pictures) -> None:
    shutil.copy(dense.out / "recipe.json", ragged_copy)
    findings = found(ragged_copy)
    recipe_hash = read_recipe(dense.out)[1]
    assert [finding.split(":")[0] for finding in findings if "made by recipe" in finding] == [
        "000000.h5",
        "000001.h5",
        "000002.h5",
    ]
    assert all(recipe_hash in finding for finding in findings if "made by recipe" in finding)


def test_more_regions_than_the_recipe_allows_are_named(ragged_copy: Path) -> None:
    recipe, _ = read_recipe(ragged_copy)
    write_recipe(ragged_copy, recipe | {"selection": recipe["selection"] | {"max_boxes": 1}})
    assert any("row 0 (id-000.png): has " in finding and "allows 1" in finding for finding in found(ragged_copy))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"recipe": 1, "recipe_hash": 0}', '{"recipe": NaN}'])
def test_a_spoilt_recipe_is_one_finding(copy: Path, text: str) -> None:
    write_text(copy / "recipe.json", text)
    (finding,) = found(copy)
    assert finding.startswith("recipe.json: ")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"dim": "256"}, "dim"),
        ({"layout": "sparse"}, "layout"),
        ({"shards": None}, "shards"),
        ({"shards": [{"file": "../a.h5", "count": 1, "first": "a", "last": "a", "sha256": "0" * 64}]}, "shards.0.file"),
        ({"object_names": [1]}, "object_names.0"),
    ],
)
def test_every_mistake_of_the_index_is_named(copy: Path, edit: dict[str, object], message: str) -> None:
    write_json(copy / INDEX, json.loads((copy / INDEX).read_text()) | edit)
    (finding,) = found(copy)
    assert finding.startswith(f"index.json: {message}: ")


@pytest.mark.parametrize("text", ["", "[]", "[[" * 5000, "\0"])
def test_a_spoilt_index_is_one_finding(copy: Path, text: str) -> None:
    write_text(copy / INDEX, text)
    (finding,) = found(copy)
    assert finding.startswith("index.json: ")


def test_what_is_no_store_is_one_line(tmp_path: Path) -> None:
    assert [finding.split(":")[0] for finding in found(tmp_path / "nowhere")][1] == "index.json"


def test_pictures_that_could_not_be_read_are_accounted_for(tmp_path: Path) -> None:
    files = {"a.png": encoded(scene(0)[0]), "bad.png": b"no picture", "c.png": encoded(scene(1)[0])}
    pictures = write_pictures(tmp_path, files)
    store = pictures.extract(region_settings(unreadable="skip", images_per_shard=1))
    assert run(store=store, manifest=pictures.manifest).total == 0

    failures = (store / FAILURES).read_text()
    write_text(store / FAILURES, "")
    (lost,) = run(store=store, manifest=pictures.manifest).findings
    assert (lost.row, lost.image_id) == (1, "id-bad.png") and "neither in the store" in lost.what

    both = json.dumps({"id": "id-a.png", "path": "a.png", "reason": "?"}) + "\n"
    strange = json.dumps({"id": "strange", "path": "a.png", "reason": "?"}) + "\n"
    write_text(store / FAILURES, failures + failures + both + strange + "{}\n" + "nonsense")
    findings = [str(finding) for finding in run(store=store, manifest=pictures.manifest).findings]
    assert len(findings) == 5
    for message in (
        "(id-bad.png): line 2 names it again, after line 1",
        "line 5 has no id",
        "line 6 column 1: not valid JSON",
        "(id-a.png): failures.jsonl says it could not be read, line 3",
        "(strange): line 4: the manifest has no such image",
    ):
        assert any(message in finding for finding in findings), message


def test_a_spoilt_manifest_is_a_finding(copy: Path) -> None:
    write_text(copy.parent / "manifest" / "images.arrow", "{}\n")
    (finding,) = found(copy)
    assert "images.arrow: no whole Arrow file" in finding


def test_findings_are_counted_beyond_the_limit(dense_copy: Path) -> None:
    for shard in ("000000.h5", "000001.h5"):
        change(dense_copy, shard, "features", lambda features: features.fill(np.nan))
    verification = run(store=dense_copy, limit=3)
    assert verification.total == 8 and len(verification.findings) == 3
    lines = verification.text().splitlines()
    assert lines[0].endswith("region 0, 1, 2, 3, 4, 5, 6, 7 and 4 more")
    assert lines[3] == "... and 5 more" and "8 findings" in lines[4]


def test_no_damage_raises(ragged_copy: Path) -> None:
    """100 files with random bytes in their first kilobytes, where HDF5 keeps its structure."""
    random = np.random.default_rng(0)
    whole = np.fromfile(ragged_copy / "000001.h5", np.uint8)
    for _ in range(100):
        spoilt = whole.copy()
        where = random.integers(0, min(3000, len(whole)), random.integers(1, 6))
        spoilt[where] = random.integers(0, 256, len(where))
        spoilt.tofile(ragged_copy / "000001.h5")
        verification: Verification = run(store=ragged_copy)
        assert (verification.total > 0) == (spoilt != whole).any()
        assert verification.text().isprintable() or "\n" in verification.text()


def test_what_lies_beside_the_shards_is_checked_too(data_set_copy: Path) -> None:
    pack = data_set_copy / "pack"
    (pack / "sizes.json").write_text("{}\n", encoding="utf-8")
    names = (pack / "classes.json").read_text(encoding="utf-8")
    (pack / "classes.json").write_text(names.replace("circle", "square"), encoding="utf-8")
    messages = found(pack)
    assert [line.split(":")[0] for line in messages] == ["classes.json", "sizes.json"]
    assert all("the file has changed" in line for line in messages)
    with pytest.raises(InputError, match=r"classes\.json: the file has changed"):
        Import("wds", pack, data_set_copy / "imported").run()
    (pack / "classes.json").unlink()
    assert "the file is missing" in found(pack)[0]
    with pytest.raises(InputError, match=r"classes\.json: the file is missing"):
        Import("wds", pack, data_set_copy / "imported").run()


@pytest.mark.parametrize("emptied", ["regions", "pack", "manifest"])
def test_a_folder_that_should_hold_a_store_and_is_empty_is_reported(data_set_copy: Path, emptied: str) -> None:
    shutil.rmtree(data_set_copy / emptied)
    (data_set_copy / emptied).mkdir()
    with pytest.raises(InputError, match=rf"{emptied}: none of the store's files .*`dvc pull {emptied}@"):
        stores_in(data_set_copy)
    if emptied != "manifest":
        with pytest.raises(InputError, match="none of the store's files"):
            stores_in(data_set_copy / emptied)


def test_the_manifest_is_found_from_inside_the_store(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    assert run(store=Path(".")).manifest == copy.parent / "manifest"


def test_a_changed_vocabulary_is_named(data_set_copy: Path, tmp_path: Path) -> None:
    tokens = shutil.copytree(data_set_copy / "tokens", tmp_path / "my data" / "tokens")
    path = tokens / "vocabulary.json"
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert found(tokens)[0].startswith("vocabulary.json:")
