"""The real detectron2, where it is installed: any of its Faster R-CNN configs and weights, the same interface.

Proposals, pooled features and predictions are detectron2's own modules' work; selection is this project's, the same as
for every detector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from extract.settings import BottomUpSettings, DetectionSettings
from extract.vision.decode import DECODING
from extract.vision.detectors import DETECTORS
from extract.vision.detectors.base import Candidates, Proposer, read_names
from extract.vision.rcnn.checkpoint import read_content
from extract.vision.weights import WeightsSettings, local_weights
from manifests.errors import InputError
from manifests.files import fingerprint


class Detectron2Settings(WeightsSettings):
    """The real detectron2, where it is installed (`extract.vision.detectors.detectron2`)."""

    config: str = Field(
        description="path of a YAML config, or its name in detectron2's model zoo: "
        "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"
    )
    options: dict[str, Any] = Field({}, description="overrides of the config: MODEL.ROI_HEADS.NUM_CLASSES: 1600")
    object_names: str | None = Field(
        None, description="text file, one class name a line; left out: those of the config's data set, if as many"
    )

    @field_validator("options", mode="before")
    @classmethod
    def _of_pairs(cls, value: Any) -> Any:
        """Older files have KEY, VALUE, KEY, VALUE ... in a list, as detectron2's own command line does."""
        if not isinstance(value, list | tuple):
            return value
        if len(value) % 2 or not all(isinstance(key, str) for key in value[::2]):
            raise ValueError("give a mapping of keys and values")
        return dict(zip(value[::2], value[1::2], strict=True))


@DETECTORS.add("detectron2")
class Detectron2Detector(Proposer):
    """A `GeneralizedRCNN` with C4 or standard RoI heads.

    Raises `InputError` where detectron2 isn't installed, and for weights that don't fit. So it does for a config that
    can't be read, that runs code, or that needs a feature that this detector lacks.
    """

    Settings = Detectron2Settings

    def __init__(
        self, settings: Detectron2Settings, selection: BottomUpSettings | DetectionSettings | None, device: str
    ):
        try:
            from detectron2 import __version__
            from detectron2.checkpoint import DetectionCheckpointer
            from detectron2.data import MetadataCatalog
            from detectron2.modeling import build_model
        except ImportError as error:
            raise InputError(
                f"detectron2 isn't installed ({error})",
                where="detector.name: detectron2",
                fix="install it as docs/detectors.md says, or use `name: rcnn`, which reads the same checkpoints",
            ) from error
        self.selection, self.device = selection, device
        config = _config(settings)
        weights = local_weights(settings.weights, settings.sha256)
        config.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", str(weights)])
        try:
            self.model = build_model(config).eval()
        except Exception as error:  # whatever a registry, an assertion or torch says of values that don't fit
            raise InputError(
                f"detectron2 builds no network of it ({type(error).__name__}: {error})",
                where=settings.config,
                fix="correct the config or `detector.options`",
            ) from error
        loaded = DetectionCheckpointer(self.model)._load_model(_checkpoint(weights))
        wrong = [
            *(f"{name} is missing" for name in loaded.missing_keys),
            *(f"{name} has no place" for name in loaded.unexpected_keys),
            *(f"{name} is {tuple(found)}, not {tuple(asked)}" for name, found, asked in loaded.incorrect_shapes),
        ]
        if wrong:
            raise InputError(
                f"the weights don't fit the config: {', '.join(wrong)}", where=weights, fix="use the config they are of"
            )
        self.config = config
        self.recipe = {
            "name": settings.name,
            "version": __version__,
            "config": fingerprint(_resolved(config)),
            "weights_sha256": settings.sha256,
            "decoding": DECODING,
        }
        predictor = self.model.roi_heads.box_predictor
        self.dim = predictor.cls_score.in_features
        self.box_weights = tuple(predictor.box2box_transform.weights)
        classes = config.MODEL.ROI_HEADS.NUM_CLASSES
        self.object_names = read_names(settings.object_names, classes, "object_names")
        if not settings.object_names and config.DATASETS.TEST:
            names = MetadataCatalog.get(config.DATASETS.TEST[0]).get("thing_classes", None)
            # The data set is often the one of the config that another was made from.
            self.object_names = tuple(names) if names and len(names) == classes else None
        self.attribute_names = None

    def network_size(self, width: int, height: int) -> tuple[int, int]:
        from detectron2.data.transforms import ResizeShortestEdge

        sizes = self.config.INPUT
        if not sizes.MIN_SIZE_TEST:  # detectron2's way of not resizing
            return width, height
        height, width = ResizeShortestEdge.get_output_shape(height, width, sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST)
        return width, height

    def candidates(self, pictures: Tensor, given: Sequence[Tensor] | None = None) -> list[Candidates]:
        from detectron2.structures import Boxes

        if self.config.INPUT.FORMAT == "BGR":
            pictures = pictures.flip(1)
        images = self.model.preprocess_image([{"image": picture} for picture in pictures])
        maps = self.model.backbone(images.tensor)
        heads = self.model.roi_heads
        if given is None:
            proposals, _ = self.model.proposal_generator(images, maps)
            boxes = [found.proposal_boxes for found in proposals]
        else:
            boxes = [Boxes(own) for own in given]
        names = heads.in_features if hasattr(heads, "in_features") else heads.box_in_features
        found = []
        for number, own in enumerate(boxes):  # a picture at a time: before res5, 1,000 regions take 800 MB
            chosen = [maps[name][number : number + 1] for name in names]
            if hasattr(heads, "res5"):
                features = heads._shared_roi_transform(chosen, [own]).mean((2, 3))
            else:
                features = heads.box_head(heads.box_pooler(chosen, [own]))
            logits, deltas = heads.box_predictor(features)
            (classes,) = heads.box_predictor.predict_probs((logits, deltas), [own])
            found.append(Candidates(own.tensor, features, classes[:, :-1], deltas, None))
        return found


