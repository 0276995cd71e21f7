"""Images like a picture by their regions alone: no run, no index.

An image's vector is the mean of its region features, less the mean over the train split
(`extract.teachers.regions_mean`). A score is the cosine of two vectors. The whole region store is read.
"""

import os
from pathlib import Path

import numpy as np

from eval.search.answer import Answer, Hit
from extract.settings import RegionSettings
from extract.teachers.regions_mean import RegionsMean, RegionsMeanSettings
from extract.teachers.teacher import Inputs
from extract.vision.one_picture import PictureReader
from manifests.errors import InputError
from manifests.files import sha256
from manifests.tables import Manifest


def search_regions(
    *,
    dataset: str,
    manifest: Path,
    regions: Path,
    picture: str,
    count: int,
    device: str,
    settings: RegionSettings | None,
) -> Answer:
    """The `count` images of a data set most like a picture.

    Parameters
    ----------
    manifest, regions : the data set's.
    picture : a file, or the id of an image of the data set. A file with the bytes of such an image is that image.
    settings : of the region stage that made the regions; None where they were imported.

    Raises
    ------
    InputError : no such picture or id, one that can't be read, regions that can't be extracted here.
    """
    listed, path = Manifest.open(manifest), Path(picture)
    digest = sha256(path) if os.path.isfile(path) else None
    row = None if digest is None else listed.row_of_digest(digest)
    row = listed.row_of(picture) if row is None else row
    means = RegionsMean(RegionsMeanSettings(), Inputs(manifest=manifest, regions=regions, images=Path()))
    vectors = np.concatenate([found for _, found in means.embed(listed.images)])
    if row is not None and row not in means.failures:
        query = vectors[row]
    elif digest is None:
        reason = "it has no regions" if row is not None else "neither a file nor the id of an image of the data set"
        raise InputError(reason, where=picture, fix="give a file")
    elif settings is None:
        reason = f"the regions of {dataset} were imported: no detector for it is known"
        raise InputError(reason, where=path, fix="search with a picture of the data set")
    else:
        reader = PictureReader(settings, means.store.recipe, device=device)
        query = means.vector(reader.read(path, str(path)).features)
    scores = _cosines(vectors, query)
    scores[list(means.failures)] = -np.inf
    best = np.argsort(-scores, kind="stable")[: min(count, len(listed) - len(means.failures))]
    images = [listed.captioned[number] for number in best.tolist()]
    hits = [
        Hit(number, image, float(scores[number]), image.captions[0] if image.captions else "")
        for number, image in zip(best.tolist(), images, strict=True)
    ]
    searched = f"{len(listed):,} images of {dataset}, by the mean of their regions"
    return Answer(picture, "alike", searched, hits, asked=None if row is None else listed.captioned[row])


def _cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Float32 `[N]`; 0 for a vector without direction."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return vectors @ query / np.where(lengths > 0, lengths, 1)
