"""Stage `teachers@D`: uni-modal teachers' vectors of every image and every caption, once, for CUSA's soft labels.

    selfalign teachers flickr30k

A teacher (`extract.teachers`) sees one modality. A model's vectors are kept in the cache by the sha256 of the picture
or the caption. Vectors of a teacher that is fitted on the data set wait in the staging folder, where a killed run
continues.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from extract.cards.render import teacher_card
from extract.engine.build import building, installing
from extract.engine.code import code_fingerprint
from extract.engine.finished import Staging
from extract.engine.maker import ShardJob, Workers, parts_of
from extract.stores.intact import INDEX, intact_digests
from extract.stores.made import made_in, note_made
from extract.stores.recipe import require_same_recipe, write_recipe
from extract.stores.regions import region_stores
from extract.stores.teachers import FAILURES, FORMAT, SCHEMA, SIDES, Side, TeacherStore
from extract.teachers.settings import TeacherSettings
from extract.teachers.shards import TeacherShards, load_teacher, loaded, teacher_code
from extract.teachers.teacher import Inputs
from manifests.errors import InputError
from manifests.files import canonical_json, fingerprint, write_json, write_text
from manifests.tables import Manifest, manifest_sha256

CODE = code_fingerprint("extract.stages.teachers")


def run(
    *,
    dataset: str,
    manifest: Path,
    regions: Path,
    images: Path,
    settings: TeacherSettings,
    out: Path,
    cache: Path,
    staging: Path,
    device: str = "cpu",
    batch_size: int = 16,
    caption_batch: int = 256,
    readers: int = 2,
    workers: Workers | None = None,
    exact: bool = False,
    earlier: Path | None = None,
) -> None:
    """Write the teacher store of a manifest to the folder `out`, whole or not at all.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : its folder; its sha256 sums say which pictures are meant.
    regions, images : the region store and the image root, for teachers that read regions or pictures.
    cache : the machine's cache folder (`extract.engine.cache`).
    staging : folder below which finished shards of fitted teachers wait for the others.
    device, batch_size, caption_batch, readers : torch device, pictures and captions a batch, threads that read
        pictures; they change the speed and the last bits.
    workers : which workers run the models.
    exact : take from the cache only results of the environment at hand.
    earlier : a store of an older project, of the same images and captions, whose vectors are taken instead of computed
        ones.

    Raises
    ------
    InputError : an empty manifest, a model that isn't on this machine, a picture that can't be read, or vectors that
        are not finite.
    """
    listed = Manifest.open(manifest)
    rows = listed.images
    if not listed.num_captions:
        raise InputError("it lists no caption", where=manifest, fix="run the manifest stage again")
    inputs = Inputs(
        manifest=Path(manifest),
        regions=Path(regions),
        images=Path(images),
        skip=settings.unreadable == "skip",
        max_pixels=settings.max_pixels,
        device="cpu" if workers else device,
        readers=readers,
    )
    looking: dict[Side, Inputs] = {
        "images": replace(inputs, batch_size=batch_size),
        "captions": replace(inputs, batch_size=caption_batch),
    }
    teachers = {side: load_teacher(getattr(settings, side), looking[side]) for side in SIDES}
    recipe = {"format": FORMAT, "schema": SCHEMA, **{side: teacher.recipe for side, teacher in teachers.items()}}
    recipe_hash, manifest_digest = fingerprint(recipe), manifest_sha256(manifest)
    key = {
        "recipe": recipe,
        "manifest": manifest_digest,
        "settings": settings.model_dump(mode="json"),
        "code": [CODE, *(teacher_code(teacher.name) for teacher in teachers.values())],
    }
    if teachers["images"].reads == "regions":
        key["regions"] = intact_digests(region_stores(regions))
    staged = Staging(staging, key)
    title, size = f"teachers {dataset}", settings.items_per_shard
    parts = {
        "images": parts_of(len(rows), size, lambda start, stop: rows[start:stop]),
        "captions": parts_of(listed.num_captions, size, listed.texts),
    }
    jobs = []
    for side, teacher in teachers.items():
        own = {"inputs": looking[side], "recipe_hash": recipe_hash, "exact": exact}
        own |= {"finished": staged if teacher.fitted else cache}
        maker, work = TeacherShards(teacher=teacher, **own), own | {"settings": getattr(settings, side)}
        if earlier is not None:
            maker.earlier = _taken_from(TeacherStore(earlier), recipe, side, listed)
        jobs.append(ShardJob(maker, parts[side], f"{title}: {side}", side, None if teacher.fitted else loaded, work))
    with building(out, f"teaching of {dataset}", key, jobs, title=title, workers=workers) as built:
        if built is None:
            return
        shards = [done | {"file": f"{number:06d}.h5"} for number, done in enumerate([*built[0], *built[1]])]
        failures = []
        for number, done in enumerate(built[0]):
            for each in done["failures"]:
                row = rows[number * size + each["place"]]
                failures.append({"id": row.id, "path": row.path, "reason": each["reason"]})
        if len(failures) == len(rows):
            raise InputError(
                f"none of its {len(rows)} images has a vector; the first: {failures[0]['reason']}",
                where=manifest,
                fix="check the image root and the pictures",
            )
        index = {
            "schema": SCHEMA,
            "images": len(rows),
            "captions": listed.num_captions,
            "dims": {side: teacher.dim for side, teacher in teachers.items()},
            "manifest_sha256": manifest_digest,
            "shards": [{name: shard[name] for name in ("file", "of", "count", "sha256")} for shard in shards],
        }
        with installing(out, shards) as folder:
            write_json(folder / INDEX, index)
            write_text(folder / FAILURES, "".join(canonical_json(failure) + "\n" for failure in failures))
            write_recipe(folder, recipe)
            write_text(folder / "README.md", teacher_card(dataset, index, recipe, recipe_hash, len(failures)))
        note_made(out, recipe_hash, "torch", "transformers", "h5py", "numpy", shards=made_in(shards))
        if failures:
            tqdm.write(f"{len(failures)} of {len(rows)} images have no vector: see {Path(out) / FAILURES}")


def _taken_from(
    store: TeacherStore, recipe: dict[str, Any], side: Side, listed: Manifest
) -> Callable[[list[Any], int], np.ndarray | None]:
    """Gives a side's vectors of an older project's store, which must have the same images and captions.

    Raises `InputError`, with the first key that differs, where its recipe is another one.
    """
    require_same_recipe(store.recipe, store.folder, recipe, "params.yaml")
    items = listed.ids if side == "images" else listed.texts(0, listed.num_captions)
    if store.count(side) != len(items):
        raise InputError(
            f"{store.count(side)} vectors of {side}, the manifest has {len(items)}",
            where=store.folder,
            fix="remove it, and let `dvc repro` make it again",
        )
    failed = store.failures() if side == "images" else {}
    rows = {item: row for row, item in enumerate(items) if item not in failed}

    def take(part: list[Any], place: int) -> np.ndarray | None:
        row = rows.get(part[place].id if side == "images" else part[place])
        return None if row is None else store.stored(side, row)

    return take
