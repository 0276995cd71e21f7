"""Reads detectron2's and bottom-up attention's checkpoints and brings their names to those of `rcnn.py`.

Files are ``{"model": state}`` or a bare state, of tensors (``.pth``, ``.safetensors``) or of NumPy arrays (``.pth``,
detectron2's ``.pkl``), read without unpickling anything else (`manifests.unpickle`).
"""

import re
import zipfile
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
    (r"^roi_heads\.(attribute_predictor|box_predictor)\.(obj_embed|cls_embedding)\.", "attributes.embedding."),
    (r"^roi_heads\.(attribute_predictor|box_predictor)\.(fc\.0|fc|fc_attr)\.", "attributes.hidden."),
    (r"^roi_heads\.(attribute_predictor|box_predictor)\.attr_score\.", "attributes.score."),
)
# Kept in checkpoints by training or by torch, of no use to a forward pass.
_IGNORED = re.compile(r"(num_batches_tracked|pixel_mean|pixel_std)$")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The parameters of a checkpoint by the names of `rcnn.py`, as float32.

    Raises
    ------
    InputError : not a checkpoint, or parameters whose names no rule knows, listed.
    """
    state = _read(Path(path))
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
        try:
            renamed[ours] = torch.as_tensor(value).float()
        except (TypeError, ValueError, RuntimeError) as error:
            fix = "convert it to a file of plain tensors"
            raise InputError(f"{name} holds no numbers of torch's ({error})", where=path, fix=fix) from None
    if unknown:
        raise InputError(
            f"{len(unknown)} parameters have names that no rule knows: {', '.join(sorted(unknown))}",
            where=path,
            fix="use a Faster R-CNN of type C4 or FPN in detectron2's format",
        )
    return renamed


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


def _read(path: Path) -> dict[str, Any]:
    content = read_content(path)
    state = content.get("model", content)
    if not isinstance(state, dict) or not state:
        raise InputError("holds no parameters", where=path, fix="give a detectron2 checkpoint")
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
