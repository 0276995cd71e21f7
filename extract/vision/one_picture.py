"""The regions of one picture that is in no data set, extracted as the region stage extracted those of a store."""

import json
from pathlib import Path
from typing import Any

from extract.settings import RegionSettings
from extract.stores.recipe import require_same_recipe
from extract.stores.regions import Regions
from extract.vision.decode import UnreadableImage, decode_file
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import canonical_json


def extract(picture: Path, settings: RegionSettings, recipe: dict[str, Any], *, device: str = "cpu") -> Regions:
    """Extract one picture's regions.

    Parameters
    ----------
    settings : of the region stage that made the store.
    recipe : the store's recipe.
    device : torch device of the network.

    Raises
    ------
    InputError : the picture can't be read, or the settings' detector or selection aren't those of the recipe.
    """
    if settings.boxes:
        fix = "search with words, or extract the data set's regions without `boxes: given`"
        raise InputError("a picture of no data set has no given boxes", where=picture, fix=fix)
    detector = load_detector(settings.detector, settings.selection, device)
    ours = {"detector": detector.recipe, **settings.choice}
    theirs = {name: recipe.get(name) for name in ours}
    require_same_recipe(json.loads(canonical_json(ours)), "params.yaml, regions", theirs, "the region store")
    try:
        rgb = decode_file(picture, settings.max_pixels, truncated=settings.truncated == "take")
    except (OSError, UnreadableImage) as error:
        raise InputError(f"the picture can't be read: {error}", where=picture, fix="give another picture") from error
    (found,) = detector.detect(detector.prepare(rgb)[None], [(rgb.shape[1], rgb.shape[0])])
    if not len(found):
        raise InputError("the detector finds no region in it", where=picture, fix="give another picture")
    return found
