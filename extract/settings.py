"""The parameters of the region and pack stages and of the demo detector's training, as `params.yaml` gives them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from manifests.opening import MAX_PIXELS, PILLOWS_LIMIT
from manifests.typed import Settings


class _Weights(Settings):
    weights: str = Field(description="path or address of the weights")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the weights file")


class DemoDetectorSettings(_Weights):
    """The demo's small network (`extract.vision.detectors.demo`)."""

    name: Literal["demo"]
    shortest: int = Field(160, ge=8, description="pixels of the shorter side after resizing")
    longest: int = Field(256, ge=8, description="bound on the longer side, in pixels")


class RCNNSettings(_Weights):
    """A detectron2 checkpoint on torchvision's parts (`extract.vision.detectors.rcnn`), detectron2's defaults."""

    name: Literal["rcnn"]
    shortest: int = Field(600, ge=1, description="pixels of the shorter side after resizing")
    longest: int = Field(1000, ge=1, description="bound on the longer side, in pixels")
    pixel_order: Literal["BGR", "RGB"] = "BGR"
    pixel_mean: tuple[float, float, float] = Field((103.53, 116.28, 123.675), description="in pixel_order")
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stride_in_1x1: bool = Field(True, description="where a stage strides: true for R50 and R101, false for X152")
    pooling: Literal["align", "pool"] = Field("align", description="RoIAlign (aligned) or caffe's RoIPool")
    sampling_ratio: int = Field(0, ge=0, description="of RoIAlign: 0 adapts to the box, 2 in bottom-up configs")
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals_before: int = Field(6000, ge=1, description="proposals kept before NMS, a level")
    proposals_after: int = Field(300, ge=1, description="proposals kept after NMS")
    proposals_nms: float = Field(0.7, gt=0, le=1)
    variance_includes_eps: bool = Field(False, description="old checkpoints, before FrozenBatchNorm's version 3")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    object_names: str | None = Field(None, description="text file, one class name a line")
    attribute_names: str | None = Field(None, description="text file, one attribute name a line")


class Detectron2Settings(_Weights):
    """The real detectron2, where it is installed (`extract.vision.detectors.detectron2_backend`)."""

    name: Literal["detectron2"]
    config: str = Field(description="path of a config file")
    options: tuple[str, ...] = Field((), description="overrides of the config: KEY, VALUE, KEY, VALUE ...")


DetectorSettings = Annotated[DemoDetectorSettings | RCNNSettings | Detectron2Settings, Field(discriminator="name")]


class BottomUpSettings(Settings):
    """Per-class NMS over proposals, best confidence first, between `min_boxes` and `max_boxes` of them."""

    rule: Literal["bottom_up"] = "bottom_up"
    min_boxes: int = Field(ge=1)
    max_boxes: int = Field(ge=1)
    nms_threshold: float = Field(0.3, gt=0, le=1)
    score_threshold: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> "BottomUpSettings":
        if self.min_boxes > self.max_boxes:
            raise ValueError(f"min_boxes {self.min_boxes} is above max_boxes {self.max_boxes}")
        return self

    @property
    def fixed(self) -> int | None:
        """The number of regions of every picture, or None where it varies."""
        return self.max_boxes if self.min_boxes == self.max_boxes else None


class DetectionSettings(Settings):
    """Detectron2's final detections: regressed boxes, NMS within each class; a picture may have none."""

    rule: Literal["detections"]
    max_boxes: int = Field(100, ge=1)
    nms_threshold: float = Field(0.5, gt=0, le=1)
    score_threshold: float = Field(0.05, gt=0, lt=1)

    min_boxes: ClassVar[int] = 0
    fixed: ClassVar[None] = None


SelectionSettings = Annotated[BottomUpSettings | DetectionSettings, Field(discriminator="rule")]


class RegionSettings(Settings):
    """The region stage of one data set."""

    detector: DetectorSettings
    selection: SelectionSettings
    unreadable: Literal["stop", "skip"] = Field("stop", description="what a picture that can't be decoded does")
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=PILLOWS_LIMIT, description="a picture of more, by its header, can't be decoded"
    )
    images_per_shard: int = Field(1024, ge=1)


class ImportSettings(Settings):
    """The region stage of an imported data set: what its files don't say, and how much of them is kept."""

    boxes: Literal["xyxy", "xywh", "relative_xyxy", "relative_xywh"] | None = Field(
        None, description="what scan's boxes are: corners, or corner and size; in pixels, or relative to the picture"
    )
    sizes: Literal["wh", "hw"] = Field("wh", description="the order in scan's sizes of pictures")
    info: bool = Field(False, description="read classes and attributes from bua-npz's pickled info, arrays alone")
    precision: Literal["float16", "float32"] = Field("float16", description="of the features in the store")
    images_per_shard: int = Field(1024, ge=1)

    @property
    def told(self) -> dict[str, Any]:
        """What is said of the files, where it is: the options of `extract.exchange.formats.open_source`."""
        return self.model_dump(include={"boxes", "sizes", "info"}, exclude_unset=True)


class About(Settings):
    """What people are to know of a data set's pictures; it goes into the cards of its stores."""

    licence: str | None = Field(None, min_length=1, description="of the pictures, and so of their features")
    cite: str | None = Field(None, min_length=1, description="what to cite for them")


class PackSettings(Settings):
    """The pack stage of one data set."""

    images_per_shard: int = Field(1000, ge=1)


class DetectorTrainingSettings(Settings):
    """How the demo's detector is trained; `seed` must differ from the scenes' seed."""

    seed: int = Field(ge=0)
    iterations: int = Field(750, ge=1)
    batch_size: int = Field(16, ge=1, description="scenes a step")
    learning_rate: float = Field(2e-3, gt=0, description="the peak of a one-cycle schedule")
