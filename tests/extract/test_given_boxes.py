"""Boxes that people have: described in their order with their labels, by a grid and by detectors, and cached."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.ops import RoIAlign

from extract.check import verify
from extract.settings import RegionSettings
from extract.stores.regions import RegionStore
from extract.vision.loading import load_detector
from extract.vision.one_picture import PictureReader
from extract.vision.reading import decode
from manifests import manifest as manifest_stage
from manifests.errors import InputError
from manifests.grounding import read_grounding
from manifests.settings import DatasetSource
from tests.extract.region_files import Pictures, encoded, region_settings, scene
from tests.extract.test_grid import drawn, random_timm
from tests.extract.test_rcnn import SPEC as RCNN

SIZES = {"a.png": (96, 64), "b.png": (64, 64), "c.png": (50, 80)}
BOXES = {
    "a.png": [[60, 10, 90, 50], [0, 0, 96, 64], [-4, 3.5, 20, 70]],
    "b.png": [[1, 2, 3, 4]],
}
LABELS = {"a.png": ["dog", "park", "a tree"], "b.png": ["dog"]}


def write_data(folder: Path, boxes: dict = BOXES, labels: dict | None = LABELS) -> tuple[Pictures, dict[str, Path]]:
    """Three pictures, their captions and a boxes file; c.png has no boxes."""
    pictures = Pictures(folder)
    pictures.images.mkdir(parents=True)
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        (pictures.images / name).write_bytes(encoded(drawn(height, width, number)))
    captions = folder / "captions.csv"
    captions.write_text("image,caption,split\n" + "".join(f"{name},A dog.,train\n" for name in SIZES))
    ids = {"a.png": "a.png", "b.png": "b"}  # by path or by id
    rows = [
        {"image": ids.get(n, n), "boxes": own, **({"labels": labels[n]} if labels else {})} for n, own in boxes.items()
    ]
    (folder / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"images": pictures.images, "captions": captions, "boxes": folder / "boxes.jsonl", "format": "folder"}
    manifest_stage.run(**source, out=pictures.manifest)
    return pictures, source


def grid_settings(folder: Path, **others: Any) -> RegionSettings:
    weights, _ = random_timm(folder, "test_resnet")
    return RegionSettings(detector={"name": "grid", **weights}, boxes="given", **others)


def test_a_grid_describes_given_boxes_in_their_order_with_their_labels(tmp_path: Path) -> None:
    pictures, _ = write_data(tmp_path / "data")
    settings = grid_settings(tmp_path)
    store = RegionStore(pictures.extract(settings))
    assert store.object_names == ["dog", "park", "a tree"] and store.index["layout"] == "ragged"
    assert store.num_boxes.tolist() == [3, 1, 0]
    first, second, third = (store.regions(row) for row in range(3))
    assert first.boxes.tolist() == [[60, 10, 90, 50], [0, 0, 96, 64], [0, 3.5, 20, 64]]
    assert first.objects_id.tolist() == [0, 1, 2] and second.objects_id.tolist() == [0] and not len(third)
    assert first.objects_conf.tolist() == [1, 1, 1] and first.attrs_id is None
    detector = load_detector(settings.detector, None)
    picture = decode((pictures.images / "a.png").read_bytes())
    found = detector._map(detector.prepare(picture)[None])
    side = found.shape[-1]
    rois = [torch.tensor(first.boxes) * torch.tensor([side / 96, side / 64] * 2)]
    expected = RoIAlign(1, 1.0, sampling_ratio=7, aligned=True)(found, rois).flatten(1)
    np.testing.assert_allclose(first.features, expected.half(), rtol=2e-3, atol=2e-3)
    assert verify.run(store=pictures.out, manifest=pictures.manifest).total == 0
    assert "boxes that were given" in (pictures.out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["demo", "rcnn"])
def test_a_detector_says_of_given_boxes_what_it_said_of_its_own(kind: str) -> None:
    spec = region_settings().detector if kind == "demo" else RCNN
    selection = {"rule": "bottom_up", "min_boxes": 7, "max_boxes": 7}
    proposing, describing = load_detector(spec, selection), load_detector(spec, None)
    prepared = [proposing.prepare(scene(number)[0]) for number in (0, 1)]
    pictures, sizes = torch.stack(prepared), [(160, 160), (320, 240)]
    own = proposing.detect(pictures, sizes)
    turned = [regions.boxes[::-1].copy() for regions in own]
    again = describing.detect(pictures, sizes, turned)
    for before, after, boxes in zip(own, again, turned, strict=True):
        np.testing.assert_array_equal(after.boxes, boxes)
        np.testing.assert_array_equal(after.objects_id, before.objects_id[::-1])
        np.testing.assert_allclose(after.objects_conf, before.objects_conf[::-1], atol=2e-3)
        np.testing.assert_array_equal(after.attrs_id, before.attrs_id[::-1])
        np.testing.assert_allclose(after.features, before.features[::-1], rtol=5e-3, atol=5e-3)


def test_a_detectors_own_classes_stand_where_boxes_have_no_labels(tmp_path: Path) -> None:
    pictures, _ = write_data(tmp_path / "data", labels=None)
    settings = RegionSettings(detector=region_settings().detector, boxes="given")
    store = RegionStore(pictures.extract(settings))
    assert store.object_names[:2] == ["circle", "square"] and store.attribute_names
    assert store.num_boxes.tolist() == [3, 1, 0] and store.regions(0).attrs_id is not None


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({}, 0),
        ({"b.png": ([[1, 2, 3, 5]], ["dog"])}, 1),
        ({"b.png": ([[1, 2, 3, 4]], ["park"])}, 1),
        ({"c.png": ([[1, 2, 3, 4]], ["cat"])}, 1),
        ({"a.png": (BOXES["a.png"][:2], LABELS["a.png"][:2])}, 1),
    ],
    ids=["nothing", "a box", "a label", "a first box", "a box less"],
)
def test_a_changed_box_makes_its_own_picture_again(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, computed: int
) -> None:
    pictures, source = write_data(tmp_path / "data")
    settings = grid_settings(tmp_path, images_per_shard=2)
    pictures.extract(settings)
    capsys.readouterr()
    known = {name: (BOXES[name], LABELS[name]) for name in BOXES} | change
    rows = [{"image": name, "boxes": boxes, "labels": labels} for name, (boxes, labels) in known.items()]
    source["boxes"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    images, facts = pictures.manifest / "images.arrow", pictures.manifest / "source.json"
    before = images.read_bytes(), facts.read_bytes()
    manifest_stage.run(**source, out=pictures.manifest)
    assert images.read_bytes() == before[0] and (facts.read_bytes() == before[1]) == (not change)
    store = RegionStore(pictures.extract(settings))
    assert f"3 pictures, {computed} computed, {3 - computed} reused" in capsys.readouterr().out
    for row, name in enumerate(SIZES):
        boxes, labels = known.get(name, ([], []))
        assert len(store.regions(row)) == len(boxes)
        assert [store.object_names[n] for n in store.regions(row).objects_id] == labels


def test_boxes_of_the_captions_file_itself(tmp_path: Path) -> None:
    pictures, _ = write_data(tmp_path / "data")
    expected = read_grounding(pictures.manifest / "grounding.jsonl")
    tables = {
        "c.csv": "image,caption,split,boxes,labels\n"
        'a.png,A dog.,train,"[[60, 10, 90, 50], [0, 0, 96, 64], [-4, 3.5, 20, 70]]","[""dog"", ""park"", ""a tree""]"\n'
        'b.png,A dog.,train,"[[1, 2, 3, 4]]","[""dog""]"\nc.png,A dog.,train,,\n',
        "c.jsonl": "".join(
            json.dumps(
                {"image": n, "captions": ["A dog."], "split": "train"}
                | {"boxes": BOXES.get(n, []), "labels": LABELS.get(n, [])}
            )
            + "\n"
            for n in SIZES
        ),
        "c.json": json.dumps(
            {
                "images": [
                    {
                        "filename": name,
                        "split": "train",
                        "sentences": [{"raw": "A dog."}],
                        "objects": [
                            {"box": box, "label": label}
                            for box, label in zip(BOXES.get(name, []), LABELS.get(name, []), strict=True)
                        ],
                    }
                    for name in SIZES
                ]
            }
        ),
    }
    for name, text in tables.items():
        file = tmp_path / name
        file.write_text(text)
        format = "karpathy" if name == "c.json" else "folder"
        out = tmp_path / name.replace(".", "-")
        manifest_stage.run(images=pictures.images, captions=file, boxes=file, format=format, out=out)
        assert read_grounding(out / "grounding.jsonl") == expected, name
        assert "boxes_sha256" in (out / "source.json").read_text()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"image": "d.png", "boxes": []}, {"image": "a.png", "boxes": 1}],
            "2 mistakes .*'d.png' isn't in .*must be a list",
        ),
        ([{"image": "a.png", "boxes": [[0, 0, 1]]}], "must be four numbers"),
        ([{"image": "a.png", "boxes": [[97, 0, 99, 5]]}], "no area inside the picture: box 0 of image 'a'"),
        ([{"image": "a.png", "boxes": [[5, 5, 5, 9], [0, 0, 0, 0]]}], "box 0 .*box 1 "),
        ([{"image": "a.png", "boxes": [[0, 0, 1, 1]], "labels": []}], "1 boxes but 0 labels"),
        ([{"image": "a.png", "boxes": [[0, 0, 1, 1]], "labels": [" "]}], "texts that aren't empty"),
        ([{"image": 3, "boxes": []}], "must have 'image'"),
        ([{"image": "a.png"}], "tells of no boxes"),
        ([{"image": "a.png", "boxes": [[0, 0, n, 1]]} for n in (1, 2)], "has other boxes at line 1"),
        (
            [{"image": "a.png", "boxes": [[0, 0, 1, 1]], "labels": ["x"]}, {"image": "b.png", "boxes": [[0, 0, 1, 1]]}],
            "no label: box 0 of image 'b'",
        ),
    ],
    ids=range(10),
)
def test_boxes_that_cannot_be_are_refused_and_the_manifest_stays(tmp_path: Path, rows: list, message: str) -> None:
    pictures, source = write_data(tmp_path / "data")
    before = {path.name: path.read_bytes() for path in pictures.manifest.iterdir()}
    for suffix, text in ((".jsonl", "\n".join(map(json.dumps, rows))), (".json", json.dumps(rows))):
        source["boxes"] = tmp_path / f"boxes{suffix}"
        source["boxes"].write_text(text)
        with pytest.raises(InputError, match=message.replace("line 1", "line 1|\\[0\\]")) as error:
            manifest_stage.run(**source, out=pictures.manifest)
        assert (error.value.fix and str(source["boxes"]) in error.value.where) or "captions" in error.value.where
    assert {path.name: path.read_bytes() for path in pictures.manifest.iterdir()} == before


def test_given_boxes_need_a_file_of_boxes_and_no_rule(tmp_path: Path) -> None:
    detector = region_settings().detector
    with pytest.raises(ValidationError, match="not for given boxes"):
        RegionSettings(detector=detector, selection={"rule": "detections"}, boxes="given")
    with pytest.raises(ValidationError, match=r"`detector\.boxes` is not for given boxes"):
        RegionSettings(detector={**grid_settings(tmp_path).detector.model_dump(), "boxes": "cells"}, boxes="given")
    pictures, source = write_data(tmp_path / "data")
    del source["boxes"]
    manifest_stage.run(**source, out=pictures.manifest)
    with pytest.raises(InputError, match="gives no boxes") as error:
        pictures.extract(grid_settings(tmp_path))
    assert "source.boxes" in error.value.fix


def test_dvc_watches_the_boxes_file(tmp_path: Path) -> None:
    source = {"format": "folder", "images": "i", "captions": "c.csv", "boxes": "b.jsonl"}
    assert DatasetSource(**source, watch="b.jsonl").watch == Path("b.jsonl")
    with pytest.raises(ValidationError, match=r"b\.jsonl \(as `boxes`\)"):
        DatasetSource(**source, watch="i")
    assert DatasetSource(**source | {"boxes": "c.csv"}, watch="i").boxes == Path("c.csv")
    with pytest.raises(ValidationError, match="not for format scan"):
        DatasetSource(**source | {"format": "scan"})


def test_a_picture_of_no_data_set_has_no_given_boxes(tmp_path: Path) -> None:
    pictures, _ = write_data(tmp_path / "data")
    settings = grid_settings(tmp_path)
    recipe = RegionStore(pictures.extract(settings)).recipe
    with pytest.raises(InputError, match="boxes were given, and a picture of no data set has none"):
        PictureReader(settings, recipe)
