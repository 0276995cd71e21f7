"""Region features as people have them: repeated rows, other types of numbers, other keys, other tables and folders."""

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from extract.exchange.formats import recognise
from extract.exchange.tsv import other_type
from extract.stores.recipe import read_recipe
from manifests.errors import InputError
from manifests.left_out import FILE
from pipeline.cli import main
from tests.extract.exchange_files import DataSet, Import, write_data_set

IDS = (1000, 1001, 1002, 1003)
SIZE = (100, 80)
SPLITS = ("train", "train", "val", "test")
FEATURES = {id: np.abs(np.random.default_rng(id).standard_normal((4, 16))).astype(np.float32) for id in IDS}
BOXES = {
    id: np.sort(np.random.default_rng(id).uniform(0, 80, (4, 2, 2)), 1).reshape(4, 4).astype(np.float32) for id in IDS
}


def b64(values: np.ndarray, dtype: str = "<f4") -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def karpathy(folder: Path, **more: Callable[[int], Any]) -> Path:
    """Karpathy's JSON of the images; `more` gives further keys by the image's number."""
    images = [
        {"filename": f"COCO_val2014_{id:012d}.jpg", "imgid": number, "split": SPLITS[number]}
        | {key: value(number) for key, value in more.items()}
        | {"sentences": [{"raw": f"A dog {number}."}, {"raw": f"A cat {number}."}]}
        for number, id in enumerate(IDS)
    ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images}))
    return path


def butd_row(id: int, key: str | None = None, dtype: str = "<f4", boxes: str = "<f4", wrap: str = "{}") -> str:
    arrays = (wrap.format(b64(BOXES[id], boxes)), wrap.format(b64(FEATURES[id], dtype)))
    return "\t".join([key or f"COCO_val2014_{id:012d}", *map(str, SIZE), "4", *arrays])


def table(folder: Path, rows: list[str], name: str = "regions.tsv") -> Path:
    path = folder / name
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def imported(tmp_path: Path, format: str, images: Path, captions: Path | None, **options: Any) -> DataSet:
    source = {key: options.pop(key) for key in ("missing", "unreadable") if key in options}
    settings = {"precision": "float32"} | options
    return Import(format, images, tmp_path / "out", captions, source=source, settings=settings).run()


def require_truth(data: DataSet, ids: tuple[int, ...] = IDS, *, boxes: bool = True, atol: float = 0) -> None:
    """The store has these images' features and boxes, and the captions belong to them."""
    store = data.regions()
    for row in data.rows:
        found = store[row.id]
        number = int(row.captions[0].split()[-1].rstrip("."))
        id = IDS[number]
        np.testing.assert_allclose(found.features, FEATURES[id], atol=atol)
        if boxes:
            np.testing.assert_allclose(found.boxes, BOXES[id], atol=0.1 * (atol > 0))
            assert found.image_size == SIZE
    assert len(data.rows) == len(store) == len(ids)


# -- Repeated rows -----------------------------------------------------------------------------------------------------


