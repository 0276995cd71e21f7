"""`selfalign verify` of WebDataset shards and of token stores: what is whole passes, and every damage is named."""

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.check.verify import run
from extract.stores.webdataset import Sample, read_samples, write_sample
from manifests.files import sha256, write_json
from manifests.tables import Manifest, write_manifest
from tests.extract.test_intact import flip

SHARD = "tiny-train-000001.tar"


def found(store: Path) -> list[str]:
    return [str(finding) for finding in run(store=store).findings]


def rewrite(pack: Path, edit: Callable[[int, Sample], Sample | None]) -> None:
    """Write a shard again with `edit` applied to every sample, and its sha256 into the index."""
    with open(pack / SHARD, "rb") as file:
        edited = [edit(number, sample) for number, sample in enumerate(read_samples(file, SHARD))]
    with tarfile.open(pack / SHARD, "w", format=tarfile.PAX_FORMAT) as shard:
        for sample in filter(None, edited):
            write_sample(shard, sample)
    index = json.loads((pack / "index.json").read_text())
    index["shards"][1]["sha256"] = sha256(pack / SHARD)
    write_json(pack / "index.json", index)


def only(number: int, change: Callable[[Sample], Sample | None]) -> Callable[[int, Sample], Sample | None]:
    return lambda place, sample: change(sample) if place == number else sample


def test_what_the_stages_make_is_sound(data_set: Path) -> None:
    pack = run(store=data_set / "pack")
    assert pack.findings == [] and (pack.images, pack.regions, pack.shards) == (15, 180, 3)
    tokens = run(store=data_set / "tokens")
    assert tokens.findings == [] and (tokens.images, tokens.shards) == (15, 1)
    assert f"(15 images, {tokens.captions} captions, 1 shards; " in tokens.text() and tokens.captions >= 15
    assert "every image of" in pack.text() and pack.text().startswith("sound: ")


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.9, 1.0])
def test_a_flipped_byte_names_the_shard(data_set_copy: Path, place: float) -> None:
    flip(data_set_copy / "pack" / SHARD, place)
    (finding,) = found(data_set_copy / "pack")
    assert finding.startswith(f"{SHARD}: sha256 is ") and finding.endswith("the file has changed")
    flip(data_set_copy / "tokens" / "tokens.h5", place)
    (finding,) = found(data_set_copy / "tokens")
    assert finding.startswith("tokens.h5: sha256 is ")


def test_missing_and_unlisted_shards_are_named(data_set_copy: Path) -> None:
    pack = data_set_copy / "pack"
    shutil.move(pack / SHARD, pack / "another.tar")
    assert found(pack) == [
        "another.tar: index.json doesn't list this file",
        f"{SHARD}: the file is missing, index.json lists it with 6",
    ]


def test_a_truncated_shard_is_named_even_if_it_is_signed(data_set_copy: Path) -> None:
    path = data_set_copy / "pack" / SHARD
    path.write_bytes(path.read_bytes()[:20_000])
    index = json.loads((path.parent / "index.json").read_text())
    index["shards"][1]["sha256"] = sha256(path)
    write_json(path.parent / "index.json", index)
    (finding,) = found(path.parent)
    assert finding.startswith(f"{SHARD} row 2: can't be read: ")
    assert "the file ends at byte 20000, inside this member" in finding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: None, "holds 5 images and 5 captions, index.json says 6 and 6"),
        (lambda s: replace(s, facts=s.facts | {"split": "val"}), "its split is 'val', the shard's 'train'"),
        (lambda s: replace(s, facts=s.facts | {"captions": ["Else."]}), "its captions are not the manifest's"),
        (lambda s: replace(s, facts=s.facts | {"id": "strange"}), "the manifest has no such image"),
        (lambda s: replace(s, facts=s.facts | {"id": "id-000.png"}), "this image is in tiny-train-000000.tar already"),
        (lambda s: replace(s, regions=replace(s.regions, boxes=s.regions.boxes + 400)), "boxes are not inside"),
        (lambda s: replace(s, regions=replace(s.regions, boxes=s.regions.boxes * np.nan)), "boxes are not inside"),
        (lambda s: replace(s, regions=replace(s.regions, features=s.regions.features[:, :7])), "says 256 numbers"),
        (lambda s: replace(s, regions=replace(s.regions, features=s.regions.features * np.float16(np.inf))), "NaN or"),
    ],
)
def test_every_damage_of_a_sample_is_named(data_set_copy: Path, change: Callable, message: str) -> None:
    rewrite(data_set_copy / "pack", only(2, change))
    findings = found(data_set_copy / "pack")
    assert message in findings[0] and findings[0].startswith(SHARD)


def test_images_that_are_nowhere_are_named(data_set_copy: Path) -> None:
    index = json.loads((data_set_copy / "pack" / "index.json").read_text())
    rewrite(data_set_copy / "pack", only(2, lambda sample: None))
    findings = found(data_set_copy / "pack")
    assert any(finding.endswith("row 8 (id-008.png): neither in a shard nor left out") for finding in findings)
    assert index["left_out"] == []


def test_tokens_of_another_manifest_are_named(data_set_copy: Path) -> None:
    manifest = data_set_copy / "manifest"
    rows = list(Manifest.open(manifest).captioned)
    write_manifest(manifest, [replace(rows[0], captions=("Another ring.",)), *rows[1:]])
    assert found(data_set_copy / "tokens") == ["tokens.h5: its captions are not the manifest's"]
    assert any("its captions are not the manifest's" in finding for finding in found(data_set_copy / "pack"))
    write_manifest(manifest, rows[1:])
    assert found(data_set_copy / "tokens") == ["tokens.h5: its images are not the manifest's"]


@pytest.mark.parametrize(
    "edit",
    [{"schema": 2}, {"images": "15"}, {"shards": []}, {"shards": [{"file": "../a.tar", "count": 1}]}],
)
def test_a_spoilt_index_is_named(data_set_copy: Path, edit: dict[str, object]) -> None:
    for store in ("pack", "tokens"):
        index = data_set_copy / store / "index.json"
        write_json(index, json.loads(index.read_text()) | edit)
        assert found(data_set_copy / store)[0].startswith("index.json: ")


def test_a_path_that_leaves_the_folder_is_not_followed(data_set_copy: Path) -> None:
    """Members of a tar are never written anywhere, whatever they are called."""
    path = data_set_copy / "pack" / SHARD
    with tarfile.open(path, "w") as shard:
        for name in ("../evil.features.npy", "../evil.boxes.npy", "../evil.json"):
            shard.addfile(tarfile.TarInfo(name))
    assert any("can't be read" in finding or "sha256" in finding for finding in found(path.parent))
    assert not list(data_set_copy.parent.rglob("evil*"))


def test_no_damage_raises(data_set_copy: Path) -> None:
    random, path = np.random.default_rng(0), data_set_copy / "pack" / SHARD
    whole = np.fromfile(path, np.uint8)
    index = json.loads((path.parent / "index.json").read_text())
    for _ in range(60):
        spoilt = whole.copy()
        where = random.integers(0, len(whole), random.integers(1, 200))
        spoilt[where] = random.integers(0, 256, len(where))
        spoilt.tofile(path)
        index["shards"][1]["sha256"] = sha256(path)
        write_json(path.parent / "index.json", index)
        assert run(store=path.parent).text()
