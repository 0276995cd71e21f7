"""Files that the pipeline wrote are read by types: the error is one line, with the file and the first wrong key."""

import json
from pathlib import Path

import pytest
from pydantic import Field

from manifests.errors import InputError
from manifests.typed import Count, Settings, Written, read_checked, schema


class Record(Written):
    schema_: schema(1) = Field(alias="schema")
    count: Count
    names: dict[str, list[str]] = {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 2, "count": 1}', "schema: 2, this program reads 1"),
        ('{"schema": 1, "count": -1}', "count: input should be greater than or equal to 0"),
        ('{"schema": 1, "count": %s}' % (10**30), "count: input should be less than or equal to"),
        ('{"schema": 1, "count": true}', "count: input should be a valid integer"),
        ('{"schema": 1, "count": 1.5}', "count: "),
        ('{"schema": 1, "count": 1e999}', "1e999 is too large a number"),
        ('{"schema": 1, "count": NaN}', "NaN is not a JSON number"),
        ('{"schema": 1, "count": 1, "names": {"a": [1]}}', r"names.a.0: input should be a valid string"),
        ('{"schema": 1, "count": 1, "names": {"a": ["\\ud800"]}}', "surrogates not allowed"),
        ('{"schema": 1}', "count: field required"),
        ("[" * 100_000, "recursion"),
        ("[]", "the file: "),
    ],
)
def test_an_error_names_the_first_wrong_key(tmp_path: Path, text: str, message: str):
    path = tmp_path / "record.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_checked(path, Record, fix="write it again")
    assert str(path) in str(caught.value) and caught.value.fix == "write it again"


def test_what_is_right_is_given_as_type_and_as_it_stands(tmp_path: Path):
    value = {"schema": 1, "count": 2, "names": {"a": ["b"]}, "more": None}
    (tmp_path / "record.json").write_text(json.dumps(value), encoding="utf-8")
    typed, stored = read_checked(tmp_path / "record.json", Record, fix="")
    assert (typed.count, typed.names, stored) == (2, {"a": ["b"]}, value)


def test_an_error_is_one_line_however_much_a_file_quotes_of_itself():
    message = str(InputError("a\n  b " + "x" * 10**6, where="here", fix="mend it"))
    assert message.startswith("here: a b x") and len(message) < 2000 and "\n" not in message
    assert str(InputError("short", where="here", fix="mend it")) == "here: short. Fix: mend it."


def test_a_later_key_at_its_default_is_in_no_recipe_however_deep():
    class Part(Settings):
        later = frozenset({"young"})
        old: int = 1
        young: int = 2

    class Whole(Settings):
        later = frozenset({"younger", "youngest"})
        one: Part
        several: dict[str, Part]
        younger: Part = Part()
        youngest: dict[str, Part] = {}

    whole = Whole(one=Part(), several={"a": Part(), "b": Part(young=3)})
    assert whole.decides() == {"one": {"old": 1}, "several": {"a": {"old": 1}, "b": {"old": 1, "young": 3}}}
