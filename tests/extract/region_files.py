"""What the tests of the region stage share: pictures of known content, manifests of them, runs of the stage."""

import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import demo
from demo.detector.demo import DemoDetectorSettings
from demo.scenes.drawing import Scene, draw_scene
from extract.settings import BottomUpSettings, RegionSettings
from extract.stages import regions
from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest

WEIGHTS = Path(demo.__file__).parent / "weights" / "demo.safetensors"
SEED = 4711  # of the scenes here: neither the demo's nor that of the detector's training


def scene(number: int) -> tuple[np.ndarray, Scene]:
    """Fresh scene `number`: uint8 ``[160, 160, 3]`` and its truth."""
    return draw_scene(np.random.default_rng([SEED, number]))


def encoded(picture: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def large_png(width: int, height: int, rows: int | None = None) -> bytes:
    """A 1-bit PNG, its left eighth black and the rest white; with only `rows` rows of data if given."""
    row = b"\0" + bytes(width // 64) + b"\xff" * (-(-width // 8) - width // 64)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * (height if rows is None else rows), 1)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def region_settings(
    *, min_boxes: int = 12, max_boxes: int = 12, score_threshold: float = 0.2, **others: Any
) -> RegionSettings:
    """Settings with the committed weights; `others` are keys of `RegionSettings`."""
    return RegionSettings(
        detector=DemoDetectorSettings(name="demo", weights=str(WEIGHTS), sha256=sha256(WEIGHTS)),
        selection=BottomUpSettings(min_boxes=min_boxes, max_boxes=max_boxes, score_threshold=score_threshold),
        **others,
    )


def quick_settings(**others: Any) -> RegionSettings:
    """`region_settings` under which the detector sees pictures of 64 pixels."""
    settings = region_settings(**others)
    detector = settings.detector.model_copy(update={"shortest": 64, "longest": 64})
    return settings.model_copy(update={"detector": detector})


@dataclass(frozen=True)
class Pictures:
    """An image root and the manifest of it, in one folder."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest"

    @property
    def out(self) -> Path:
        """The store of the train split, in which all pictures are."""
        return self.folder / "regions" / "train"

    def extract(self, settings: RegionSettings, **others: Any) -> Path:
        """Run the stage; `others` replace its arguments. Gives the train split's store."""
        places = {"manifest": self.manifest, "images": self.images, "out": self.out.parent, "cache": self.cache}
        arguments = places | others
        regions.run(dataset="tiny", settings=settings, **arguments)
        return arguments["out"] / "train"


def write_pictures(folder: Path, files: dict[str, bytes]) -> Pictures:
    """Write picture files (name -> bytes) and their manifest, in this order; the id of "a.png" is "id-a.png"."""
    pictures = Pictures(folder)
    pictures.images.mkdir(parents=True)
    for name, data in files.items():
        (pictures.images / name).write_bytes(data)
    write_manifest(
        pictures.manifest,
        [
            CaptionedImage(f"id-{name}", name, sha256(pictures.images / name), None, None, "train", ("A ring.",))
            for name in files
        ],
    )
    return pictures


def scene_files(count: int, first: int = 0) -> dict[str, bytes]:
    """Picture files of `count` scenes."""
    return {f"{i:03d}.png": encoded(scene(i)[0], compress_level=1) for i in range(first, first + count)}


def mixed_files() -> dict[str, bytes]:
    """Picture files of six scenes in four shapes, shuffled among each other: 15 pictures."""
    sizes = ((160, 160), (320, 320), (240, 160), (160, 240))
    return {
        f"{i:03d}.png": encoded(Image.fromarray(scene(i % 6)[0]).resize(sizes[i * 7 % 4]), compress_level=1)
        for i in range(15)
    }


def cached(cache: Path, per_shard: int) -> dict[str, Path]:
    """The finished shards of a cache by the name that they have in the store: pictures are called 000.png and so on."""
    sidecars = [path for path in cache.glob("regions/*/*/*.json") if path.with_suffix(".h5").is_file()]
    first = {path: json.loads(path.read_text())["first"] for path in sidecars}
    numbers = {path: int(name.removeprefix("id-").removesuffix(".png")) // per_shard for path, name in first.items()}
    return {f"{number:06d}.h5": path.with_suffix(".h5") for path, number in sorted(numbers.items(), key=lambda i: i[1])}


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
