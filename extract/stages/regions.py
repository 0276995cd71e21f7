"""Stage `regions@D`: from the manifest's pictures to a region store a split.

The unit of work is a shard, made here or on the workers of a Dask cluster by the same code
(`extract.vision.shards.RegionShards`), in the cache. The stores are put together from cached and new shards. All stores
appear under their final names at once, whole or not at all.
"""

from collections.abc import Callable
from pathlib import Path

from extract.engine.build import building
from extract.engine.code import code_fingerprint
from extract.engine.maker import Parts, ShardJob, Workers
from extract.settings import About, RegionSettings
from extract.stages.region_stores import install_region_stores
from extract.stores.fields import Regions
from extract.stores.made import made_in, note_made
from extract.stores.recipe import require_same_recipe
from extract.stores.regions import RegionStore
from extract.vision.given import GivenBoxes
from extract.vision.shards import RegionShards
from manifests.errors import InputError
from manifests.files import sha256
from manifests.grounding import FILE as GROUNDING
from manifests.schema import ImageRow
from manifests.tables import Manifest, images_sha256

CODE = code_fingerprint("extract.stages.regions")


def run(
    *,
    dataset: str,
    manifest: Path,
    images: Path,
    settings: RegionSettings,
    out: Path,
    cache: Path,
    device: str = "cpu",
    batch_size: int = 16,
    readers: int = 2,
    workers: Workers | None = None,
    exact: bool = False,
    about: About | None = None,
    earlier: Path | None = None,
) -> None:
    """Extract the regions of every picture of a manifest into the region stores `out`/train, `out`/val, `out`/test.

    Parameters
    ----------
    dataset : its name, for the card.
    manifest : its folder; pictures must have its sha256 sums.
    images : the image root that the manifest's paths start from.
    cache : the machine's cache folder (`extract.engine.cache`): its results aren't computed again, and a killed run
        continues from there.
    device, batch_size, readers : how fast it goes: torch device, pictures a batch, decoding threads.
    workers : make the shards, each on its own device; they must see the same files under the same paths.
    exact : take from the cache only results of the environment at hand.
    about : the pictures' licence and the works to cite, for the card.
    earlier : a store of an older project, whose regions are taken instead of computed ones.

    Raises
    ------
    InputError : a picture that can't be decoded (unless ``settings.unreadable`` is "skip"), that is missing or that
        changed since the manifest was made. Also wrong weights, no readable picture at all, a full disk, and an earlier
        store of another recipe. If the workers could not make some shards, all others are kept.
    """
    listed = Manifest.open(manifest)
    if not len(listed):
        raise InputError("it lists no image", where=manifest, fix="run the manifest stage again")
    given = GivenBoxes.of(manifest) if settings.boxes else None
    own = {"images": images, "settings": settings, "cache": cache, "id_bytes": listed.id_bytes}
    own |= {"given": given.facts} if given else {}
    work = own | {"batch_size": batch_size, "readers": readers, "exact": exact}
    maker = RegionShards(**work, device="cpu" if workers else device)
    if earlier is not None:
        maker.earlier = _taken_from(RegionStore(earlier), maker)
    key = {
        "recipe": maker.recipe,
        "manifest": images_sha256(manifest),
        "images_per_shard": settings.images_per_shard,
        "unreadable": settings.unreadable,
        "about": (about or About()).model_dump(),
        "code": [CODE, maker.key["code"]],
    }
    places = listed.shards(settings.images_per_shard)
    parts = Parts(len(places), lambda number: (given.rows if given else list)(listed.images_at(places[number].rows)))
    job, title = ShardJob(maker, parts, "regions", "pictures", RegionShards, work), f"regions {dataset}"
    if given:
        key["boxes"] = sha256(Path(manifest) / GROUNDING)
    with building(out, f"extraction of {dataset}", key, [job], title=title, workers=workers) as built:
        if built is None:
            return
        done, detector = built[0], maker.detector
        if not any(shard["count"] for shard in done):
            reason = next(failure["reason"] for shard in done for failure in shard["failures"])
            raise InputError(
                f"none of its {len(listed)} pictures could be read; the first: {reason}",
                where=listed.place,
                fix="check the image root and the pictures",
            )
        names = {"object_names": maker.object_names, "attribute_names": detector.attribute_names}
        facts = {"dataset": dataset, "about": about, "dim": detector.dim, "dense": maker.dense, **names}
        install_region_stores(out, listed, places, done, maker.recipe, **facts)
        libraries = ("torch", "torchvision", "numpy", "pillow")
        note_made(out, maker.recipe_hash, *libraries, shards=made_in(done))


def _taken_from(store: RegionStore, maker: RegionShards) -> Callable[[list[ImageRow], int], Regions | None]:
    """Gives the regions of pictures that a store of an older project has.

    Raises `InputError`, with the first key that differs, where its recipe is another one.
    """
    recipe, ours = store.recipe, maker.recipe["detector"]
    old, config = recipe["detector"], Path(getattr(maker.settings.detector, "config", ""))
    if "config_sha256" in old and config.is_file() and old["config_sha256"] == sha256(config):
        # Older projects name detectron2's config by its bytes; now it is named by all that it comes to.
        own = {key: value for key, value in old.items() if key not in ("config_sha256", "options")}
        recipe = recipe | {"detector": own | {"config": ours["config"]}}
    require_same_recipe(recipe, store.folder, maker.recipe, "params.yaml")

    def take(part: list[ImageRow], place: int) -> Regions | None:
        id = part[place].id
        return store.read(store.row(id)) if id in store else None

    return take
