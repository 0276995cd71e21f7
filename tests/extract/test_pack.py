"""The pack stage: WebDataset shards with the stores' very values, equal bytes, readable with nothing of ours."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from pydantic import ValidationError

from extract.check.verify import run as verify
from extract.exchange import export
from extract.stages import pack, tokens
from extract.stores.intact import listed_files
from extract.stores.made import note_made
from extract.stores.recipe import write_recipe
from extract.stores.regions import Regions, RegionStore, region_index, write_shard
from extract.stores.webdataset import sample_key
from extract.text.settings import TokenSettings
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from tests.extract.test_intact import flip

# id -> split and captions; "gone" is in no region store
IMAGES = {
    "1000": ("train", ("A ring.", "One “striped” star!")),
    "v1.2/twö%": ("val", ("a big blue star",)),
    "gone": ("train", ("a square",)),
    "3": ("train", ()),
    "4": ("train", ("the red ring",)),
}


@dataclass(frozen=True)
class Inputs:
    """What the pack stage reads."""

    manifest: Path
    regions: Path
    tokens: Path

    def pack(self, out: Path, dataset: str = "tiny", images_per_shard: int = 2) -> Path:
        settings = pack.PackSettings(images_per_shard=images_per_shard)
        pack.run(
            dataset=dataset,
            manifest=self.manifest,
            regions=self.regions,
            tokens=self.tokens,
            settings=settings,
            out=out,
        )
        return out


def write_manifest_of(path: Path, images: dict) -> Path:
    write_manifest(
        path,
        [
            CaptionedImage(id=id, path="a.png", sha256="0" * 64, width=40, height=30, split=split, captions=captions)
            for id, (split, captions) in images.items()
        ],
    )
    return path


def write_region_store(folder: Path, ids: list[str], attributes: bool = True) -> Path:
    """A ragged region store of one shard; its numbers are drawn."""
    rng = np.random.default_rng(0)
    regions = []
    for count in range(3, 3 + len(ids)):
        labels = {"objects_id": rng.integers(0, 2, count, np.int32), "objects_conf": rng.random(count, np.float32)}
        if attributes:
            labels |= {"attrs_id": rng.integers(0, 2, count, np.int32), "attrs_conf": rng.random(count, np.float32)}
        features, boxes = rng.normal(size=(count, 8)).astype(np.float16), rng.random((count, 4), np.float32)
        regions.append(Regions(features=features, boxes=boxes, image_size=(40, 30 + count), **labels))
    recipe_hash = write_recipe(folder, {"detector": "drawn"})
    write_shard(folder / "000000.h5", ids, regions, recipe_hash, dense=None, dim=8, id_bytes=16)
    shard = {"file": "000000.h5", "count": len(ids), "sha256": sha256(folder / "000000.h5")}
    shard |= {"first": ids[0], "last": ids[-1]}
    names = {"object_names": ["ring", "star"], "attribute_names": ["red", "blue"] if attributes else None}
    write_json(folder / "index.json", region_index([shard], dim=8, dense=None, **names))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    manifest = write_manifest_of(folder / "manifest", IMAGES)
    tokens.run(manifest=manifest, settings=TokenSettings(language="blank_en", min_count=1), out=folder / "tokens")
    regions = write_region_store(folder / "regions", [id for id in IMAGES if id != "gone"])
    return Inputs(manifest, regions, folder / "tokens")


@pytest.fixture(scope="module")
def packed(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.pack(tmp_path_factory.mktemp("packed") / "pack")


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_shards_hold_each_split_in_manifest_order(packed):
    assert json.loads((packed / "sizes.json").read_text()) == {
        "tiny-train-000000.tar": 2,
        "tiny-train-000001.tar": 1,
        "tiny-val-000000.tar": 1,
    }
    assert sorted(path.name for path in packed.glob("*.tar")) == sorted(json.loads((packed / "sizes.json").read_text()))
    assert list(members(packed / "tiny-train-000000.tar")) == [
        "1000.features.npy", "1000.boxes.npy", "1000.json", "3.features.npy", "3.boxes.npy", "3.json"
    ]  # fmt: skip
    assert list(members(packed / "tiny-train-000001.tar"))[0] == "4.features.npy"


def test_values_are_the_stores(inputs, packed):
    store = RegionStore(inputs.regions)
    samples = {}
    for shard in packed.glob("*.tar"):
        for name, content in members(shard).items():
            key, kind = name.split(".", 1)
            samples.setdefault(key, {})[kind] = content
    assert len(samples) == 4
    for sample in samples.values():
        facts = json.loads(sample["json"])
        found = store.regions(store.row(facts["id"]))
        for name, expected, dtype in (("features", found.features, np.float16), ("boxes", found.boxes, np.float32)):
            assert sample[f"{name}.npy"][:8] == b"\x93NUMPY\x01\x00"
            array = np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False)
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, expected)
        assert [facts["width"], facts["height"]] == list(found.image_size)
        assert facts["num_boxes"] == len(found.boxes)
        assert (facts["split"], tuple(facts["captions"])) == IMAGES[facts["id"]]
        for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf"):
            expected = getattr(found, name)
            assert facts[name] == expected.tolist()
    assert json.loads(samples["1000"]["json"])["tokens"] == [["a", "ring"], ["one", "striped", "star"]]
    assert json.loads(samples["3"]["json"])["tokens"] == []


def test_an_id_with_dots_and_slashes_is_escaped_and_kept_whole_in_the_json(packed):
    names = members(packed / "tiny-val-000000.tar")
    assert list(names)[-1] == "v1%2E2%2Ftwö%25.json"
    assert unquote("v1%2E2%2Ftwö%25") == "v1.2/twö%" == json.loads(names["v1%2E2%2Ftwö%25.json"])["id"]
    ids = ["a.b", "a/b", "a%2Eb", "a\\b", "a\nb", "../up", "plain-id_7 é"]
    keys = [sample_key(id) for id in ids]
    assert [unquote(key) for key in keys] == ids
    assert len(set(keys)) == len(ids)
    assert keys[-1] == ids[-1]


def test_same_stores_same_bytes_and_no_trace_of_when_or_who(inputs, packed, tmp_path):
    again = inputs.pack(tmp_path / "pack")
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["pack"]
    names = sorted(path.name for path in packed.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (again / name).read_bytes() == (packed / name).read_bytes(), name
    with tarfile.open(packed / "tiny-train-000000.tar") as shard:
        for member in shard:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.mode, member.isreg()) == (0o644, True)


SHARDS = ("train-{000000..000001}", "val-000000")
READ = """
import json, sys
import webdataset
found = []
for url in sys.argv[1:]:
    for sample in webdataset.WebDataset(url, shardshuffle=False).decode():
        features, boxes, facts = sample["features.npy"], sample["boxes.npy"], sample["json"]
        total = float(features.sum(dtype="f8"))
        found.append([sample["__key__"], facts["id"], str(features.dtype), features.shape, boxes.shape, total])
