"""The manifest's schema: what is written comes back, and whatever isn't a whole row is refused with its line."""

import json
from dataclasses import replace

import pytest

from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import ImageRow, read_manifest, write_manifest

ROW = ImageRow("7", "val2014/a b.jpg", "0" * 64, 640, 480, "train", ("A dog.", "Ein Häuschen.", "犬\u2028x"))


def test_rows_come_back_in_order(tmp_path):
    rows = [ROW, replace(ROW, id="3", captions=()), replace(ROW, id="5", width=None, height=None, split="test")]
    write_manifest(tmp_path / "m.jsonl", rows)
    assert read_manifest(tmp_path / "m.jsonl") == rows


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_manifest(tmp_path / name, [ROW])
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"sha256": None}, "'sha256'"),
        ({"sha256": "xyz"}, "64 hex digits"),
        ({"id": 7}, "'id' must be text"),
        ({"id": ""}, "'id' must be text"),
        ({"id": "a\0"}, "character 1 of the id 'a\\x00' is a control character"),
        ({"id": "a\u2028b"}, "'a\\u2028b' is a line separator"),
        ({"id": "\ud800"}, "half of a surrogate pair"),
        ({"path": "a\0.jpg"}, "'a\\x00.jpg' has a character that no file's name can have"),
        ({"path": "/etc/passwd"}, "relative to the image root"),
        ({"path": "a/../../b.jpg"}, "relative to the image root"),
        ({"width": 640.0}, "'width' must be a whole number"),
        ({"width": True}, "'width' must be a whole number"),
        ({"height": 0}, "'height' must be a whole number"),
        ({"height": None}, "both be null"),
        ({"split": "restval"}, "one of train, val, test"),
        ({"captions": "A dog."}, "'captions' must be a list"),
        ({"captions": ["A dog.", " "]}, "'captions[1]'"),
        ({"captions": [3]}, "'captions[0]'"),
        ({"id": "first"}, "already given on line 1"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_fix(tmp_path, change, words):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [replace(ROW, id="first")])
    value = {**json.loads(path.read_text()), "id": "second", **change}
    path.write_text(path.read_text() + json.dumps(value) + "\n")
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert words in error.value.what
    assert error.value.where == f"{path} line 2"
    assert "run the manifest stage again" in str(error.value)


@pytest.mark.parametrize("key", ["id", "path", "sha256", "width", "height", "split", "captions"])
def test_a_missing_key_is_refused(tmp_path, key):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [ROW])
    value = json.loads(path.read_text())
    del value[key]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"line 1: key '{key}' is missing"):
        read_manifest(path)


@pytest.mark.parametrize("line", ['{"id": ', "[1]", '{"width": NaN}'])
def test_a_line_that_is_no_json_object_is_refused(tmp_path, line):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [ROW])
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match=r"m\.jsonl line 2.*Fix: run"):
        read_manifest(path)


@pytest.mark.parametrize("rows", [[ROW, ROW], [replace(ROW, split="dev")], [replace(ROW, captions=("",))]])
def test_writing_checks_too_and_leaves_the_old_file(tmp_path, rows):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [ROW])
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"line {len(rows)}"):
        write_manifest(path, rows)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["m.jsonl"]
