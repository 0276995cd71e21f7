"""The torchvision network equals detectron2 from detectron2's own checkpoint (tests/data/detectron2_tiny)."""

import http.server
import importlib.util
import pickle
import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d, roi_pool

from extract.vision.catalogue import CATALOGUE, require_readable
from extract.vision.loading import load_detector
from extract.vision.rcnn.checkpoint import read_checkpoint
from extract.vision.rcnn.network import FPN, Conventions, FrozenNorm, build, cell_anchors
from extract.vision.selection import detections
from extract.vision.shards import difference
from manifests.errors import InputError
from manifests.files import sha256

DATA = Path(__file__).parents[1] / "data"
GOLDEN = dict(np.load(DATA / "detectron2_tiny.npz"))
CHECKPOINT = DATA / "detectron2_tiny.pth"
SPEC = {
    "name": "rcnn",
    "weights": str(CHECKPOINT),
    "sha256": sha256(CHECKPOINT),
    "shortest": 180,
    "longest": 300,
    "proposals_before": 600,
    "proposals_after": 60,
    "sampling_ratio": 2,
}
DETECTIONS = {"rule": "detections"}


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.fixture(scope="module")
def detector():
    return load_detector(SPEC, DETECTIONS)


@pytest.fixture(scope="module")
def outputs(detector):
    return detector.outputs(detector.prepare(GOLDEN["rgb"])[None])[0]


def test_the_resized_picture_is_identical(detector):
    rgb = detector.prepare(GOLDEN["rgb"])
    assert torch.equal(rgb.flip(0).permute(1, 2, 0), golden("resized_bgr"))


def test_the_feature_map_agrees(detector):
    pictures = detector.prepare(GOLDEN["rgb"])[None].flip(1).float() - detector._mean
    torch.testing.assert_close(detector.network.maps(pictures)[0], golden("res4"), rtol=0, atol=1e-4)


