"""Torchvision's Faster R-CNNs give what torchvision's own models give, on random weights."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import detection
from torchvision.transforms.functional import to_tensor

from extract.stores.regions import Regions
from extract.vision.catalogue import CATALOGUE
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import sha256

VIEW = {"shortest": 128, "longest": 224, "proposals_after": 100}
DETECTIONS = {"rule": "detections", "score_threshold": 0.05}
MODELS = {
    "fasterrcnn_resnet50_fpn": detection.FasterRCNN_ResNet50_FPN_Weights,
    "fasterrcnn_resnet50_fpn_v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights,
    "fasterrcnn_mobilenet_v3_large_fpn": detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    "fasterrcnn_mobilenet_v3_large_320_fpn": detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
}


@cache
def random_state(name: str, classes: int = 91) -> dict[str, torch.Tensor]:
    """Parameters whose scores are spread, as a file of torchvision's has them."""
    torch.manual_seed(1)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes)
    frozen = not name.endswith("_v2")
    state = {k: v for k, v in model.state_dict().items() if not (frozen and k.endswith("num_batches_tracked"))}
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith("bn3.weight"):
            value.fill_(0.2)
        elif key.endswith("cls_logits.weight"):
            value.normal_(std=0.3)
        elif key.endswith("cls_score.weight"):
            value.normal_(std=5)
    return state


def spec_of(folder: Path, name: str, state: dict[str, torch.Tensor], **keys: Any) -> dict[str, Any]:
    path = folder / f"{name}.pth"
    torch.save(state, path)
    return {"name": "torchvision", "model": name, "weights": str(path), "sha256": sha256(path), **VIEW, **keys}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((97, 130), (40, 333))]


def regions(detector: Any, rgb: np.ndarray) -> Regions:
    (found,) = detector.detect(detector.prepare(rgb)[None], [(rgb.shape[1], rgb.shape[0])])
    return found


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        pytest.param("fasterrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
        "fasterrcnn_mobilenet_v3_large_fpn",
    ],
)
def test_a_published_model_gives_what_torchvisions_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision builds its model as for its published weights, and is given random ones of their names and shapes."""
    state = random_state(name)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    own = {"min_size": VIEW["shortest"], "max_size": VIEW["longest"], "rpn_post_nms_top_n_test": 100}
    theirs = getattr(detection, name)(weights=MODELS[name].DEFAULT, **own).eval()
    detector, total = load_detector(spec_of(tmp_path, name, state), DETECTIONS), 0
    assert detector.object_names == tuple(MODELS[name].DEFAULT.meta["categories"][1:]) and detector.dim == 1024
    (entry,) = (own for own in CATALOGUE.values() if own.address == MODELS[name].DEFAULT.url)
    assert entry.detector["model"] == name and (entry.classes, entry.dim) == (detector.num_classes, detector.dim)
    seen: dict[str, torch.Tensor] = {}
    theirs.roi_heads.box_predictor.register_forward_hook(lambda _, given, __: seen.update(features=given[0]))
    theirs.roi_heads.box_roi_pool.register_forward_hook(lambda _, given, __: seen.update(boxes=given[1][0]))
    for rgb in pictures():
        with torch.inference_mode():
            (expected,) = theirs([to_tensor(rgb)])
        prepared = detector.prepare(rgb)
        assert prepared.shape[-2:] == detector.network_size(rgb.shape[1], rgb.shape[0])[::-1]
        (candidates,) = detector.candidates(prepared[None])
        torch.testing.assert_close(candidates.boxes, seen["boxes"], rtol=0, atol=0)
        torch.testing.assert_close(candidates.features, seen["features"], rtol=0, atol=0)
        found = regions(detector, rgb)
        total += len(found)
        np.testing.assert_array_equal(found.objects_id + 1, expected["labels"].numpy())
        np.testing.assert_allclose(found.objects_conf, expected["scores"].numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected["boxes"].numpy(), rtol=1e-6, atol=1e-6)
    assert total > 20


def test_a_fine_tuned_model_has_its_own_classes(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{number}\n" for number in range(6)))
    state = random_state(name, classes=7)
    spec = spec_of(tmp_path, name, {"model": state, "epoch": 3}, proposals_score=0.0, object_names=str(names))
    detector = load_detector(spec, {"rule": "bottom_up", "min_boxes": 10, "max_boxes": 10})
    assert detector.object_names == tuple("012345")
    for size in ((120, 160), (1, 1), (3, 700), (700, 3)):
        rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        found = regions(detector, rgb)
        assert len(found) == 10 and found.objects_id.max() < 6, size
        assert (found.boxes[:, 2:] <= (size[1], size[0])).all()
    recipe = detector.recipe
    assert (recipe["proposals_after"], recipe["proposals_before"], recipe["norm_eps"]) == (100, 150, 1e-5)
    assert load_detector(spec | {"norm_eps": 0.001}).recipe != recipe


def test_given_boxes_are_described_in_their_order(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    detector = load_detector(spec_of(tmp_path, name, random_state(name)), None)
    rgb, boxes = pictures()[0], np.array([[3, 4, 60, 70], [0, 0, 130, 97]], np.float32)
    (found,) = detector.detect(detector.prepare(rgb)[None], [(130, 97)], [boxes])
    (turned,) = detector.detect(detector.prepare(rgb)[None], [(130, 97)], [boxes[::-1].copy()])
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.features, turned.features[::-1])


def test_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    state = {**random_state(name)}
    del state["backbone.body.0.0.weight"]
    state |= {"extra": torch.ones(2), "rpn.head.cls_logits.bias": torch.ones(3)}
    with pytest.raises(
        InputError, match="Missing key.*body.0.0.weight.*Unexpected.*extra.*mismatch.*cls_logits"
    ) as error:
        load_detector(spec_of(tmp_path, name, state), DETECTIONS)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="Missing key"):
        load_detector(spec_of(tmp_path, name, {"other": torch.ones(2)}), DETECTIONS)
    with pytest.raises(InputError, match="holds no parameters"):
        load_detector(spec_of(tmp_path, name, {}), DETECTIONS)