def scan(folder: Path, times: int, *, ids: str | None = None, tile: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for split, own in (("train", IDS[:2]), ("dev", IDS[2:3]), ("test", IDS[3:])):
        features = np.stack([FEATURES[id] for id in own])
        features = np.tile(features, (times, 1, 1)) if tile else np.repeat(features, times, 0)
        np.save(folder / f"{split}_ims.npy", features)
        each = times if times > 1 else 5
        texts = [f"A dog {IDS.index(id)}." for id in own for _ in range(each)]
        (folder / f"{split}_caps.txt").write_text("\n".join(texts) + "\n")
        if ids:
            names = [f"n{id}" for id in own for _ in range(each if ids == "captions" else 1)]
            (folder / f"{split}_ids.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.mark.parametrize(("times", "ids"), [(5, None), (5, "captions"), (5, "images"), (2, None), (7, "captions")])
def test_images_repeated_once_a_caption_are_one_image(
    tmp_path: Path, times: int, ids: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    data = imported(tmp_path, "scan", scan(tmp_path / "scan", times, ids=ids), None)
    assert [len(row.captions) for row in data.rows] == [times] * 4
    assert [row.id for row in data.rows] == ([f"n{id}" for id in IDS] if ids else [*data.store.ids])
    require_truth(data, boxes=False)
    assert f"train_ims.npy: each image's row is repeated {times} times, and taken once: 2 images" in caplog.text


def test_images_repeated_as_a_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train_ims\.npy: rows 2 to 3 are rows 0 to 1 again.*keep the first 2 rows"):
        imported(tmp_path, "scan", scan(tmp_path / "scan", 5, tile=True), None)


def test_images_repeated_but_for_one_are_refused(tmp_path: Path) -> None:
    folder = scan(tmp_path / "scan", 5)
    features = np.load(folder / "train_ims.npy")
    features = np.repeat(np.random.default_rng(1).standard_normal((200, 4, 16)).astype(np.float32), 5, 0)
    features[996] += 1
    np.save(folder / "train_ims.npy", features)
    (folder / "train_caps.txt").write_text("A dog 0.\n" * 1000)
    with pytest.raises(
        InputError, match=r"train_ims\.npy row 995: rows are repeated 5 times, and row 996 isn't row 995"
    ):
        imported(tmp_path, "scan", folder, None)


def test_equal_pictures_by_chance_stay_two(tmp_path: Path) -> None:
    folder = scan(tmp_path / "scan", 1)
    features = np.random.default_rng(1).standard_normal((100, 4, 16)).astype(np.float32)
    features[1] = features[0]
    np.save(folder / "train_ims.npy", features)
    (folder / "train_caps.txt").write_text("A dog 0.\n" * 100)
    assert len(imported(tmp_path, "scan", folder, None).rows) == 102


@pytest.mark.parametrize("blank", ["\n", "\n\n", "\r\n \n"])
def test_blank_lines_after_the_captions_move_none(tmp_path: Path, blank: str) -> None:
    """Two of them would have made six captions an image of five, each with its neighbours'."""
    folder = scan(tmp_path / "scan", 1)
    for path in folder.glob("*_caps.txt"):
        path.write_bytes(path.read_bytes() + blank.encode())
    data = imported(tmp_path, "scan", folder, None, unreadable="skip")
    require_truth(data, boxes=False)
    assert [len(row.captions) for row in data.rows] == [5] * 4 and not (data.manifest / FILE).exists()


def test_splits_by_other_names_and_captions_without_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = scan(tmp_path / "scan", 1)
    for path in folder.glob("dev_*"):
        path.rename(path.with_name(path.name.replace("dev", "val")))
    (folder / "test_ims.npy").unlink()
    data = imported(tmp_path, "scan", folder, None)
    assert [row.split for row in data.rows] == ["train", "train", "val"]
    assert "test_caps.txt has captions, and there is no test_ims.npy: it is left out" in caplog.text


def test_one_vector_an_image_is_one_region(tmp_path: Path) -> None:
    folder = scan(tmp_path / "scan", 1)
    for split in ("train", "dev", "test"):
        np.save(folder / f"{split}_ims.npy", np.load(folder / f"{split}_ims.npy")[:, 0])
    data = imported(tmp_path, "scan", folder, None)
    assert data.store.num_boxes.tolist() == [1] * 4 and data.store.dim == 16


# -- Other types of numbers --------------------------------------------------------------------------------------------


def rows_of(format: str, folder: Path, dtype: str) -> Path:
    """The features in `dtype`, in a format of base64; folder or file."""
    if format == "butd-tsv":
        return table(folder, [butd_row(id, dtype=dtype) for id in IDS])
    if format == "lxmert-tsv":
        labels = "\t".join((b64(np.zeros(4), "<i8"), b64(np.full(4, 0.5))) * 2)
        return table(
            folder,
            [
                f"COCO_val2014_{id:012d}\t80\t100\t{labels}\t4\t{b64(BOXES[id])}\t{b64(FEATURES[id], dtype)}"
                for id in IDS
            ],
        )
    objects = [[{"rect": box, "class": "dog", "conf": 0.5} for box in BOXES[id].tolist()] for id in IDS]
    table(folder, [f"{id}\t4\t{b64(FEATURES[id], dtype)}" for id in IDS], "features.tsv")
    facts = [{"image_w": 100, "image_h": 80, "objects": own} for own in objects]
    table(folder, [f"{id}\t{json.dumps(own)}" for id, own in zip(IDS, facts, strict=True)], "predictions.tsv")
    return folder


@pytest.mark.parametrize("format", ["butd-tsv", "lxmert-tsv", "vinvl"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_base64_of_another_type_is_never_a_sound_store(tmp_path: Path, format: str, dtype: str) -> None:
    images, captions = rows_of(format, tmp_path, dtype), karpathy(tmp_path, cocoid=lambda n: IDS[n])
    with pytest.raises(InputError, match=rf"the features are {dtype} in base64.*set `regions\.dtype: {dtype}`"):
        imported(tmp_path, format, images, captions)
    data = imported(tmp_path, format, images, captions, dtype=dtype)
    require_truth(data, atol=0.01)
    assert read_recipe(data.folder / "regions" / "train")[0]["imported"]["dtype"] == dtype


def test_boxes_of_another_width_than_the_features(tmp_path: Path) -> None:
    images = table(tmp_path, [butd_row(id, boxes="<f8") for id in IDS])
    require_truth(imported(tmp_path, "butd-tsv", images, karpathy(tmp_path)))


NETWORK = np.random.default_rng(5).standard_normal(20_000)


@pytest.mark.parametrize(
    "values",
    [
        np.maximum(NETWORK, 0),
        NETWORK,
        np.abs(NETWORK) + 1,
        30 * np.maximum(NETWORK, 0),
        1e-3 * NETWORK,
        np.tanh(NETWORK),
        np.where(NETWORK > 1, NETWORK, 0),
    ],
)
def test_the_type_of_numbers_is_inferred_from_them(values: np.ndarray) -> None:
    for dtype in ("float16", "float64"):
        assert other_type(np.frombuffer(values.astype(dtype).tobytes(), np.float32)) == dtype
    for kept in ("float16", "float32"):  # of numbers that were rounded before too
        assert other_type(values.astype(kept).astype(np.float32)) is None


@pytest.mark.parametrize(
    "values",
    [np.round(NETWORK, 2), np.round(100 * NETWORK), np.zeros(9000), np.ones(9000), np.arange(9000), NETWORK[:20]],
)
def test_other_float32_numbers_are_float32(values: np.ndarray) -> None:
    assert other_type(values.astype(np.float32)) is None


# -- Rows that are broken or repeated ----------------------------------------------------------------------------------


def test_rows_that_python_3_wrote_are_read(tmp_path: Path) -> None:
    images = table(tmp_path, [butd_row(id, wrap="b'{}'") for id in IDS])
    require_truth(imported(tmp_path, "butd-tsv", images, karpathy(tmp_path)))


TABLE = "".join(f"{butd_row(id)}\n" for id in IDS)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + TABLE,
        "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n" + TABLE,
        TABLE.replace("\t100\t80\t4\t", "\t100.0\t80.0\t4.0\t"),
        TABLE.replace("\n", "\r\n\r\n"),
        "".join(f"{butd_row(id, wrap=chr(98) + chr(34) + '{}' + chr(34))}\n" for id in IDS).rstrip("\n"),
    ],
    ids=["byte order mark", "header", "pandas", "blank lines", "double quotes"],
)
def test_tables_as_other_programs_write_them(tmp_path: Path, content: str) -> None:
    images = tmp_path / "regions.tsv"
    images.write_bytes(content.encode())
    assert recognise(images) == "butd-tsv"
    require_truth(imported(tmp_path, "butd-tsv", images, karpathy(tmp_path)))


def test_a_packed_table_is_named_so(tmp_path: Path) -> None:
    images = tmp_path / "regions.tsv"
    images.write_bytes(gzip.compress(TABLE.encode()))
    with pytest.raises(InputError, match=r"regions\.tsv: it is packed by gzip\. Fix: unpack it"):
        imported(tmp_path, "butd-tsv", images, karpathy(tmp_path))


def test_a_repeated_and_a_cut_row_are_left_out_and_listed(tmp_path: Path) -> None:
    rows = [butd_row(id) for id in IDS]
    images, captions = table(tmp_path, [*rows[:2], rows[1], rows[2][:-30], rows[3]]), karpathy(tmp_path)
    with pytest.raises(InputError, match=r"2 mistakes \(1 repeated row, 1 broken row\).*`source\.unreadable: skip`"):
        imported(tmp_path, "butd-tsv", images, captions)
    data = imported(tmp_path, "butd-tsv", images, captions, unreadable="skip")
    require_truth(data, (IDS[0], IDS[1], IDS[3]))
    listed = [json.loads(line) for line in (data.manifest / FILE).read_text().splitlines()]
    assert [(item["kind"], item["row"]) for item in listed] == [("repeated", "row 2"), ("row", "row 3")]
    assert listed[1]["id"] == f"COCO_val2014_{IDS[2]:012d}" and "base64" in listed[1]["reason"]


def write_fifty_broken(folder: Path, count: int) -> tuple[Path, Path, list[str]]:
    """A TSV of `count` images: 10 of them are given twice, 40 others have broken rows. Gives the table, a CSV with a
    caption each, and the ids of the sound ones."""
    rng, rows, sound = np.random.default_rng(7), [], []
    for number in range(count):
        id, key = IDS[number % 4], f"p{number:04d}"
        fields = butd_row(id, key).split("\t")
        kind = number // 2 % 4 if number < 80 and number % 2 else None
        features = FEATURES[id].copy()
        if kind == 0:
            fields[5] = fields[5][:-7]
        elif kind == 1:
            features[rng.integers(4), 3] = np.nan
            fields[5] = b64(features)
        elif kind == 2:
            features[2] = 0
            fields[5] = b64(features)
        elif kind == 3:
            fields = fields[:4]
        else:
            sound.append(key)
        rows.append("\t".join(fields))
    rows[200:200] = [rows[number] for number in range(100, 110)]
    captions = folder / "captions.csv"
    captions.write_text("image,caption\n" + "".join(f"p{n:04d}.jpg,A dog {n % 4}.\n" for n in range(count)))
    return table(folder, rows), captions, sound


REASONS = ("base64", "NaN", "all zero", "4 fields instead of 6", "was already given")
"""Of `write_fifty_broken`, ten rows each."""


def test_fifty_broken_rows_of_five_kinds(tmp_path: Path) -> None:
    images, captions, sound = write_fifty_broken(tmp_path, 400)
    with pytest.raises(InputError) as caught:
        imported(tmp_path, "butd-tsv", images, captions)
    assert caught.value.what.startswith("50 mistakes (40 broken rows, 10 repeated rows): ")
    assert caught.value.what.count("; row ") == 9
    listing = tmp_path / "out" / "manifest-refused.jsonl"
    assert f"all of them are listed in {listing}" in caught.value.what
    assert len(listing.read_text().splitlines()) == 50
    data = imported(tmp_path, "butd-tsv", images, captions, unreadable="skip")
    require_truth(data, (0,) * 360)
    assert [row.id for row in data.rows] == sound and not listing.exists()
    reasons = [json.loads(line)["reason"] for line in (data.manifest / FILE).read_text().splitlines()]
    assert len(reasons) == 50
    for part in REASONS:
        assert sum(part in reason for reason in reasons) == 10, part


def test_a_file_that_is_broken_throughout_is_refused_whatever_may_be_skipped(tmp_path: Path) -> None:
    images = table(tmp_path, [butd_row(id)[:-30] for id in IDS])
    with pytest.raises(InputError, match=r"row 0: features is not whole base64.*4 of 4 images can't be taken"):
        imported(tmp_path, "butd-tsv", images, karpathy(tmp_path), unreadable="skip", missing="skip")


# -- Keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "more"),
    [
        (lambda n: str(n), {}),  # Karpathy's imgid
        (lambda n: f"{IDS[n]:012d}", {"cocoid": lambda n: IDS[n]}),
        (lambda n: f"COCO_val2014_{IDS[n]:012d}.jpg", {}),
        (lambda n: f"val2014/COCO_val2014_{IDS[n]:012d}.jpg", {"cocoid": lambda n: IDS[n]}),
        (lambda n: str(IDS[n]), {}),
        (lambda n: f"COCO_train2014_{IDS[n]:012d}", {"cocoid": lambda n: IDS[n]}),
    ],
)
def test_keys_by_which_images_are_found(tmp_path: Path, key: Callable[[int], str], more: dict[str, Any]) -> None:
    images = table(tmp_path, [butd_row(id, key(number)) for number, id in enumerate(IDS)])
    require_truth(imported(tmp_path, "butd-tsv", images, karpathy(tmp_path, **more)))


def test_numbers_that_are_imgids_and_some_cocoids_too(tmp_path: Path) -> None:
    """COCO's first ids are imgids of other images: more match as imgids, so that they are."""
    images = table(tmp_path, [butd_row(id, str(number)) for number, id in enumerate(IDS)])
    captions = karpathy(tmp_path, cocoid=lambda n: 1 if n == 0 else IDS[n])
    require_truth(imported(tmp_path, "butd-tsv", images, captions))


def test_equal_file_names_in_folders(tmp_path: Path) -> None:
    keys = [f"00{n // 2}/000{n % 2}" for n in range(4)]
    images = table(tmp_path, [butd_row(id, keys[n]) for n, id in enumerate(IDS)])
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption\n" + "".join(f"{key}.jpg,A dog {n}.\n" for n, key in enumerate(keys)))
    data = imported(tmp_path, "butd-tsv", images, captions)
    require_truth(data)
    assert [row.id for row in data.rows] == keys


# -- Other layouts -----------------------------------------------------------------------------------------------------


def objects_of(id: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"rect": box, "bbox_id": n, "class": "dog", "conf": 0.5} | {key: value(n) for key, value in more.items()}
        for n, box in enumerate(BOXES[id].tolist())
    ]


def write_vinvl(folder: Path, *, features: bool, sizes: bool, whole: bool, key: str = "{}") -> Path:
    """VinVL's tables; `key` is how they call an image."""
    folder.mkdir()
    keys = {id: key.format(id) for id in IDS}
    more: dict[int, dict[str, Any]] = {id: {} for id in IDS}
    if features:
        table(folder, [f"{keys[id]}\t4\t{b64(FEATURES[id])}" for id in IDS], "features.tsv")
    else:
        more = {id: {"feature": lambda n, id=id: b64(FEATURES[id][n])} for id in IDS}
    if sizes:
        table(folder, [f'{keys[id]}\t[{{"height": 80, "width": 100}}]' for id in IDS], "hw.tsv")
    rows = [objects_of(id, **more[id]) for id in IDS]
    facts = rows if whole else [{"objects": row, "relations": None} for row in rows]
    table(folder, [f"{keys[id]}\t{json.dumps(fact)}" for id, fact in zip(IDS, facts, strict=True)], "predictions.tsv")
    return folder


@pytest.mark.parametrize(
    ("features", "whole", "key"),
    [
        *((features, whole, "{}") for features in (True, False) for whole in (True, False)),
        *((features, True, key) for features in (True, False) for key in ("{:012d}", "COCO_val2014_{:012d}.jpg")),
    ],
)
def test_vinvl_as_its_extractor_writes_it(tmp_path: Path, features: bool, whole: bool, key: str) -> None:
    folder = write_vinvl(tmp_path / "x", features=features, sizes=True, whole=whole, key=key)
    assert recognise(folder) == "vinvl"
    data = imported(tmp_path, "vinvl", folder, karpathy(tmp_path, cocoid=lambda n: IDS[n]))
    require_truth(data)
    assert data.store.object_names == ["dog"]
    assert {row.width for row in data.rows} == {100}


def test_vinvl_without_sizes_is_asked_for_them(tmp_path: Path) -> None:
    folder = write_vinvl(tmp_path / "x", features=True, sizes=False, whole=True)
    with pytest.raises(InputError, match=r"has no image_w and image_h.*4 of 4 images.*give hw\.tsv"):
        imported(tmp_path, "vinvl", folder, karpathy(tmp_path, cocoid=lambda n: IDS[n]))


def test_vinvls_rows_may_be_texts(tmp_path: Path) -> None:
    folder = rows_of("vinvl", tmp_path, "<f4")
    (folder / "imageid2idx.json").write_text(json.dumps({str(id): str(n) for n, id in enumerate(IDS)}))
    require_truth(imported(tmp_path, "vinvl", folder, karpathy(tmp_path, cocoid=lambda n: IDS[n])))


def test_oscars_captioning_tables(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for split, own in (("train", IDS[:2]), ("test", IDS[2:])):
        facts = [{"num_boxes": 4, "features": b64(FEATURES[id])} for id in own]
        table(folder, [f"{id}\t{json.dumps(f)}" for id, f in zip(own, facts, strict=True)], f"{split}.feature.tsv")
        table(folder, [f"{id}\t{json.dumps(objects_of(id))}" for id in own], f"{split}.label.tsv")
        table(folder, [f'{id}\t[{{"height": 80, "width": 100}}]' for id in own], f"{split}.hw.tsv")
        captions = [{"image_id": id, "id": 5 * id, "caption": f"A dog {IDS.index(id)}."} for id in own]
        (folder / f"{split}_caption.json").write_text(json.dumps(captions))
    data = imported(tmp_path, "vinvl", folder, folder)
    require_truth(data)
    assert [row.split for row in data.rows] == ["train", "train", "test", "test"]


def test_openvqas_files_are_turned(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for id in IDS:
        facts = {"num_bbox": 4, "image_w": 100, "image_h": 80}
        np.savez(folder / f"COCO_val2014_{id:012d}.jpg.npz", x=FEATURES[id].T, bbox=BOXES[id], **facts)
    assert recognise(folder) == "bua-npz"
    require_truth(imported(tmp_path, "bua-npz", folder, karpathy(tmp_path)))


def test_an_archive_of_a_version_to_come_is_no_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for id in IDS:
        np.savez(folder / f"{id}.npz", x=FEATURES[id], bbox=BOXES[id], num_bbox=4, image_w=100, image_h=80)
    path = folder / "1000.npz"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 6] = 105
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"1000\.npz: not a whole \.npz \(zip file version 10\.5\)"):
        imported(tmp_path, "bua-npz", folder, karpathy(tmp_path, cocoid=lambda n: IDS[n]))


def annotations(path: Path) -> None:
    images = [{"id": id, "width": 100, "height": 80, "file_name": "x.jpg"} for id in IDS]
    path.write_text(json.dumps({"images": images}))


@pytest.mark.parametrize("sizes", [True, False])
def test_cocobu(tmp_path: Path, sizes: bool) -> None:
    folder = tmp_path / "x"
    for part in ("cocobu_att", "cocobu_box", "cocobu_fc"):
        (folder / part).mkdir(parents=True)
    for id in IDS:
        np.savez_compressed(folder / "cocobu_att" / f"{id}.npz", feat=FEATURES[id])
        np.save(folder / "cocobu_box" / f"{id}.npy", BOXES[id])
        np.save(folder / "cocobu_fc" / f"{id}.npy", FEATURES[id].mean(0))
    if sizes:
        annotations(folder / "captions_val2014.json")
    assert recognise(folder) == "cocobu"
    data = imported(tmp_path, "cocobu", folder, karpathy(tmp_path, cocoid=lambda n: IDS[n]))
    require_truth(data, boxes=sizes)
    assert data.store.has_boxes == sizes


@pytest.mark.parametrize("sizes", [True, False])
def test_coco_detections(tmp_path: Path, sizes: bool) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    with h5py.File(folder / "coco_detections.hdf5", "w") as file:
        for id in IDS:
            file[f"{id}_features"], file[f"{id}_boxes"] = FEATURES[id], BOXES[id]
            file[f"{id}_cls_prob"] = np.full((4, 1601), 1 / 1601, np.float32)
    if sizes:
        annotations(folder / "captions_val2014.json")
    assert recognise(folder) == "coco-detections"
    data = imported(tmp_path, "coco-detections", folder, karpathy(tmp_path, cocoid=lambda n: IDS[n]))
    require_truth(data, boxes=sizes)


def test_an_hdf5_that_leads_elsewhere_is_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = FEATURES[IDS[1]]
    path = tmp_path / "coco_detections.hdf5"
    with h5py.File(path, "w") as file:
        for id in (IDS[0], *IDS[2:]):
            file[f"{id}_features"] = FEATURES[id]
        file[f"{IDS[1]}_features"] = h5py.ExternalLink("other.h5", "secret")
    captions = karpathy(tmp_path, cocoid=lambda n: IDS[n])
    with pytest.raises(InputError, match="row 1001: .*1001_features is no data set of this file"):
        imported(tmp_path, "coco-detections", path, captions)


@pytest.mark.parametrize("together", [True, False])
def test_mmfs_files(tmp_path: Path, together: bool) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for id in IDS:
        info = {"bbox": BOXES[id], "num_boxes": 4, "image_width": 100, "image_height": 80, "objects": np.arange(4)}
        name = f"COCO_val2014_{id:012d}"
        if together:
            np.save(folder / f"{name}.npy", info | {"features": FEATURES[id]}, allow_pickle=True)
        else:
            np.save(folder / f"{name}.npy", FEATURES[id])
            np.save(folder / f"{name}_info.npy", info, allow_pickle=True)
    require_truth(imported(tmp_path, "mmf-npy", folder, karpathy(tmp_path)))


# -- Stores of this project, made elsewhere ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize(
    ("counts", "boxes"), [((6,) * 10, True), ((6,) * 10, False), ((6, 1, 4, 2, 3, 9, 2, 5, 1, 1), True)]
)
def test_a_store_that_was_made_elsewhere_is_the_same_here(
    tmp_path: Path, precision: str, counts: tuple[int, ...], boxes: bool
) -> None:
    data = write_data_set(tmp_path / "theirs", counts=counts, dtype=precision)
    if not boxes:
        files = data.export("scan", tmp_path / "scan")
        for path in (*files.glob("*_boxes.npy"), *files.glob("*_img_sizes.npy")):
            path.unlink()
        data = Import("scan", files, tmp_path / "imported", settings={"precision": precision}).run()
    assert recognise(data.folder) == "store"
    again = imported(tmp_path, "store", data.folder, None, precision=precision, images_per_shard=3)
    assert [(row.id, row.path, row.split, row.captions) for row in again.rows] == [
        (row.id, row.path, row.split, row.captions) for row in data.rows
    ]
    ours, theirs = again.regions(), data.regions()
    for id in theirs:
        assert np.array_equal(ours[id].features, theirs[id].features) and ours[id].features.dtype == precision
        assert np.array_equal(ours[id].boxes, theirs[id].boxes) and ours[id].image_size == theirs[id].image_size
        assert (ours[id].objects_id is None) == (theirs[id].objects_id is None)
    assert again.store.has_boxes == boxes and again.store.object_names == data.store.object_names


