"""Figures that the report reads back: what doesn't fit together is refused with its place, never drawn."""

from pathlib import Path

import pytest

from eval.report.written import Correspondence, Pair, StudyRow, read_json, read_table
from eval.study.table import COLUMNS
from manifests.errors import InputError
from manifests.files import write_json, write_text
from manifests.typed import checked

SPEECH = {"words": 4, "accuracy": 0.5, "chance": 0.1}
WORD = {"word": "red", "pos": "ADJ", "cosine": 0.5, "labels": [], "concept": 1, "region_concept": 1}
ROW = (
    dict.fromkeys(COLUMNS)
    | dict.fromkeys(("seeds", "rsum", "low", "high", "i2t_r1", "t2i_r1"), 1.0)
    | {**{"row": "64", "chosen": "", "against": "", "fitting": 0.5, "fitting_chance": 0.1}}
)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('epoch,seconds\n1,2,"3', "unexpected end of data"),
        ('epoch,seconds\n1,2,"\n3,4\n', "unexpected end of data"),
        ("epoch,seconds\n1,2,3\n", "a row has 3 cells and the header 2"),
        ("epoch,seconds\n1\n", "a row has 1 cells and the header 2"),
        ("epoch,seconds\n1,\n", "seconds is missing"),
        ("epoch,seconds\n1,fast\n", "could not convert"),
        ("epoch,seconds\n1,nan\n", "a cell is nan"),
        ("epoch\n1\n", "seconds is missing"),
        ("epoch\n", "its columns are epoch"),
        ("epoch,seconds,epoch\n1,2,3\n", "its columns are epoch, seconds, epoch"),
        ("", "its columns are"),
    ],
)
def test_a_table_is_whole_or_refused(tmp_path: Path, rows: str, message: str):
    write_text(tmp_path / "epochs.csv", rows)
    with pytest.raises(InputError, match=message) as error:
        read_table(tmp_path / "epochs.csv", ("epoch", "seconds"), fix="train again")
    assert "epochs.csv" in str(error.value) and "train again" in str(error.value)


def test_a_table_is_numbers_texts_and_empty_cells(tmp_path: Path):
    write_text(tmp_path / "table.csv", "value,rsum,fitting\n64,1.5,\n\nsmall,2,0.5\n")
    rows = read_table(tmp_path / "table.csv", ("rsum",), ("value",), fix="")
    assert rows == [{"value": "64", "rsum": 1.5, "fitting": None}, {"value": "small", "rsum": 2.0, "fitting": 0.5}]


@pytest.mark.parametrize(
    ("kind", "value", "left_out"),
    [
        (Correspondence, {"parts_of_speech": {"NOUN": SPEECH}}, ("parts_of_speech", "NOUN", "chance")),
        (Pair, {"words": [WORD]}, ("words", 0, "region_concept")),
        (Pair, {"words": [WORD | {"right": True, "fitting": True}]}, ("words", 0, "fitting")),
    ],
)
def test_figures_that_belong_together_stand_together(tmp_path: Path, kind: type, value: dict, left_out: tuple):
    write_json(tmp_path / "sound.json", value)
    assert read_json(tmp_path / "sound.json", kind, fix="") == value
    place = value
    for key in left_out[:-1]:
        place = place[key]
    del place[left_out[-1]]
    write_json(tmp_path / "half.json", value)
    with pytest.raises(InputError, match=f"{left_out[-1]} is missing beside"):
        read_json(tmp_path / "half.json", kind, fix="evaluate again")


def test_a_row_without_its_chance_is_refused():
    checked(ROW, StudyRow, where="table.csv row 1", fix="")
    with pytest.raises(InputError, match=r"table\.csv row 1.*fitting_chance is missing beside fitting"):
        checked(ROW | {"fitting_chance": None}, StudyRow, where="table.csv row 1", fix="")
