"""Safe decoding: any picture file to upright RGB, or a reason why not.

Pictures are recognised by their content, never by their name. EXIF orientation is applied, transparency is laid over
white, and 16-bit values are scaled by 1/257. Pillow converts CMYK and palettes. These rules are part of every region
recipe (`DECODING`). The limit on a picture's size only refuses pictures, and changes no number.
"""

import io
import warnings
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from manifests.opening import MAX_PIXELS, open_file
from manifests.picture_files import FORMATS, open_picture

DECODING = {"order": "RGB", "orientation": "exif", "transparency": "over white", "bits": 8}

# Pillow warns from half its limit on; below `max_pixels` a large picture is a picture.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_ORIENTATION = 0x0112
# By EXIF's orientation, a view of the upright picture in which the stored rows and columns run as they are stored.
_STORED = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
_BAND = 2**20  # pixels converted at a time
_SWITCH = Lock()
_TILE_SIDES = (322, 323)  # TIFF's tags


class UnreadableImage(Exception):
    """A picture that can't be decoded; the message is the reason, for `failures.jsonl`."""


def decode(picture: bytes | BinaryIO, max_pixels: int = MAX_PIXELS, *, truncated: bool = False) -> np.ndarray:
    """Decode a picture file, or its bytes, to upright RGB.

    truncated : take a picture of a truncated file as far as it goes, grey from there.

    Returns uint8 ``[height, width, 3]``. Raises `UnreadableImage` for an empty, truncated, unknown or floating-point
    picture, and for one whose header states more than `max_pixels`. Beside the bytes, memory holds the picture as
    Pillow decodes it and the result, no third copy.
    """
    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    if not file.read(1):
        raise UnreadableImage("the file is empty (0 bytes)")
    try:
        with open_picture(file) as image:
            _require_small(image, max_pixels)
            try:
                image.load()
            except OSError:
                if not truncated:
                    raise
                file.seek(0)
                return _as_far_as_it_goes(file)
            return _upright(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not a picture in any format that is read: {', '.join(FORMATS)}") from error
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise UnreadableImage(str(error) or type(error).__name__) from error


def decode_file(path: Path, max_pixels: int = MAX_PIXELS, *, truncated: bool = False) -> np.ndarray:
    """`decode` the file at `path`. Raises OSError where it can't be opened or is no file."""
    with open_file(path) as file:
        return decode(file, max_pixels, truncated=truncated)


def _as_far_as_it_goes(file: BinaryIO) -> np.ndarray:
    """Decode a picture of a truncated file. Pillow's switch for that is global: other such pictures wait."""
    with _SWITCH, open_picture(file) as image:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        return _upright(image)


def _require_small(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        message = f"{width} x {height} are {width * height:,} pixels"
        raise UnreadableImage(f"{message}, above max_pixels, which is {max_pixels:,}")
    if image.format == "TIFF" and all(side in image.tag_v2 for side in _TILE_SIDES):
        across, down = (int(image.tag_v2[side]) for side in _TILE_SIDES)
        if across * down > max(max_pixels, 2**20):
            raise UnreadableImage(f"tiles of {across} x {down} pixels, above max_pixels, which is {max_pixels:,}")


def _upright(image: Image.Image) -> np.ndarray:
    """A loaded picture, converted some rows at a time."""
    width, height = image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    turned = orientation in (5, 6, 7, 8)
    upright = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored = _STORED.get(orientation, lambda upright: upright)(upright)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = _rgb(image.crop((0, top, width, bottom)))
    return upright


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