def test_regions_alone_want_captions_and_a_changed_shard_is_refused(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "theirs")
    regions = data.folder / "regions"
    with pytest.raises(InputError, match="store has no captions"):
        imported(tmp_path, "store", regions, None)
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption\n" + "".join(f"{1000 + n}.jpg,A dog {n}.\n" for n in range(9)))
    data = imported(tmp_path, "store", regions, captions)
    assert [row.captions for row in data.rows] == [(f"A dog {n}.",) for n in range(9)]
    (shard, *_) = sorted(regions.rglob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=rf"{shard.name}: the file has changed since index\.json was written"):
        imported(tmp_path / "new", "store", regions, captions)


def test_formats_that_are_only_read_say_so(tmp_path: Path) -> None:
    data = imported(tmp_path, "butd-tsv", table(tmp_path, [butd_row(id) for id in IDS]), karpathy(tmp_path))
    with pytest.raises(InputError, match="only read.*choose one of"):
        data.export("cocobu", tmp_path / "new")


def test_the_command_lists_what_it_refuses_where_it_stays(tmp_path: Path) -> None:
    """And counts what it leaves out on its last line."""
    rows = [butd_row(id, f"p{n}") for n, id in enumerate(IDS * 20)]
    images = table(tmp_path, [row[:-9] if n % 5 == 1 else row for n, row in enumerate(rows)])
    captions = tmp_path / "c.csv"
    captions.write_text("image,caption\n" + "".join(f"p{n}.jpg,A dog.\n" for n in range(80)))
    command = ["import", "butd-tsv", str(images), str(tmp_path / "new"), "--captions", str(captions)]
    refused = CliRunner().invoke(main, command)
    listing = tmp_path / "new-refused.jsonl"
    assert refused.exit_code == 1 and f"all of them are listed in {listing}" in refused.output
    assert len(listing.read_text().splitlines()) == 16
    done = CliRunner().invoke(main, [*command, "--unreadable", "skip"])
    last = done.output.rstrip().splitlines()[-1]
    listed = tmp_path / "new" / "manifest" / FILE
    assert last.endswith(f"{tmp_path / 'new'}: 64 images, 256 regions of 16 numbers; 16 left out: {listed}")
    assert not listing.exists()