_ONLY = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "StandardROIHeads"),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "TEST.AUG.ENABLED": (False,),
}
"""Keys that would change the numbers, and the values with which this detector agrees with detectron2."""
_OURS = ("MODEL.DEVICE", "MODEL.WEIGHTS")


def find_config(name: str) -> Path:
    """The file of a config: a path, or a name in the zoo of the detectron2 that is installed. Raises `InputError`."""
    from detectron2 import model_zoo

    path = Path(name)
    if path.suffix == ".py":
        raise InputError("a config in Python runs code, and is not read", where=name, fix="use a YAML config")
    if path.is_file():
        return path
    try:
        return Path(model_zoo.get_config_file(name))
    except RuntimeError:
        fix = "give the path of a config, or a name such as COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"
        raise InputError("neither a file nor a name in detectron2's model zoo", where=name, fix=fix) from None


def _config(settings: Detectron2Settings) -> Any:
    """The whole config, with its bases and options. Raises `InputError`."""
    from detectron2.config import get_cfg
    from yaml.constructor import ConstructorError

    where, path = settings.config, find_config(settings.config)
    config = get_cfg()
    try:
        config.merge_from_file(str(path), allow_unsafe=False)
    except ConstructorError as error:
        message = f"it has a tag that runs code, or one that YAML doesn't know ({error.problem})"
        raise InputError(message, where=where, fix="write the value itself there") from None
    except Exception as error:  # whatever yacs, PyYAML or the disk says
        message = f"detectron2 can't read it ({type(error).__name__}: {error})"
        raise InputError(message, where=where, fix="correct the config") from error
    wrong = []
    for key, value in settings.options.items():
        if key in _OURS:
            wrong.append(f"{key} is said by SELFALIGN_DEVICE and `detector.weights`")
            continue
        try:
            config.merge_from_list([key, value])
        except Exception as error:
            wrong.append(f"{key}: {value!r} ({error})")
    if wrong:
        fix = "correct the key, or give a value of its type (0.5, not 1, where it has a point)"
        raise InputError("; ".join(wrong), where="detector.options", fix=fix)
    for key, values in _ONLY.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if value not in values:
            wrong.append(f"{key} is {value!r}, not {' or '.join(map(repr, values))}")
    if wrong:
        raise InputError("; ".join(wrong), where=where, fix="use a config without them, or set them in `options`")
    return config


def _checkpoint(weights: Path) -> dict[str, Any]:
    """The result of detectron2's own reader for a file, without its unpickling, which runs code of the file."""
    content = read_content(weights)
    if "model" in content:
        return content
    arrays = content.get("blobs", content)
    state = {name: value for name, value in arrays.items() if not str(name).endswith("_momentum")}
    return {"model": state, "matching_heuristics": weights.suffix == ".pkl"}


def _resolved(config: Any) -> str:
    """The whole config with its bases' values, but for the device and the paths of weights and output."""
    whole = config.clone()
    whole.defrost()
    whole.MODEL.DEVICE = whole.MODEL.WEIGHTS = whole.OUTPUT_DIR = ""
    return whole.dump()
