"""Reads detectron2's and bottom-up attention's checkpoints and brings their names to those of `rcnn.py`.

Files are ``{"model": state}`` or a bare state, of tensors (``.pth``, ``.safetensors``) or of NumPy arrays (``.pth``,
detectron2's ``.pkl``), read without unpickling anything else (`manifests.unpickle`).

`from_caffe` brings bottom-up-attention.pytorch's converted Caffe checkpoints to detectron2's order. They have other
names in the head, the background first, and two objectness channels an anchor. `from_benchmark` does so with
maskrcnn-benchmark's, VinVL's among them, which have the background first too.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from extract.stores.torch_files import read_stream, read_zip
from manifests.errors import InputError
from manifests.opening import open_file

# Each pattern is applied in turn to the whole name.
_NAMES = (
    (r"^module\.", ""),
    (r"^backbone\.body\.", ""),
    (r"^roi_heads\.box\.feature_extractor\.head\.layer4\.", "layer4."),
    (r"^roi_heads\.box\.predictor\.(cls_score|bbox_pred)\.", r"\1."),
    (r"^rpn\.head\.cls_logits\.", "rpn.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.anchor_deltas."),
    (r"^rpn\.(head|anchor_generator)\.", "rpn."),
    (r"^attribute\.predictor\.cls_embedding\.", "attributes.embedding."),
    (r"^attribute\.predictor\.fc_attr\.", "attributes.hidden."),
    (r"^attribute\.predictor\.attr_score\.", "attributes.score."),
    (r"^backbone\.(bottom_up\.)?stem\.", "stem."),
    (r"^backbone\.(bottom_up\.)?res([2-5])\.", lambda m: f"layer{int(m[2]) - 1}."),
    (r"^roi_heads\.res5\.", "layer4."),
    (r"\.conv([123])\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^backbone\.fpn_lateral([2-5])\.", lambda m: f"inner.{int(m[1]) - 2}."),
    (r"^backbone\.fpn_output([2-5])\.", lambda m: f"outer.{int(m[1]) - 2}."),
    (r"^proposal_generator\.rpn_head\.", "rpn."),
    (r"^proposal_generator\.anchor_generator\.cell_anchors\.", "rpn.cell_anchors."),
    (r"^roi_heads\.box_head\.fc([12])\.", r"fc\1."),
    (r"^roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", r"\1."),
    (
        r"^roi_heads\.(attribute_predictor|box_predictor)\.(obj_embed|cls_embedding|cls_embed)\.",
        "attributes.embedding.",
    ),
    (r"^roi_heads\.(attribute_predictor|box_predictor)\.(fc\.0|fc|fc_attr|attr_linear1)\.", "attributes.hidden."),
    (r"^roi_heads\.(attribute_predictor|box_predictor)\.(attr_score|attr_linear2)\.", "attributes.score."),
)
# Kept in checkpoints by training or by torch, of no use to a forward pass.
_IGNORED = re.compile(r"(num_batches_tracked|pixel_mean|pixel_std)$")
NORM_EPS = 1e-5
"""Of the networks' frozen norms."""
_OTHERS = (  # names that only another project's networks have, and a description of those
    (
        re.compile(r"^(backbone\.stem\.norm|roi_heads\.res5_bn)\."),
        "those of a network that normalises first, as bottom-up-attention.pytorch's R152 does",
        "extract with bottom-up-attention.pytorch and import its files (`selfalign import bua-npz`), or take its R101",
    ),
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The parameters of a checkpoint by the names of `rcnn.py`, as float32.

    Raises
    ------
    InputError : not a checkpoint, or parameters with names that no rule knows, listed.
    """
    state = _without_copies(read_state(Path(path)), path)
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        if _IGNORED.search(name):
            continue
        ours = name
        for pattern, replacement in _NAMES:
            ours = re.sub(pattern, replacement, ours)
        if ours.startswith(("backbone.", "roi_heads.", "proposal_generator.")):
            unknown.append(name)
        renamed[ours] = as_tensor(name, value, path).float()
    for pattern, problem, fix in _OTHERS:
        if any(map(pattern.match, state)):
            raise InputError(f"the parameters' names are {problem}", where=path, fix=fix)
    if unknown:
        raise InputError(
            f"{len(unknown)} parameters have names that no rule knows: {', '.join(sorted(unknown))}",
            where=path,
            fix="use a Faster R-CNN of type C4 or FPN in detectron2's format",
        )
    return renamed


def _without_copies(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Without maskrcnn-benchmark's second name of the box head's layers, which its attribute head shares."""
    mark, box = "attribute.feature_extractor.", "roi_heads.box.feature_extractor."
    copies = {name for name in state if name.removeprefix("module.").startswith(mark)}
    own = [name for name in sorted(copies) if not _equal(state[name], state.get(name.replace(mark, box)))]
    if own:
        message = f"the attribute head has layers of its own, {own[0]} among them"
        raise InputError(message, where=path, fix="use a network whose attribute head shares the box head's layers")
    return {name: value for name, value in state.items() if name not in copies}


def _equal(a: Any, b: Any) -> bool:
    try:
        return b is not None and torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    except (TypeError, ValueError, RuntimeError):  # arrays that torch has no numbers for
        return False


def is_benchmark(state: dict[str, Tensor]) -> bool:
    """Whether parameters are maskrcnn-benchmark's: boxes are regressed for the background too, which is the first."""
    classes, deltas = (state.get(f"{name}.bias") for name in ("cls_score", "bbox_pred"))
    sound = classes is not None and deltas is not None
    return sound and deltas.numel() == 4 * classes.numel() and not is_caffe(state)


def from_benchmark(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of maskrcnn-benchmark's network in detectron2's order: background (and no attribute) last.

    Its frozen norms have no eps, and its attributes are those of the best class, never of the background.
    """
    found = {name: value - NORM_EPS if name.endswith("running_var") else value for name, value in state.items()}
    for name in ("cls_score.weight", "cls_score.bias", "attributes.score.weight", "attributes.score.bias"):
        if name in state:
            found[name] = state[name].roll(-1, 0)
    for name in ("weight", "bias"):
        found[f"bbox_pred.{name}"] = state[f"bbox_pred.{name}"][4:]
    if "attributes.embedding.weight" in state:
        found["attributes.embedding.weight"] = state["attributes.embedding.weight"][1:]
    return found


def is_caffe(state: dict[str, Tensor]) -> bool:
    """Whether parameters are those of a converted Caffe checkpoint: two objectness channels an anchor, not one."""
    objectness, deltas = (state.get(f"rpn.{name}.bias") for name in ("objectness_logits", "anchor_deltas"))
    return objectness is not None and deltas is not None and 2 * objectness.numel() == deltas.numel()


def from_caffe(state: dict[str, Tensor], box_weights: Sequence[float]) -> dict[str, Tensor]:
    """The parameters of a converted Caffe checkpoint in detectron2's order: background (and no attribute) last.

    Of each anchor's two channels the difference is kept: its sigmoid is the softmax's second number.

    box_weights : the divisors of the box head's deltas; Caffe's aren't divided.
    """
    found = dict(state)
    for name in ("rpn.objectness_logits.weight", "rpn.objectness_logits.bias"):
        background, objects = state[name].chunk(2)
        found[name] = objects - background
    classes = len(state["cls_score.bias"])
    for name in ("weight", "bias"):
        deltas = state[f"bbox_pred.{name}"]
        own = deltas[4:] if len(deltas) == 4 * classes else deltas
        scale = own.new_tensor(box_weights).repeat(len(own) // 4 + 1)[: len(own)]
        found[f"bbox_pred.{name}"] = own * scale.view(-1, *[1] * (own.ndim - 1))
    last = ("cls_score.weight", "cls_score.bias", "attributes.embedding.weight")
    for name in (*last, "attributes.score.weight", "attributes.score.bias"):
        if name in state:
            found[name] = state[name].roll(-1, 0)
    return found


def as_tensor(name: str, value: Tensor | np.ndarray, path: Path) -> Tensor:
    """A parameter as a tensor. Raises `InputError` for an array of a dtype that torch lacks."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = "convert it to a file of plain tensors"
        raise InputError(f"{name} holds no numbers of torch's ({error})", where=path, fix=fix) from None


def read_content(path: Path) -> dict[Any, Any]:
    """All that a checkpoint holds, tensors and arrays as they are. Raises InputError."""
    try:
        content = _content(path)
    except Exception as error:
        raise InputError(
            f"not a checkpoint of tensors or arrays ({(str(error) or type(error).__name__).splitlines()[0]})",
            where=path,
            fix="convert it to a file of plain tensors",
        ) from error
    if not isinstance(content, dict):
        raise InputError("holds no parameters", where=path, fix="give a detectron2 checkpoint")
    return content


def read_state(path: Path) -> dict[str, Tensor | np.ndarray]:
    """The parameters of a checkpoint by its own names: of its `model`, or all that it holds. Raises InputError."""
    content = read_content(path)
    state = content.get("model", content)
    if not isinstance(state, dict) or not state:
        raise InputError("holds no parameters", where=path, fix="give a detector's checkpoint")
    arrays = {name: value for name, value in state.items() if isinstance(value, Tensor | np.ndarray)}
    return {name: value for name, value in arrays.items() if isinstance(name, str)}


def _content(path: Path) -> Any:
    with open_file(path) as file:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(file):
            return read_zip(file)
        file.seek(0)
        return read_stream(file)
