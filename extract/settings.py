"""The parameters of the region and pack stages, as `params.yaml` gives them."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from extract.vision.detectors import DETECTORS
from manifests.opening import MAX_PIXELS, PILLOWS_LIMIT
from manifests.typed import Settings, one_of


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


SelectionSettings = one_of("rule", BottomUpSettings, DetectionSettings)


class RegionSettings(Settings):
    """The region stage of one data set."""

    detector: DETECTORS.settings
    selection: SelectionSettings | None = Field(None, description="among the proposals of a detector that makes some")
    boxes: Literal["given"] | None = Field(
        None, description="given: those of `source.boxes`, in their order, instead of the detector's own"
    )
    unreadable: Literal["stop", "skip"] = Field(
        "stop", description="what a picture does that can't be decoded, or has fewer proposals than min_boxes"
    )
    truncated: Literal["refuse", "take"] = Field(
        "refuse", description="whether a picture whose file ends too early is taken as far as it goes, grey from there"
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=PILLOWS_LIMIT, description="a picture of more, by its header, can't be decoded"
    )
    images_per_shard: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _boxes_of_one_origin(self) -> Self:
        proposes = DETECTORS.find(self.detector.name).proposes
        if self.boxes and self.selection:
            raise ValueError("`selection` is not for given boxes")
        if self.boxes and "boxes" in self.detector.model_fields_set:
            raise ValueError("`detector.boxes` is not for given boxes")
        if proposes and not (self.selection or self.boxes):
            raise ValueError(f"`selection` is missing: the detector {self.detector.name} makes proposals")
        if self.selection and not proposes:
            raise ValueError(f"`selection` is not for the detector {self.detector.name}, which makes no proposals")
        return self

    @property
    def choice(self) -> dict[str, Any]:
        """Which of a picture's boxes are its regions, for recipes."""
        if self.boxes:
            return {"boxes": self.boxes}
        return {"selection": self.selection.decides()} if self.selection else {}


class ImportSettings(Settings):
    """The region stage of an imported data set: the conventions that its files don't state, and the precision."""

    boxes: Literal["xyxy", "xywh", "relative_xyxy", "relative_xywh"] | None = Field(
        None, description="scan's boxes: corners, or corner and size; in pixels, or relative to the picture"
    )
    sizes: Literal["wh", "hw"] = Field("wh", description="the order in scan's sizes of pictures")
    info: bool = Field(False, description="read classes and attributes from bua-npz's pickled info, arrays alone")
    dtype: Literal["float16", "float32", "float64"] | None = Field(
        None, description="of the features that TSV formats have in base64; left out: float32, and others are noticed"
    )
    precision: Literal["float16", "float32"] = Field("float16", description="of the features in the store")
    images_per_shard: int = Field(1024, ge=1)

    @property
    def given(self) -> dict[str, Any]:
        """The options that the user gave for `extract.exchange.formats.open_source`."""
        return self.model_dump(include={"boxes", "sizes", "info", "dtype"}, exclude_unset=True)


class About(Settings):
    """The licence and the citation of a data set's pictures, for the cards of its stores."""

    licence: str | None = Field(None, min_length=1, description="of the pictures, and so of their features")
    cite: str | None = Field(None, min_length=1, description="what to cite for them")


class PackSettings(Settings):
    """The pack stage of one data set."""

    images_per_shard: int = Field(1000, ge=1)
