"""Draws one scene of the demo: coloured, textured shapes on a soft background, with the truth of what was drawn.

A scene holds a few objects, each one of 5 shapes x 6 colours x 3 textures x 2 sizes, that never overlap. Everything
is decided by the `numpy.random.Generator` that is handed in. The same function feeds the demo's data set (`scenes.py`)
and the training of the demo's detector.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")

_PALETTE = {
    "red": (222, 58, 66),
    "orange": (243, 128, 36),
    "yellow": (246, 200, 32),
    "green": (52, 160, 88),
    "blue": (48, 112, 214),
    "purple": (136, 70, 190),
}
_SIDES = {"small": (0.14, 0.17), "large": (0.25, 0.30)}  # of the picture's side
_FINE = 4  # objects are drawn this many times finer, then shrunk
_GAP = 0.02  # least distance between two boxes, of the picture's side


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its four attributes (`SHAPES`, `COLOURS`, `TEXTURES`, `SIZES`) and its tight box in pixels.

    `box` is (x1, y1, x2, y2) between pixels: the object covers columns x1 to x2 - 1 and rows y1 to y2 - 1.
    """

    shape: str
    colour: str
    texture: str
    size: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """What was drawn: the picture's side in pixels, and the objects from left to right."""

    side: int
    objects: tuple[SceneObject, ...]


def draw_scene(
    rng: np.random.Generator, size: int = 160, min_objects: int = 2, max_objects: int = 6
) -> tuple[np.ndarray, Scene]:
    """Draw one scene of `size` x `size` pixels with `min_objects` to `max_objects` objects (both may occur).

    Returns the RGB picture, uint8 [size, size, 3], and the scene. Equal generator states give equal scenes.
    """
    corners, sides, sizes = _layout(rng, size, int(rng.integers(min_objects, max_objects + 1)))
    picture = _background(rng, size)
    shade = Image.new("L", (size, size))
    stamps, objects = [], []
    for (x, y), side, size_name in zip(corners, sides, sizes, strict=True):
        shape = SHAPES[rng.integers(len(SHAPES))]
        colour = COLOURS[rng.integers(len(COLOURS))]
        texture = TEXTURES[rng.integers(len(TEXTURES))]
        mask = _mask(rng, shape, side)
        objects.append(SceneObject(shape, colour, texture, size_name, _box(mask, x, y)))
        stamps.append((mask, _pattern(rng, texture, side), _tint(rng, colour), (x, y)))
        shade.paste(70, (x + size // 100, y + size // 80), mask)
    picture.paste((40, 40, 70), (0, 0), shade.filter(ImageFilter.BoxBlur(size / 80)))
    for mask, pattern, tint, corner in stamps:
        picture.paste(tint, corner, mask)
        if pattern is not None:
            light = tuple(channel + (255 - channel) * 7 // 10 for channel in tint)
            picture.paste(light, corner, ImageChops.multiply(mask, pattern))
    grain = rng.integers(-1, 2, (size, size, 1), dtype=np.int16)
    pixels = np.clip(np.asarray(picture, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
    return pixels, Scene(size, tuple(sorted(objects, key=lambda item: item.box)))


def _box(mask: Image.Image, x: int, y: int) -> tuple[float, float, float, float]:
    """The tight box, in the picture, of the pixels of a tile at (x, y) that are at least half covered."""
    covered = np.asarray(mask) >= 128
    columns, rows = np.flatnonzero(covered.any(0)), np.flatnonzero(covered.any(1))
    return float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1)


def _layout(rng: np.random.Generator, size: int, count: int) -> tuple[list[tuple[int, int]], list[int], list[str]]:
    """Top left corners, sides and size names of `count` squares with a gap between them; starts over when stuck."""
    gap = max(1, round(_GAP * size))
    while True:
        names = [SIZES[k] for k in rng.integers(len(SIZES), size=count)]
        sides = [round(size * rng.uniform(*_SIDES[name])) for name in names]
        corners: list[tuple[int, int]] = []
        for side in sides:
            for x, y in rng.integers(gap, size - side - gap, (20, 2), endpoint=True).tolist():
                if all(
                    x + side + gap <= u or u + other + gap <= x or y + side + gap <= v or v + other + gap <= y
                    for (u, v), other in zip(corners, sides, strict=False)
                ):
                    corners.append((x, y))
                    break
            else:
                break
        if len(corners) == count:
            return corners, sides, names


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """A pale wash of colours: a 4 x 4 grid of like shades, smoothly enlarged."""
    base = rng.uniform(200, 236) + rng.uniform(-14, 14, 3)
    grid = np.clip(base + rng.uniform(-14, 14, (4, 4, 1)) + rng.uniform(-8, 8, (4, 4, 3)), 0, 250).astype(np.uint8)
    return Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)


def _tint(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """The palette's colour, a little lighter or darker."""
    factor = rng.uniform(0.9, 1.04)
    red, green, blue = (min(255, round(channel * factor)) for channel in _PALETTE[colour])
    return red, green, blue


def _mask(rng: np.random.Generator, shape: str, side: int) -> Image.Image:
    """Coverage of one shape in a `side` x `side` tile, 0 to 255 ("L"), turned by a few degrees."""
    fine = side * _FINE
    image = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(image)
    centre, turn = fine / 2, math.radians(rng.uniform(-12, 12))
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, fine - 1, fine - 1), fill=255)
        if shape == "ring":
            hole = fine * 0.24
            draw.ellipse((hole, hole, fine - 1 - hole, fine - 1 - hole), fill=0)
    else:
        draw.polygon([(centre + fine * x, centre + fine * y) for x, y in _corners(shape, turn)], fill=255)
    return image.reduce(_FINE)


def _corners(shape: str, turn: float) -> list[tuple[float, float]]:
    """Corners of a polygon turned by `turn` radians, centred and scaled so that it fills the square -0.5 to 0.5."""
    if shape == "square":
        polar = [(1.0, math.pi / 4 + k * math.pi / 2) for k in range(4)]
    elif shape == "triangle":
        polar = [(1.0, -math.pi / 2 + k * math.tau / 3) for k in range(3)]
    else:
        polar = [(1.0 if k % 2 == 0 else 0.46, -math.pi / 2 + k * math.pi / 5) for k in range(10)]
    points = [(radius * math.cos(angle + turn), radius * math.sin(angle + turn)) for radius, angle in polar]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    scale = max(right - left, bottom - top)
    return [((x - (left + right) / 2) / scale, (y - (top + bottom) / 2) / scale) for x, y in points]


def _pattern(rng: np.random.Generator, texture: str, side: int) -> Image.Image | None:
    """Where the lighter colour of a texture goes in a `side` x `side` tile ("L"); None for a plain object."""
    if texture == "plain":
        return None
    fine = side * _FINE
    image = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(image)
    period = (3.5 + 0.09 * side) * _FINE
    if texture == "striped":
        angle = math.radians(rng.uniform(25, 65))
        slant, step = math.tan(angle) * fine, 0.9 * period / math.cos(angle)
        for x in np.arange(-slant - rng.uniform(0, step), fine, step):
            draw.polygon([(x, fine), (x + step / 2, fine), (x + step / 2 + slant, 0), (x + slant, 0)], fill=255)
    else:
        radius = period * 0.29
        shift_x, shift_y = rng.uniform(0, period, 2)
        for row, y in enumerate(np.arange(shift_y - period, fine + period, period * 0.87)):
            for x in np.arange(shift_x - period - row % 2 * period / 2, fine + period, period):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return image.reduce(_FINE)
