"""The pack stage: region and token store become WebDataset shards, to share and to stream.

Shards are plain tar files `{dataset}-{split}-{shard:06d}.tar`, byte-identical for identical stores (no times, no
owners, no pickles), of samples in manifest order:

| member              | holds                                                                          |
|---------------------|--------------------------------------------------------------------------------|
| `KEY.features.npy`  | f16 (or f32, as the store) [R, D], region features                             |
| `KEY.boxes.npy`     | f32 [R, 4], absolute (x1, y1, x2, y2) in pixels of the upright picture         |
| `KEY.json`          | id, split, width, height, captions, tokens (a caption's words), num_boxes, and |
|                     | objects_id, objects_conf, attrs_id, attrs_conf [R] where the detector has them |

KEY is the image id. WebDataset ends a key at its first dot and reads a slash as a folder, so `%`, `.`, `/`, `\\` and
control characters are written as in a URL ("a.b" -> "a%2Eb"); the JSON's id is always the true one.
"""

import io
import logging
import re
import tarfile
from pathlib import Path

import numpy as np

from extract.settings import PackSettings
from extract.stores.recipe import write_recipe
from extract.stores.regions import Regions, RegionStore
from extract.stores.tokens import TokenStore
from manifests.errors import InputError
from manifests.files import atomic, canonical_json, whole_folder, write_json, write_text
from manifests.progress import progress
from manifests.schema import SPLITS, ImageRow, read_manifest

SCHEMA = 1
_DETECTED = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
_ESCAPED = re.compile(r"[%./\\\x00-\x1f\x7f]")

log = logging.getLogger(__name__)


def run(*, dataset: str, manifest: Path, regions: Path, tokens: Path, settings: PackSettings, out: Path) -> None:
    """Write the shards of `dataset`, sizes.json, recipe.json and a card to the folder `out`, whole or not at all.

    Images without region features are left out and named in the card. Raises InputError where the stores and the
    manifest don't belong together.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", dataset, re.ASCII):
        raise InputError(
            "a data set's name becomes a file name", where=f"data set {dataset!r}", fix="use letters, digits, - _ and ."
        )
    images, region_store, token_store = read_manifest(manifest), RegionStore(regions), TokenStore(tokens)
    if token_store.image_ids != [image.id for image in images]:
        raise InputError(
            f"holds other images than {manifest}", where=tokens, fix="run the tokens stage of this data set again"
        )
    extracted = set(region_store.ids)
    left_out = [image.id for image in images if image.id not in extracted]
    if len(left_out) == len(images):
        raise InputError(
            f"has none of the images of {manifest}", where=regions, fix="run the regions stage of this data set again"
        )
    if left_out:
        log.warning("%d of %d images have no region features and are left out", len(left_out), len(images))
    shards: dict[str, list[int]] = {}
    for split in SPLITS:
        rows = [row for row, image in enumerate(images) if image.split == split and image.id in extracted]
        for number, first in enumerate(range(0, len(rows), settings.images_per_shard)):
            shards[f"{dataset}-{split}-{number:06d}.tar"] = rows[first : first + settings.images_per_shard]

    names = {"objects": region_store.object_names, "attributes": region_store.attribute_names}
    recipe = {
        "format": "selfalign-webdataset",
        "schema": SCHEMA,
        "images_per_shard": settings.images_per_shard,
        "regions": region_store.recipe,
        "tokens": token_store.recipe,
    }
    with whole_folder(out) as folder:
        with progress(what="pack", unit="images", total=len(images) - len(left_out)) as bar:
            for name, rows in shards.items():
                with atomic(folder / name) as file, tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as shard:
                    for row in rows:
                        found = region_store.regions(region_store.row(images[row].id))
                        _add_sample(shard, images[row], found, _words(token_store, row, images[row]))
                        bar.update()
        write_json(folder / "sizes.json", {name: len(rows) for name, rows in shards.items()})
        write_recipe(folder, recipe, made_by={})
        if any(names.values()):
            write_json(folder / "classes.json", names)
        write_text(folder / "README.md", _card(dataset, images, shards, left_out, region_store.dim))


def sample_key(image_id: str) -> str:
    """An image id as WebDataset key; `urllib.parse.unquote` is the way back."""
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", image_id)


def _words(store: TokenStore, row: int, image: ImageRow) -> list[list[str]]:
    """The words of each caption of an image, which must be the manifest's captions."""
    captions = store.captions_of(row)
    if tuple(store.text(caption) for caption in captions) != image.captions:
        raise InputError(
            f"its captions of image {image.id!r} are not the manifest's",
            where=store.path,
            fix="run the tokens stage of this data set again",
        )
    return [store.word_texts(caption) for caption in captions]


