"""Against the real detectron2: its own inference, this project's detector on its modules, and `rcnn` without it."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from extract.cards import card
from extract.check import compare, verify
from extract.settings import RegionSettings
from extract.stages import tokens
from extract.stores.regions import Regions
from extract.text.settings import TokenSettings
from extract.vision.catalogue import CATALOGUE, require_readable
from extract.vision.detectors.rcnn import RCNNSettings
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from tests.extract.real_detectron2 import detectron2
from tests.extract.region_files import scene_files, write_pictures
from tests.extract.test_torchvision_detectors import random_state, spec_of
from tests.train.runs import train_run
from train.settings import RunSettings

DETECTIONS = {"rule": "detections", "score_threshold": 0.05}
BOTTOM_UP = {"rule": "bottom_up", "min_boxes": 10, "max_boxes": 40}
RULES = pytest.mark.parametrize("selection", [DETECTIONS, BOTTOM_UP], ids=["detections", "bottom_up"])
SIZES = ((60, 90), (20, 160), (160, 24), (101, 101))  # (height, width)
SMALL = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.ROI_HEADS.NUM_CLASSES": 12,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 400,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 160,
}
PYRAMID = {"MODEL.FPN.OUT_CHANNELS": 32, "MODEL.ROI_BOX_HEAD.FC_DIM": 64}
VIEW = {"shortest": 96, "longest": 160, "proposals_before": 400, "proposals_after": 60}
C4, FPN = (f"COCO-Detection/faster_rcnn_{name}_3x.yaml" for name in ("R_50_C4", "R_50_FPN"))
NETWORKS = {  # a config of the zoo, the changes to it, and `rcnn`'s settings for them
    "R50-C4": (C4, {}, {}),
    "X152-like C4": (
        C4,
        {
            "MODEL.RESNETS.DEPTH": 101,
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "MODEL.RESNETS.NUM_GROUPS": 4,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        },
        {"stride_in_1x1": False, "pooler_resolution": 7, "sampling_ratio": 2},
    ),
    "other keys": (
        C4,
        {
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [4.0, 4.0, 2.0, 2.0],
            "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 6,
            "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[16.0, 48.0]],
            "MODEL.RPN.NMS_THRESH": 0.6,
            "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
            "INPUT.FORMAT": "RGB",
        },
        {
            "pooling": "unaligned",
            "box_weights": [4.0, 4.0, 2.0, 2.0],
            "proposals_min_size": 6.0,
            "anchor_offset": 0.5,
            "anchor_sizes": [16.0, 48.0],
            "proposals_nms": 0.6,
            "pixel_std": [57.375, 57.12, 58.395],
            "pixel_order": "RGB",
        },
    ),
    "R50-FPN": (FPN, PYRAMID, {}),
}


@pytest.fixture(scope="module", autouse=True)
def real() -> Iterator[None]:
    with detectron2():
        yield


def config_of(name: str, options: dict[str, Any], small: bool = True) -> Any:
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    config = get_cfg()
    config.merge_from_file(model_zoo.get_config_file(name))
    config.merge_from_list([part for pair in ((SMALL if small else {}) | options).items() for part in pair])
    config.MODEL.DEVICE = "cpu"
    return config


def network(config: Any) -> torch.nn.Module:
    """A random network whose scores are spread, so that thresholds and NMS have something to decide."""
    from detectron2.modeling import build_model

    torch.manual_seed(3)
    model = build_model(config).eval()
    for name, value in model.state_dict().items():
        if name.endswith("norm.running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("norm.running_mean", "norm.bias")):
            value.normal_(std=0.1)
        elif name.endswith("conv3.norm.weight"):
            value.fill_(0.1)
        elif name.endswith(("objectness_logits.weight", "cls_score.weight")):
            value.normal_(std=0.5)
        elif name.endswith(("anchor_deltas.weight", "bbox_pred.weight")):
            value.normal_(std=0.05)
    return model


class Case:
    """A random network of detectron2, its weights in a file, and pictures."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any], keys: dict[str, Any]):
        self.config = config_of(name, options)
        self.model = network(self.config)
        weights = folder / "weights.pth"
        torch.save({"model": self.model.state_dict()}, weights)
        own = {"weights": str(weights), "sha256": sha256(weights)}
        self.spec = {"name": "detectron2", **own, "config": name, "options": SMALL | options}
        self.rcnn = {"name": "rcnn", **own, **VIEW, **keys}
        rng = np.random.default_rng(0)
        self.pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]

    def inferred(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        """What detectron2's own predictor finds: the picture resized, the network run, boxes brought back."""
        from detectron2.data.transforms import ResizeShortestEdge

        sizes = self.config.INPUT
        picture = rgb[:, :, ::-1] if sizes.FORMAT == "BGR" else rgb
        change = ResizeShortestEdge([sizes.MIN_SIZE_TEST] * 2, sizes.MAX_SIZE_TEST).get_transform(picture)
        x = torch.as_tensor(change.apply_image(picture).astype("float32").transpose(2, 0, 1).copy())
        with torch.inference_mode():
            (found,) = self.model([{"image": x, "height": rgb.shape[0], "width": rgb.shape[1]}])
        found = found["instances"]
        return {
            "boxes": found.pred_boxes.tensor.numpy(),
            "objects_id": found.pred_classes.numpy(),
            "objects_conf": found.scores.numpy(),
        }


def regions(detector: Any, rgb: np.ndarray) -> Regions:
    (found,) = detector.detect(detector.prepare(rgb)[None], [(rgb.shape[1], rgb.shape[0])])
    return found


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), *NETWORKS[request.param])


