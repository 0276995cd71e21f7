"""Vision models of timm, torchvision and transformers as networks that give a feature map and a pooled vector.

A model is an architecture of timm or torchvision with a weights file, or a folder or hub name of timm or transformers
(`extract.hub`). Nothing is fetched from the hub. Of a model with two halves (CLIP, SigLIP) the vision half is taken.
The side of its pictures, and mean and deviation of their channels, are the model's own.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from extract.hub import Kind, find_model, load_model, model_recipe
from extract.stores.tensors import load_into
from extract.vision.rcnn.checkpoint import read_content
from extract.vision.weights import local_weights
from manifests.errors import InputError
from manifests.files import sha256
from manifests.typed import Digest, Settings

KIND = Kind("vision model", "google/vit-base-patch16-224-in21k", "--include '*.json' --include '*.safetensors'")
_PREPROCESSING = "preprocessor_config.json"
_FILES = {
    "timm": ("config.json", "model.safetensors"),
    "transformers": ("config.json", _PREPROCESSING, "*.safetensors"),
}
_OTHER_POOLING = "set `detector.boxes: 1x1`, the mean over its map"


class BackboneSettings(Settings):
    """The vision model that reads the pictures, and the layer whose output is taken."""

    library: Literal["timm", "torchvision", "transformers"] = Field("timm", description="the library of the model")
    model: str = Field(min_length=1, description="name of an architecture; without `weights`, a folder or hub name")
    revision: str | None = Field(None, description="commit, tag or branch of a hub name")
    weights: str | None = Field(
        None, description="path or address of the architecture's weights, or package:MODULE/FILE of a Python package"
    )
    sha256: Digest | None = Field(None, description="of the weights file")
    layer: int | str | None = Field(
        None,
        description="number of a block (timm, transformers) or name of a module (torchvision); else the last",
    )
    size: int | None = Field(None, ge=8, description="side in pixels to which pictures are resized; the model's own")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.weights is None) != (self.sha256 is None):
            raise ValueError("`weights` and `sha256` go together")
        if self.library == "transformers" and self.weights is not None:
            raise ValueError("a model of transformers is a folder or a hub name, without `weights`")
        if self.library == "torchvision" and (self.weights is None or not isinstance(self.layer, str)):
            raise ValueError("a model of torchvision needs `weights` and `layer`, such as layer4 or features")
        if self.library != "torchvision" and isinstance(self.layer, str):
            raise ValueError(f"`layer` of a model of {self.library} is a number")
        return self


class Backbone(ABC):
    """A vision model in evaluation mode; `pooled` where its pooled vector is asked for.

    Attributes
    ----------
    network : the model itself.
    size, mean, std : the side of its pictures, and mean and deviation of their channels (RGB, 0 to 1).
    recipe : which model it is, as JSON.
    """

    network: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: dict[str, Any]

    @abstractmethod
    def feature_map(self, pictures: Tensor) -> Tensor:
        """``[B, D, h, w]`` of normalised pictures ``[B, 3, size, size]``."""

    @abstractmethod
    def pooled(self, pictures: Tensor) -> Tensor:
        """The pooled vector of each whole picture, ``[B, D]``."""


class TimmBackbone(Backbone):
    """timm's ``forward_features``, or the block `layer` of its ``forward_intermediates``."""

    def __init__(self, settings: BackboneSettings, pooled: bool):
        timm = _timm()
        if settings.weights is None:
            folder = find_model_files(settings)
            where = f"{KIND.role} {settings.model!r} in {folder}"
            try:
                self.network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
            except Exception as error:  # timm raises whatever damaged files lead it to
                fix = KIND.how_to_get(settings.model, settings.revision)
                raise InputError(f"it doesn't load ({error})", where=where, fix=fix) from error
            self.recipe = model_recipe(settings.model, folder)
        else:
            if not timm.is_model(settings.model):
                near = difflib.get_close_matches(settings.model, timm.list_models(), n=1)
                fix = f"name one of timm.list_models(){f', such as {near[0]}' if near else ''}"
                raise InputError(f"timm has no model {settings.model!r}", where="detector.model", fix=fix)
            self.network = timm.create_model(settings.model, num_classes=0)
            file = local_weights(settings.weights, settings.sha256)
            _load(self.network, timm_names(_state(file), self.network), file, settings.model)
            self.recipe = {"name": settings.model, "weights_sha256": settings.sha256}
        facts = self.network.pretrained_cfg
        self.size, self.mean, self.std = facts["input_size"][-1], tuple(facts["mean"]), tuple(facts["std"])
        self._layer = settings.layer
        self._channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"

    def feature_map(self, pictures: Tensor) -> Tensor:
        if self._layer is not None:
            options = {"indices": [self._layer], "intermediates_only": True, "output_fmt": "NCHW"}
            return self.network.forward_intermediates(pictures, **options)[0]
        found = self.network.forward_features(pictures)
        if found.dim() == 4:
            return found.permute(0, 3, 1, 2) if self._channels_last else found
        return _as_map(found)

    def pooled(self, pictures: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(pictures), pre_logits=True)