def _add_sample(shard: tarfile.TarFile, image: ImageRow, found: Regions, words: list[list[str]]) -> None:
    """Append the three members of one image."""
    width, height = (int(side) for side in found.image_size)
    facts = {
        "id": image.id,
        "split": image.split,
        "width": width,
        "height": height,
        "captions": list(image.captions),
        "tokens": words,
        "num_boxes": len(found.boxes),
    }
    facts |= {name: values.tolist() for name in _DETECTED if (values := getattr(found, name)) is not None}
    for name, content in (
        ("features.npy", _npy(found.features)),
        ("boxes.npy", _npy(found.boxes)),
        ("json", canonical_json(facts).encode("utf-8")),
    ):
        member = tarfile.TarInfo(f"{sample_key(image.id)}.{name}")  # mtime, uid, gid 0, no names, mode 0o644
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


_CARD = """# {dataset}: region features and captions as WebDataset shards

{count} images in {shards} shards, made by SelfAlign. `sizes.json` says how many images each shard holds, `recipe.json`
how features and words were made, `classes.json` (if the detector has them) what the object and attribute ids mean.

| shards | images | captions |
|---|---|---|
{splits}

Read them with the `webdataset` package alone, from this folder or with the address of a server before the file name:

```python
import webdataset
for sample in webdataset.WebDataset("{url}", shardshuffle=False).decode():
    print(sample["json"]["id"], sample["features.npy"].shape, sample["boxes.npy"].shape, sample["json"]["captions"])
```

- `features.npy`: f16 (or f32) `[R, {dim}]`, a row a region. `boxes.npy`: f32 `[R, 4]`, absolute (x1, y1, x2, y2) in
  pixels.
- `json`: `id`, `split`, `width`, `height`, `captions`, `tokens` (the lower-cased words of each caption, without
  punctuation), `num_boxes` (R) and, if the detector has them, `objects_id`, `objects_conf`, `attrs_id`, `attrs_conf`.
- A key is the image id with `%`, `.`, `/` and `\\` written as in a URL; `json`'s `id` is the id itself.
- Images left out, since they have no region features: {left_out}.
"""


def _card(dataset: str, images: list[ImageRow], shards: dict[str, list[int]], left_out: list[str], dim: int) -> str:
    """README.md for the person who receives the folder."""
    lines, patterns = [], []
    for split in SPLITS:
        of_split = [rows for name, rows in shards.items() if name.startswith(f"{dataset}-{split}-")]
        if of_split:
            numbers = "000000" if len(of_split) == 1 else f"{{000000..{len(of_split) - 1:06d}}}"
            patterns.append(f"{dataset}-{split}-{numbers}.tar")
            rows = [row for shard in of_split for row in shard]
            captions = sum(len(images[row].captions) for row in rows)
            lines.append(f"| `{patterns[-1]}` | {len(rows)} | {captions} |")
    shown = ", ".join(f"`{id}`" for id in left_out[:20]) + (", ..." if len(left_out) > 20 else "")
    return _CARD.format(
        dataset=dataset,
        count=len(images) - len(left_out),
        shards=len(shards),
        splits="\n".join(lines),
        url=patterns[0],
        dim=dim,
        left_out=f"{len(left_out)} ({shown})" if left_out else "none",
    )
