"""Image teachers of Hugging Face transformers or timm: a vision model with its own preprocessing, over whole pictures.

timm's models come through transformers' wrapper and need the package timm; the folder decides everything else.
Of a model with two halves (CLIP, SigLIP) the vision half is taken.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from extract.hub import Kind, find_model, load_model, model_recipe
from extract.teachers import TEACHERS
from extract.teachers.teacher import Inputs, Teacher
from extract.vision.decode import DECODING, UnreadableImage
from extract.vision.reading import ahead, read_picture
from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import ImageRow
from manifests.typed import Settings

KIND = Kind("image teacher", "google/vit-base-patch16-224-in21k", "--include '*.json' --include '*.safetensors'")
_PREPROCESSING = "preprocessor_config.json"
_OTHER_POOLING = "set teachers.D.images.pooling to cls or mean"


class VisionSettings(Settings):
    """A vision model of transformers or timm."""

    name: Literal["vision"] = "vision"
    model: str = Field(min_length=1, description="folder or hub name; nothing is fetched")
    revision: str | None = Field(None, description="commit, tag or branch of a hub name")
    pooling: Literal["pooler", "cls", "mean"] = Field(
        "pooler", description="the model's own pooled output, its first state, or the mean of its states"
    )


def find_vision_model(settings: VisionSettings) -> tuple[Path, bool]:
    """The folder of a vision model and whether it is timm's. Raises InputError where files are missing."""
    folder = find_model(settings.model, settings.revision, KIND)
    timm = '"architecture"' in (folder / "config.json").read_text(encoding="utf-8")
    if not timm and not (folder / _PREPROCESSING).is_file():
        raise InputError(
            f"it lacks {_PREPROCESSING}",
            where=f"{KIND.role} {settings.model!r} in {folder}",
            fix=KIND.how_to_get(settings.model, settings.revision),
        )
    return folder, timm


@TEACHERS.add("vision")
class VisionTeacher(Teacher):
    """Pooled states of a vision model.

    Raises
    ------
    InputError : a model that isn't on this machine, doesn't load or gives no such pooled output. Also a picture that is
        missing, has changed or can't be decoded (unless such pictures are skipped).
    """

    Settings = VisionSettings
    reads = "pictures"

    def __init__(self, settings: VisionSettings, inputs: Inputs):
        self.inputs, self.pooling = inputs, settings.pooling
        self.failures = {}
        self.where = f"{KIND.role} {settings.model!r}"
        folder, timm = find_vision_model(settings)
        self._prepare = _preprocessing(folder, settings, timm)
        unused = None if settings.pooling == "pooler" else "pooler"
        model = load_model(settings.model, settings.revision, KIND, unused, {"pooler": _OTHER_POOLING})
        self._model = getattr(model, "vision_model", model).requires_grad_(False).to(inputs.device)
        self.recipe = {
            **model_recipe(settings.model, folder),
            "pooling": settings.pooling,
            "preprocessing_sha256": sha256(folder / ("config.json" if timm else _PREPROCESSING)),
            "decoding": DECODING,
        }
        grey = self._prepared(np.full((64, 64, 3), 128, np.uint8))
        self.dim = self._pooled(grey[None]).shape[1]

    @classmethod
    def require(cls, settings: VisionSettings) -> None:
        find_vision_model(settings)

    def embed(self, items: Sequence[ImageRow]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Batches of pictures in their order, read and prepared while the batch before is looked at."""
        self.failures = {}
        batch_size = self.inputs.batch_size
        with ThreadPoolExecutor(self.inputs.readers) as readers:
            read = zip(range(len(items)), ahead(readers, self._read, items, 2 * batch_size), strict=True)
            while batch := list(islice(read, batch_size)):
                yield self._embed_batch(items, batch)

    def _embed_batch(
        self, items: Sequence[ImageRow], batch: list[tuple[int, Future[Tensor]]]
    ) -> tuple[list[int], np.ndarray]:
        found = np.zeros((len(batch), self.dim), np.float32)
        pictures = {}
        for place, (number, picture) in enumerate(batch):
            try:
                pictures[place] = picture.result()
            except UnreadableImage as error:
                self._refuse(items[number], error)
                self.failures[number] = str(error)
        if pictures:
            found[list(pictures)] = self._pooled(torch.stack(list(pictures.values()))).cpu().numpy()
        return [number for number, _ in batch], found

    def _read(self, row: ImageRow) -> Tensor:
        return self._prepared(read_picture(self.inputs.images, row, self.inputs.max_pixels))

    def _prepared(self, rgb: np.ndarray) -> Tensor:
        return self._prepare(images=Image.fromarray(rgb), return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def _pooled(self, pictures: Tensor) -> Tensor:
        """``[B, W]``."""
        out = self._model(pixel_values=pictures.to(self.inputs.device))
        if self.pooling == "pooler":
            pooled = getattr(out, "pooler_output", None)
            if pooled is None:
                raise InputError("it has no pooled output", where=self.where, fix=_OTHER_POOLING)
            return pooled.flatten(1)
        states = out.last_hidden_state
        if states.dim() == 4:  # a convolutional network's [B, W, H, W]
            states = states.flatten(2).transpose(1, 2)
        return states[:, 0] if self.pooling == "cls" else states.mean(1)

    def _refuse(self, image: ImageRow, error: UnreadableImage) -> None:
        if not self.inputs.skip:
            raise InputError(
                f"image {image.id!r} can't be read: {error}",
                where=self.inputs.images / image.path,
                fix="replace the picture, or set `teachers.D.unreadable: skip` to go on without it",
            ) from error


def _preprocessing(folder: Path, settings: VisionSettings, timm: bool) -> Any:
    from transformers import AutoImageProcessor

    where, fix = f"{KIND.role} {settings.model!r} in {folder}", KIND.how_to_get(settings.model, settings.revision)
    if timm:
        try:
            import timm as _  # noqa: F401
        except ImportError as error:
            raise InputError("timm's models need the package timm", where=where, fix="pip install timm") from error
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"its preprocessing doesn't load ({error})", where=where, fix=fix) from error
