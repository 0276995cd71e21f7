"""Entries go into a YAML text and out of it, and every other byte stays."""

from difflib import SequenceMatcher

import pytest
import yaml

from pipeline.editing import cut, insert
from tests.pipeline.project import CHECKOUT

PARAMS = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
ENTRY = {"mine": {"source": {"images": "/a b/ü: x"}, "list": [1, {"a": 2}], "none": None}}
TEXTS = [
    "a: {}\nb: 1",
    "a: {} # c\n",
    "a: # c\n  # d\n  x: 'm\n   n' # e\n",
    "a: {x: 1}\n",
    "a: {x: 1 # c\n  }\nb: 2\n",
    "a:\n  x: |\n    foo\n    bar\n\nb: 1\n",
    "a:\n  x: |+\n    t\n\n\n",
    "a:\n    x:\n    - 1\n    - y: 2\n    # c\n# d\n",
    "a:\r\n  x: 1\r\nb: 2\r\n",
    "z: &q {m: 1}\na:\n  x: *q\n  # more\n\nb: 3\n",
    "a: &anchored # c\n  x: 1\nb: *anchored\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_inserted_and_cut_again_leaves_the_bytes_as_they_were(text: str) -> None:
    there = insert(text, "a", ENTRY)
    assert yaml.safe_load(there)["a"] == (yaml.safe_load(text)["a"] or {}) | ENTRY
    assert [line for line in text.splitlines() if "#" in line and line not in there] in ([], ["a: {} # c"])
    assert cut(there, ["a", "mine"]) == text


@pytest.mark.parametrize("text", TEXTS)
def test_an_emptied_section_is_an_empty_mapping(text: str) -> None:
    expected = yaml.safe_load(text)
    for key in expected["a"]:
        text = cut(text, ["a", key])
    assert yaml.safe_load(text) == expected | {"a": {}} | ({"b": {}} if "&anchored" in text else {})


@pytest.mark.parametrize("section", ["datasets", "teachers", "runs", "ensembles", "studies"])
def test_the_committed_parameters_take_an_entry_as_lines_alone(section: str) -> None:
    there = insert(PARAMS, section, ENTRY)
    assert yaml.safe_load(there)[section]["mine"] == ENTRY["mine"]
    changes = SequenceMatcher(None, PARAMS.splitlines(True), there.splitlines(True), autojunk=False).get_opcodes()
    assert {kind for kind, *_ in changes} == {"equal", "insert"}
    assert cut(there, [section, "mine"]) == PARAMS


def test_an_absent_section_is_made_at_the_end_and_an_empty_one_filled() -> None:
    assert insert("b: 1", "a", {"x": 1}) == "b: 1\na:\n  x: 1\n"
    assert insert("a:\nb: 1\n", "a", {"x": 1}) == "a:\n  x: 1\nb: 1\n"
    assert insert("a: {x: 1,}\n", "a", {"y": 2}) == "a: {x: 1,y: 2}\n"


def test_nothing_is_cut_where_there_is_nothing() -> None:
    for path in (["c"], ["a", "y"], ["a", "x", "z"], ["b", "x"]):
        assert cut("a: {x: 1}\nb: 2\n", path) == "a: {x: 1}\nb: 2\n"


def test_a_flow_mapping_loses_the_first_a_middle_and_the_last_key() -> None:
    text = "a: {x: [1, 2], y: {z: 1}, w: 3}\n"
    assert [yaml.safe_load(cut(text, ["a", key]))["a"] for key in "xyw"] == [
        {"y": {"z": 1}, "w": 3},
        {"x": [1, 2], "w": 3},
        {"x": [1, 2], "y": {"z": 1}},
    ]


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="a is no mapping"):
        insert("a: [1]\n", "a", {"x": 1})
