"""A base: two encoders that never see each other's side, and the published names of their parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from manifests.typed import Settings
from train.batches import RegionBatch, WordBatch
from train.encoding import Encoded
from train.words import Words


class BaseSettings(Settings):
    """The keys that every base has."""

    name: str
    dim: int


@dataclass(frozen=True, slots=True)
class Published:
    """The names that the authors' checkpoints give a base's parameters.

    images, captions : beginning of a published name -> beginning of ours; the longest that fits counts.
    unread : beginnings of names that their forward pass doesn't read, or that ours has no use for.
    """

    images: Mapping[str, str]
    captions: Mapping[str, str]
    unread: tuple[str, ...] = field(default=())


class Base(nn.Module):
    """Encodes images and captions, each on its own.

    A base has three modules. `images` makes `Encoded` of a `RegionBatch`. `captions` makes it of words ``[B, T, W]``
    and their mask. `words` gives these of a `WordBatch`.

    Parameters
    ----------
    settings : of type `Settings`.
    feature_dim : of a region.
    words : where the words come from (`train.words`): their `width`, and whether they are `ordered`.

    Attributes
    ----------
    reads_boxes : whether the images' encoder reads boxes, so that regions without any are refused.
    has_views : whether an image has several vectors, with weights (`Encoded.view_weights`).
    runs_encoder : whether the base needs a text encoder, or learned words, in the loop: no cached states.
    """

    Settings: ClassVar[type[BaseSettings]]
    reads_boxes: ClassVar[bool] = False
    has_views: ClassVar[bool] = False
    runs_encoder: ClassVar[bool] = False
    name: ClassVar[str]
    version: ClassVar[int]

    images: nn.Module
    captions: nn.Module
    words: Words

    def encode_images(self, batch: RegionBatch) -> Encoded:
        """Encode B images."""
        return self.images(batch)

    def encode_captions(self, batch: WordBatch) -> Encoded:
        """Encode B captions."""
        return self.captions(self.words(batch), batch.mask)

    def encode_locals(self, batch: RegionBatch) -> Tensor:
        """The locals ``[B, R, D]`` of B images alone: their `Encoded.locals`.

        A base overrides this where they cost less than the rest.
        """
        return self.encode_images(batch).locals

    def augmented(self, regions: RegionBatch, words: WordBatch) -> tuple[RegionBatch, WordBatch]:
        """What a training step reads in the place of a batch."""
        return regions, words

    def published(self) -> Published:
        """The published names of this base's parameters."""
        raise NotImplementedError(f"no checkpoints of base {self.name} are known")
