"""SCAN's layout: what plain loaders read from an export, and the many ways in which the files are found in the wild."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.check.verify import run as verify
from manifests.errors import InputError
from manifests.tables import write_manifest
from tests.extract.exchange_files import DataSet, Import, way_back, write_data_set

BOXES = np.array([[[0, 10, 40, 30], [5, 5, 50, 100]], [[0, 0, 1, 1], [20, 30, 80, 90]]], np.float32)
SIZES = np.array([[50, 100], [80, 120]])
FEATURES = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def write_scan(folder: Path, split: str = "test", **arrays: Any) -> Path:
    """Two images of two regions; `caps`, `ids` and arrays by the end of their name, None to leave one out."""
    folder.mkdir(exist_ok=True)
    files = {"ims": FEATURES, "caps": [f"Caption {k}." for k in range(10)]} | arrays
    for name, value in files.items():
        if value is None:
            continue
        if isinstance(value, list):
            (folder / f"{split}_{name}.txt").write_text("".join(f"{line}\n" for line in value), encoding="utf-8")
        else:
            np.save(folder / f"{split}_{name}.npy", value)
    return folder


def imported(folder: Path, **settings: Any) -> DataSet:
    return Import("scan", folder, folder.with_name(f"{folder.name} imported"), settings=settings).run()


def test_an_export_is_what_plain_loaders_read(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data")
    exported = data.export("scan", tmp_path / "exported")
    names = json.loads((exported / "id_mapping.json").read_text(encoding="utf-8"))
    for split, ours in (("train", "train"), ("dev", "val"), ("test", "test")):
        images = np.load(exported / f"{split}_ims.npy", mmap_mode="r")
        captions = (exported / f"{split}_caps.txt").read_bytes().splitlines()
        division = 5 if images.shape[0] != len(captions) else 1
        ids = (exported / f"{split}_ids.txt").read_text().split()
        boxes, sizes = (np.load(exported / f"{split}_{name}.npy", mmap_mode="r") for name in ("boxes", "img_sizes"))
        assert images.dtype == np.float32 and len(captions) == 5 * len(images)
        rows = [row for row in data.rows if row.split == ours]
        for index, caption in enumerate(captions):
            row, regions = rows[index // division], data.regions()[rows[index // division].id]
            assert caption.decode("utf-8") == row.captions[index % 5]
            assert ids[index // division] == row.id and names[row.id] == row.path
            np.testing.assert_array_equal(images[index // division], regions.features)
            np.testing.assert_array_equal(boxes[index // division], regions.boxes)
            assert tuple(sizes[index // division]) == (row.width, row.height)


def test_one_caption_an_image_stays_one(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", captions=1)
    back = way_back("scan", data.export("scan", tmp_path / "exported"), tmp_path / "back").run()
    assert [row.captions for row in back.rows] == [row.captions for row in data.rows]


def test_line_ends_in_a_caption_become_spaces(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data")
    texts = [tuple(text.replace("Caption 3 of", "Caption\r\n3 of") for text in row.captions) for row in data.rows]
    write_manifest(data.manifest, [replace(row, captions=own) for row, own in zip(data.rows, texts, strict=True)])
    assert data.rows[0].captions[3].startswith("Caption\r\n3")
    back = way_back("scan", data.export("scan", tmp_path / "exported"), tmp_path / "back").run()
    assert back.rows[0].captions[3].startswith("Caption 3 of")


def test_captions_after_the_fifth_are_dropped_only_with_the_option(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", captions=7)
    with pytest.raises(InputError, match=r"'1000'.*7 captions.*--drop-captions"):
        data.export("scan", tmp_path / "exported")
    back = way_back("scan", data.export("scan", tmp_path / "exported", drop_captions=True), tmp_path / "back").run()
    assert [row.captions for row in back.rows] == [row.captions[:5] for row in data.rows]
    few = write_data_set(tmp_path / "few", captions=2)
    with pytest.raises(InputError, match="2 captions"):
        few.export("scan", tmp_path / "new", drop_captions=True)


@pytest.mark.parametrize("repeat", [1, 5])
def test_ids_stand_once_an_image_or_once_a_caption(tmp_path: Path, repeat: int) -> None:
    ids = [key for key in ("a7", "b8") for _ in range(repeat)]
    back = imported(write_scan(tmp_path / "scan", ids=ids))
    assert [(row.id, len(row.captions), row.path) for row in back.rows] == [("a7", 5, "a7"), ("b8", 5, "b8")]


def test_without_ids_images_are_named_by_split_and_row(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan", "dev")
    back = imported(write_scan(tmp_path / "scan", "train", ims=FEATURES + 20))
    assert [(row.id, row.split) for row in back.rows] == [
        ("train-000000", "train"),
        ("train-000001", "train"),
        ("dev-000000", "val"),
        ("dev-000001", "val"),
    ]


def test_testall_is_the_test_split_where_there_is_one(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan", "test", ids=["a", "b"])
    both = np.concatenate([FEATURES, FEATURES + 20])
    back = imported(write_scan(tmp_path / "scan", "testall", ims=both, ids=list("abcd"), caps=["A cap."] * 20))
    assert [row.id for row in back.rows] == list("abcd")


def test_captions_may_lie_in_another_folder(tmp_path: Path) -> None:
    features = write_scan(tmp_path / "features", caps=None)
    captions = write_scan(tmp_path / "captions", ims=None, ids=["x", "y"])
    (captions / "id_mapping.json").write_text('{"x": "p/x.jpg", "y": "p/y.jpg"}', encoding="utf-8")
    back = Import("scan", features, tmp_path / "back", captions).run()
    assert [(row.id, row.path) for row in back.rows] == [("x", "p/x.jpg"), ("y", "p/y.jpg")]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    texts = [f"A{mark}b {k}" for k in range(5) for mark in ("\u2028", "\x0b")]
    folder = write_scan(tmp_path / "scan", caps=texts)
    content = (folder / "test_caps.txt").read_bytes().replace(b"\n", b"\r\n")
    (folder / "test_caps.txt").write_bytes(content)
    assert [text for row in imported(folder).rows for text in row.captions] == texts


@pytest.mark.parametrize(("boxes", "sizes"), [("boxes", "img_sizes"), ("ims_bbx", "ims_size")])
@pytest.mark.parametrize("convention", ["xyxy", "xywh", "relative_xyxy", "relative_xywh"])
def test_boxes_of_every_convention_become_absolute_corners(
    tmp_path: Path, boxes: str, sizes: str, convention: str
) -> None:
    stored = BOXES.copy()
    if convention.startswith("relative"):
        stored /= np.tile(SIZES, 2)[:, None]
    if convention.endswith("xywh"):
        stored[..., 2:] -= stored[..., :2]
    back = imported(write_scan(tmp_path / "scan", **{boxes: stored, sizes: SIZES}), boxes=convention)
    for row, expected in enumerate(BOXES):
        found = back.store.regions(row)
        np.testing.assert_allclose(found.boxes, expected, rtol=1e-6, atol=1e-5)
        assert found.image_size == tuple(SIZES[row])
    assert not any(verify(store=store).total for store in back.store.folders)


def test_sizes_may_be_height_first(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", boxes=BOXES, img_sizes=SIZES[:, ::-1].astype(np.float32))
    assert imported(folder, boxes="xyxy", sizes="hw").store.regions(0).image_size == (50, 100)


def test_the_box_convention_must_be_given(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", boxes=BOXES, img_sizes=SIZES)
    with pytest.raises(InputError, match=r"doesn't state the convention of its boxes.*regions\.boxes"):
        imported(folder)


@pytest.mark.parametrize("convention", ["xywh", "relative_xyxy"])
def test_a_wrong_convention_is_noticed(tmp_path: Path, convention: str) -> None:
    folder = write_scan(tmp_path / "scan", boxes=BOXES, img_sizes=SIZES)
    with pytest.raises(InputError, match=r"test_ims\.npy row 0.*box \d .* picture of 50 x 100.*regions\.boxes"):
        imported(folder, boxes=convention)


def test_without_boxes_the_store_says_so_and_exports_none(tmp_path: Path) -> None:
    back = imported(write_scan(tmp_path / "scan", ids=["1", "2"]))
    assert not back.store.has_boxes and not any(verify(store=store).total for store in back.store.folders)
    assert not list(back.export("scan", tmp_path / "again").glob("*boxes*"))
    with pytest.raises(InputError, match="no boxes"):
        back.export("butd-tsv", tmp_path / "new")
    with pytest.raises(InputError, match=r"there are no boxes.*leave out"):
        imported(write_scan(tmp_path / "scan 2"), boxes="xyxy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"caps": ["A cap."] * 9}, r"test_caps\.txt line 9: 9 captions for the 2 images"),
        ({"caps": ["A cap."]}, r"1 captions for the 2 images"),
        ({"caps": ["A cap."] * 7 + [" "] + ["A cap."] * 2}, r"test_caps\.txt line 8: the caption is empty"),
        ({"caps": None}, r"test_caps\.txt"),
        ({"ids": ["a", "b", "c"]}, r"test_ids\.txt line 3: 3 ids for the 2 images"),
        ({"ids": ["a", "a", "a", "b", "b", "b", "b", "b", "b", "b"]}, r"test_ids\.txt line 4: id 'b' where 'a'"),
        ({"ids": ["a", ""]}, r"test_ids\.txt line 2: the id is missing"),
        ({"ids": ["a", "a"]}, r"test_ids\.txt line 2: id 'a' was already given at line 1"),
        ({"ims": FEATURES[:, 0, 0]}, r"test_ims\.npy: float32 of shape \[2\]"),
        ({"ims": FEATURES.astype(object)}, r"test_ims\.npy: it holds pickled Python objects"),
        ({"ims": np.asfortranarray(FEATURES)}, r"Fortran order"),
        ({"ims": FEATURES[:0]}, r"of shape \[0, 2, 3\]"),
        ({"boxes": BOXES}, r"no test_img_sizes\.npy"),
        ({"boxes": BOXES[:1], "img_sizes": SIZES}, r"test_boxes\.npy: shape \[1, 2, 4\]"),
        ({"boxes": np.where(BOXES == 40, np.nan, BOXES), "img_sizes": SIZES}, r"row 0 .*box 0 is \(0, 10\) to \(nan"),
        ({"boxes": BOXES, "img_sizes": SIZES * 0}, r"picture's size is \(0, 0\)"),
        ({"boxes": BOXES, "img_sizes": SIZES + 0.5}, r"picture's size is \(50\.5, 100\.5\)"),
        ({"ims": np.where(FEATURES == 10, np.nan, FEATURES)}, r"row 1 .*NaN or infinite: region 1"),
        ({"ims": np.where(FEATURES == 2, -np.inf, FEATURES)}, r"row 0 .*NaN or infinite: region 0"),
        ({"ims": FEATURES * 1e5}, r"float16 ends at 65504.*precision: float32"),
    ],
)
def test_a_bad_file_is_named_with_its_row(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    folder = write_scan(tmp_path / "scan", **arrays)
    with pytest.raises(InputError, match=message):
        imported(folder, boxes="xyxy" if "boxes" in arrays else None)
    assert not (tmp_path / "scan imported" / "regions").exists()


def test_a_number_too_large_for_float32_is_not_advised_to_use_float32(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", ims=FEATURES.astype(np.float64) * 1e300)
    with pytest.raises(InputError, match="float32 ends at 3.4") as caught:
        imported(folder, precision="float32")
    assert "float32" not in caught.value.fix


def test_only_regions_that_are_exported_count(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", counts=(2, 2, 2, 2, 2, 3, 3, 5, 4, 5))
    write_manifest(data.manifest, [row for row in data.rows if row.id != "1008"])
    exported = data.export("scan", tmp_path / "exported")
    shapes = {split: np.load(exported / f"{split}_ims.npy", mmap_mode="r").shape for split in ("train", "dev", "test")}
    assert shapes == {"train": (5, 2, 8), "dev": (2, 3, 8), "test": (2, 5, 8)}
    back = way_back("scan", exported, tmp_path / "back").run()
    assert back.store.num_boxes.tolist() == [2] * 5 + [3] * 2 + [5] * 2


def test_an_id_without_a_file_name_is_refused(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", ids=["a", "b"])
    (folder / "id_mapping.json").write_text('{"a": "a.jpg"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"id_mapping\.json: it has no file name for id 'b'"):
        imported(folder)
    (folder / "id_mapping.json").write_text('{"a": "../a.jpg", "b": "b.jpg"}', encoding="utf-8")
    with pytest.raises(InputError, match="could lead out of the image root"):
        imported(folder)


def test_the_first_row_that_is_cut_off_is_named(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan")
    content = (folder / "test_ims.npy").read_bytes()
    (folder / "test_ims.npy").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"test_ims\.npy row 1: \d+ bytes instead of"):
        imported(folder)


def test_only_scan_takes_conventions(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data")
    exported = data.export("butd-tsv", tmp_path / "exported")
    for settings in ({"boxes": "xyxy"}, {"sizes": "wh"}, {"info": True}):
        work = way_back("butd-tsv", exported, tmp_path / "back", **settings)
        with pytest.raises(InputError, match=r"leave out `regions\."):
            work.manifest()
