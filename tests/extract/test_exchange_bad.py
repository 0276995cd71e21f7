"""Files that are cut off, contradict themselves or are hostile: named with row and fix, and no store is left behind."""

import base64
import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from extract.stages import tokens
from extract.text.settings import TokenSettings
from manifests.errors import InputError
from tests.extract.exchange_files import DataSet, Import, way_back, write_data_set
from tests.extract.test_intact import flip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    data = write_data_set(tmp_path_factory.mktemp("exchange") / "data")
    settings = TokenSettings(language="blank_en", min_count=1)
    tokens.run(manifest=data.manifest, settings=settings, out=data.folder / "tokens")
    return data


def refused(data: DataSet, tmp_path: Path, format: str, spoil: Callable[[Path], None], **settings: bool) -> str:
    """What the import of a spoilt export says; it must leave no store."""
    exported = data.export(format, tmp_path / "exported")
    spoil(exported)
    with pytest.raises(InputError) as caught:
        way_back(format, exported, tmp_path / "back", **settings).run()
    assert not (tmp_path / "back" / "regions").exists()
    assert caught.value.where and caught.value.fix
    return str(caught.value)


def change_field(file: str, row: int, field: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A function that changes one field of a tab-separated file."""

    def spoil(folder: Path) -> None:
        lines = (folder / file).read_bytes().splitlines(keepends=True)
        fields = lines[row].rstrip(b"\n").split(b"\t")
        fields[field] = change(fields[field])
        lines[row] = b"\t".join(fields) + b"\n"
        (folder / file).write_bytes(b"".join(lines))

    return spoil


def poisoned(field: bytes) -> bytes:
    """A base64 field of float32 whose number 9 is NaN."""
    values = np.frombuffer(base64.b64decode(field), np.float32).copy()
    values[9] = np.nan
    return base64.b64encode(values)


def emptied(field: bytes) -> bytes:
    """A base64 field of 6 rows of float32, the third of which is zero."""
    values = np.frombuffer(base64.b64decode(field), np.float32).reshape(6, -1).copy()
    values[2] = 0
    return base64.b64encode(values)


def swapped(field: bytes) -> bytes:
    """A base64 field of boxes, corners swapped."""
    values = np.frombuffer(base64.b64decode(field), np.float32).reshape(-1, 4)
    return base64.b64encode(values[:, [2, 3, 0, 1]].copy())


@pytest.mark.parametrize(
    ("format", "field"), [("butd-tsv", {"n": 3, "b": 4, "f": 5}), ("lxmert-tsv", {"n": 7, "b": 8, "f": 9})]
)
@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("f", lambda field: field[:-3], r"row 3 .*features is not whole base64"),
        ("f", lambda field: field[:-4], r"row 3 .*num_boxes is 6, which doesn't divide"),
        ("f", lambda field: field[:-64], r"row 3 "),
        ("f", lambda field: b"*" + field[1:], r"row 3 .*features is not whole base64"),
        ("f", poisoned, r"row 3 .*NaN or infinite: region 1"),
        ("f", emptied, r"row 3 .*features are all zero: region 2"),
        ("b", lambda field: base64.b64encode(base64.b64decode(field)[:-16]), r"num_boxes is 6, but boxes has 20"),
        ("b", poisoned, r"row 3 .*box 2 is .*nan"),
        ("b", swapped, r"row 3 .*box 0 is"),
        ("n", lambda field: b"5", r"row 3"),
        ("n", lambda field: b"six", r"row 3: num_boxes must be a whole number, not 'six'"),
        ("n", lambda field: b"-1", r"row 3: num_boxes is -1"),
        ("n", lambda field: b"0_6", r"row 3: num_boxes must be a whole number, not '0_6'"),
    ],
)
def test_tsv_fields(
    data: DataSet,
    tmp_path: Path,
    format: str,
    field: dict[str, int],
    which: str,
    change: Callable[[bytes], bytes],
    message: str,
) -> None:
    text = refused(data, tmp_path, format, change_field("regions.tsv", 3, field[which], change))
    assert "regions.tsv" in text and re.search(message.replace(" .*", ".*"), text), text


@pytest.mark.parametrize(
    ("field", "dtype", "value", "message"),
    [
        (3, np.int64, -1, "objects_id of region 1 is -1, not a class"),
        (4, np.float32, 7.0, "objects_conf of region 1 is 7, not within 0 and 1"),
        (6, np.float32, np.nan, "attrs_conf of region 1 is nan, not within 0 and 1"),
    ],
)
def test_labels_that_cannot_be(
    data: DataSet, tmp_path: Path, field: int, dtype: type[np.generic], value: float, message: str
) -> None:
    def spoilt(content: bytes) -> bytes:
        values = np.frombuffer(base64.b64decode(content), dtype).copy()
        values[1] = value
        return base64.b64encode(values)

    assert message in refused(data, tmp_path, "lxmert-tsv", change_field("regions.tsv", 3, field, spoilt))


@pytest.mark.parametrize("format", ["butd-tsv", "lxmert-tsv"])
def test_tsv_rows(data: DataSet, tmp_path: Path, format: str) -> None:
    def cut(folder: Path) -> None:
        content = (folder / "regions.tsv").read_bytes()
        (folder / "regions.tsv").write_bytes(content[: content.rindex(b"\t")])

    def twice(folder: Path) -> None:
        lines = (folder / "regions.tsv").read_bytes().splitlines(keepends=True)
        (folder / "regions.tsv").write_bytes(b"".join([*lines, lines[2]]))

    expected = 6 if format == "butd-tsv" else 10
    assert f"row 9: {expected - 1} fields instead of {expected}" in refused(data, tmp_path / "a", format, cut)
    text = refused(data, tmp_path / "b", format, twice)
    assert "row 10: image '1002' was already given at" in text and "row 2" in text
    text = refused(data, tmp_path / "c", format, change_field("regions.tsv", 1, 0, lambda field: b" "))
    assert "id is missing" in text
    text = refused(data, tmp_path / "c2", format, change_field("regions.tsv", 1, 0, lambda field: bytes(900) + field))
    assert "row 1: " in text and "bytes of zero" in text
    text = refused(data, tmp_path / "d", format, change_field("regions.tsv", 1, 0, lambda field: b"other"))
    assert "1 of these have none, the first is '1001'" in text
    text = refused(data, tmp_path / "e", format, lambda folder: (folder / "regions.tsv").write_bytes(b""))
    assert "no image has regions: the captions name '1000', and there is none in the files" in text


@pytest.mark.parametrize("format", ["butd-tsv", "lxmert-tsv", "vinvl"])
def test_rows_that_are_missing_are_first_of_all_a_file_that_was_cut(data: DataSet, tmp_path: Path, format: str) -> None:
    def cut(folder: Path) -> None:
        for path in folder.glob("*.tsv"):
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
        for path in folder.glob("*id*"):
            path.unlink()

    text = refused(data, tmp_path, format, cut)
    assert re.search(r"\.tsv row 6: .*cut off: there are those of 7 images, and the captions name 10; 3 of", text), text
    assert text.index("cut off") < text.index("fetch or export the file again") < text.index("missing: skip")


def test_a_file_of_one_tsv_format_is_not_the_other(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("butd-tsv", tmp_path / "exported")
    with pytest.raises(InputError, match=r"regions\.tsv row 0: 6 fields instead of 10"):
        way_back("lxmert-tsv", exported, tmp_path / "back").run()


def test_other_lengths_of_a_feature_and_labels_are_refused(data: DataSet, tmp_path: Path) -> None:
    def half(field: bytes) -> bytes:
        return base64.b64encode(np.frombuffer(base64.b64decode(field), np.float32)[::2].copy())

    text = refused(data, tmp_path / "a", "butd-tsv", change_field("regions.tsv", 4, 5, half))
    assert "row 4" in text and "6 regions of 4 numbers, the first image's have 8" in text

    def large(field: bytes) -> bytes:
        return base64.b64encode(np.full(6, 2**40))

    text = refused(data, tmp_path / "b", "lxmert-tsv", change_field("regions.tsv", 4, 3, large))
    assert "row 4" in text and "objects_id doesn't fit int32" in text


def prediction(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """A change of a row's JSON."""

    def changed(field: bytes) -> bytes:
        value = json.loads(field)
        change(value)
        return json.dumps(value).encode()

    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "features.lineidx").write_text("0\n17\n"), "features.lineidx line 2: it says 17 for row 1"),
        (lambda f: (f / "features.lineidx").write_text("0\n"), "features.lineidx line 2: it says nothing for row 1"),
        (
            lambda f: (f / "features.lineidx").write_text((f / "features.lineidx").read_text() + "999999\n"),
            "11 offsets for 10 rows",
        ),
        (lambda f: (f / "features.lineidx").write_text("0\nx\n"), "features.lineidx line 2: 'x' is no byte offset"),
        (lambda f: (f / "imageid2idx.json").write_text('{"1000": 1}'), "it says 1 for '1000', which is row 0"),
        (lambda f: (f / "imageid2idx.json").write_text("[]"), "not an object of id: row"),
        (lambda f: (f / "predictions.tsv").unlink(), "predictions.tsv: can't be read"),
        (change_field("predictions.tsv", 2, 0, lambda field: b"x"), "predictions.tsv has no '1002'"),
        (change_field("predictions.tsv", 2, 0, lambda field: b"1001"), "'1001' was already given in row 1"),
        (change_field("predictions.tsv", 2, 1, lambda field: field[:-2]), "predictions.tsv row 2: not a prediction"),
        (
            change_field("predictions.tsv", 2, 1, prediction(lambda v: v["objects"].pop())),
            "features.tsv row 2: num_boxes is 6, predictions.tsv row 2 has 5 objects",
        ),
        (
            change_field("predictions.tsv", 2, 1, prediction(lambda v: v.pop("image_h"))),
            "predictions.tsv row 2: not a prediction ('image_h' is missing)",
        ),
        (
            change_field("predictions.tsv", 2, 1, prediction(lambda v: v["objects"][3]["rect"].pop())),
            "predictions.tsv row 2: not a prediction (objects[3].rect is",
        ),
        (
            change_field("predictions.tsv", 2, 1, prediction(lambda v: v["objects"][3].pop("conf"))),
            "features.tsv row 2 (image '1002'): it has the labels ['objects_id']",
        ),
        (change_field("features.tsv", 2, 2, lambda field: field[:-4]), "features.tsv row 2"),
        (change_field("features.tsv", 2, 2, poisoned), "NaN or infinite: region 1"),
    ],
)
def test_vinvl(data: DataSet, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    def without_index(folder: Path) -> None:
        spoil(folder)
        if "features.tsv" in message or "NaN" in message:
            (folder / "features.lineidx").unlink()

    assert message in refused(data, tmp_path, "vinvl", without_index)


def test_an_image_without_objects_goes_with_any_others(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", counts=(3, 0, *(2,) * 8), labels=False)
    back = way_back("vinvl", data.export("vinvl", tmp_path / "exported"), tmp_path / "back").run()
    assert back.store.num_boxes.tolist() == [3, 0, *(2,) * 8]


class Hostile:
    """Unpickled by a plain reader, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def repack(folder: Path, **arrays: object) -> None:
    """Replace arrays of the third file; None removes one."""
    path = sorted(folder.glob("*.npz"))[2]
    with np.load(path, allow_pickle=True) as file:
        kept = {name: file[name] for name in file.files} | arrays
    np.savez(path, **{name: value for name, value in kept.items() if value is not None})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"num_bbox": 5}, "1002.npz: num_bbox is 5, and x is float32 [6, 8]"),
        ({"num_bbox": None}, "1002.npz: it has no 'num_bbox'"),
        ({"num_bbox": 6.5}, "num_bbox is"),
        ({"bbox": np.zeros((5, 4), "f")}, "num_bbox is 6, and bbox is float32 [5, 4]"),
        ({"x": np.full((6, 8), np.nan, "f")}, "1002.npz (image '1002'): features are NaN or infinite: region 0"),
        ({"x": np.zeros((6, 8), int)}, "x is int64 [6, 8]"),
        ({"x": np.array([None])}, "1002.npz x: it holds pickled Python objects"),
        ({"image_w": 1}, "in a picture of 1 x"),
        ({"image_h": 0}, "image_h is"),
    ],
)
def test_npz_arrays(data: DataSet, tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    assert message in refused(data, tmp_path, "bua-npz", lambda folder: repack(folder, **arrays))


def test_npz_that_is_cut_off(data: DataSet, tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        path = folder / "1004.npz"
        path.write_bytes(path.read_bytes()[:-100])

    assert "1004.npz: not a whole .npz" in refused(data, tmp_path, "bua-npz", cut)


@pytest.mark.parametrize("key", ["x", "image_w", "info"])
def test_a_hostile_pickle_in_an_npz_is_not_run(data: DataSet, tmp_path: Path, key: str) -> None:
    made = tmp_path / "made by a pickle"
    array = np.empty(1, object)
    array[0] = Hostile(made)
    text = refused(data, tmp_path, "bua-npz", lambda folder: repack(folder, **{key: array}), info=True)
    assert not made.exists()
    assert "1002.npz" in text and ("could run code" in text or "can run code" in text)
    pickle.loads(pickle.dumps(Hostile(made)))
    assert made.exists()  # so the pickle does what it says


def test_info_is_not_looked_at_unless_asked(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("bua-npz", tmp_path / "exported")
    array = np.empty(1, object)
    array[0] = Hostile(tmp_path / "made")
    repack(exported, info=array)
    assert len(way_back("bua-npz", exported, tmp_path / "back").run().store) == 10
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("facts", [[1, 2], {"objects_id": [1, 2]}, {"objects_id": "red"}])
def test_info_that_does_not_fit(data: DataSet, tmp_path: Path, facts: object) -> None:
    array = np.empty((), object)
    array[()] = facts
    text = refused(data, tmp_path, "bua-npz", lambda folder: repack(folder, info=array), info=True)
    assert "1002.npz" in text and "leave out `regions.info`" in text


def rewrite(folder: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]) -> None:
    """Pass every member of the train shard through `change`, and remove the index, as others have none."""
    (folder / "index.json").unlink()
    path = next(folder.glob("*-train-*.tar"))
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            changed = change(member, content)
            if changed:
                changed[0].size = len(changed[1])
                tar.addfile(changed[0], io.BytesIO(changed[1]))


def replaced(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A change of the bytes of one member."""
    return lambda folder: rewrite(folder, lambda m, data: (m, content(data) if m.name == name else data))


def dumped(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def facts(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replaced("1001.json", lambda content: content[:-2]), "row 1: not a sample's JSON"),
        (replaced("1001.json", facts(id="1002")), "row 1: its key is '1001', its id '1002'"),
        (replaced("1001.json", facts(num_boxes=5)), "num_boxes is 5"),
        (replaced("1001.json", facts(captions=[1])), "row 1: not a sample's JSON (a caption is not text)"),
        (replaced("1001.json", facts(split="holdout")), "unknown split 'holdout'"),
        (replaced("1001.json", facts(objects_id=[1, 2])), "row 1: not a sample's JSON (objects_id is [1, 2], and num_"),
        (
            replaced("1001.json", facts(objects_id=[[1], [2, 3], 1, 1, 1, 1])),
            "row 1: not a sample's JSON (objects_id is",
        ),
        (replaced("1001.json", facts(objects_id=[2**40] * 6)), "row 1: not a sample's JSON"),
        (replaced("1001.json", facts(attrs_conf=[None] * 6)), "row 1: not a sample's JSON (attrs_conf is [None, None"),
        (replaced("1001.json", facts(width=0)), "train-000000.tar row 1: not a sample's JSON (width is 0)"),
        (replaced("1001.json", facts(num_boxes=-1)), "row 1: not a sample's JSON (num_boxes is -1)"),
        (
            replaced("1001.features.npy", lambda content: content[:-2]),
            "tar row 1 features.npy: 94 bytes of numbers",
        ),
        (replaced("1001.features.npy", lambda c: dumped(np.array([None]))), "it holds pickled Python objects"),
        (replaced("1001.features.npy", lambda c: dumped(np.full((6, 8), np.nan, "e"))), "NaN or infinite: region 0"),
        (replaced("1001.boxes.npy", lambda c: dumped(np.zeros((5, 4), "f"))), "num_boxes is 6"),
        (
            lambda folder: rewrite(folder, lambda m, data: None if m.name == "1001.json" else (m, data)),
            "a sample is features.npy, boxes.npy, json under one key",
        ),
        (
            lambda folder: rewrite(folder, lambda m, data: None if m.name == "1004.json" else (m, data)),
            "key '1004': its last sample has only features.npy, boxes.npy",
        ),
    ],
)
def test_wds(data: DataSet, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    text = refused(data, tmp_path, "wds", spoil)
    assert message in text and "train" in text


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("place", ["inside a member", "after a member", "after a sample", "after the last sample"])
def test_wds_that_is_cut_off(data: DataSet, tmp_path: Path, place: str, index: bool) -> None:
    def cut(folder: Path) -> None:
        path = next(folder.glob("*-train-*.tar"))
        with tarfile.open(path) as tar:
            starts = [member.offset for member in tar]
        ends = {"after a member": starts[4], "after a sample": starts[6], "after the last sample": tar.offset}
        path.write_bytes(path.read_bytes()[: ends.get(place, starts[7] + 600)])
        if not index:
            (folder / "index.json").unlink()

    text = refused(data, tmp_path, "wds", cut)
    assert "-train-000000.tar" in text and ("the file has changed" in text) == index


@pytest.mark.parametrize("part", [0.0, 0.003, 0.2, 0.5, 0.77, 1.0])
def test_a_flipped_byte_of_a_shard_that_an_index_lists(data: DataSet, tmp_path: Path, part: float) -> None:
    spoil = lambda folder: flip(next(folder.glob("*-train-*.tar")), part)  # noqa: E731
    assert "-train-000000.tar: the file has changed: its sha256 is" in refused(data, tmp_path, "wds", spoil)


def test_a_damaged_header_does_not_end_a_shard(data: DataSet, tmp_path: Path) -> None:
    """Python's tarfile takes it for the end of the archive, and says nothing."""

    def spoil(folder: Path) -> None:
        path = next(folder.glob("*-train-*.tar"))
        with tarfile.open(path) as tar:
            start = list(tar)[9].offset
        content = bytearray(path.read_bytes())
        content[start + 2] ^= 1
        path.write_bytes(content)
        (folder / "index.json").unlink()

    assert "-train-000000.tar: no end of the archive after 3 samples" in refused(data, tmp_path, "wds", spoil)


def test_shards_that_are_missing_or_not_listed(data: DataSet, tmp_path: Path) -> None:
    text = refused(data, tmp_path / "a", "wds", lambda folder: next(folder.glob("*-val-*.tar")).unlink())
    assert "-val-000000.tar: the file is missing, index.json lists it" in text
    shard = lambda folder, end: next(folder.glob("*-val-000000.tar")).with_name(f"data-val-{end}.tar")  # noqa: E731
    spoil = lambda folder: shutil.copy(shard(folder, "000000"), shard(folder, "000001"))  # noqa: E731
    assert "data-val-000001.tar: index.json doesn't list this file" in refused(data, tmp_path / "b", "wds", spoil)
    text = refused(data, tmp_path / "c", "wds", lambda folder: (folder / "index.json").write_text("{}"))
    assert "index.json: no list of files" in text and "move it away" in text


def test_shards_made_elsewhere_are_imported_without_an_index(data: DataSet, tmp_path: Path) -> None:
    exported = data.export("wds", tmp_path / "exported")
    for path in exported.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    for path in exported.glob("*.tar"):  # members in webdataset's own order
        with tarfile.open(path) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]
        with tarfile.open(path, "w") as tar:
            for member, content in sorted(members, key=lambda found: found[0].name):
                tar.addfile(member, io.BytesIO(content))
    back = way_back("wds", exported, tmp_path / "back").run()
    assert back.store.ids == data.store.ids
    one = Import("wds", exported / "data-val-000000.tar", tmp_path / "one").run()
    assert one.store.ids == ["1005", "1006"]


@pytest.mark.parametrize("name", ["../1001.json", "/tmp/1001.json", "a/../../1001.json", "..\\1001.json"])
def test_a_tar_member_that_leads_out_is_refused_and_not_written(data: DataSet, tmp_path: Path, name: str) -> None:
    def lead_out(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if member.name == "1001.json":
            member.name = name
        return member, content

    before = {path for path in tmp_path.parent.glob("*.json")}
    text = refused(data, tmp_path, "wds", lambda folder: rewrite(folder, lead_out))
    assert "don't trust this archive" in text
    assert {path for path in tmp_path.parent.glob("*.json")} == before and not list(tmp_path.glob("*.json"))


def test_a_link_in_a_tar_is_refused(data: DataSet, tmp_path: Path) -> None:
    def link(member: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if member.name == "1001.json":
            member.type, member.linkname, content = tarfile.SYMTYPE, "/etc/passwd", b""
        return member, content

    assert "not a plain file" in refused(data, tmp_path, "wds", lambda folder: rewrite(folder, link))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", '[{"image_id": 1}]', "c.json: it is no captions file that is known: JSON with the keys image_id"),
        ("c.json", "[1", "not valid JSON"),
        ("c.json", '{"images": 1}', "JSON with the keys images. Fix: write one of these"),
        ("c.txt", "A caption.", "text that begins with 'A caption.'. Fix: write one of these"),
        ("c.json", '[{"image_id": 77, "caption": "A cap."}]', "the captions name '77', the files '1009'"),
    ],
)
def test_captions(data: DataSet, tmp_path: Path, name: str, content: str, message: str) -> None:
    exported = data.export("butd-tsv", tmp_path / "exported")
    (tmp_path / name).write_text(content, encoding="utf-8")
    work = way_back("butd-tsv", exported, tmp_path / "back")
    with pytest.raises(InputError) as caught:
        type(work)(work.format, work.images, work.out, tmp_path / name).run()
    assert message in str(caught.value)


def test_files_that_are_not_there(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for format in ("scan", "butd-tsv", "lxmert-tsv", "vinvl", "bua-npz", "wds"):
        for images in (tmp_path / "nowhere", tmp_path / "empty"):
            with pytest.raises(InputError):
                way_back(format, images, tmp_path / "back").run()
    assert not (tmp_path / "back").exists()