ours = [name for name in sys.modules if name.split(".")[0] in ("manifests", "extract", "train", "eval", "pipeline")]
print(json.dumps([found, ours]))
"""


def test_a_pack_and_an_export_say_what_made_the_stores_and_are_no_others_for_it(inputs, packed, tmp_path):
    own = tmp_path / "data"
    stores = Inputs(*(Path(shutil.copytree(place, own / place.name)) for place in astuple(inputs)))
    note_made(stores.regions, "0123", "numpy", device="cuda")
    note_made(stores.tokens, "4567", "spacy")
    own_pack = stores.pack(tmp_path / "pack")
    made = [json.loads(line) for line in (own_pack / "made.jsonl").read_text().splitlines()]
    assert [(line["store"], line["recipe_hash"]) for line in made] == [("regions", "0123"), ("tokens", "4567")]
    assert made[0]["device"] == "cuda" and {"commit", "at", "packages"} <= set(made[0]) and "host" not in made[0]
    assert "made.jsonl" not in listed_files(own_pack)
    for name in {path.name for path in packed.iterdir()} - {"made.jsonl"}:
        assert (own_pack / name).read_bytes() == (packed / name).read_bytes()
    assert list(map(str, verify(store=own_pack).findings)) == list(map(str, verify(store=packed).findings))

    note_made(stores.regions, "0123", "numpy", device="cpu")  # made again, the same
    again = stores.pack(tmp_path / "again")
    assert (again / "made.jsonl").read_bytes() == (own_pack / "made.jsonl").read_bytes()
    asked = {"dataset": "tiny", "manifest": stores.manifest, "regions": stores.regions, "tokens": stores.tokens}
    for format, count in (("wds", 2), ("butd-tsv", 1)):
        export.run(format=format, out=tmp_path / format, **asked)
        assert len((tmp_path / format / "made.jsonl").read_text().splitlines()) == count
    (stores.regions / "index.json").write_text((stores.regions / "index.json").read_text() + "\n")  # another store
    assert [json.loads(line)["store"] for line in (stores.pack(tmp_path / "other") / "made.jsonl").open()] == ["tokens"]


def test_plain_webdataset_reads_them_with_nothing_of_ours(inputs, packed, tmp_path):
    said = subprocess.run(
        [sys.executable, "-P", "-c", READ, *(str(packed / f"tiny-{shards}.tar") for shards in SHARDS)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found, ours = json.loads(said)
    assert ours == []
    store = RegionStore(inputs.regions)
    expected = []
    for id in ("1000", "3", "4", "v1.2/twö%"):
        regions = store.regions(store.row(id))
        total = float(regions.features.sum(dtype="f8"))
        shapes = [list(regions.features.shape), list(regions.boxes.shape)]
        expected.append([sample_key(id), id, "float16", *shapes, total])
    assert found == expected


def test_the_card_names_shards_counts_and_what_was_left_out(packed):
    card = (packed / "README.md").read_text()
    assert "| `tiny-train-{000000..000001}.tar` | 3 | 3 |" in card
    assert "| `tiny-val-000000.tar` | 1 | 1 |" in card
    assert "tiny-test" not in card
    assert "1 (`gone`)" in card
    assert 'WebDataset("tiny-train-{000000..000001}.tar"' in card


def test_images_without_features_are_reported(inputs, tmp_path, caplog):
    inputs.pack(tmp_path / "pack")
    assert "1 of 5 images have no region features" in caplog.text


def test_recipe_says_how_features_and_words_were_made(inputs, packed):
    recipe = json.loads((packed / "recipe.json").read_text())["recipe"]
    assert recipe["regions"] == RegionStore(inputs.regions).recipe
    assert recipe["tokens"]["language"] == {"name": "blank_en"}


def test_labels_that_the_detector_lacks_are_absent(inputs, tmp_path):
    regions = write_region_store(tmp_path / "regions", ["1000"], attributes=False)
    packed = Inputs(inputs.manifest, regions, inputs.tokens).pack(tmp_path / "pack")
    facts = json.loads(members(packed / "tiny-train-000000.tar")["1000.json"])
    assert facts.keys() >= {"objects_id", "objects_conf"}
    assert not facts.keys() & {"attrs_id", "attrs_conf"}
    assert json.loads((packed / "classes.json").read_text()) == {"attributes": None, "objects": ["ring", "star"]}


def test_tokens_of_another_manifest_are_an_error(inputs, tmp_path):
    rows = list(Manifest.open(inputs.manifest).captioned)
    fewer = tmp_path / "fewer"
    write_manifest(fewer, rows[1:])
    with pytest.raises(InputError, match="other images"):
        Inputs(fewer, inputs.regions, inputs.tokens).pack(tmp_path / "pack")
    reworded = write_manifest_of(tmp_path / "reworded", IMAGES | {"4": ("train", ("the green ring",))})
    with pytest.raises(InputError, match="image '4'"):
        Inputs(reworded, inputs.regions, inputs.tokens).pack(tmp_path / "pack")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fewer", "reworded"]


def test_a_store_that_has_changed_is_not_packed(inputs, tmp_path):
    for name, shard in (("regions", "000000.h5"), ("tokens", "tokens.h5")):
        stores = {other: getattr(inputs, other) for other in ("regions", "tokens")}
        stores[name] = shutil.copytree(stores[name], tmp_path / name)
        flip(stores[name] / shard, 0.7)
        with pytest.raises(InputError, match=rf"{name}/{shard}: the file has changed"):
            Inputs(inputs.manifest, **stores).pack(tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_regions_of_another_data_set_are_an_error(inputs, tmp_path):
    regions = write_region_store(tmp_path / "regions", ["other"])
    with pytest.raises(InputError, match="none of the images"):
        Inputs(inputs.manifest, regions, inputs.tokens).pack(tmp_path / "pack")


@pytest.mark.parametrize("name", ["a/b", "coco.v2", "2024", "No"])
def test_a_data_set_name_that_params_could_not_have_is_an_error(inputs, tmp_path, name):
    with pytest.raises(InputError, match="letters"):
        inputs.pack(tmp_path / "pack", dataset=name)


def test_settings_are_closed():
    for bad in ({"images_per_shard": 0}, {"images_per_shards": 1}):
        with pytest.raises(ValidationError):
            pack.PackSettings(**bad)
