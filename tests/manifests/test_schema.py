"""Manifests of older projects: what a row holds, and whatever isn't a whole row is refused with its line."""

import json
from dataclasses import replace

import pytest

from manifests.errors import InputError
from manifests.schema import CaptionedImage, read_jsonl

ROW = CaptionedImage("7", "val2014/a b.jpg", "0" * 64, 640, 480, "train", ("A dog.", "Ein Häuschen.", "犬\u2028x"))


def write_jsonl(path, rows):
    """As projects wrote manifest.jsonl until November 2026."""
    keys = [name for name in ("captions", "height", "id", "path", "sha256", "split", "width")]
    lines = [json.dumps({key: getattr(row, key) for key in keys}, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def test_rows_come_back_in_order(tmp_path):
    rows = [ROW, replace(ROW, id="3", captions=()), replace(ROW, id="5", width=None, height=None, split="test")]
    write_jsonl(tmp_path / "m.jsonl", rows)
    assert read_jsonl(tmp_path / "m.jsonl") == rows


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
        ({"captions": ["A \ud83d"]}, "'captions[0]' has half of a surrogate pair at character 2"),
        ({"width": 2**31, "height": 1}, "'width' must be a whole number"),
        ({"id": "first"}, "already given on line 1"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_fix(tmp_path, change, words):
    path = tmp_path / "m.jsonl"
    write_jsonl(path, [replace(ROW, id="first")])
    value = {**json.loads(path.read_text()), "id": "second", **change}
    path.write_text(path.read_text() + json.dumps(value) + "\n")
    with pytest.raises(InputError) as error:
        read_jsonl(path)
    assert words in error.value.what
    assert error.value.where == f"{path} line 2"
    assert "run the manifest stage again" in str(error.value)


@pytest.mark.parametrize("key", ["id", "path", "sha256", "width", "height", "split", "captions"])
def test_a_missing_key_is_refused(tmp_path, key):
    path = tmp_path / "m.jsonl"
    write_jsonl(path, [ROW])
    value = json.loads(path.read_text())
    del value[key]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"line 1: key '{key}' is missing"):
        read_jsonl(path)


@pytest.mark.parametrize("line", ['{"id": ', "[1]", '{"width": NaN}'])
def test_a_line_that_is_no_json_object_is_refused(tmp_path, line):
    path = tmp_path / "m.jsonl"
    write_jsonl(path, [ROW])
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match=r"m\.jsonl line 2.*Fix: run"):
        read_jsonl(path)
