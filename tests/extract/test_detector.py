"""The demo's detector: its weights, its view of a picture, and how well it finds what was drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_iou

from demo.detector.demo import DemoDetectorSettings
from demo.scenes.drawing import Scene
from extract.settings import BottomUpSettings
from extract.stores.regions import Regions
from extract.vision.detectors.base import Detector
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import sha256
from tests.extract.region_files import WEIGHTS, region_settings, scene


def detector_of(min_boxes: int = 12, max_boxes: int = 12, **view: int) -> Detector:
    settings = DemoDetectorSettings(name="demo", weights=str(WEIGHTS), sha256=sha256(WEIGHTS), **view)
    return load_detector(settings, BottomUpSettings(min_boxes=min_boxes, max_boxes=max_boxes))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return detector_of()


def detect(detector: Detector, picture: np.ndarray) -> Regions:
    """The regions of one picture, uint8 ``[H, W, 3]``."""
    (found,) = detector.detect(detector.prepare(picture)[None], [(picture.shape[1], picture.shape[0])])
    return found


def best_regions(found: Regions, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each true box ``[O, 4]``: the overlap (IoU) with the best region ``[O]``, and that region ``[O]``."""
    overlap = box_iou(torch.tensor(truth, dtype=torch.float32), torch.from_numpy(found.boxes))
    values, rows = overlap.max(1)
    return values.numpy(), rows.numpy()


def share_found(detector: Detector, pictures: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The share of true boxes, of (picture, boxes) pairs, that a region overlaps by half."""
    overlaps = [best_regions(detect(detector, picture), boxes)[0] for picture, boxes in pictures]
    return float((np.concatenate(overlaps) >= 0.5).mean())


def boxes_of(truth: Scene) -> np.ndarray:
    return np.array([item.box for item in truth.objects])


def test_params_name_the_committed_weights() -> None:
    params = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    assert params["datasets"]["demo"]["regions"]["detector"]["sha256"] == sha256(WEIGHTS)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(WEIGHTS.read_bytes()[:-1] + b"\1")
    settings = region_settings()
    for weights, reason in ((other, sha256(other)), (tmp_path / "gone.safetensors", "no such weights")):
        with pytest.raises(InputError, match=reason) as error:
            load_detector(settings.detector.model_copy(update={"weights": str(weights)}), settings.selection)
        assert error.value.where == str(weights)


def test_recipe_names_what_decides_the_numbers() -> None:
    recipe = detector_of(shortest=96, longest=128).recipe
    assert recipe["weights_sha256"] == sha256(WEIGHTS)
    assert (recipe["resize"]["shortest"], recipe["resize"]["longest"]) == (96, 128)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((160, 160), (160, 160)),
        ((1, 1), (160, 160)),
        ((640, 480), (216, 160)),
        ((480, 640), (160, 216)),
        ((1000, 250), (256, 64)),
        ((5000, 5), (256, 8)),
    ],
)
def test_network_sees_multiples_of_its_stride(detector: Detector, size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert detector.network_size(*size) == seen
    prepared = detector.prepare(np.zeros((size[1], size[0], 3), np.uint8))
    assert prepared.dtype == torch.uint8 and prepared.shape == (3, seen[1], seen[0])


def test_shrinking_averages_and_keeps_channels_apart(detector: Detector) -> None:
    board = np.indices((640, 640)).sum(0) % 2 * 255
    prepared = detector.prepare(np.stack([board, np.full_like(board, 7), 255 - board], 2).astype(np.uint8)).int()
    assert (prepared[0] - 127).abs().max() <= 2 and (prepared[2] - 127).abs().max() <= 2
    assert (prepared[1] == 7).all()


def test_freshly_drawn_objects_are_found_and_named(detector: Detector) -> None:
    total = found = named = described = 0
    for picture, truth in map(scene, range(32)):
        regions = detect(detector, picture)
        overlaps, rows = best_regions(regions, boxes_of(truth))
        for item, overlap, row in zip(truth.objects, overlaps, rows, strict=True):
            total += 1
            if overlap >= 0.5:
                found += 1
                named += detector.object_names[regions.objects_id[row]] == item.shape
                described += detector.attribute_names[regions.attrs_id[row]] == f"{item.texture} {item.colour}"
    assert total > 80
    assert found >= 0.95 * total
    assert named >= 0.95 * found
    assert described >= 0.95 * found


def test_boxes_of_an_enlarged_picture_are_in_its_own_pixels(detector: Detector) -> None:
    pictures = []
    for picture, truth in map(scene, range(8)):
        large = np.asarray(Image.fromarray(picture).resize((320, 320), Image.Resampling.BICUBIC))
        pictures.append((large, 2 * boxes_of(truth)))
    assert share_found(detector, pictures) >= 0.95


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(("size", "corner"), [((240, 160), (80, 0)), ((160, 240), (0, 80))], ids=["wide", "tall"])
def test_boxes_of_oblong_pictures(
    detector: Detector, size: tuple[int, int], corner: tuple[int, int], factor: int
) -> None:
    pictures = []
    for picture, truth in map(scene, range(8)):
        canvas = Image.new("RGB", size, (220, 220, 225))
        canvas.paste(Image.fromarray(picture), corner)
        large = np.asarray(canvas.resize((factor * size[0], factor * size[1]), Image.Resampling.BICUBIC))
        pictures.append((large, factor * (boxes_of(truth) + np.tile(corner, 2))))
    assert share_found(detector, pictures) >= 0.95


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 2), (333, 517), (1200, 40)])
def test_every_shape_gives_all_boxes_inside_it(detector: Detector, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for picture in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        found = detect(detector, picture)
        assert len(found) == 12 and found.image_size == size
        assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, 2:] <= size).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert np.isfinite(found.features).all()


def test_types_and_ranges_of_regions(detector: Detector) -> None:
    found = detect(detector, scene(0)[0])
    assert found.features.shape == (12, detector.dim) and found.features.dtype == np.float16
    assert found.boxes.shape == (12, 4) and found.boxes.dtype == np.float32
    for ids, names in ((found.objects_id, detector.object_names), (found.attrs_id, detector.attribute_names)):
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < len(names)
    for confidence in (found.objects_conf, found.attrs_conf):
        assert confidence.dtype == np.float32 and (confidence > 0).all() and (confidence <= 1).all()


def test_a_batch_gives_what_single_pictures_give(detector: Detector) -> None:
    pictures = [scene(i)[0] for i in range(5)]
    together = detector.detect(torch.stack([detector.prepare(p) for p in pictures]), [(160, 160)] * 5)
    for picture, batched in zip(pictures, together, strict=True):
        alone = detect(detector, picture)
        np.testing.assert_allclose(batched.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(batched.features.astype(float), alone.features.astype(float), atol=2e-2)
        assert batched.objects_id.tolist() == alone.objects_id.tolist()


def test_more_regions_than_proposals_are_refused() -> None:
    with pytest.raises(InputError, match="fewer than the 350 asked for") as error:
        detect(detector_of(350, 350), scene(0)[0])
    assert "min_boxes" in error.value.where
