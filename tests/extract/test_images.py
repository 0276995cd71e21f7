"""Safe decoding: every kind of picture to upright RGB, everything else to a reason."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from extract.vision import decode as images
from extract.vision.decode import UnreadableImage, decode, decode_file
from manifests.manifest import _upright_size
from manifests.opening import MAX_PIXELS
from tests.extract.alone import run_alone
from tests.extract.region_files import encoded, large_png

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)

# EXIF's table: which side of the scene the stored first row and first column are.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: np.rot90(upright),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: np.rot90(upright, -1),  # left, bottom
}


def quadrants() -> np.ndarray:
    """48 x 32 pixels: red and green above, blue and yellow below."""
    picture = np.zeros((32, 48, 3), np.uint8)
    for rows, columns, colour in (
        (slice(16), slice(24), RED),
        (slice(16), slice(24, 48), GREEN),
        (slice(16, 32), slice(24), BLUE),
        (slice(16, 32), slice(24, 48), YELLOW),
    ):
        picture[rows, columns] = colour
    return picture


def pixels(data: bytes) -> list[list[tuple[int, ...]]]:
    """Rows of colours of a decoded picture, after checking its type."""
    picture = decode(data)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    return [[tuple(pixel) for pixel in row] for row in picture.tolist()]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_comes_out_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](quadrants()))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    picture = decode(encoded(stored, format, exif=exif, **options))
    assert picture.shape == (32, 48, 3)
    for (row, column), colour in {(0, 0): RED, (0, -1): GREEN, (-1, 0): BLUE, (-1, -1): YELLOW}.items():
        np.testing.assert_allclose(picture[row, column].astype(int), colour, atol=4)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    picture = Image.new("CMYK", (32, 16), (0, 255, 255, 0))
    picture.paste((255, 0, 0, 0), (16, 0, 32, 16))
    decoded = decode(encoded(picture, "JPEG", quality=95))
    assert decoded.shape == (16, 32, 3)
    np.testing.assert_allclose(decoded[8, 4].astype(int), RED, atol=6)
    np.testing.assert_allclose(decoded[8, 28].astype(int), (0, 255, 255), atol=6)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 10 * 257], [300, 40000, 65406, 65535]], np.uint16)
    expected = [[0, 0, 1, 10], [1, 156, 254, 255]]
    assert pixels(encoded(values)) == [[(value,) * 3 for value in row] for row in expected]


def test_16_bit_grey_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels(encoded(np.array([[0, 65535]], np.uint16), exif=exif)) == [[(0, 0, 0)], [WHITE]]


def test_palette_transparency_is_laid_over_white() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *BLUE, *GREEN])
    picture.putdata([0, 1, 2])
    assert pixels(encoded(picture)) == [[RED, BLUE, GREEN]]
    assert pixels(encoded(picture, transparency=0)) == [[WHITE, BLUE, GREEN]]
    assert pixels(encoded(picture, transparency=bytes([0, 51, 255]))) == [[WHITE, (204, 204, 255), GREEN]]
    assert pixels(encoded(picture, "GIF", transparency=1)) == [[RED, WHITE, GREEN]]


def test_alpha_is_laid_over_white() -> None:
    rgba = np.array([[[0, 0, 255, 0], [0, 0, 255, 51], [0, 0, 255, 255]]], np.uint8)
    assert pixels(encoded(rgba)) == [[WHITE, (204, 204, 255), BLUE]]
    grey = Image.fromarray(np.array([[[0, 0], [0, 255]]], np.uint8), "LA")
    assert pixels(encoded(grey)) == [[WHITE, (0, 0, 0)]]


def test_colour_key_is_transparent() -> None:
    assert pixels(encoded(np.array([[RED, BLUE]], np.uint8), transparency=RED)) == [[WHITE, BLUE]]
    assert pixels(encoded(np.array([[9, 0]], np.uint8), transparency=9)) == [[WHITE, (0, 0, 0)]]


def test_grey_and_one_bit_become_rgb() -> None:
    assert pixels(encoded(np.array([[0, 77, 255]], np.uint8))) == [[(0, 0, 0), (77, 77, 77), WHITE]]
    assert pixels(encoded(np.array([[True, False]]))) == [[WHITE, (0, 0, 0)]]


def test_one_pixel() -> None:
    assert pixels(encoded(np.array([[RED]], np.uint8))) == [[RED]]


def test_first_picture_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, BLUE)]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0][0] == RED


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the module's own filter
def test_144_million_pixels_where_they_are_allowed() -> None:
    data = large_png(12000, 12000)
    with pytest.raises(UnreadableImage, match="12000 x 12000 are 144,000,000 pixels, above max_pixels.* 64,000,000"):
        decode(data)
    picture = decode(data, 150_000_000)
    assert picture.shape == (12000, 12000, 3) and picture.dtype == np.uint8
    assert picture[[0, 0, -1, -1], [1400, 1600, 1400, -1], 0].tolist() == [0, 255, 0, 255]


def test_a_picture_is_refused_by_its_header() -> None:
    for width, height, allowed in ((13300, 13300, MAX_PIXELS), (101, 100, 100 * 100)):
        with pytest.raises(UnreadableImage, match=f"{width} x {height} are .* pixels, above max_pixels"):
            decode(large_png(width, height, rows=1), allowed)
    with pytest.raises(UnreadableImage, match=r"400000000 pixels"):  # above Pillow's own limit
        decode(large_png(20000, 20000, rows=1))


def test_a_tile_larger_than_its_picture_is_refused() -> None:
    data = bytearray(encoded(quadrants(), "TIFF", compression="tiff_lzw"))
    (table,) = struct.unpack_from("<I", data, 4)
    # Strips become tiles: their offsets, widths and lengths, numbers of bytes and heights, under TIFF's tags.
    for place in range(table + 2, table + 2 + 12 * int.from_bytes(data[table : table + 2], "little"), 12):
        tag, *others = struct.unpack_from("<HHII", data, place)
        changed = {273: (324, *others), 278: (322, 3, 1, 60000), 279: (325, *others), 284: (323, 3, 1, 60000)}
        struct.pack_into("<HHII", data, place, *changed.get(tag, (tag, *others)))
    with pytest.raises(UnreadableImage, match="tiles of 60000 x 60000"):
        decode(bytes(data))


def before(data: bytes) -> np.ndarray:
    """How pictures were decoded before they were converted in bands: whole, turned first."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(values.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def kinds() -> dict[str, tuple[Image.Image, str, dict]]:
    """Pictures of all kinds, of 130 x 90 random pixels, with the format and options that keep them."""
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256, (90, 130, 4), np.uint8)
    deep = rng.integers(0, 65536, (90, 130), np.uint16)
    palette = Image.fromarray(values[..., 0], "P")
    palette.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    images = {"rgb": Image.fromarray(values[..., :3]), "rgba": Image.fromarray(values), "p": palette}
    images |= {"l": Image.fromarray(values[..., 0]), "la": Image.fromarray(values[..., :2], "LA")}
    images |= {"1": Image.fromarray(values[..., 0] > 99), "deep": Image.fromarray(deep)}
    images["cmyk"] = Image.fromarray(values, "CMYK")
    found = {f"{name} {format}": (image, format, {}) for name, image in images.items() for format in ("PNG", "TIFF")}
    del found["cmyk PNG"], found["la TIFF"]
    found["lzw"] = images["rgba"], "TIFF", {"compression": "tiff_lzw"}
    found["32 bits"] = Image.fromarray(deep.astype(np.int32)), "TIFF", {}
    found |= {f"{name} JPEG": (images[name], "JPEG", {}) for name in ("rgb", "l", "cmyk")}
    found["progressive"] = images["rgb"], "JPEG", {"progressive": True}
    found["ycc"] = images["rgb"].convert("YCbCr"), "TIFF", {}
    found["lab"] = Image.fromarray(values[..., :3], "LAB"), "TIFF", {}
    found["p with alphas"] = palette, "PNG", {"transparency": bytes(range(256))}
    found["p with one"] = palette, "PNG", {"transparency": 7}
    found["l with one"] = images["l"], "PNG", {"transparency": 7}
    found["rgb with one"] = images["rgb"], "PNG", {"transparency": tuple(int(x) for x in values[40, 40, :3])}
    found |= {f"{name} WEBP": (images[name], "WEBP", {"lossless": True}) for name in ("rgb", "rgba")}
    found |= {f"{name} GIF": (images[name], "GIF", {"transparency": 3}) for name in ("p", "l")}
    found |= {f"{name} BMP": (images[name], "BMP", {}) for name in ("rgb", "l", "1", "p")}
    found |= {f"{name} PPM": (images[name], "PPM", {}) for name in ("rgb", "l", "1", "deep")}
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:PIL")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_give_the_numbers_of_whole_pictures(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_BAND", 130 * 7)  # 13 bands, the last one shorter
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, (image, format, options) in kinds().items():
        tags = {"exif": exif} if format in ("PNG", "TIFF", "JPEG", "WEBP") else {}
        data = encoded(image, format, **tags, **options)
        assert np.array_equal(decode(data), before(data)), name


