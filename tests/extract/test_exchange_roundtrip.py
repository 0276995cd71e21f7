"""What is exported and imported again is what it was: ids, order, splits, captions, boxes, features, classes."""

import base64
import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from extract.cards.card import run as describe
from extract.check.verify import run as verify
from extract.exchange.formats.butd_tsv import ButdSource
from extract.exchange.half import to_float16
from extract.settings import About
from extract.stages import tokens
from extract.stores.intact import require_intact
from extract.stores.recipe import read_recipe
from extract.stores.regions import RegionStore
from extract.text.settings import TokenSettings
from manifests.errors import InputError
from manifests.files import sha256
from manifests.readers import read as read_karpathy
from tests.extract.exchange_files import DataSet, Import, way_back, write_data_set
from tests.extract.test_intact import flip

FORMATS = ("scan", "butd-tsv", "lxmert-tsv", "vinvl", "bua-npz", "wds")
RAGGED = (6, 1, 4, 0, 3, 9, 2, 5, 0, 1)


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return write_data_set(tmp_path / "data")


def with_tokens(data: DataSet) -> DataSet:
    tokens.run(
        manifest=data.manifest,
        settings=TokenSettings(language="blank_en", min_count=1),
        out=data.folder / "tokens",
    )
    return data


def assert_equal(back: DataSet, data: DataSet, *, labels: tuple[str, ...] = ()) -> None:
    """Everything but sha256 and sizes of the manifest, which an import can't know."""
    captioned = [(row.id, row.split, row.captions) for row in data.rows]
    assert [(row.id, row.split, row.captions) for row in back.rows] == captioned
    assert back.store.ids == data.store.ids
    ours, theirs = data.regions(), back.regions()
    for image_id, expected in ours.items():
        found = theirs[image_id]
        assert found.features.dtype == expected.features.dtype
        np.testing.assert_array_equal(found.features, expected.features)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        assert found.image_size == expected.image_size
        for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf"):
            value = getattr(found, name)
            assert (value is not None) == (name in labels)
            if value is not None and name != "objects_id":
                np.testing.assert_array_equal(value, getattr(expected, name))
        if found.objects_id is not None and data.store.object_names and back.store.object_names:
            named = [back.store.object_names[i] for i in found.objects_id]
            assert named == [data.store.object_names[i] for i in expected.objects_id]
    for store in back.store.folders:
        assert verify(store=store).total == 0
        assert describe(store).findings == []
        require_intact(store)


