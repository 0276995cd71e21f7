"""Safe decoding: any picture file to upright RGB, or a reason why not.

Pictures are recognised by their content, never by their name. What is decided here is part of every region recipe
(`DECODING`): EXIF orientation applied, transparency laid over white, 16-bit values scaled by 1/257, CMYK and palettes
converted by Pillow.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DECODING = {"order": "RGB", "orientation": "exif", "transparency": "over white", "bits": 8}

# Pillow still refuses above twice its limit (179 million pixels); below that a large picture is a picture.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """A picture that can't be decoded; the message is the reason, for `failures.jsonl`."""


def decode(data: bytes) -> np.ndarray:
    """Decode a picture file's bytes to upright RGB.

    Returns uint8 ``[height, width, 3]``. Raises `UnreadableImage` for an empty, truncated, unknown, oversized or
    floating-point picture.
    """
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError as error:
        raise UnreadableImage("not a picture in any format that Pillow reads") from error
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("32-bit integer pixels beyond 16 bits: their white is unknown")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels: their white is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
