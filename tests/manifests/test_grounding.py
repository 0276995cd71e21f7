"""Grounding files: what is written comes back, and what can't be true is refused with its line."""

import json

import pytest

from manifests.errors import InputError
from manifests.grounding import Grounding, Groundings, Phrase, read_grounding, write_grounding

ITEM = Grounding(
    "7",
    ((0.0, 1.5, 20.0, 30.0), (5.0, 5.0, 9.0, 9.0)),
    ({"shape": "ring", "colour": "red"}, {}),
    ((Phrase(2, 5, 0, "colour"), Phrase(6, 10, 1, "phrase")), ()),
)


def test_items_come_back_in_order(tmp_path):
    items = [ITEM, Grounding("3", (), (), ((),))]
    write_grounding(tmp_path / "g.jsonl", items)
    assert list(read_grounding(tmp_path / "g.jsonl").items()) == [("7", items[0]), ("3", items[1])]


def test_each_is_read_where_it_lies(tmp_path):
    path, visited = tmp_path / "g.jsonl", []
    items = [Grounding(f"ü{number}", ((0.0, 0.0, 1.0, float(number)),), ({},), ()) for number in range(50)]
    write_grounding(path, items)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n", 5))
    found = Groundings(path, visited.append)
    assert visited == items and len(found) == 50
    assert [found.get(item.image_id) for item in items[::-1]] == items[::-1] and found.get("ü50") is None
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(InputError, match="image_id 'ü49' is given twice.*run the manifest stage again"):
        Groundings(path, visited.append)


def _phrase(**change):
    return {"phrases": [[{"start": 2, "end": 5, "object": 0, "kind": "colour", **change}], []]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"image_id": ""}, "'image_id'"),
        ({"image_id": "first"}, "already given on line 1"),
        ({"boxes": [[0, 0, 1, 1]]}, "1 boxes but 2 labels"),
        ({"boxes": [[0, 0, 1], [0, 0, 1, 1]]}, "'boxes[0]' must be four numbers"),
        ({"boxes": [[0, 0, 1, 1e999], [0, 0, 1, 1]]}, "is not a JSON number"),
        ({"boxes": [[0, 0, 1, 1], [9, 0, 1, 1]]}, "'boxes[1]' must have x1 <= x2"),
        ({"labels": [{"shape": 3}, {}]}, "'labels[0]'"),
        ({"labels": [{}, {"shape": "\ud800"}]}, "'labels[1]' has half of a surrogate pair"),
        ({"phrases": {}}, "'phrases' must be a list"),
        (_phrase(start=5), "characters 5 to 5"),
        (_phrase(start=-1), "characters -1 to 5"),
        (_phrase(end="5"), "'end' must be a whole number"),
        (_phrase(object=2), "not one of the image's 2 objects"),
        (_phrase(kind="smell"), "'kind' must be one of"),
        (_phrase(word="red"), "unknown key 'word'"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_fix(tmp_path, change, words):
    path = tmp_path / "g.jsonl"
    write_grounding(path, [Grounding("first", (), (), ()), ITEM])
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + json.dumps({**json.loads(lines[1]), **change}))
    with pytest.raises(InputError) as error:
        read_grounding(path)
    assert words in error.value.what
    assert error.value.where == f"{path} line 2"
    assert error.value.fix


@pytest.mark.parametrize("key", ["image_id", "boxes", "labels", "phrases"])
def test_a_missing_key_is_refused(tmp_path, key):
    path = tmp_path / "g.jsonl"
    write_grounding(path, [ITEM])
    value = json.loads(path.read_text())
    del value[key]
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"line 1: key '{key}' is missing"):
        read_grounding(path)