LABELS = {
    "lxmert-tsv": ("objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    "wds": ("objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    "vinvl": ("objects_id", "objects_conf"),
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_round_trip_is_exact(data: DataSet, tmp_path: Path, format: str) -> None:
    exported = with_tokens(data).export(format, tmp_path / "exported")
    back = way_back(format, exported, tmp_path / "back", images_per_shard=3).run()
    assert_equal(back, data, labels=LABELS.get(format, ()))
    assert len(back.store.index["shards"]) == 4


@pytest.mark.parametrize("format", FORMATS[1:])
def test_a_round_trip_of_any_number_of_regions_is_exact(tmp_path: Path, format: str) -> None:
    data = with_tokens(write_data_set(tmp_path / "data", counts=RAGGED))
    back = way_back(format, data.export(format, tmp_path / "exported"), tmp_path / "back").run()
    assert back.store.index["layout"] == "ragged"
    assert_equal(back, data, labels=LABELS.get(format, ()))


@pytest.mark.parametrize("format", FORMATS)
def test_float32_stays_float32_where_asked_for_and_is_rounded_otherwise(tmp_path: Path, format: str) -> None:
    data = with_tokens(write_data_set(tmp_path / "data", dtype="float32"))
    exported = data.export(format, tmp_path / "exported")
    assert_equal(
        way_back(format, exported, tmp_path / "whole", precision="float32").run(), data, labels=LABELS.get(format, ())
    )
    rounded = way_back(format, exported, tmp_path / "rounded").run().regions()
    for image_id, regions in data.regions().items():
        np.testing.assert_array_equal(rounded[image_id].features, regions.features.astype(np.float16))


def test_bua_classes_come_with_info_alone(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("bua-npz", tmp_path / "exported")
    back = way_back("bua-npz", exported, tmp_path / "back", info=True).run()
    for image_id, regions in data.regions().items():
        np.testing.assert_array_equal(back.regions()[image_id].objects_id, regions.objects_id)
        np.testing.assert_array_equal(back.regions()[image_id].attrs_conf, regions.attrs_conf)


def test_the_recipe_says_imported_and_from_which_files(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("butd-tsv", tmp_path / "exported")
    way_back("butd-tsv", exported, tmp_path / "back").run()
    recipe, _ = read_recipe(tmp_path / "back" / "regions" / "train")
    assert recipe["imported"]["format"] == "butd-tsv"
    assert recipe["imported"]["files"] == {"regions.tsv": sha256(exported / "regions.tsv")}
    card = (tmp_path / "back" / "regions" / "train" / "README.md").read_text(encoding="utf-8")
    assert "from butd-tsv: regions.tsv" in card


def test_an_imported_store_has_what_every_store_has(data: DataSet, tmp_path: Path) -> None:
    back = way_back("butd-tsv", data.export("butd-tsv", tmp_path / "exported"), tmp_path / "back")
    back.manifest()
    back.regions(about=About(licence="CC BY 4.0", cite="They, 2020"))
    store = RegionStore(back.out / "regions", "train")
    own = [found.features for image_id, found in data.regions().items() if image_id in store]
    lengths = np.linalg.norm(np.concatenate(own).astype(float), axis=1)
    expected = {"least": lengths.min(), "mean": lengths.mean(), "most": lengths.max()}
    assert store.index["norms"] == pytest.approx(expected, abs=1e-4)
    assert (store.index["dataset"], store.index["about"]) == (
        "imported",
        {"licence": "CC BY 4.0", "cite": "They, 2020"},
    )
    (folder,) = store.folders
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in card and "They, 2020" in card and "the same number of regions each" in card
    assert "could not be read" not in card and "where it is a data set of `params.yaml`" in card
    croissant = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    assert (croissant["name"], croissant["license"]) == ("imported", "CC BY 4.0")
    shard = store.folder / store.index["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match="the file has changed"):
        require_intact(folder)


def test_cocos_ids_of_captions_stay_with_an_import(data: DataSet, tmp_path: Path) -> None:
    back = way_back("butd-tsv", data.export("butd-tsv", tmp_path / "exported"), tmp_path / "back")
    back.manifest()
    assert not any(row.caption_ids for row in DataSet(back.out).rows)
    captions = json.loads(back.captions.read_text(encoding="utf-8"))
    for number, image in enumerate(captions["images"]):
        image["cocoid"] = 500 + number
        for k, sentence in enumerate(image["sentences"]):
            sentence["sentid"] = 10 * number + k
    back.captions.write_text(json.dumps(captions), encoding="utf-8")
    back.manifest()
    assert all(row.caption_ids for row in DataSet(back.out).rows)
    assert DataSet(back.out).rows[1].caption_ids == (10, 11, 12, 13, 14)


def test_the_same_files_give_the_same_bytes(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("scan", tmp_path / "exported")
    stores = []
    for name, readers in (("one", 1), ("three", 3)):
        work = way_back("scan", exported, tmp_path / name)
        work.manifest()
        work.regions(readers=readers)
        folder = tmp_path / name / "regions"
        files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("recipe.json", "README.md")]
        stores.append({file.relative_to(folder): file.read_bytes() for file in files})
    assert stores[0] == stores[1] and len(stores[0]) >= 3 * 3


def test_butd_and_lxmert_are_what_the_csv_module_reads(data: DataSet, tmp_path: Path) -> None:
    csv.field_size_limit(sys.maxsize)
    butd = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    lxmert = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"]
    for format, names in (("butd-tsv", butd), ("lxmert-tsv", [*lxmert, "num_boxes", "boxes", "features"])):
        exported = data.export(format, tmp_path / format)
        with open(exported / "regions.tsv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, names, delimiter="\t"))
        for row, (image_id, regions) in zip(rows, data.regions().items(), strict=True):
            assert row[names[0]] == image_id
            width, height = (int(row[f"{names[0][:-3]}_{side}"]) for side in "wh")
            assert (width, height) == regions.image_size
            features = np.frombuffer(base64.b64decode(row["features"]), np.float32)
            np.testing.assert_array_equal(features.reshape(int(row["num_boxes"]), -1), regions.features)
            if format == "lxmert-tsv":
                ids = np.frombuffer(base64.b64decode(row["objects_id"]), np.int64)
                np.testing.assert_array_equal(ids, regions.objects_id)


def test_lxmert_height_comes_first(tmp_path: Path) -> None:
    fields = [b"7", b"20", b"10"]
    for array in (np.zeros(1, np.int64), np.ones(1, "f"), np.zeros(1, np.int64), np.ones(1, "f")):
        fields.append(base64.b64encode(array))
    fields += [b"1", base64.b64encode(np.array([0, 0, 9, 19], "f")), base64.b64encode(np.ones(3, "f"))]
    (tmp_path / "f.tsv").write_bytes(b"\t".join(fields) + b"\r\n")
    (tmp_path / "c.csv").write_text("image,caption\n7.jpg,A thing.\n", encoding="utf-8")
    back = Import("lxmert-tsv", tmp_path / "f.tsv", tmp_path / "out", tmp_path / "c.csv").run()
    assert back.store.regions(0).image_size == (10, 20)
    assert (back.rows[0].width, back.rows[0].height) == (10, 20)


def test_karpathy_keeps_ids_splits_and_captions(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("karpathy", tmp_path / "exported")
    entries = list(read_karpathy(exported / "dataset_data.json"))
    read = [
        (entry.id or Path(entry.path).stem, entry.path, entry.split, tuple(c.text for c in entry.captions))
        for entry in entries
    ]
    assert read == [(row.id, row.path, row.split, row.captions) for row in data.rows]


def test_vinvl_keeps_box_terms_and_needs_no_index(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", dim=14, labels=False)  # 8 + 6: nothing says which columns are which
    exported = data.export("vinvl", tmp_path / "exported")
    offsets = [int(line) for line in (exported / "features.lineidx").read_text().split()]
    content = (exported / "features.tsv").read_bytes()
    assert [content[at:].split(b"\t")[0].decode() for at in offsets] == data.store.ids
    for name in ("features.lineidx", "imageid2idx.json"):
        (exported / name).unlink()
    assert_equal(way_back("vinvl", exported, tmp_path / "back").run(), data)


def test_captions_may_be_a_table_or_oscars_lists(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("butd-tsv", tmp_path / "exported")
    folder = tmp_path / "oscar"
    folder.mkdir()
    for split, name in (("train", "train_captions"), ("val", "minival_caption"), ("test", "test_captions")):
        items = [
            f'{{"image_id": {row.id}, "caption": "{text}"}}'
            for row in data.rows
            if row.split == split
            for text in row.captions
        ]
        (folder / f"{name}.json").write_text(f"[{','.join(items)}]", encoding="utf-8")
    table = "".join(f"{row.path}\t{text}\t{row.split}\n" for row in data.rows for text in row.captions)
    (tmp_path / "table.tsv").write_text(f"image\tcaption\tsplit\n{table}", encoding="utf-8")
    for captions in (folder, tmp_path / "table.tsv"):
        out = tmp_path / f"back {captions.name}"
        assert_equal(Import("butd-tsv", exported / "regions.tsv", out, captions).run(), data)


def test_images_are_found_by_their_file_name_and_others_are_left_out(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("bua-npz", tmp_path / "exported")
    (tmp_path / "c.csv").write_text(
        "image,caption,id,split\nb/1003.jpg,One.,x,train\n1001.png,Two.,y,test\n", encoding="utf-8"
    )
    back = Import("bua-npz", exported, tmp_path / "back", tmp_path / "c.csv").run()
    assert back.store.ids == ["x", "y"]
    np.testing.assert_array_equal(back.store.regions(0).features, data.regions()["1003"].features)
    np.testing.assert_array_equal(back.store.regions(1).boxes, data.regions()["1001"].boxes)


def test_captions_without_regions_are_refused_or_skipped(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("butd-tsv", tmp_path / "exported")
    lines = (exported / "regions.tsv").read_bytes().splitlines(keepends=True)
    (exported / "regions.tsv").write_bytes(b"".join(lines[:3] + lines[4:]))
    work = way_back("butd-tsv", exported, tmp_path / "back")
    with pytest.raises(InputError, match=r"1 of these have none, the first is '1003'.*missing: skip"):
        work.manifest()
    assert not (tmp_path / "back").exists()
    skipping = Import("butd-tsv", work.images, work.out, work.captions, source={"missing": "skip"})
    assert "1003" not in skipping.run().store.ids


def test_an_export_is_new_and_whole(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there already"):
        data.export("scan", tmp_path / "there")
    ragged = write_data_set(tmp_path / "ragged", counts=RAGGED, labels=False)
    with pytest.raises(InputError, match="split 'train' have 0 to 6 regions"):
        ragged.export("scan", tmp_path / "new")
    with pytest.raises(InputError, match="no classes and attributes"):
        ragged.export("lxmert-tsv", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "ragged", "there"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_store_that_has_changed_is_not_exported(data: DataSet, tmp_path: Path, format: str) -> None:
    with_tokens(data)
    flip(data.folder / "regions" / "000001.h5", 0.8)
    with pytest.raises(InputError, match=r"000001\.h5: the file has changed"):
        data.export(format, tmp_path / "exported")
    assert not list(tmp_path.glob("*exported*"))


def test_wds_needs_the_words(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokens: wds carries the words .* run its tokens stage"):
        data.export("wds", tmp_path / "exported")


def test_conversion_rounds_as_numpy_does() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:].astype(np.float64) + halves[:-1].astype(np.float64)) / 2
    exact = between.astype(np.float32)
    edges = [halves, exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e9))]
    rng = np.random.default_rng(0)
    edges.append(rng.standard_normal(300_000).astype(np.float32) * np.float32(10) ** rng.integers(-12, 4, 300_000))
    values = np.concatenate([*edges, *(-edge for edge in edges)]).astype(np.float32)
    for given in (values, np.abs(values)):  # what has no negative number takes a shorter way
        out = np.empty(given.shape, np.float16)
        assert to_float16(given, out)
        np.testing.assert_array_equal(out.view(np.uint16), given.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520, -1e30])
def test_conversion_tells_of_what_float16_cannot_hold(value: float) -> None:
    values = np.ones(5, np.float32)
    values[3] = value
    assert not to_float16(values, np.empty(5, np.float16))
    assert to_float16(np.full(5, 65519, np.float32), np.empty(5, np.float16))


@pytest.mark.parametrize("parts", [("a.tsv.0", "a.tsv.2", "a.tsv.10"), ("a2.tsv", "a10.tsv", "b.tsv.0")])
def test_a_folder_may_hold_a_table_in_parts(data: DataSet, tmp_path: Path, parts: tuple[str, ...]) -> None:
    exported = data.export("butd-tsv", tmp_path / "exported")
    lines = (exported / "regions.tsv").read_bytes().splitlines(keepends=True)
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, part in zip(parts, (lines[:3], lines[3:4], lines[4:]), strict=True):
        (folder / name).write_bytes(b"".join(part))
    (folder / "a.tsv.0.gz").write_bytes(b"no table")
    assert [path.name for path in ButdSource(folder).paths] == list(parts)
    assert_equal(Import("butd-tsv", folder, tmp_path / "back", exported / "captions.json").run(), data)