class TorchvisionBackbone(Backbone):
    """The output of a named module of a torchvision model."""

    def __init__(self, settings: BackboneSettings, pooled: bool):
        from torchvision.models import get_model, get_model_weights, list_models
        from torchvision.models.feature_extraction import create_feature_extractor

        if settings.model not in list_models():
            fix = "name one of torchvision.models.list_models()"
            raise InputError(f"torchvision has no model {settings.model!r}", where="detector.model", fix=fix)
        network = get_model(settings.model, weights=None).eval()
        file = local_weights(settings.weights, settings.sha256)
        _load(network, _state(file), file, settings.model)
        try:
            self.network = create_feature_extractor(network, {settings.layer: "map"})
        except ValueError as error:
            names = ", ".join(name for name, _ in network.named_children())
            fix = f"name one of its modules ({names}), or one in them"
            message = f"{settings.model} has no module {settings.layer!r}"
            raise InputError(message, where="detector.layer", fix=fix) from error
        prepared = get_model_weights(settings.model).DEFAULT.transforms()
        self.size, self.mean, self.std = prepared.crop_size[0], tuple(prepared.mean), tuple(prepared.std)
        self.recipe = {"name": settings.model, "weights_sha256": settings.sha256}

    def feature_map(self, pictures: Tensor) -> Tensor:
        found = self.network(pictures)["map"]
        return _as_map(found) if found.dim() == 3 else found

    def pooled(self, pictures: Tensor) -> Tensor:
        found = self.network(pictures)["map"]
        return found if found.dim() == 2 else self.feature_map(pictures).mean((2, 3))


class TransformersBackbone(Backbone):
    """The last states of a transformers model, those of `layer`, or its pooled output."""

    def __init__(self, settings: BackboneSettings, pooled: bool):
        from transformers import AutoImageProcessor

        folder = find_model_files(settings)
        self._where = f"{KIND.role} {settings.model!r} in {folder}"
        unused = None if pooled else "pooler"
        whole = load_model(settings.model, settings.revision, KIND, unused, {"pooler": _OTHER_POOLING})
        self.network, self._layer = getattr(whole, "vision_model", whole), settings.layer
        try:
            prepared = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            fix = KIND.how_to_get(settings.model, settings.revision)
            raise InputError(f"its preprocessing doesn't load ({error})", where=self._where, fix=fix) from error
        sizes = [size for size in (getattr(prepared, "crop_size", None), prepared.size) if size]
        sides = [size.get(key) for size in sizes for key in ("height", "shortest_edge")]
        self.size = next((side for side in sides if side), 224)
        self.mean, self.std = tuple(prepared.image_mean), tuple(prepared.image_std)
        preprocessing = {"preprocessing_sha256": sha256(folder / _PREPROCESSING)}
        self.recipe = model_recipe(settings.model, folder) | preprocessing

    def feature_map(self, pictures: Tensor) -> Tensor:
        found = self.network(pixel_values=pictures, output_hidden_states=self._layer is not None)
        states = found.last_hidden_state if self._layer is None else found.hidden_states[self._layer]
        return states if states.dim() == 4 else _as_map(states)

    def pooled(self, pictures: Tensor) -> Tensor:
        found = getattr(self.network(pixel_values=pictures), "pooler_output", None)
        if found is None:
            raise InputError("it has no pooled output", where=self._where, fix=_OTHER_POOLING)
        return found.flatten(1)


def find_model_files(settings: BackboneSettings) -> Path | None:
    """The folder of a model of the hub; None for one with a weights file.

    Raises InputError where the model, or its library, isn't on this machine.
    """
    if settings.library == "timm":
        _timm()
    if settings.weights is not None:
        return None
    return find_model(settings.model, settings.revision, KIND, _FILES[settings.library])


LIBRARIES = {"timm": TimmBackbone, "torchvision": TorchvisionBackbone, "transformers": TransformersBackbone}


def timm_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The parameters of a timm network without its classifier.

    `state` has timm's names, or those of EfficientNet-PyTorch and similar packages (efficientnet-lite). Those number
    blocks throughout, timm by stage. A block without an expansion begins with its second norm there.
    """
    classifier = network.pretrained_cfg["classifier"]
    left_out = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    if "_conv_stem.weight" in state and hasattr(network, "blocks"):
        state = _renamed(state, network)
    return {name: value for name, value in state.items() if not name.startswith(tuple(f"{c}." for c in left_out))}


_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"},
}
_PLAIN = _EXPANDED | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _renamed(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    places = [f"blocks.{stage}.{n}" for stage, blocks in enumerate(network.blocks) for n in range(len(blocks))]
    named = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(places):
            expanded = f"_blocks.{block[1]}._expand_conv.weight" in state
            table, place = _EXPANDED if expanded else _PLAIN, places[int(block[1])]
            name = f"{place}.{table.get(block[2], block[2])}.{block[3]}"
        elif not block:
            part, _, rest = name.partition(".")
            name = f"{_ENDS.get(part, part)}.{rest}"
        named[name] = value
    return named


def _state(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file: of the file itself, or below ``model`` or ``state_dict`` in it."""
    content = read_content(file)
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _load(network: nn.Module, state: Mapping[str, Tensor], file: Path, model: str) -> None:
    load_into(network, state, file, fix=f"give weights of {model}")


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        fix = 'run `pip install timm`, or `pip install "selfalign[photographs]"`'
        raise InputError("timm isn't installed", where="detector.library: timm", fix=fix) from error
    return timm


def _as_map(states: Tensor) -> Tensor:
    """States ``[B, N, D]`` of a square picture's patches as a map ``[B, D, h, h]``, without class and register tokens,
    which come first."""
    side = isqrt(states.shape[1])
    return states[:, -side * side :].transpose(1, 2).reshape(len(states), -1, side, side)