def test_every_output_agrees(outputs):
    # Near-ties in objectness may swap rows: matched by box.
    order = torch.cdist(golden("proposals"), outputs.proposals, p=torch.inf).argmin(1)
    assert sorted(order.tolist()) == list(range(60))
    for ours, name in (
        (outputs.proposals, "proposals"),
        (outputs.objectness, "objectness"),
        (outputs.features, "features"),
        (outputs.logits, "logits"),
        (outputs.deltas, "deltas"),
        (outputs.attributes, "attr_logits"),
    ):
        torch.testing.assert_close(
            ours[order], golden(name), rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_kept_detections_are_the_same(outputs):
    rows, classes, boxes = detections(
        outputs.proposals,
        outputs.logits.softmax(1)[:, :-1],
        outputs.deltas,
        GOLDEN["resized_bgr"].shape[:2],
        score_threshold=0.05,
        nms_threshold=0.5,
        max_boxes=100,
    )
    assert torch.equal(classes, golden("det_classes")) and torch.equal(rows, golden("det_keep"))
    torch.testing.assert_close(boxes, golden("det_boxes"), rtol=0, atol=1e-3)


def test_detected_regions_are_in_original_pixels(detector, outputs):
    (regions,) = detector.detect(detector.prepare(GOLDEN["rgb"])[None], [(310, 203)])
    scale = np.array([310 / 275, 203 / 180] * 2, np.float32)
    np.testing.assert_allclose(regions.boxes, GOLDEN["det_boxes"] * scale, atol=1e-3)
    np.testing.assert_array_equal(regions.objects_id, GOLDEN["det_classes"])
    np.testing.assert_allclose(regions.features, GOLDEN["features"][GOLDEN["det_keep"]], atol=2e-3)
    np.testing.assert_array_equal(regions.attrs_id, GOLDEN["attr_logits"].argmax(1)[GOLDEN["det_keep"]])


def test_fixed_36_is_always_36():
    detector = load_detector(SPEC)
    for size in ((203, 310), (1, 1), (7, 900)):
        rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        (regions,) = detector.detect(detector.prepare(rgb)[None], [(size[1], size[0])])
        assert len(regions) == 36, size


def test_a_batch_gives_what_single_pictures_give(detector):
    rng = np.random.default_rng(1)
    pictures = [detector.prepare(rng.integers(0, 256, (203, 310, 3), np.uint8)) for _ in range(3)]
    together = detector.detect(torch.stack(pictures), [(310, 203)] * 3)
    for picture, found in zip(pictures, together, strict=True):
        (alone,) = detector.detect(picture[None], [(310, 203)])
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(found.features.astype(np.float32), alone.features.astype(np.float32), atol=5e-3)


def test_what_the_norms_former_formula_gave_is_known_to_be_the_same(monkeypatch):
    """Batch norm was a scale and a shift until it became detectron2's one call: nobody's features are made anew."""
    rgb = GOLDEN["rgb"]
    detector = load_detector(SPEC, DETECTIONS)
    (now,) = detector.detect(detector.prepare(rgb)[None], [(310, 203)])
    monkeypatch.setattr(FrozenNorm, "forward", FrozenBatchNorm2d.forward)
    (before,) = detector.detect(detector.prepare(rgb)[None], [(310, 203)])
    assert difference(before, now) is None
    assert not all(np.array_equal(getattr(before, name), getattr(now, name)) for name in ("features", "boxes"))


@pytest.mark.parametrize("broken", ["rgb", "mean", "sampling", "stride"])
def test_other_conventions_give_other_features(outputs, broken):
    """The parity test is able to fail: each convention of detectron2 that is easily missed moves the features."""
    change = {
        "rgb": {"pixel_order": "RGB"},
        "mean": {"pixel_mean": (102.98, 115.95, 122.77)},
        "sampling": {"sampling_ratio": 1},
        "stride": {"stride_in_1x1": False},
    }[broken]
    detector = load_detector({**SPEC, **change}, DETECTIONS)
    other = detector.outputs(detector.prepare(GOLDEN["rgb"])[None])[0]
    assert (other.features[:20] - outputs.features[:20]).abs().max() > 1e-3


def grouped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fixture's state as if each 3x3 convolution had two groups."""
    return {
        name: value[:, : value.shape[1] // 2].clone() if name.endswith("conv2.weight") and value.ndim == 4 else value
        for name, value in state.items()
    }


def test_a_grouped_network_is_built_from_its_shapes():
    """A dense 3x3 convolution with zeros between the groups is the same function as the grouped one."""
    state = read_checkpoint(CHECKPOINT)
    halves = grouped(state)
    dense = {}
    for name, value in state.items():
        if name in halves and halves[name].shape != value.shape:
            full = torch.zeros_like(value)
            out, inside = value.shape[0] // 2, value.shape[1] // 2
            full[:out, :inside], full[out:, inside:] = halves[name][:out], halves[name][out:]
            value = full
        dense[name] = value
    conventions = Conventions(stride_in_1x1=False, proposals_before=600, proposals_after=60, sampling_ratio=2)
    networks = [build(s, conventions) for s in (halves, dense)]
    assert networks[0].layer2[0].conv2.groups == 2 and networks[1].layer2[0].conv2.groups == 1
    assert networks[0].layer2[0].conv1.stride == (1, 1) and networks[0].layer2[0].conv2.stride == (2, 2)
    picture = golden("resized_bgr").permute(2, 0, 1)[None].float() - 110
    a, b = (network(picture)[0] for network in networks)
    torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-4)


def test_an_fpn_is_recognised_by_its_names():
    torch.manual_seed(0)
    state = {k: v for k, v in read_checkpoint(CHECKPOINT).items() if not k.startswith(("rpn", "cls", "bbox", "attr"))}
    for i, channels in enumerate((32, 64, 128, 256)):
        state |= {f"inner.{i}.weight": torch.randn(24, channels, 1, 1) / 8, f"inner.{i}.bias": torch.zeros(24)}
        state |= {f"outer.{i}.weight": torch.randn(24, 24, 3, 3) / 16, f"outer.{i}.bias": torch.zeros(24)}
    shapes = {
        "rpn.conv": (24, 24, 3, 3),
        "rpn.objectness_logits": (3, 24, 1, 1),
        "rpn.anchor_deltas": (12, 24, 1, 1),
        "fc1": (40, 24 * 49),
        "fc2": (40, 40),
        "cls_score": (6, 40),
        "bbox_pred": (20, 40),
    }
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.randn(shape) * 0.05, f"{name}.bias": torch.zeros(shape[0])}
    network = build(state, Conventions(proposals_before=200, proposals_after=50))
    assert isinstance(network, FPN) and network.dim == 40
    maps = network.maps(torch.randn(1, 3, 180, 275))
    assert [tuple(m.shape[-2:]) for m in maps] == [(48, 72), (24, 36), (12, 18), (6, 9), (3, 5)]
    (found,) = network(torch.randn(1, 3, 180, 275) * 50, at_least=30)
    assert 30 <= len(found.proposals) <= 50 and found.features.shape == (len(found.proposals), 40)
    assert found.proposals[:, 2].max() <= 275 and found.proposals[:, 3].max() <= 180