@pytest.mark.parametrize(
    "kind",
    ["rgba", pytest.param("deep turned", marks=pytest.mark.slow), pytest.param("cmyk turned", marks=pytest.mark.slow)],
)
def test_a_picture_of_62_million_pixels_takes_less_than_600_megabytes(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mode, _, turned = kind.partition(" ")
    size, path = (7900, 7900), tmp_path / "picture"
    if mode == "cmyk":
        Image.new("CMYK", size, (9, 99, 199, 1)).save(path, "JPEG", exif=exif)
    else:
        image = Image.new("RGBA", size, (9, 99, 199, 77)) if mode == "rgba" else Image.new("I;16", size, 12345)
        image.save(path, "PNG", compress_level=1, exif=exif if turned else None)
    code = f"""
from extract.vision.decode import decode, decode_file
decode(open({str(path.with_name("small"))!r}, "rb"))
print(peak())
assert decode_file({str(path)!r}).shape == (7900, 7900, 3)
print(peak())
"""
    Image.new("RGB", (8, 8)).save(path.with_name("small"), "PNG")
    idle, most = map(int, run_alone(code).split())
    assert most - idle < 600


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"This is a caption, no picture.\n" * 20, "not a picture"),
        (encoded(quadrants(), "JPEG")[:-20], "truncated"),
        (encoded(quadrants(), "JPEG")[:20], "."),
        (encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:5000], "truncated"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "beyond 16 bits"),
        (encoded(Image.fromarray(np.array([[-1, 7]], np.int32)), "TIFF"), "beyond 16 bits"),
    ],
    ids=["empty", "text", "jpeg", "jpeg header", "png", "float", "32 bits", "negative"],
)
def test_unreadable_pictures_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)