def test_detections_are_those_of_detectron2s_own_inference(case: Case) -> None:
    detector, total = load_detector(case.spec, DETECTIONS), 0
    for rgb in case.pictures:
        ours, theirs = regions(detector, rgb), case.inferred(rgb)
        total += len(ours)
        for field, value in theirs.items():
            np.testing.assert_array_equal(getattr(ours, field), value, err_msg=field)
    assert total > 20


@RULES
def test_rcnn_gives_the_same_bits_without_detectron2(case: Case, selection: dict[str, Any]) -> None:
    theirs, ours = (load_detector(spec, selection) for spec in (case.spec, case.rcnn))
    assert ours.dim == theirs.dim
    for rgb in case.pictures:
        a, b = regions(ours, rgb), regions(theirs, rgb)
        assert len(a) == len(b) > 0
        for field in ("boxes", "objects_id", "objects_conf", "features"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("plain"), C4, {}, {})


def test_a_config_of_bases_is_the_one_that_it_comes_to(plain: Case, tmp_path: Path) -> None:
    """By its name in the zoo or by a path with `_BASE_`, with options or without: one recipe, which weighs it all."""
    nested: dict[str, Any] = {}
    for key, value in SMALL.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    from detectron2 import model_zoo

    base, leaf = tmp_path / "base.yaml", tmp_path / "leaf.yaml"
    base.write_text(yaml.safe_dump({"_BASE_": model_zoo.get_config_file(C4), **nested}))
    leaf.write_text("_BASE_: base.yaml\nMODEL: {ROI_HEADS: {NUM_CLASSES: 12}}\n")
    named = load_detector(plain.spec, DETECTIONS).recipe
    assert load_detector(plain.spec | {"config": str(leaf), "options": {}}, DETECTIONS).recipe == named
    pairs = [part for pair in SMALL.items() for part in pair]
    assert load_detector(plain.spec | {"options": pairs}, DETECTIONS).recipe == named
    base.write_text(base.read_text().replace("160", "161"))
    changed = load_detector(plain.spec | {"config": str(leaf), "options": {}}, DETECTIONS)
    assert changed.recipe["config"] != named["config"] and changed.network_size(1000, 100)[0] == 161
    unresized = load_detector(plain.spec | {"options": SMALL | {"INPUT.MIN_SIZE_TEST": 0}}, DETECTIONS)
    assert unresized.network_size(33, 44) == (33, 44)