def test_anchors_are_size_major_and_not_rounded():
    anchors = cell_anchors((32, 64), (0.5, 1, 2))
    assert anchors.shape == (6, 4)
    torch.testing.assert_close(anchors[0, 2] * 2, torch.tensor(32 * 2**0.5))
    torch.testing.assert_close(anchors[4], torch.tensor([-32.0, -32, 32, 32]))


def saved(tmp_path: Path, state: dict) -> dict:
    path = tmp_path / "changed.pth"
    torch.save({"model": state}, path)
    return {**SPEC, "weights": str(path), "sha256": sha256(path)}


def original() -> dict[str, torch.Tensor]:
    return torch.load(CHECKPOINT, weights_only=True)["model"]


def test_bottom_up_attention_anchors_are_read(tmp_path):
    shifted = cell_anchors((32, 64, 128, 256, 512), (0.5, 1, 2)) + 8
    state = original() | {"proposal_generator.anchor_generator.cell_anchors.0": shifted}
    detector = load_detector(saved(tmp_path, state))
    assert torch.equal(detector.network.cell_anchors[0], shifted)


def test_half_precision_leaves_the_geometry_alone(outputs):
    """Anchors and regions stay float32: in bfloat16 a box beyond 512 pixels would move by up to 2."""
    detector = load_detector({**SPEC, "precision": "bfloat16"}, DETECTIONS)
    other = detector.outputs(detector.prepare(GOLDEN["rgb"])[None])[0]
    assert other.features.dtype == torch.bfloat16 and other.proposals.dtype == torch.float32
    nearest = torch.cdist(other.proposals, outputs.proposals, p=torch.inf).min(1).values
    assert nearest.median() < 0.5
    assert torch.equal(detector.network.cell_anchors[0], cell_anchors((32, 64, 128, 256, 512), (0.5, 1, 2)))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_is_computed_with_channels_last_to_the_same_end(kind):
    detector = load_detector({**SPEC, "precision": kind}, DETECTIONS)
    picture = detector.prepare(GOLDEN["rgb"])[None]
    (last,) = detector.detect(picture, [(310, 203)])
    assert detector.network.layer2[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    detector._layout = torch.contiguous_format
    detector.network.to(memory_format=torch.contiguous_format)
    (first,) = detector.detect(picture, [(310, 203)])
    np.testing.assert_array_equal(first.objects_id, last.objects_id)
    np.testing.assert_allclose(first.boxes, last.boxes, atol=2)
    np.testing.assert_allclose(first.features.astype(float), last.features.astype(float), atol=0.05)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"trap": Trap()}}))
    with pytest.raises(InputError, match="it asks for"):
        load_detector({**SPEC, "weights": str(path), "sha256": sha256(path)})
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_checkpoint_of_arrays_is_read(tmp_path, suffix):
    """Converted caffe checkpoints and detectron2's own pickles hold NumPy arrays."""
    state = {name: value.numpy() for name, value in original().items()}
    spec = saved(tmp_path, state)
    if suffix == ".pkl":
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
        spec |= {"weights": str(path), "sha256": sha256(path)}
    ours = load_detector(spec, DETECTIONS).network.state_dict()
    theirs = load_detector(SPEC, DETECTIONS).network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Trap:
    def __reduce__(self):
        return (Path("trapped").touch, ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("backbone.res3.1.conv2.weight"), "layer2.1.conv2.weight"),
        (lambda s: s.pop("roi_heads.box_predictor.cls_score.bias"), "cls_score.bias"),
        (lambda s: s.update({"roi_heads.mask_head.deconv.weight": torch.zeros(1)}), "mask_head"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "extra.weight"),
        (lambda s: s.update({"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(3)}), "bbox_pred.bias"),
        (lambda s: s.update({"trap": Trap()}), "not a checkpoint of tensors or arrays"),
    ],
    ids=["missing block", "missing head", "unknown name", "unexpected", "shape", "pickle"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    state = original()
    change(state)
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        load_detector(saved(tmp_path, state))
    assert not (tmp_path / "trapped").exists()


# -- bottom-up-attention.pytorch's converted Caffe checkpoints ---------------------------------------------------------

CAFFE_NAMES = {
    "attribute_predictor.obj_embed.": "box_predictor.cls_embed.",
    "attribute_predictor.fc.0.": "box_predictor.attr_linear1.",
    "attribute_predictor.attr_score.": "box_predictor.attr_linear2.",
}
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)


def caffe_named(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in state.items():
        for ours, theirs in CAFFE_NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def caffe_state() -> dict[str, torch.Tensor]:
    """The golden checkpoint as Caffe has it. Background and "no attribute" come first, the background has a box, deltas
    aren't divided, and objectness has two channels. In detectron2's order it is `original` (none last)."""
    torch.manual_seed(4)
    state = caffe_named(original())
    head, rpn = "roi_heads.box_predictor.", "proposal_generator.rpn_head.objectness_logits."
    for end in ("weight", "bias"):
        background = torch.randn_like(state[rpn + end])
        state[rpn + end] = torch.cat([background, state[rpn + end] + background])
        deltas = state[f"{head}bbox_pred.{end}"]
        scale = torch.tensor([10.0, 10, 5, 5]).repeat(len(deltas) // 4).view(-1, *[1] * (deltas.ndim - 1))
        state[f"{head}bbox_pred.{end}"] = torch.cat([torch.randn_like(deltas[:4]), deltas / scale])
        for name in ("cls_score", "attr_linear2"):
            state[f"{head}{name}.{end}"] = state[f"{head}{name}.{end}"].roll(1, 0)
    state[f"{head}cls_embed.weight"] = state[f"{head}cls_embed.weight"].roll(1, 0)
    return state


def test_a_caffe_checkpoint_has_the_parameters_of_detectron2s(tmp_path):
    ours = load_detector(saved(tmp_path, caffe_state())).network.state_dict()
    theirs = load_detector(SPEC).network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def caffe_blocks(state: dict[str, torch.Tensor], prefix: str, x: torch.Tensor, stride: int, dilation: int):
    """A residual stage, written with torch's functions alone."""

    def convolved(x: torch.Tensor, name: str, **options: int) -> torch.Tensor:
        own = {end: state[f"{name}.norm.{end}"] for end in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(F.conv2d(x, state[f"{name}.weight"], **options), *own.values(), eps=1e-5)

    block = 0
    while f"{prefix}.{block}.conv1.weight" in state:
        here, step = f"{prefix}.{block}", stride if not block else 1
        out = convolved(x, f"{here}.conv1", stride=step).relu()
        out = convolved(out, f"{here}.conv2", padding=dilation, dilation=dilation).relu()
        out = convolved(out, f"{here}.conv3")
        has_shortcut = f"{here}.shortcut.weight" in state
        x = (out + (convolved(x, f"{here}.shortcut", stride=step) if has_shortcut else x)).relu()
        block += 1
    return x


def caffe_outputs(state: dict[str, torch.Tensor], picture: torch.Tensor, proposals: torch.Tensor) -> dict:
    """The forward pass of bottom-up attention's network on a picture's proposals, by its converted files' names. Gives
    features, class and attribute logits, and the RPN's map of objectness."""
    x = picture.flip(1).float() - torch.tensor(CAFFE_MEAN).view(3, 1, 1)
    norm = [state[f"backbone.stem.conv1.norm.{end}"] for end in ("running_mean", "running_var", "weight", "bias")]
    x = F.conv2d(x, state["backbone.stem.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.batch_norm(x, *norm, eps=1e-5).relu(), 3, 2, 0, ceil_mode=True)
    for stage, stride in (("res2", 1), ("res3", 2), ("res4", 2)):
        x = caffe_blocks(state, f"backbone.{stage}", x, stride, 1)
    rois = torch.cat([torch.zeros(len(proposals), 1), proposals], 1)
    features = caffe_blocks(state, "roi_heads.res5", roi_pool(x, rois, 14, 1 / 16), 1, 2).mean((2, 3))
    head, rpn = "roi_heads.box_predictor.", "proposal_generator.rpn_head."
    linear = lambda x, name: F.linear(x, state[f"{head}{name}.weight"], state[f"{head}{name}.bias"])  # noqa: E731
    convolved = lambda x, name, **o: F.conv2d(x, state[f"{rpn}{name}.weight"], state[f"{rpn}{name}.bias"], **o)  # noqa: E731
    classes = linear(features, "cls_score")
    embedded = state[f"{head}cls_embed.weight"][classes.argmax(1)]
    return {
        "features": features,
        "classes": classes,
        "attributes": linear(linear(torch.cat([features, embedded], 1), "attr_linear1").relu(), "attr_linear2"),
        "objectness": convolved(convolved(x, "conv", padding=1).relu(), "objectness_logits"),
    }


def test_a_caffe_checkpoint_is_computed_as_its_project_does(tmp_path):
    """Against the forward pass of bottom-up-attention.pytorch's `caffe` mode, from the file's own names and order."""
    state = caffe_state()
    spec = {key: value for key, value in saved(tmp_path, state).items() if key != "sampling_ratio"}
    detector = load_detector(spec, DETECTIONS)
    picture = detector.prepare(GOLDEN["rgb"])[None]
    (found,), (candidates,) = detector.outputs(picture), detector.candidates(picture)
    theirs = caffe_outputs(state, picture, found.proposals)
    torch.testing.assert_close(found.features, theirs["features"], rtol=0, atol=1e-4)
    torch.testing.assert_close(candidates.classes, theirs["classes"].softmax(1)[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(candidates.attributes, theirs["attributes"].softmax(1)[:, 1:], rtol=0, atol=1e-5)
    scores = theirs["objectness"]
    best = scores.view(1, 2, -1, *scores.shape[-2:]).softmax(1)[:, 1].flatten().sort(descending=True).values
    torch.testing.assert_close(found.objectness[0].sigmoid(), best[0], rtol=0, atol=1e-5)


HUB_NAMES = {"cls_embed.": "cls_embedding.", "attr_linear1.": "fc_attr.", "attr_linear2.": "attr_score."}


def genome_state(converted: bool) -> dict[str, torch.Tensor]:
    """A narrow network of 1,600 objects, 400 attributes and 12 anchors: Caffe's order and channels, or the hub's."""
    torch.manual_seed(6)
    state, head = caffe_named(original()), "roi_heads.box_predictor."
    width = state[f"{head}attr_linear2.weight"].shape[1]
    for name, count, inputs in (("cls_score", 1601, 256), ("bbox_pred", 6400, 256), ("attr_linear2", 401, width)):
        state |= {f"{head}{name}.weight": torch.randn(count, inputs) / 8, f"{head}{name}.bias": torch.zeros(count)}
    state[f"{head}cls_embed.weight"] = torch.randn(1601, state[f"{head}cls_embed.weight"].shape[1])
    for name, count in (("objectness_logits", 24 if converted else 12), ("anchor_deltas", 48)):
        rpn = f"proposal_generator.rpn_head.{name}."
        inputs = state[f"{rpn}weight"].shape[1]
        state |= {f"{rpn}weight": torch.randn(count, inputs, 1, 1) / 50, f"{rpn}bias": torch.zeros(count)}
    return state


def entry_of(name: str, path: Path) -> tuple[dict, dict]:
    """An entry's spec, made quicker, and its selection, after the file was read as `selfalign detectors` does."""
    entry = CATALOGUE[name]
    require_readable(entry, path, sha256(path))
    own = {"weights": str(path), "sha256": sha256(path), "shortest": 96, "longest": 200, "proposals_after": 60}
    return {**entry.detector, **own}, entry.selection


def test_the_hubs_detector_is_computed_as_its_project_does(tmp_path):
    """transformers' modeling_frcnn.py: bottom-up attention's network in detectron2's order, with its own names."""
    state = genome_state(converted=False)
    hub = {}
    for name, value in state.items():
        for theirs, ours in HUB_NAMES.items():
            name = name.replace(theirs, ours)
        hub[name] = value
    hub["proposal_generator.anchor_generator.cell_anchors.0"] = anchors = cell_anchors((64, 128, 256, 512), (0.5, 1, 2))
    path = tmp_path / "pytorch_model.bin"
    torch.save(hub, path)
    detector = load_detector(*entry_of("vg-hub", path))
    assert torch.equal(detector.network.cell_anchors[0], anchors)
    picture = detector.prepare(GOLDEN["rgb"])[None]
    (found,) = detector.outputs(picture)
    theirs = caffe_outputs(state, picture, found.proposals)
    torch.testing.assert_close(found.features, theirs["features"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.logits, theirs["classes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.attributes, theirs["attributes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.objectness[0], theirs["objectness"].max(), rtol=0, atol=1e-4)
    (regions,) = detector.detect(picture, [(310, 203)])
    assert len(regions) == 36 and regions.attrs_id.max() < 400 and regions.objects_id.max() < 1600


@pytest.mark.parametrize("name", ["vg-r101-k36", "vg-r101-k10-100"])
def test_the_catalogues_caffe_checkpoints_are_read(tmp_path, name):
    path = tmp_path / "bua-caffe.pth"
    torch.save({"model": genome_state(converted=True)}, path)
    detector = load_detector(*entry_of(name, path))
    (regions,) = detector.detect(detector.prepare(GOLDEN["rgb"])[None], [(310, 203)])
    assert len(regions) in range(detector.selection.min_boxes, detector.selection.max_boxes + 1)


def test_the_recipe_has_the_defaults_of_a_caffe_checkpoint_unless_others_are_given(tmp_path):
    spec = saved(tmp_path, caffe_state())
    recipe = load_detector(spec).recipe
    assert recipe["caffe"] and recipe["pooling"] == "pool" and recipe["pixel_mean"] == list(CAFFE_MEAN)
    recipe = load_detector({**spec, "pooling": "align", "pixel_mean": (1.0, 2.0, 3.0)}).recipe
    assert (recipe["pooling"], recipe["pixel_mean"]) == ("align", [1.0, 2.0, 3.0])
    assert "caffe" not in load_detector(SPEC).recipe


def doubled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the renamed file of ../shared/cases has it: two equal channels, no box of the background."""
    return {n: torch.cat([v, v]) if "objectness_logits" in n else v for n, v in caffe_named(state).items()}


@pytest.mark.parametrize(
    ("state", "attributes"),
    [
        (caffe_state, 11),
        (lambda: doubled(original()), 11),
        (lambda: {f"module.{name}": value for name, value in caffe_state().items()}, 11),
        (lambda: {n: v for n, v in caffe_state().items() if not re.search("cls_embed|attr_linear", n)}, 0),
        (lambda: {name: value.numpy() for name, value in caffe_state().items()}, 11),
    ],
    ids=["whole", "renamed alone", "of several GPUs", "without attributes", "arrays"],
)
def test_caffe_checkpoints_give_36_regions(tmp_path, state, attributes):
    detector = load_detector(saved(tmp_path, state()))
    (regions,) = detector.detect(detector.prepare(GOLDEN["rgb"])[None], [(310, 203)])
    assert len(regions) == 36 and np.isfinite(regions.features).all()
    assert detector.network.num_classes == 20 and detector.network.num_attributes == attributes
    assert (regions.attrs_id is None) == (attributes == 0) and regions.objects_id.max() < 20
    assert regions.attrs_id is None or regions.attrs_id.max() < attributes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"backbone.stem.norm.weight": torch.ones(3)}, "normalises first.*R152.*import bua-npz"),
        (
            lambda s: s | {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(12, 4)},
            "15 anchors a place are scored, and .* give 12",
        ),
        (lambda s: {n: v for n, v in s.items() if "cls_score.bias" not in n}, r"no parameter 'cls_score\.bias'"),
        (lambda s: {n: v for n, v in s.items() if "bbox_pred" not in n}, r"no parameter 'bbox_pred\.weight'"),
        (lambda s: s | {"roi_heads.box_predictor.bbox_pred.weight": torch.ones(7, 256)}, "bbox_pred"),
        (lambda s: s | {"roi_heads.box_predictor.cls_score.weight": torch.tensor(1.0)}, "parameters fit together"),
        (lambda s: s | {"roi_heads.box_predictor.bbox_pred.bias": torch.tensor(1.0)}, "parameters fit together"),
    ],
    ids=["R152", "anchors", "no background", "no boxes", "shape", "a number", "a number of a box"],
)
def test_caffe_checkpoints_of_another_network_are_an_error_of_one_line(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        load_detector(saved(tmp_path, change(caffe_state())))


# -- maskrcnn-benchmark's checkpoints, as VinVL's detector is one ------------------------------------------------------

VINVL = DATA / "vinvl" / "tiny.pth"
VINVL_SPEC = {
    "name": "rcnn",
    "weights": str(VINVL),
    "sha256": sha256(VINVL),
    "shortest": 180,
    "longest": 300,
    "stride_in_1x1": False,
    "proposals_before": 600,
    "proposals_after": 60,
}


def test_vinvls_detector_gives_what_its_own_project_gives():
    """tests/data/vinvl/tiny.npz is what scene_graph_benchmark's AttrRCNN gave, without regressing boxes."""
    theirs = dict(np.load(VINVL.with_suffix(".npz")))
    detector = load_detector(VINVL_SPEC, {"rule": "bottom_up", "min_boxes": 10, "max_boxes": 100})
    assert detector.recipe["maskrcnn_benchmark"] and detector.recipe["pooling"] == "unaligned"
    picture = detector.prepare(theirs["rgb"])[None]
    (found,) = detector.outputs(picture)
    order = torch.cdist(torch.tensor(theirs["proposals"]), found.proposals, p=torch.inf).argmin(1)
    assert sorted(order.tolist()) == list(range(60))
    for name, ours in (("proposals", found.proposals), ("features", found.features)):
        np.testing.assert_allclose(ours[order].numpy(), theirs[name], rtol=1e-4, atol=1e-3, err_msg=name)
    logits = found.logits.roll(1, 1)  # background first
    np.testing.assert_allclose(logits[order].numpy(), theirs["logits"], rtol=1e-4, atol=1e-3)
    (regions,) = detector.detect(picture, [(240, 180)])
    match = torch.cdist(torch.tensor(theirs["kept_boxes"]), torch.tensor(regions.boxes), p=torch.inf).min(1)
    assert len(regions) == len(theirs["kept_boxes"]) and match.values.max() < 1e-3
    rows = match.indices.numpy()
    assert sorted(rows) == list(range(len(regions)))
    np.testing.assert_array_equal(regions.objects_id[rows] + 1, theirs["kept_labels"])
    np.testing.assert_allclose(regions.objects_conf[rows], theirs["kept_scores"], atol=1e-4)
    np.testing.assert_allclose(regions.features[rows].astype(float), theirs["kept_features"], rtol=2e-3, atol=2e-2)
    attributes = theirs["kept_attributes"][:, 1:]
    np.testing.assert_array_equal(regions.attrs_id[rows], attributes.argmax(1))
    np.testing.assert_allclose(regions.attrs_conf[rows], attributes.max(1), atol=1e-4)


@pytest.mark.parametrize(
    ("size", "seen"),
    [((640, 480), (800, 600)), ((333, 500), (600, 900)), ((500, 100), (1000, 200)), ((7, 700), (10, 1000))],
)
def test_vinvls_pictures_are_resized_as_its_project_does(size, seen):
    detector = load_detector({**VINVL_SPEC, "shortest": 600, "longest": 1000})
    assert detector.network_size(*size) == seen


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("module.rpn.head.conv.weight"), "no parameter 'rpn.conv.weight'"),
        (lambda s: s.pop("module.backbone.body.layer2.1.conv2.weight"), r"layer2\.1\.conv2\.weight"),
        (
            lambda s: s["module.attribute.feature_extractor.head.layer4.0.bn1.bias"].add_(1),
            "the attribute head has layers of its own, .*layer4.0.bn1.bias among them",
        ),
        (lambda s: s.update({"module.roi_heads.mask.predictor.weight": torch.ones(1)}), "no rule knows.*mask"),
    ],
    ids=["head", "block", "attribute head", "another head"],
)
def test_vinvls_checkpoints_of_another_network_are_refused(tmp_path, change, words):
    state = {name: value.clone() for name, value in torch.load(VINVL, weights_only=True)["model"].items()}
    change(state)
    spec = saved(tmp_path, state)
    with pytest.raises(InputError, match=words):
        load_detector(VINVL_SPEC | {key: spec[key] for key in ("weights", "sha256")})


def test_another_hash_and_an_unknown_key_are_refused():
    with pytest.raises(InputError, match="sha256"):
        load_detector({**SPEC, "sha256": "0" * 64})
    with pytest.raises(InputError, match="shortst"):
        load_detector({**SPEC, "shortst": 600})


HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None


@pytest.mark.skipif(HAS_DETECTRON2, reason="detectron2 is installed")
def test_detectron2_that_is_not_installed_is_named():
    spec = {"name": "detectron2", "weights": SPEC["weights"], "sha256": SPEC["sha256"], "config": "config.yaml"}
    with pytest.raises(InputError, match="detectron2 isn't installed"):
        load_detector(spec)


def test_weights_are_fetched_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(DATA)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/detectron2_tiny.pth"
    try:
        with pytest.raises(InputError, match="sha256"):
            load_detector({**SPEC, "weights": address, "sha256": "0" * 64})
        assert not list((tmp_path / "cache").rglob("*.pth"))
        for _ in range(2):
            load_detector({**SPEC, "weights": address})
        assert len(asked) == 2
        with pytest.raises(InputError, match="can't be fetched"):
            load_detector({**SPEC, "weights": address.replace("tiny", "none"), "sha256": "1" * 64})
    finally:
        server.shutdown()


def test_names_are_a_line_each_whatever_else_python_takes_for_a_line_end(tmp_path, outputs):
    count = outputs.logits.shape[1] - 1
    file = tmp_path / "names.txt"
    file.write_bytes("".join(f"a\u2028{number}\r\n" for number in range(count)).encode())
    names = load_detector({**SPEC, "object_names": str(file)}, DETECTIONS).object_names
    assert names == tuple(f"a\u2028{number}" for number in range(count))
    file.write_bytes(b"\xff" * count)
    with pytest.raises(InputError, match="not UTF-8"):
        load_detector({**SPEC, "object_names": str(file)}, DETECTIONS)
    with pytest.raises(InputError, match="nowhere.txt: the file can't be read"):
        load_detector({**SPEC, "object_names": str(tmp_path / "nowhere.txt")}, DETECTIONS)


def test_keys_at_their_defaults_are_in_no_recipe():
    """So that no result of an older project is made anew; another value of one is another recipe."""
    recipe = load_detector(SPEC).recipe
    later = {
        "pooler_resolution": 14,
        "anchor_offset": 0.5,
        "proposals_min_size": 4.0,
        "box_weights": (5.0, 5.0, 2.0, 2.0),
        "network": "caffe",
    }
    assert not recipe.keys() & later.keys()
    for key, value in later.items():
        changed = load_detector({**SPEC, key: value}).recipe
        assert changed[key] == (list(value) if key == "box_weights" else value), key
