"""The manifest's tables: rows come back, equal rows are equal bytes, whatever isn't a whole table is refused."""

import hashlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from manifests.arrow import ROWS, Table
from manifests.errors import InputError
from manifests.schema import SPLITS, CaptionedImage, ImageRow
from manifests.tables import CAPTIONS, IMAGES, Manifest, images_sha256, manifest_sha256, write_manifest

OLD = Path(__file__).parents[1] / "data" / "manifest-jsonl"
ROW = CaptionedImage(
    "7", "val2014/a b.jpg", "0f" * 32, 640, 480, "train", ("A dog.", "Ein Häuschen.", "犬\u2028x"), (3, None, 5)
)
ROWS_OF_THREE = [
    ROW,
    replace(ROW, id="Häuschen", captions=(), caption_ids=()),
    replace(ROW, id="5", width=None, height=None, split="test", captions=("One.",), caption_ids=()),
]


def many(count: int = ROWS + 100) -> list[CaptionedImage]:
    """Rows of more than one record batch, with no, one, two or three captions each."""
    return [
        CaptionedImage(
            f"id {n}", f"{n}.jpg", f"{n:064x}", 1 + n, 2, SPLITS[n % 3], tuple(f"{n} {k}" for k in range(n % 4))
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_manifest(folder, many())
    return folder


def columns(row: CaptionedImage) -> dict:
    image = {name: getattr(row, name) for name in ("id", "split", "path", "width", "height")}
    return image | {"sha256": bytes.fromhex(row.sha256)}


def write_table(path: Path, rows: list[dict], schema: pa.Schema, **options) -> None:
    """A table as somebody else would write it: no row is looked at."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema, **options) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def schema_of(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).schema


def test_rows_come_back_in_order(tmp_path):
    write_manifest(tmp_path, ROWS_OF_THREE)
    manifest = Manifest.open(tmp_path)
    assert list(manifest.captioned) == ROWS_OF_THREE
    assert manifest.images[0] == ImageRow("7", "val2014/a b.jpg", "0f" * 32, 640, 480, "train")
    assert manifest.ids == ["7", "Häuschen", "5"] and manifest.id_bytes == len("Häuschen".encode())
    assert manifest.splits.tolist() == [0, 0, 2] and manifest.rows_in("test").tolist() == [2]
    assert manifest.caption_counts.tolist() == [3, 0, 1] and manifest.caption_rows.tolist() == [0, 0, 0, 2]
    assert manifest.captions_of(0) == list(ROW.captions) and manifest.captions_of(1) == []
    assert manifest.caption_ids(0, 4) == [3, None, 5, None]
    assert (manifest.row_of("5"), manifest.row_of("6")) == (2, None)
    digests = [manifest.row_of_digest(row.sha256) for row in manifest.images]
    assert digests == [[row.sha256 for row in manifest.images].index(row.sha256) for row in manifest.images]
    assert manifest.row_of_digest("0" * 64) is None


@pytest.mark.parametrize(
    "part", [slice(0, 3), slice(ROWS - 2, ROWS + 3), slice(-2, None), slice(5, 5), slice(9, 2, -3)]
)
def test_some_rows_are_read_alone(large, part):
    rows, manifest = many(), Manifest.open(large)
    assert manifest.captioned[part] == rows[part]
    assert [row.id for row in manifest.images[part]] == [row.id for row in rows[part]]


def test_all_of_many_rows(large):
    rows, manifest = many(), Manifest.open(large)
    assert len(manifest) == len(manifest.images) == len(rows) and list(manifest.captioned) == rows
    assert manifest.images[-1].id == rows[-1].id and manifest.row_of(rows[-1].id) == len(rows) - 1
    assert [manifest.captions_of(n) for n in (3, ROWS, len(rows) - 1)] == [
        list(rows[n].captions) for n in (3, ROWS, len(rows) - 1)
    ]
    asked = np.array([0, 7, 1024, ROWS + 1])
    assert [row.id for row in manifest.images_at(asked)] == [rows[n].id for n in asked]
    with pytest.raises(IndexError):
        manifest.images[len(rows)]


def test_an_empty_manifest(tmp_path):
    write_manifest(tmp_path, [])
    manifest = Manifest.open(tmp_path)
    assert len(manifest) == manifest.num_captions == manifest.id_bytes == 0
    assert list(manifest.captioned) == manifest.ids == []


def test_equal_rows_give_the_bytes_they_always_gave(tmp_path, large):
    """These hashes are those of pyarrow 17 to 26: DVC compares files by their bytes."""
    write_manifest(tmp_path, ROWS_OF_THREE)
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16] for name in (IMAGES, CAPTIONS)]
    assert digests == ["83dc5daf925404be", "89be65c93f85fd47"]
    assert [hashlib.sha256((large / name).read_bytes()).hexdigest()[:16] for name in (IMAGES, CAPTIONS)] == [
        "7212c6f122d43744",
        "2d45406d865d5ae7",
    ]


def test_captions_are_no_part_of_what_names_the_images(tmp_path):
    write_manifest(tmp_path / "a", ROWS_OF_THREE)
    write_manifest(tmp_path / "b", [replace(ROW, captions=("A dgo.",), caption_ids=()), *ROWS_OF_THREE[1:]])
    assert images_sha256(tmp_path / "a") == images_sha256(tmp_path / "b")
    assert manifest_sha256(tmp_path / "a") != manifest_sha256(tmp_path / "b")


def test_images_are_read_without_the_captions(tmp_path):
    write_manifest(tmp_path, ROWS_OF_THREE)
    (tmp_path / CAPTIONS).unlink()
    manifest = Manifest.open(tmp_path)
    assert len(manifest.images) == 3
    with pytest.raises(InputError, match=rf"{CAPTIONS}: the file can't be read"):
        manifest.captions_of(0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, ROW], "row 1: id '7' was already given in row 0"),
        ([replace(ROW, split="dev")], "row 0: 'split' must be one of"),
        ([ROW, replace(ROW, id="8", captions=(" \u2003",), caption_ids=())], r"row 1: 'captions\[0\]' must be text"),
        ([replace(ROW, caption_ids=(1, 2, 2**63))], "row 0: 'caption_ids' must be whole numbers of at most 64 bits"),
        ([replace(ROW, width=2**31)], "row 0: 'width' must be a whole number"),
    ],
)
def test_writing_checks_and_leaves_the_old_files(tmp_path, rows, message):
    write_manifest(tmp_path, [ROW])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=rf"{IMAGES} {message}"):
        write_manifest(tmp_path, rows)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ""}, "'id' must be text"),
        ({"id": "a\0"}, "character 1 of the id 'a\\x00' is a control character"),
        ({"id": "a\x85b"}, "is a control character"),
        ({"id": "a\u2028b"}, "'a\\u2028b' is a line separator"),
        ({"id": "7"}, "id '7' was already given in row 0"),
        ({"id": None}, "'id' must be text"),
        ({"path": ""}, "'path' must be text"),
        ({"path": None}, "'path' must be text"),
        ({"path": "a\0.jpg"}, "'a\\x00.jpg' has a character that no file's name can have"),
        ({"path": "/etc/passwd"}, "relative to the image root"),
        ({"path": "a/../../b.jpg"}, "relative to the image root"),
        ({"path": ".."}, "relative to the image root"),
        ({"path": "a\\b.jpg"}, "relative to the image root"),
        ({"sha256": None}, "'sha256' must be text"),
        ({"height": 0}, "'height' must be a whole number"),
        ({"width": -4}, "'width' must be a whole number"),
        ({"height": None}, "both be null"),
        ({"split": "restval"}, "one of train, val, test"),
        ({"split": None}, "'split' must be text"),
    ],
)
def test_a_bad_image_is_refused_with_file_row_and_fix(tmp_path, change, words):
    write_manifest(tmp_path, ROWS_OF_THREE)
    schema = schema_of(tmp_path / IMAGES)
    good = [columns(ROW), {**columns(ROW), "id": "second..", "path": "..a/犬â..b/c"}]
    write_table(tmp_path / IMAGES, [*good, {**columns(ROW), "id": "third", **change}], schema)
    with pytest.raises(InputError) as error:
        Manifest.open(tmp_path)
    assert words in error.value.what
    assert error.value.where == f"{tmp_path / IMAGES} row 2" and error.value.fix == "run the manifest stage again"
    write_table(tmp_path / IMAGES, good, schema)
    assert len(Manifest.open(tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": 3}, "its image is row 3, which is not there"),
        ({"image": -1}, "its image is row -1"),
        ({"image": 0}, "its image is row 0, which is not there or before that of the caption above"),
        ({"image": None}, "must not be null"),
        ({"caption": None}, "must not be null"),
        ({"caption": ""}, "'caption' must be text that isn't empty, not ''"),
        ({"caption": " \u2003\n"}, "'caption' must be text that isn't empty"),
    ],
)
def test_a_bad_caption_is_refused_with_file_and_row(tmp_path, change, words):
    write_manifest(tmp_path, ROWS_OF_THREE)
    rows = [{"image": 0, "caption_id": None, "caption": "犬"}, {"image": 1, "caption_id": 3, "caption": "x"}]
    bad = {"image": 2, "caption_id": None, "caption": "A dog."} | change
    write_table(tmp_path / CAPTIONS, [*rows, bad], schema_of(tmp_path / CAPTIONS))
    with pytest.raises(InputError) as error:
        Manifest.open(tmp_path).captions_of(0)
    assert words in error.value.what and error.value.where == f"{tmp_path / CAPTIONS} row 2"


def test_an_id_given_twice_is_found_over_batches(tmp_path):
    rows = many()
    write_manifest(tmp_path, rows)
    schema, rows[-1] = schema_of(tmp_path / IMAGES), replace(rows[-1], id="id 3")
    with pa.OSFile(str(tmp_path / IMAGES), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for first in (0, ROWS):
            writer.write_batch(
                pa.RecordBatch.from_pylist([columns(row) for row in rows[first : first + ROWS]], schema=schema)
            )
    with pytest.raises(InputError, match=rf"row {len(rows) - 1}: id 'id 3' was already given in row 3"):
        Manifest.open(tmp_path)


def test_other_layouts_are_refused(tmp_path):
    write_manifest(tmp_path, ROWS_OF_THREE)
    schema, rows = schema_of(tmp_path / IMAGES), [columns(row) for row in ROWS_OF_THREE]
    write_table(tmp_path / IMAGES, rows, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(InputError, match="record batch 0 is compressed"):
        Manifest.open(tmp_path)
    for other in (schema.with_metadata({"pandas": "{}"}), pa.schema([f.with_nullable(True) for f in schema])):
        write_table(tmp_path / IMAGES, rows, other)
        with pytest.raises(InputError, match="it has other columns than id string, split string"):
            Manifest.open(tmp_path)
    with pa.OSFile(str(tmp_path / IMAGES), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for some in (many(400)[:200], many(400)[200:]):
            writer.write_batch(pa.RecordBatch.from_pylist([columns(row) for row in some], schema=schema))
    with pytest.raises(InputError, match="record batch 0 has 200 rows"):
        Manifest.open(tmp_path)


def test_a_file_that_claims_more_rows_than_it_has_bytes_is_refused(tmp_path):
    schema = pa.schema([pa.field("number", pa.int8())])
    with pa.OSFile(str(tmp_path / "t"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for _ in range(300):
            writer.write_batch(pa.RecordBatch.from_pylist([{"number": 1}], schema=schema))
    with pytest.raises(InputError, match="it is too short for 4,898,817 rows. Fix: fetch it again"):
        Table(tmp_path / "t", schema, fix="fetch it again")


@pytest.mark.parametrize("name", [IMAGES, CAPTIONS])
def test_a_damaged_table_is_refused_or_is_still_whole(tmp_path, name):
    """Bytes flipped, set, cut off, doubled or zeroed at 400 seeded places: an `InputError`, or rows that are valid."""
    write_manifest(tmp_path, ROWS_OF_THREE)
    whole, refused = (tmp_path / name).read_bytes(), 0
    for seed in range(400):
        chance = random.Random(seed)
        spoilt, at = bytearray(whole), chance.randrange(len(whole))
        kind = chance.randrange(5)
        if kind == 0:
            spoilt[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            spoilt[at : at + 4] = chance.choice([b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x80"])
        elif kind == 2:
            del spoilt[at:]
        elif kind == 3:
            spoilt[at:at] = spoilt[at : at + 8]
        else:
            spoilt[at : at + 64] = bytes(64)
        (tmp_path / name).write_bytes(spoilt)
        try:
            rows = list(Manifest.open(tmp_path).captioned)
        except InputError as error:
            assert str(tmp_path / name) in error.where and "\n" not in str(error)
            refused += 1
        else:
            assert len(rows) == 3 and all(row.split in SPLITS for row in rows)
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"{}\n"])
def test_what_is_no_table_is_refused(tmp_path, content):
    write_manifest(tmp_path, ROWS_OF_THREE)
    (tmp_path / IMAGES).write_bytes(content)
    with pytest.raises(InputError, match=IMAGES):
        Manifest.open(tmp_path)


def test_a_folder_without_a_manifest_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"there is no manifest \(images.arrow\).*dvc repro manifest@"):
        Manifest.open(tmp_path / "nothing")


def test_a_manifest_of_an_older_project_is_read(tmp_path):
    """As SelfAlign wrote it until November 2026, with COCO's ids in a file of their own."""
    for place in (OLD, OLD / "manifest.jsonl"):
        manifest = Manifest.open(place)
        assert manifest.ids == ["391895", "60623", "7"] and manifest.splits.tolist() == [0, 2, 1]
        assert manifest.captioned[0].captions == ("A man rides.", "Ein Häuschen, 犬.")
        assert manifest.captioned[0].caption_ids == (770337, 771687) and manifest.captioned[2].captions == ()
        assert (manifest.images[1].width, manifest.images[2].width) == (640, None)
    digest = hashlib.sha256((OLD / "manifest.jsonl").read_bytes()).hexdigest()
    assert images_sha256(OLD) == manifest_sha256(OLD) == digest  # what stores made of it name it by
    write_manifest(tmp_path, Manifest.open(OLD).captioned)
    assert list(Manifest.open(tmp_path).captioned) == list(manifest.captioned)


_MEMORY = """
import sys
import pyarrow
from manifests import tables
def held():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1])
before = held()
manifest = tables.Manifest.open(sys.argv[1])
rows = manifest.images[700_000:701_024]
assert rows[0].id == "700000" and len(manifest) == 1_000_000
print(held() - before)
"""


@pytest.mark.slow
def test_a_million_rows_take_little_memory(tmp_path):
    write_manifest(tmp_path, (replace(ROW, id=str(n), captions=(), caption_ids=()) for n in range(1_000_000)))
    done = subprocess.run([sys.executable, "-c", _MEMORY, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # kB
