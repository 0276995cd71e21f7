"""The cards of stores: they say what is so, their examples run with nothing of ours, and `mlcroissant` takes them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from extract.cards.card import run
from extract.settings import About
from extract.stores.recipe import read_recipe
from manifests.errors import InputError
from manifests.files import write_json
from pipeline.cli import main
from tests.extract.region_files import Pictures, region_settings
from tests.extract.test_intact import flip

STORES = ("regions/train", "pack")


def norms(store: Path) -> np.ndarray:
    """The norms of all features of a region store, read with h5py alone."""
    features = [h5py.File(path)["features"][()].reshape(-1, 256) for path in sorted(store.glob("*.h5"))]
    return np.linalg.norm(np.concatenate(features).astype(np.float64), axis=1)


@pytest.mark.parametrize("store", STORES)
def test_the_card_is_the_stores_and_holds(data_set: Path, store: str) -> None:
    card = run(data_set / store)
    assert card.findings == []
    assert card.text == (data_set / store / "README.md").read_text()
    assert card.croissant == json.loads((data_set / store / "croissant.json").read_text())


@pytest.mark.parametrize("store", STORES)
def test_the_card_says_what_a_receiver_must_know(data_set: Path, store: str) -> None:
    text = run(data_set / store).text
    recipe = read_recipe(data_set / "regions/train")[0]
    lengths = norms(data_set / "regions/train")
    for line in (
        "15 ",
        recipe["detector"]["weights_sha256"],
        "rule bottom_up, max_boxes 12, min_boxes 12",
        "absolute (x1, y1, x2, y2) in pixels",
        f"from {lengths.min():.2f} to {lengths.max():.2f}, mean {lengths.mean():.2f}",
        "licence of the pictures | not told",
        "| cite |",
        read_recipe(data_set / store)[1],
    ):
        assert line in text, line


@pytest.mark.parametrize("layout", ["dense", "ragged", "pack"])
def test_every_example_of_a_card_runs_with_nothing_of_ours(
    data_set: Path, ragged: Pictures, tmp_path: Path, layout: str
) -> None:
    folder = {"dense": data_set / "regions/train", "ragged": ragged.out, "pack": data_set / "pack"}[layout]
    examples = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(examples) == 3 and all(len(example.splitlines()) <= 5 for example in examples)
    # The ragged store has no shards beside it.
    script = "\n".join(example for example in examples if layout != "ragged" or "webdataset" not in example)
    said = subprocess.run(
        [sys.executable, "-P", "-c", script.replace("tiny-train-{000000..000002}", "tiny-train-000000")],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert "256]" in said.stdout or "256)" in said.stdout


def test_licence_and_citation_come_from_the_parameters(dense: Pictures, tmp_path: Path) -> None:
    about = About(licence="CC BY 4.0", cite="Somebody 2020")
    store = dense.extract(
        region_settings(images_per_shard=4), batch_size=3, out=tmp_path / "out", cache=tmp_path / "s", about=about
    )
    text = (store / "README.md").read_text()
    assert "| licence of the pictures | CC BY 4.0 (" in text and "| cite | Somebody 2020 |" in text
    metadata = json.loads((store / "croissant.json").read_text())
    assert (metadata["license"], metadata["citeAs"]) == ("CC BY 4.0", "Somebody 2020")


@pytest.mark.parametrize("store", STORES)
def test_a_finished_store_is_given_its_licence(data_set_copy: Path, store: str) -> None:
    folder = data_set_copy / store
    shards = {path.name: path.read_bytes() for path in [*folder.glob("*.h5"), *folder.glob("*.tar")]}
    said = CliRunner().invoke(main, ["card", str(folder), "--licence", "CC BY 4.0", "--cite", "Somebody 2020"])
    assert said.exit_code == 0, said.output
    assert "CC BY 4.0" in said.stdout and "CC BY 4.0" in (folder / "README.md").read_text()
    assert run(folder).findings == []
    run(folder, licence="MIT")
    assert "| licence of the pictures | MIT (" in run(folder).text and "Somebody 2020" in run(folder).text
    assert {path.name: path.read_bytes() for path in [*folder.glob("*.h5"), *folder.glob("*.tar")]} == shards


def test_a_data_set_is_given_its_licence_and_compared_as_a_whole(data_set_copy: Path) -> None:
    said = CliRunner().invoke(main, ["card", str(data_set_copy), "--licence", "CC BY 4.0"])
    assert said.exit_code == 0, said.output
    assert said.stdout.count("| licence of the pictures | CC BY 4.0 (") == 4  # three splits and the pack
    for folder in ("pack", "regions/train", "regions/val", "regions/test", "tokens"):
        assert (data_set_copy / folder / "README.md").read_text() in said.stdout
    compared = CliRunner().invoke(main, ["compare", str(data_set_copy), str(data_set_copy / "regions" / "train")])
    assert compared.exit_code == 0 and "identical (every array is equal)" in compared.stdout


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"images": 14}, "index.json says 14 images, the shards hold 15"),
        ({"norms": {"least": 1.0, "mean": 2.0, "most": 3.0}}, "index.json says norms"),
        ({"about": {"licence": "none"}}, "README.md isn't what index.json and recipe.json say"),
    ],
)
def test_a_card_that_no_longer_holds_is_reported(
    data_set_copy: Path, store: str, edit: dict[str, object], message: str
) -> None:
    index = data_set_copy / store / "index.json"
    write_json(index, json.loads(index.read_text()) | edit)
    said = CliRunner().invoke(main, ["card", str(data_set_copy / store)])
    assert said.exit_code == 1 and message in said.stderr


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_store_is_an_error_and_nothing_is_written(data_set_copy: Path, store: str, damage: str) -> None:
    folder = data_set_copy / store
    shard = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".tar"))[1]
    if damage == "flipped":
        flip(shard, 1.0)
    else:
        shard.unlink()
    (finding,) = run(folder).findings
    assert finding.startswith(f"{shard.name}: the file {'has changed' if damage == 'flipped' else 'is missing'}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = CliRunner().invoke(main, ["card", str(folder), "--licence", "CC BY 4.0"])
    assert said.exit_code == 1 and "nothing was written" in said.stderr and shard.name in said.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_edited_card_is_reported(data_set_copy: Path) -> None:
    card = data_set_copy / "regions/train" / "README.md"
    card.write_text(card.read_text().replace("12 regions", "36 regions"))
    (data_set_copy / "regions/train" / "croissant.json").unlink()
    readme, metadata = run(data_set_copy / "regions/train").findings
    assert readme.startswith("README.md isn't") and metadata.startswith("croissant.json isn't")


@pytest.mark.parametrize("store", ["manifest", "nowhere"])
def test_what_has_no_card_is_an_error(data_set: Path, store: str) -> None:
    with pytest.raises(InputError, match="no store that has a card"):
        run(data_set / store)


@pytest.mark.parametrize("store", STORES)
def test_mlcroissant_validates_the_metadata_and_reads_the_shards(
    data_set_copy: Path, store: str, tmp_path: Path
) -> None:
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant isn't installed")
    folder = data_set_copy / store
    run(folder, licence="CC BY 4.0", cite="Somebody 2020")
    said = CliRunner().invoke(main, ["card", str(folder), "--croissant"])
    assert json.loads(said.stdout) == json.loads((folder / "croissant.json").read_text())
    dataset = croissant.Dataset(str(folder / "croissant.json"))
    assert dataset.metadata.issues.errors == set()
    index = json.loads((folder / "index.json").read_text())
    records = list(dataset.records("shards"))
    assert [record["shards/file"].decode() for record in records] == [shard["file"] for shard in index["shards"]]
    assert [record["shards/count"] for record in records] == [shard["count"] for shard in index["shards"]]
    assert [str(dataset.metadata.license[0]), dataset.metadata.cite_as] == ["CC BY 4.0", "Somebody 2020"]


def test_mlcroissant_refuses_metadata_without_its_hashes(data_set_copy: Path) -> None:
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant isn't installed")
    path = data_set_copy / "pack" / "croissant.json"
    metadata = json.loads(path.read_text())
    del metadata["distribution"][1]["sha256"]
    write_json(path, metadata)
    with pytest.raises(croissant.ValidationError, match="sha256"):
        croissant.Dataset(str(path))