def test_names_are_the_data_sets_only_where_there_are_as_many(plain: Case, tmp_path: Path) -> None:
    from detectron2.data import MetadataCatalog

    assert load_detector(plain.spec, DETECTIONS).object_names is None  # 12 classes, and COCO's config
    names = tuple(f"thing {number}" for number in range(12))
    MetadataCatalog.get("dozen").thing_classes = list(names)
    options = SMALL | {"DATASETS.TEST": ["dozen"]}
    assert load_detector(plain.spec | {"options": options}, DETECTIONS).object_names == names
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names[::-1]))
    spec = plain.spec | {"options": options, "object_names": str(file)}
    assert load_detector(spec, DETECTIONS).object_names == names[::-1]
    file.write_text("one\ntwo")
    with pytest.raises(InputError, match="2 names for 12 ids"):
        load_detector(spec, DETECTIONS)


def test_a_pickle_of_arrays_is_read(plain: Case, tmp_path: Path) -> None:
    """As detectron2's zoo has its files, with the anchors of older versions."""
    state = {name: value.numpy() for name, value in plain.model.state_dict().items()}
    state["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((15, 4), np.float32)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
    spec = plain.spec | {"weights": str(path), "sha256": sha256(path)}
    a, b = (regions(load_detector(own, DETECTIONS), plain.pictures[0]) for own in (spec, plain.spec))
    np.testing.assert_array_equal(a.features, b.features)


CODE = "MODEL: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [ran]]\n"


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (
            None,
            {"MODEL.ROI_HEADS.NUM_CLASES": 3, "INPUT.MIN_SIZE_TEST": "large"},
            "MIN_SIZE_TEST: 'large'.*NUM_CLASES: 3",
        ),
        (None, {"MODEL.WEIGHTS": "other.pth"}, "MODEL.WEIGHTS is said by"),
        (None, {"MODEL.ROI_HEADS.NUM_CLASSES": 7}, r"don't fit.*cls_score\.weight is \(13, 256\), not \(8, 256\)"),
        (None, {"MODEL.RESNETS.DEPTH": 51}, "builds no network of it"),
        (None, {"MODEL.RESNETS.DEPTH": 101}, r"don't fit.*res4\.22\.conv3\.weight is missing"),
        (
            None,
            {"TEST.AUG.ENABLED": True, "INPUT.FORMAT": "L"},
            "FORMAT is 'L', not 'BGR' or 'RGB'; TEST.AUG.ENABLED is",
        ),
        (None, {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"}, "'CascadeROIHeads', not 'Res5ROIHeads' or"),
        ("COCO-Detection/faster_rcnn_R_50_C5_3x.yaml", {}, "neither a file nor a name"),
        ("there.py", {}, "runs code"),
        (CODE, {}, "a tag that runs code"),
        ("MODEL: {MASK: true}\n", {}, "can't read it.*MASK"),
        ("MODEL: [\n", {}, "can't read it"),
        ("just text\n", {}, "can't read it"),
        ("_BASE_: nowhere.yaml\n", {}, "can't read it.*nowhere"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_a_wrong_config_is_an_error_of_one_line(
    plain: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str | None,
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if config and config.endswith("\n"):
        Path("own.yaml").write_text(config)
        config = "own.yaml"
    spec = plain.spec | {"config": config or plain.spec["config"], "options": SMALL | options}
    with pytest.raises(InputError, match=words) as error:
        load_detector(spec, DETECTIONS)
    assert "\n" not in str(error.value) and not Path("ran").exists()


GENOME = {  # configs/d2 of bottom-up-attention.pytorch, on the zoo's base of C4
    "MODEL.ROI_HEADS.NUM_CLASSES": 1600,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
}
X152 = {
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.RESNETS.DEPTH": 152,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
}
ENTRIES = {
    "coco-r50-c4": (C4, {}),
    "coco-r50-fpn": (FPN, PYRAMID),
    "coco-r101-fpn": ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", PYRAMID),
    "coco-x101-fpn": (
        "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
        PYRAMID | {"MODEL.RESNETS.NUM_GROUPS": 4, "MODEL.RESNETS.WIDTH_PER_GROUP": 2},
    ),
    "vg-d2-r50": (C4, GENOME),
    "vg-d2-r101": (C4, GENOME | {"MODEL.RESNETS.DEPTH": 101}),
    "vg-d2-x152": (C4, GENOME | X152),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_the_catalogue_says_what_its_config_does(name: str, tmp_path: Path) -> None:
    """A narrow network by the config that the entry is from: its file is read, and gives detectron2's own regions."""
    entry, (config, options) = CATALOGUE[name], ENTRIES[name]
    whole = config_of(config, options, small=False)
    asked = {
        "shortest": whole.INPUT.MIN_SIZE_TEST,
        "longest": whole.INPUT.MAX_SIZE_TEST,
        "proposals_before": whole.MODEL.RPN.PRE_NMS_TOPK_TEST,
        "proposals_after": whole.MODEL.RPN.POST_NMS_TOPK_TEST,
    }
    settings = RCNNSettings(**entry.detector, weights="", sha256="0" * 64)
    assert settings.model_dump(include=asked.keys()) == asked
    options = SMALL | options | {key: value for key, value in SMALL.items() if not key.startswith("MODEL.R")}
    options |= {"MODEL.ROI_HEADS.NUM_CLASSES": entry.classes}
    state = {key: value.numpy() for key, value in network(config_of(config, options)).state_dict().items()}
    plain, file = tmp_path / "plain.pkl", tmp_path / "model_final.pkl"
    plain.write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
    if entry.attributes:
        head, rng = "roi_heads.attribute_predictor.", np.random.default_rng(0)
        shapes = {"obj_embed.weight": (1601, 32), "fc.0.weight": (16, 256 + 32), "fc.0.bias": (16,)}
        shapes |= {"attr_score.weight": (400, 16), "attr_score.bias": (400,)}
        state |= {head + key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    file.write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
    require_readable(entry, file, sha256(file))
    spec = {"name": "detectron2", "config": config, "options": options, "weights": str(plain), "sha256": sha256(plain)}
    theirs = load_detector(spec, BOTTOM_UP)
    ours = load_detector({**entry.detector, "weights": str(file), "sha256": sha256(file), **VIEW}, BOTTOM_UP)
    rgb = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    a, b = regions(ours, rgb), regions(theirs, rgb)
    for field in ("boxes", "objects_id", "objects_conf", "features"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@pytest.mark.slow
def test_stores_of_the_three_detectors_are_checked_compared_described_and_trained_on(
    plain: Case, tmp_path: Path
) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    specs = {
        "detectron2": plain.spec,
        "rcnn": plain.rcnn,
        "torchvision": spec_of(tmp_path, name, random_state(name), proposals_score=0.0),
    }
    pictures = write_pictures(tmp_path / "pictures", scene_files(24))
    rows = [
        CaptionedImage(path.stem, path.name, sha256(path), None, None, "val" if place % 3 else "train", ("A ring.",))
        for place, path in enumerate(sorted(pictures.images.iterdir()))
    ]
    write_manifest(pictures.manifest, rows)
    tokens.run(
        manifest=pictures.manifest,
        settings=TokenSettings(language="blank_en", min_count=1),
        out=tmp_path / "tokens",
    )
    for detector, spec in specs.items():
        settings = RegionSettings(detector=spec, selection={**BOTTOM_UP, "max_boxes": 10})
        pictures.extract(settings, out=tmp_path / detector)
        train = tmp_path / detector / "train"
        assert verify.run(store=train, manifest=pictures.manifest).findings == []
        assert detector in card.run(train).text
        stores = {"manifest": pictures.manifest, "regions": tmp_path / detector, "tokens": tmp_path / "tokens"}
        base = {"name": "vse_infinity", "dim": 8}
        text, losses = {"reads": "tokens", "word_dim": 8}, {"triplet": {"all_negatives_epochs": 1}}
        run = RunSettings(dataset="small", epochs=1, batch_size=8, base=base, text=text, losses=losses)
        (row,) = train_run(stores, run, tmp_path / f"run-{detector}")
        assert np.isfinite(list(row.values())).all()
    store = {detector: tmp_path / detector / "train" for detector in specs}
    tolerances = compare.Tolerances()
    assert compare.run(a=store["rcnn"], b=store["detectron2"], tolerances=tolerances).verdict == "identical"
    assert compare.run(a=store["rcnn"], b=store["torchvision"], tolerances=tolerances).verdict == "different"
