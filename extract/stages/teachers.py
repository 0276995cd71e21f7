"""Stage `teachers@D`: what uni-modal teachers make of every image and every caption, once, for CUSA's soft labels.

    selfalign teachers flickr30k

A teacher sees one modality: a vision model or the means of the regions, a sentence encoder or word statistics
(`extract.teachers`). A shard of images or captions is the unit of work; finished ones wait in the staging folder, where
a killed run continues.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from extract.engine.code import code_fingerprint
from extract.engine.staging import Staging
from extract.stores.intact import INDEX
from extract.stores.recipe import note_made, write_recipe
from extract.stores.teachers import FAILURES, FORMAT, SCHEMA, Side, write_shard
from extract.teachers.lsa import LatentSemantics
from extract.teachers.regions_mean import RegionsMean
from extract.teachers.sentences import SentenceTeacher
from extract.teachers.settings import LSA, REGIONS_MEAN, TeacherSettings
from extract.teachers.teacher import Teacher
from extract.teachers.vision import VisionTeacher
from manifests.errors import InputError
from manifests.files import canonical_json, fingerprint, write_json, write_text
from manifests.progress import progress
from manifests.tables import Manifest, manifest_sha256

_CODE = code_fingerprint("extract.stages.teachers")


def run(
    *,
    dataset: str,
    manifest: Path,
    regions: Path,
    images: Path,
    settings: TeacherSettings,
    out: Path,
    staging: Path,
    device: str = "cpu",
    batch_size: int = 16,
    caption_batch: int = 256,
    readers: int = 2,
) -> None:
    """Write the teacher store of a manifest to the folder `out`, whole or not at all.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : its folder; its sha256 sums say which pictures are meant.
    regions : the region store, read by the teacher regions-mean only.
    images : the image root, read by vision models only.
    staging : folder below which finished shards wait for the others.
    device, batch_size, caption_batch, readers : torch device, pictures and captions a batch, threads that read
        pictures; they change the speed and the last bits.

    Raises
    ------
    InputError : an empty manifest, a model that isn't on this machine, a picture that can't be read, or vectors that
        are not finite.
    """
    listed = Manifest.open(manifest)
    rows, texts = listed.images, listed.texts(0, listed.num_captions)
    if not texts:
        raise InputError("it lists no caption", where=manifest, fix="run the manifest stage again")
    teachers: dict[Side, Teacher] = {}
    if settings.images.model == REGIONS_MEAN:
        teachers["images"] = RegionsMean(regions, rows)
    else:
        how = {"device": device, "batch_size": batch_size, "readers": readers, "max_pixels": settings.max_pixels}
        teachers["images"] = VisionTeacher(settings.images, rows, images, skip=settings.unreadable == "skip", **how)
    if settings.captions.model == LSA:
        train = np.flatnonzero(np.isin(listed.caption_rows, listed.rows_in("train"))).tolist()
        teachers["captions"] = LatentSemantics(texts, train, settings.captions.dim)
    else:
        teachers["captions"] = SentenceTeacher(settings.captions, texts, device=device, batch_size=caption_batch)

    recipe = {"format": FORMAT, "schema": SCHEMA, **{side: teacher.recipe for side, teacher in teachers.items()}}
    recipe_hash, manifest_digest = fingerprint(recipe), manifest_sha256(manifest)
    key = {
        "recipe": recipe,
        "manifest": manifest_digest,
        "settings": settings.model_dump(mode="json"),
        "code": _CODE,
        # They move the last bits.
        "batches": [batch_size, caption_batch],
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    staged, shards = Staging(staging, key), []
    counts: dict[Side, int] = {"images": len(rows), "captions": len(texts)}
    with staged.alone(out, f"teaching of {dataset}") as made:
        if made:
            return
        for side, teacher in teachers.items():
            with progress(what=f"teachers {dataset}: {side}", unit=side, total=counts[side]) as bar:
                for first in range(0, counts[side], settings.items_per_shard):
                    part = range(first, min(first + settings.items_per_shard, counts[side]))
                    path = staged.folder / f"{len(shards):06d}.h5"
                    done = staged.finished(path)
                    if done is None:
                        write_shard(path, _embed(teacher, part, bar), recipe_hash)
                        failures = [
                            {"id": rows[row].id, "path": rows[row].path, "reason": reason}
                            for row, reason in sorted(teacher.failures.items())
                            if row in part
                        ]
                        done = staged.finish(path, {"of": side, "count": len(part), "failures": failures})
                    else:
                        bar.update(len(part))
                    shards.append(done)
        failures = [failure for shard in shards for failure in shard["failures"]]
        if len(failures) == len(rows):
            raise InputError(
                f"none of its {len(rows)} images has a vector; the first: {failures[0]['reason']}",
                where=manifest,
                fix="check the image root and the pictures",
            )
        index = {
            "schema": SCHEMA,
            **counts,
            "dims": {side: teacher.dim for side, teacher in teachers.items()},
            "manifest_sha256": manifest_digest,
            "shards": [{name: shard[name] for name in ("file", "of", "count", "sha256")} for shard in shards],
        }
        with staged.install(out, shards) as folder:
            write_json(folder / INDEX, index)
            write_text(folder / FAILURES, "".join(canonical_json(failure) + "\n" for failure in failures))
            write_recipe(folder, recipe)
            write_text(folder / "README.md", _card(dataset, index, recipe, recipe_hash, len(failures)))
    note_made(out, recipe_hash, "torch", "transformers", "h5py", "numpy", device=device)
    if failures:
        tqdm.write(f"{len(failures)} of {len(rows)} images have no vector: see {Path(out) / FAILURES}")


def _embed(teacher: Teacher, rows: range, bar: tqdm) -> np.ndarray:
    """Vectors ``[n, W]`` of some rows, in their order."""
    found = np.empty((len(rows), teacher.dim), np.float32)
    for some, vectors in teacher.embed(rows):
        wrong = ~np.isfinite(vectors).all(1)
        if wrong.any():
            raise InputError(
                f"the vector of row {some[int(wrong.argmax())]} is NaN or infinite",
                where=f"teacher {teacher.recipe['name']!r}",
                fix="choose another teacher",
            )
        found[np.asarray(some) - rows.start] = vectors
        bar.update(len(some))
    return found


_CARD = """# Uni-modal teachers: {dataset}