def test_other_formats_and_variants_are_unreadable() -> None:
    with pytest.raises(UnreadableImage, match="not a picture in any format that is read: JPEG, PNG"):
        decode(encoded(quadrants(), "DDS"))
    data = bytearray(encoded(quadrants(), "BMP"))
    data[28] = 7  # bits a pixel
    with pytest.raises(UnreadableImage, match="pixel depth"):
        decode(bytes(data))


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, mark = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for once a process
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (9, 9)).save(picture, "EPS")
    with pytest.raises(UnreadableImage, match="not a picture in any format"):
        decode_file(picture)
    with open(picture, "rb") as file:
        assert _upright_size(file) == (None, None)
    assert not mark.exists()
    with pytest.raises(OSError), Image.open(picture) as image:
        image.load()
    assert mark.exists()  # so the picture does what it says


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM"])
def test_damaged_bytes_give_a_picture_or_a_reason(format: str) -> None:
    rng = np.random.default_rng(5)
    data = np.frombuffer(encoded(rng.integers(0, 256, (24, 31, 3), np.uint8), format), np.uint8)
    unreadable = 0
    for _ in range(150):
        damaged = data.copy()
        damaged[rng.integers(0, min(len(data), 120), rng.integers(1, 6))] = rng.integers(256)
        try:
            picture = decode(damaged[: rng.integers(len(data) // 2, 2 * len(data))].tobytes())
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        except UnreadableImage as error:
            assert str(error)
            unreadable += 1
    assert unreadable > 10
