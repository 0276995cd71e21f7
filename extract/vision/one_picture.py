"""The regions of pictures that are in no data set, extracted as the region stage extracted those of a store."""

import json
from pathlib import Path
from typing import Any

from extract.settings import RegionSettings
from extract.stores.recipe import require_same_recipe
from extract.stores.regions import Regions
from extract.vision.decode import UnreadableImage, decode, decode_file
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import canonical_json


class PictureReader:
    """Extracts the regions of single pictures. The detector is loaded once.

    Parameters
    ----------
    settings : of the region stage that made the store.
    recipe : the store's recipe.
    device : torch device of the network.

    Raises
    ------
    InputError : the settings' detector or selection aren't those of the recipe, or the boxes were given.
    """

    def __init__(self, settings: RegionSettings, recipe: dict[str, Any], *, device: str = "cpu"):
        if settings.boxes:
            fix = "search with words, or extract the data set's regions without `boxes: given`"
            reason = "the data set's boxes were given, and a picture of no data set has none"
            raise InputError(reason, where="datasets.D.regions.boxes", fix=fix)
        self._settings, self._detector = settings, load_detector(settings.detector, settings.selection, device)
        ours = {"detector": self._detector.recipe, **settings.choice}
        theirs = {name: recipe.get(name) for name in ours}
        require_same_recipe(json.loads(canonical_json(ours)), "params.yaml, regions", theirs, "the region store")

    def read(self, picture: Path | bytes, name: str) -> Regions:
        """The regions of a picture, given as a file or its bytes; `name` is for messages.

        Raises InputError where the picture can't be read or has no region.
        """
        settings = self._settings
        try:
            read = decode if isinstance(picture, bytes) else decode_file
            rgb = read(picture, settings.max_pixels, truncated=settings.truncated == "take")
        except (OSError, UnreadableImage) as error:
            raise InputError(f"it can't be read: {error}", where=name, fix="give another file") from error
        (found,) = self._detector.detect(self._detector.prepare(rgb)[None], [(rgb.shape[1], rgb.shape[0])])
        if not len(found):
            raise InputError("the detector finds no region in it", where=name, fix="give another picture")
        return found
