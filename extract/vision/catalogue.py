"""The catalogue of detectors: the addresses of their weights, published sums, and the settings to run them with.

The conventions are read off each project's own configs, which `source` names. Nothing of it was fetched where this was
written, for want of a network. Each reader is tested on a small checkpoint made with the names and shapes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.errors import InputError

_ZOO = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection"
_TORCHVISION = "https://download.pytorch.org/models"
_BUA = "https://awma1-my.sharepoint.com/:u:/g/personal/yuz_l0_tn"
_GENOME = "https://raw.githubusercontent.com/airsplay/py-bottom-up-attention/master/demo/data/genome/1600-400-20"
_GENOME_NAMES = {"object_names": f"{_GENOME}/objects_vocab.txt", "attribute_names": f"{_GENOME}/attributes_vocab.txt"}
COCO = "coco"  # in the place of an address: the names of COCO's 80 classes, which torchvision has
_FIXED_36 = {"rule": "bottom_up", "min_boxes": 36, "max_boxes": 36}
_FROM_10_TO_100 = {"rule": "bottom_up", "min_boxes": 10, "max_boxes": 100}
_GENOME_ANCHORS = [64.0, 128.0, 256.0, 512.0]  # 4, 8, 16 and 32 strides; those in the file win


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A detector of the catalogue.

    Attributes
    ----------
    what : a line on it. source : the origin of its conventions.
    address : of its weights. megabytes : of that file, if its project gives them.
    published : an algorithm and the start of the file's sum, as its name has it; None if none is published.
    licence : of the weights, as far as their project states one.
    classes, attributes : the numbers of them. dim : numbers of a feature.
    detector : its keys in params.yaml, but for the weights.
    names : the addresses of its lists of names, by the keys of `detector` that they are for; or `COCO`.
    seconds : of one CPU core for a picture of 640 x 480; None where nobody measured it.
    """

    what: str
    source: str
    address: str
    licence: str
    classes: int
    dim: int
    detector: Mapping[str, Any]
    seconds: float | None
    megabytes: int | None = None
    published: tuple[str, str] | None = None
    attributes: int = 0
    selection: Mapping[str, Any] = field(default_factory=lambda: _FIXED_36)
    names: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def _zoo(what: str, config: str, file: str, **own: Any) -> Entry:
    keys = {"name": "rcnn", "shortest": 800, "longest": 1333, "proposals_after": 1000} | own.pop("keys", {})
    return Entry(
        what=what,
        source=f"detectron2's COCO-Detection/{config}.yaml",
        address=f"{_ZOO}/{config}/{file}",
        published=("md5", file.removesuffix(".pkl").rpartition("_")[2]),
        licence="CC BY-SA 3.0 (detectron2's model zoo)",
        classes=80,
        names={"object_names": COCO},
        detector=keys,
        **own,
    )


def _torchvision(what: str, model: str, file: str, **own: Any) -> Entry:
    return Entry(
        what=what,
        source="torchvision's own model",
        address=f"{_TORCHVISION}/{file}",
        published=("sha256", file.removesuffix(".pth").rpartition("-")[2]),
        licence="BSD-3-Clause (torchvision), trained on COCO",
        classes=90,
        dim=1024,
        detector={"name": "torchvision", "model": model, **own.pop("keys", {})},
        **own,
    )


def _bottom_up(what: str, config: str, file: str, keys: Mapping[str, Any], **own: Any) -> Entry:
    return Entry(
        what=what,
        source=f"bottom-up-attention.pytorch's configs/{config}.yaml",
        address=f"{_BUA}/{file}?download=1",
        licence="Apache-2.0 (bottom-up-attention.pytorch), trained on Visual Genome",
        classes=1600,
        attributes=400,
        dim=2048,
        names=_GENOME_NAMES,
        detector={"name": "rcnn", **keys},
        **own,
    )


