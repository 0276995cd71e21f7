"""The `regions` stage of an imported data set: ordinary region stores, made of files instead of pictures.

The recipe says `imported`, with the files' sha256. The files are hashed again during the import. Finished shards wait
in the staging folder, so that a killed import continues. The stores appear whole or not at all.
"""

from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from extract.engine.build import building
from extract.engine.code import code_fingerprint
from extract.engine.maker import Parts, ShardJob, Workers
from extract.exchange import shards
from extract.exchange.formats import open_source
from extract.exchange.shards import ImportShards
from extract.exchange.source import Source
from extract.settings import About, ImportSettings
from extract.stages.region_stores import install_region_stores
from extract.stores.made import note_made
from extract.stores.regions import SCHEMA
from manifests.errors import InputError
from manifests.files import fingerprint
from manifests.imported import Imported, read_source
from manifests.progress import progress
from manifests.registry import identity
from manifests.tables import Manifest, images_sha256

CODE = code_fingerprint("extract.stages.import_regions")


def run(
    *,
    dataset: str,
    manifest: Path,
    images: Path,
    settings: ImportSettings,
    out: Path,
    staging: Path,
    readers: int = 2,
    check: bool = True,
    workers: Workers | None = None,
    about: About | None = None,
) -> None:
    """Import the regions of every image of a manifest into the region stores `out`/train, `out`/val and `out`/test.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : the folder of an imported data set's manifest, with ``source.json``.
    images : file or folder with the regions.
    staging : folder where finished shards wait.
    readers : threads that read and convert.
    check : hash the files again, to notice a change since the manifest was made. A caller that has just made it needs
        no check.
    workers : make the shards; they must see the same files under the same paths.
    about : the pictures' licence and the works to cite, for the card.

    Raises
    ------
    InputError : a file that changed since the manifest was made, and the errors of `ImportShards`.
    """
    job, recipe = prepare(manifest=manifest, images=images, settings=settings, staging=staging, readers=readers)
    listed, imported, maker, title = Manifest.open(manifest), read_source(manifest), job.maker, f"regions {dataset}"
    key = {**job.work["key"], "about": (about or About()).model_dump(), "code": CODE}
    with (
        _hashed_again(maker.source, imported, check) as require_unchanged,
        building(out, f"import of {dataset}", key, [job], title=title, workers=workers) as built,
    ):
        if built is None:
            return
        require_unchanged()
        names = {"object_names": imported.object_names, "attribute_names": imported.attribute_names}
        facts = {"dataset": dataset, "about": about, "dim": maker.about.dim, "dense": imported.boxes, **names}
        places = listed.shards(settings.images_per_shard)
        install_region_stores(out, listed, places, built[0], recipe, **facts)
        note_made(out, fingerprint(recipe), "numpy", "h5py")


def prepare(
    *, manifest: Path, images: Path, settings: ImportSettings, staging: Path, readers: int
) -> tuple[ShardJob, dict[str, Any]]:
    """The shards of an import, and the store's recipe. Raises `InputError` for a manifest of other files."""
    listed, imported = Manifest.open(manifest), read_source(manifest)
    if len(imported.places) != len(listed):
        raise InputError("not as long as its source.json", where=manifest, fix="run the manifest stage again")
    files = fingerprint(imported.files)
    for row, place in zip(listed.images, imported.places, strict=True):
        if row.sha256 != fingerprint([files, place]):
            raise InputError(
                f"its sha256 isn't that of image {row.id!r}'s place in the files, as source.json tells it",
                where=manifest,
                fix="run the manifest stage again",
            )
    source = open_source(imported.format, images, **settings.given)
    source.object_names = imported.object_names
    recipe = {
        "format": {"schema": SCHEMA, "features": settings.precision},
        "imported": {
            "format": imported.format,
            "files": imported.files,
            "boxes": source.boxes,
            "sizes": settings.sizes if source.boxes and "sizes" in source.options else None,
            "info": settings.info,
            **({"dtype": settings.dtype} if settings.dtype else {}),
            **identity(type(source)),
        },
    }
    key = {"recipe": recipe, "manifest": images_sha256(manifest), "images_per_shard": settings.images_per_shard}
    dim, labels = _first_image(source, imported)
    names = (imported.object_names, imported.attribute_names)
    work = {
        "images": images,
        "settings": settings,
        "about": shards.About(imported.format, imported.boxes, *names, dim, labels, listed.id_bytes),
        "recipe_hash": fingerprint(recipe),
        "staging": staging,
        "key": key,
        "readers": readers,
    }

    own = listed.shards(settings.images_per_shard)

    def read(number: int) -> list[shards.Image]:
        rows = own[number].rows
        images = zip(rows.tolist(), listed.images_at(rows), strict=True)
        return [shards.Image(image.id, imported.places[row]) for row, image in images]

    parts = Parts(len(own), read)
    return ShardJob(ImportShards(**work), parts, "regions", "images", ImportShards, work, on_device=False), recipe


def _first_image(source: Source, imported: Imported) -> tuple[int, list[str]]:
    """What all images must have as the first one with a region has it: the length of a feature, and which labels."""
    for place in imported.places:
        record = source.read(place)
        if len(record.features):
            return record.features.shape[1], sorted(record.labels)
    raise InputError("no image has a region", where=source.root, fix="check `source.images`, the path of the regions")


@contextmanager
def _hashed_again(source: Source, imported: Imported, check: bool) -> Iterator[Any]:
    """Hash the files in a thread; gives a function that waits, and raises `InputError` for one that has changed."""
    given_up = Event()

    def go_on(_: int) -> None:
        if given_up.is_set():
            raise CancelledError

    with ThreadPoolExecutor(1) as beside:
        again = beside.submit(source.hash_again, go_on) if check else None

        def require_unchanged() -> None:
            now = again.result() if again else imported.files
            for name, digest in imported.files.items():
                if now.get(name) != digest:
                    raise InputError(
                        "it has changed since the manifest was made",
                        where=source.root / name,
                        fix="run the manifest stage again: `dvc repro -f manifest@<data set>`",
                    )

        try:
            yield require_unchanged
        finally:
            given_up.set()


def changed_files(manifest: Path, images: Path, settings: ImportSettings) -> Iterator[tuple[str, str]]:
    """The files of an imported data set that aren't those its manifest was made of, with what is wrong."""
    imported = read_source(manifest)
    source = open_source(imported.format, images, **settings.given)
    with progress(what="check", unit="B", total=source.size, scale=True) as bar:
        now = source.hash_again(bar.update)
    for name, digest in imported.files.items():
        if now.get(name) != digest:
            yield (
                str(source.root / name if source.root.is_dir() else source.root),
                "changed" if name in now else "missing",
            )
