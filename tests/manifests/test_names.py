"""Names and ids: what a folder may be called, and which characters an id may have."""

import numpy as np
import pytest

from manifests.names import id_problem, name_problem

CONTROLS = [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029", "\ud800", "\udfff"]


@pytest.mark.parametrize("name", ["a", "vsrn-m02", "vse_infinity", "R2", "onto", "N1", "y-1", "nullable"])
def test_a_name_is_of_letters_digits_and_strokes(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "my data", "../up", "..", "coco.v2", "2024", "1a", "_a", "-a", "~", "a/b", "é", "aé", "a\n", "a:b", "٣"],
)
def test_other_characters_are_refused(name: str) -> None:
    assert name_problem(name) == f"{name!r} is no name"


@pytest.mark.parametrize("name", ["on", "Off", "YES", "no", "true", "False", "null", "y", "N"])
def test_words_of_yaml_are_refused(name: str) -> None:
    assert "YAML" in str(name_problem(name))


@pytest.mark.parametrize("character", CONTROLS, ids=ascii)
def test_an_id_has_no_control_character_and_it_is_quoted_escaped(character: str) -> None:
    problem = id_problem(f"a{character}b")
    assert problem and "character 1 of" in problem and problem.isprintable()


@pytest.mark.parametrize("id", ["000000391895", "COCO val/1 (2).x", "Häuschen", "犬", "می\u200cخواهم", "👩\u200d🚒"])
def test_ids_in_any_language_are_fine(id: str) -> None:
    assert id_problem(id) is None


def test_refused_ids_would_be_ambiguous_in_a_store() -> None:
    assert len(set(np.array([b"a", b"a\0"], "S2").tolist())) == 1
