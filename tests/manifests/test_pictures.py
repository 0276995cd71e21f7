"""A folder of pictures without captions as a data set's source."""

import shutil
from pathlib import Path

from PIL import Image

from manifests import manifest
from manifests.tables import Manifest


def test_its_manifest_has_every_picture_and_no_captions(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, name in enumerate(("a.png", "b/c.JPG", "b/.hidden.png", ".thumbs/a.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 20)).save(root / name, "PNG")
    shutil.copy(root / "a.png", root / "again.png")  # equal bytes leak nothing in one split
    (root / "notes.md").write_text("")
    where = {"images": root, "captions": root, "format": "pictures"}
    manifest.run(**where, val_fraction=0.0, test_fraction=0.0, out=tmp_path / "out")
    listed = Manifest.open(tmp_path / "out")
    assert sorted((row.id, row.path, row.split, row.width) for row in listed.images) == [
        ("a", "a.png", "train", 30),
        ("again", "again.png", "train", 30),
        ("c", "b/c.JPG", "train", 31),
    ]
    assert listed.num_captions == 0