_D2 = {"sampling_ratio": 2, "proposals_after": 1000}
_FPN = {"proposals_before": 1000}
CATALOGUE = {
    "vg-hub": Entry(
        what="R101-C4, 1,600 objects and 400 attributes of Visual Genome: the field's features, as LXMERT has them",
        source="LXMERT's modeling_frcnn.py in transformers, py-bottom-up-attention",
        address="https://huggingface.co/unc-nlp/frcnn-vg-finetuned/resolve/main/pytorch_model.bin",
        megabytes=262,
        licence="not stated; its code is Apache-2.0 (transformers)",
        classes=1600,
        attributes=400,
        dim=2048,
        names=_GENOME_NAMES,
        detector={
            "name": "rcnn",
            "network": "caffe",
            "shortest": 800,
            "longest": 1333,
            "anchor_sizes": _GENOME_ANCHORS,
        },
        seconds=48,
        note="compare its config.yaml: sizes and box weights there are not known here. LXMERT's own choice of boxes is "
        "another: NMS of each box's best class, boxes regressed",
    ),
    "vg-r101-k36": _bottom_up(
        "R101-C4 of the Caffe original, for 36 regions",
        "caffe/test-caffe-r101-fix36",
        "EUKhQ3hSRv9JrrW64qpNLSIBGoOjEGCkF8zvgBP9gKax-w",
        {"anchor_sizes": _GENOME_ANCHORS},
        seconds=48,
    ),
    "vg-r101-k10-100": _bottom_up(
        "R101-C4 of the Caffe original, for 10 to 100 regions",
        "caffe/test-caffe-r101",
        "EaXvCC3WjtlLvvEfLr3oa8UBLA21tcLh4L8YLbYXl6jgjg",
        {"anchor_sizes": _GENOME_ANCHORS},
        selection=_FROM_10_TO_100,
        seconds=48,
    ),
    "vg-d2-r50": _bottom_up(
        "R50-C4 trained with detectron2",
        "d2/d2-r50",
        "EfYoinBHrFlKmKonocse8yEBXN-hyCHNygYqjxGpIBsPvQ",
        _D2,
        seconds=39,
    ),
    "vg-d2-r101": _bottom_up(
        "R101-C4 trained with detectron2",
        "d2/d2-r101",
        "EXXItFlOpHlNq81O1H_cPyoBXUPyXoHmIwPEudnTWKX4rQ",
        _D2,
        seconds=43,
    ),
    "vg-d2-x152": _bottom_up(
        "X152-C4 trained with detectron2, the strongest of them",
        "d2/d2-X-152-c4",
        "EdLhYc39P8tBkEDVCDOrNV4BgPhz9M4iBq8oPw1iyVSlmg",
        _D2 | {"stride_in_1x1": False, "pooler_resolution": 7},
        seconds=38,
    ),
    "vinvl-x152": Entry(
        what="VinVL's X152-C4, 1,594 objects and 524 attributes of four data sets",
        source="scene_graph_benchmark's sgg_configs/vgattr/vinvl_x152c4.yaml",
        address="https://penzhanwu2.blob.core.windows.net/sgg/sgg_benchmark/vinvl_model_zoo/vinvl_vg_x152c4.pth",
        licence="MIT (scene_graph_benchmark)",
        classes=1594,
        attributes=524,
        dim=2048,
        detector={"name": "rcnn", "stride_in_1x1": False},
        selection=_FROM_10_TO_100,
        seconds=None,
        note="its names of classes are in VG-SGG-dicts-vgoi6-clipped.json beside it: write them a line each, without "
        "the background",
    ),
    "coco-r50-c4": _zoo("R50-C4", "faster_rcnn_R_50_C4_3x", "137849393/model_final_f97cb7.pkl", dim=2048, seconds=35),
    "coco-r50-fpn": _zoo(
        "R50-FPN", "faster_rcnn_R_50_FPN_3x", "137849458/model_final_280758.pkl", dim=1024, keys=_FPN, seconds=7.4
    ),
    "coco-r101-fpn": _zoo(
        "R101-FPN", "faster_rcnn_R_101_FPN_3x", "137851257/model_final_f6e8b1.pkl", dim=1024, keys=_FPN, seconds=9.5
    ),
    "coco-x101-fpn": _zoo(
        "X101-FPN",
        "faster_rcnn_X_101_32x8d_FPN_3x",
        "139173657/model_final_68b088.pkl",
        dim=1024,
        keys=_FPN | {"stride_in_1x1": False, "pixel_std": [57.375, 57.12, 58.395]},
        seconds=18,
    ),
    "torchvision-r50-fpn": _torchvision(
        "R50-FPN", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", megabytes=160, seconds=3.7
    ),
    "torchvision-r50-fpn-v2": _torchvision(
        "R50-FPN, trained longer and better",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        megabytes=167,
        seconds=6.0,
    ),
    "torchvision-mobilenet": _torchvision(
        "MobileNetV3-Large-FPN: the one for a CPU",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
        megabytes=74,
        keys={"proposals_score": 0.0},
        seconds=0.8,
    ),
}


def require_published(entry: Entry | None, file: Path, address: str, claimed: str | None, digest: str) -> str | None:
    """Check a fetched file against the sum in its name, or in the server's answer (`claimed`, a sha256).

    Gives a text on the sum, or None where none is published. Raises `InputError` where it differs.
    """
    if claimed is not None:
        if claimed != digest:
            fix = "fetch it again; if it stays so, the server's sum is of another file"
            raise InputError(f"its sha256 is {digest}, its server says {claimed}", where=address, fix=fix)
        return "the sha256 that its server says"
    if entry is None or entry.published is None:
        return None
    algorithm, start = entry.published
    with open(file, "rb") as content:
        found = digest if algorithm == "sha256" else hashlib.file_digest(content, algorithm).hexdigest()
    if not found.startswith(start):
        message = f"its {algorithm} is {found}, and its name says that it begins with {start}"
        raise InputError(message, where=address, fix="fetch it again; if it stays so, the file there is another one")
    return f"the start of its {algorithm} ({start}), which its name has"


def require_readable(entry: Entry, weights: Path, digest: str) -> None:
    """Build an entry's network of its weights. Raises `InputError` that lists the parameters that don't fit."""
    from extract.vision.loading import load_detector  # torch, which a list of the catalogue doesn't need

    spec = {**entry.detector, "weights": str(weights), "sha256": digest}
    detector = load_detector(spec, entry.selection)
    wrong = [
        f"{found:,} {what}, not {asked:,}"
        for what, found, asked in (
            ("classes", detector.num_classes, entry.classes),
            ("attributes", detector.num_attributes, entry.attributes),
        )
        if found != asked
    ]
    if wrong:
        message = f"the weights have {' and '.join(wrong)}"
        raise InputError(message, where=weights, fix="use them under a name of their own: they are another detector's")
