"""COCO's ids of captions: kept where an image and its caption have one; read with checks from older manifests."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.coco_ids import COCO_IDS, read_coco_ids
from manifests.errors import InputError
from manifests.manifest import run
from manifests.tables import Manifest


def made(folder: Path, *, cocoids: tuple, sentids: tuple) -> Path:
    """The manifest folder of one picture an id, with a caption an id of its own."""
    images = []
    for number, (cocoid, own) in enumerate(zip(cocoids, sentids, strict=True)):
        Image.fromarray(np.full((4, 5, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
        sentences = [{"raw": "A dog."} | ({} if sentid is None else {"sentid": sentid}) for sentid in own]
        image = {"filename": f"{number}.png", "split": "test", "sentences": sentences}
        images.append(image | ({} if cocoid is None else {"cocoid": cocoid}))
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    run(images=folder, captions=folder / "dataset.json", format="karpathy", out=folder / "out")
    return folder / "out"


def ids(out: Path) -> dict[str, tuple]:
    return {row.id: row.caption_ids for row in Manifest.open(out).captioned}


def test_ids_of_coco_are_kept_in_order(tmp_path: Path):
    out = made(tmp_path, cocoids=(391895, 60623, 7), sentids=((770337, 771687), (152106,), ()))
    assert ids(out) == {"391895": (770337, 771687), "60623": (152106,), "7": ()}
    made(tmp_path, cocoids=(391895, None), sentids=((0, None), (152106,)))
    assert ids(out) == {"391895": (0, None), "1": ()}


@pytest.mark.parametrize(
    ("cocoids", "sentids"), [((None,), ((3,),)), ((1, 2), ((None,), (None,))), (("a",), ((3,),)), ((1,), ((),))]
)
def test_what_is_not_of_coco_has_none(tmp_path: Path, cocoids: tuple, sentids: tuple):
    assert set(ids(made(tmp_path, cocoids=cocoids, sentids=sentids)).values()) == {()}


def test_broken_ids_are_refused_and_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"images\[0\].sentences\[0\]: 'sentid' must be a whole number, not 'x'"):
        made(tmp_path, cocoids=(1,), sentids=(("x",),))
    with pytest.raises(InputError, match="'sentid' must be a whole number, not 9223372036854775808"):
        made(tmp_path, cocoids=(1,), sentids=((2**63,),))
    for bad in ("true", "9223372036854775808"):
        (tmp_path / COCO_IDS).write_text(
            f'{{"image_id": "1", "caption_ids": [2]}}\n{{"image_id": "2", "caption_ids": [{bad}]}}\n'
        )
        with pytest.raises(InputError, match="line 2: a row must have .*Fix: run the manifest stage again"):
            read_coco_ids(tmp_path / COCO_IDS)
