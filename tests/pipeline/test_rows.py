"""`selfalign rows` prints a manifest for people, `selfalign check` finds pictures that changed since it was made."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from pipeline.cli import main
from pipeline.rows import as_table, chosen
from tests.pipeline.project import CHECKOUT

SPLITS = ("train", "val", "test", "train")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with four pictures and the manifest of them."""
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    params["datasets"]["demo"]["source"] |= {"images": "images", "watch": "images"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (tmp_path / "images").mkdir()
    rows = []
    for number, split in enumerate(SPLITS):
        picture = tmp_path / "images" / f"{number}.jpg"
        picture.write_bytes(b"picture %d" % number)
        texts = tuple(f"Caption {n}\nof {number}, 犬." for n in range(number))
        ids = tuple(range(100, 100 + number)) if number == 2 else ()
        rows.append(CaptionedImage(f"i{number}", picture.name, sha256(picture), 4, 3, split, texts, ids))
    write_manifest(tmp_path / "data/demo/manifest", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def selfalign(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_rows_are_json_lines_where_nobody_looks(folder: Path) -> None:
    rows = [json.loads(line) for line in selfalign("rows", "demo").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["i0", "i1", "i2", "i3"] and [row["row"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["sha256"] == sha256(folder / "images" / "1.jpg") and "captions" not in rows[1]
    rows = [json.loads(x) for x in selfalign("rows", "demo", "--split", "train", "--captions").stdout.splitlines()]
    assert [row["id"] for row in rows] == ["i0", "i3"] and rows[1]["captions"][2] == "Caption 2\nof 3, 犬."
    (row,) = [json.loads(line) for line in selfalign("rows", "demo", "--id", "i2", "--captions").stdout.splitlines()]
    assert row["caption_ids"] == [100, 101] and row["split"] == "test"
    assert len(selfalign("rows", "demo", "--count", "3").stdout.splitlines()) == 3
    assert len(selfalign("rows", "demo", "--count", "0").stdout.splitlines()) == 4


def test_a_table_is_aligned_and_its_captions_are_lines(folder: Path) -> None:
    rows = chosen(Manifest.open(Path("data/demo/manifest")), split=None, id=None, count=3, captions=True)
    head, first, second, its, third, *texts = as_table(rows)
    assert head.split() == ["row", "id", "split", "path", "sha256", "width", "height"]
    assert first.split()[:4] == ["0", "i0", "train", "0.jpg"] and len(first.split()[4]) == 12
    assert len({line.index(".jpg") for line in (first, second, third)}) == 1
    assert its == "    Caption 0 of 1, 犬." and texts == [
        "    Caption 0 of 2, 犬.  [100]",
        "    Caption 1 of 2, 犬.  [101]",
    ]


@pytest.mark.parametrize("asked", [("--id", "i9"), ("--id", "i0", "--split", "val")])
def test_rows_that_are_not_there_are_one_line(folder: Path, asked: tuple[str, ...]) -> None:
    answer = selfalign("rows", "demo", *asked)
    assert answer.exit_code == 1 and f"there is no image '{asked[1]}'" in answer.stderr


def test_pictures_that_changed_are_found(folder: Path) -> None:
    answer = selfalign("check", "demo")
    assert answer.exit_code == 0 and answer.stdout == "demo: no pictures changed, of 4 images\n"
    (folder / "images" / "0.jpg").write_bytes(b"another")
    (folder / "images" / "1.jpg").unlink()
    (folder / "images" / "3.jpg").unlink()
    (folder / "images" / "3.jpg").mkdir()
    answer = selfalign("check", "demo")
    assert answer.exit_code == 1
    assert answer.stdout.splitlines() == [
        "images/0.jpg: changed",
        "images/1.jpg: missing",
        "images/3.jpg: can't be read (it is a folder, not a file)",
        "demo: 3 pictures changed, of 4 images; restore them, or `dvc repro -f manifest@demo`",
    ]