{images:,} images and {captions:,} captions, a vector of length 1 each (float16).

| what | images | captions |
|---|---|---|
| teacher | `{image_teacher}` | `{caption_teacher}` |
| weights | {image_weights} | {caption_weights} |
| numbers a vector | {image_dim} | {caption_dim} |

Rows are in the manifest's order, images in the first shards, captions in those after (`index.json` says which, with
counts and sha256). {failed} images have no vector and are zeros: `failures.jsonl`. Recipe `{recipe_hash}`
(`recipe.json` has it whole).

The vector of the first image with h5py alone:

```python
import h5py
embedding = h5py.File("000000.h5", locking=False)["embeddings"][0]
```

or with SelfAlign: `extract.stores.teachers.TeacherStore(".").embeddings("images", [0])`.
"""


def _card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str, failed: int) -> str:
    """README.md for the person who receives the folder."""
    return _CARD.format(
        dataset=dataset,
        images=index["images"],
        captions=index["captions"],
        image_teacher=recipe["images"]["name"],
        caption_teacher=recipe["captions"]["name"],
        image_weights=_weights(recipe["images"]),
        caption_weights=_weights(recipe["captions"]),
        image_dim=index["dims"]["images"],
        caption_dim=index["dims"]["captions"],
        failed=failed or "No",
        recipe_hash=recipe_hash,
    )


def _weights(recipe: dict[str, Any]) -> str:
    files: Sequence[str] = [f"{name} sha256 `{digest}`" for name, digest in recipe.get("weights_sha256", {}).items()]
    return ", ".join(files) or "none: built in"
