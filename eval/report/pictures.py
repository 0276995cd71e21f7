"""The photographs of a page, embedded in it as data URIs."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from extract.vision.decode import UnreadableImage, decode_file
from manifests.opening import PILLOWS_LIMIT


@dataclass
class Pictures:
    """Decodes a page's pictures once each. Where one isn't at hand (shared features, no photographs), it gives None."""

    _decoded: dict[Path, np.ndarray | None] = field(default_factory=dict)

    def whole(self, path: Path, side: int) -> str | None:
        """The picture at `path`, reduced to `side` pixels at most."""
        picture = self._read(path)
        return None if picture is None else data_uri(picture, side)

    def crop(self, path: Path, box: np.ndarray, side: int) -> str | None:
        """The part of a picture in a box (x1, y1, x2, y2) in its pixels."""
        picture = self._read(path)
        if picture is None:
            return None
        height, width = picture.shape[:2]
        left, top = (int(np.clip(value, 0, size - 1)) for value, size in zip(box[:2], (width, height), strict=True))
        right, bottom = (int(np.ceil(value)) for value in box[2:])
        return data_uri(picture[top : max(bottom, top + 1), left : max(right, left + 1)], side)

    def _read(self, path: Path) -> np.ndarray | None:
        if path not in self._decoded:
            try:
                self._decoded[path] = read_shown(path)
            except (OSError, UnreadableImage):
                self._decoded[path] = None
        return self._decoded[path]


def read_shown(path: Path) -> np.ndarray:
    """A picture to show, uint8 ``[H, W, 3]``, as large as Pillow takes: settings bound what is extracted, not this.

    Raises OSError or `UnreadableImage` where it isn't there or can't be read.
    """
    return decode_file(path, PILLOWS_LIMIT, truncated=True)


def reduced(picture: np.ndarray, side: int) -> Image.Image:
    """A picture ``uint8 [H, W, 3]``, reduced to `side` pixels at most."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def data_uri(picture: np.ndarray, side: int) -> str:
    """A picture `uint8 [H, W, 3]`, reduced to `side` pixels at most: a JPEG, or a PNG where that is smaller."""
    image, best = reduced(picture, side), None
    for kind, options in (("jpeg", {"quality": 82, "optimize": True}), ("png", {"optimize": True})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        if best is None or len(buffer.getvalue()) < len(best[1]):
            best = kind, buffer.getvalue()
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode()}"
