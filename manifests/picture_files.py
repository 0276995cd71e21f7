"""Which picture formats are read, and the one place that hands a picture to Pillow.

Each is decoded by Pillow itself: other formats of its, such as PostScript, start a program.
"""

import io
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MOST_BYTES = 2**29 + 2**26
"""The largest size of a picture's file: 64 million pixels in the largest format, and metadata."""


def open_picture(file: BinaryIO) -> Image.Image:
    """A picture of which the header is read.

    Raises whatever Pillow does: `UnidentifiedImageError` for other formats, and for a file that is too large to be one.
    """
    size = file.seek(0, io.SEEK_END)
    if size > MOST_BYTES:
        raise UnidentifiedImageError(f"{size:,} bytes, more than {MOST_BYTES:,}, are no picture")
    file.seek(0)
    return Image.open(file, formats=FORMATS)
