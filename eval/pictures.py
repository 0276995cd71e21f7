"""The photographs of a report, each embedded once: a style sheet of data URIs that any element can wear as a class."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from extract.images import UnreadableImage, decode


@dataclass
class Pictures:
    """Collects pictures while a page is written, then gives the style sheet that holds them.

    Attributes
    ----------
    side : the longest side in pixels that a picture is reduced to.
    """

    side: int = 320
    _names: dict[Path, str] = field(default_factory=dict)
    _uris: dict[str, str] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        """The class of the picture at `path`; `missing` if it can't be read here (shared features, no photographs)."""
        if path not in self._names:
            try:
                image = Image.fromarray(decode(path.read_bytes()))
            except (OSError, UnreadableImage):
                self._names[path] = "missing"
            else:
                image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
                name = f"p{len(self._uris)}"
                self._names[path], self._uris[name] = name, data_uri(np.asarray(image), self.side)
        return self._names[path]

    def css(self) -> str:
        """One rule a picture."""
        return "\n".join(f".{name}{{background-image:url({uri})}}" for name, uri in self._uris.items())


def data_uri(picture: np.ndarray, side: int) -> str:
    """A picture `uint8 [H, W, 3]`, reduced to `side` pixels at most: a JPEG, or a PNG where that is smaller."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    best = None
    for kind, options in (("jpeg", {"quality": 85, "subsampling": 0, "optimize": True}), ("png", {"optimize": True})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        if best is None or len(buffer.getvalue()) < len(best[1]):
            best = kind, buffer.getvalue()
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode()}"
