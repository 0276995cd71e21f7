"""ECCV Caption through its package, on made embeddings of COCO's real ids."""

import numpy as np
import pytest

from eval.embeddings import Embeddings
from eval.metrics.eccv import eccv_recalls

pytestmark = pytest.mark.filterwarnings("ignore:failed to import")
package = pytest.importorskip("eccv_caption", reason="the package eccv_caption is not installed")


def precision_figures(ranked: dict[int, list[int]], known: dict[int, list[int]]) -> tuple[float, float, float]:
    """The metrics mAP@R, R-Precision and R@1 by their definitions (Musgrave et al., 2020)."""
    rows = []
    for query, matches in known.items():
        hits = np.isin(ranked[query][: len(set(matches))], matches)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        rows.append(((precision * hits).mean(), hits.mean(), hits[0]))
    return tuple(100 * np.mean(rows, axis=0))


def test_figures_follow_their_definitions_and_a_part_of_the_split_is_refused():
    metrics = package.Metrics()
    caption_ids = metrics.coco_ids.tolist()
    owner = {caption: own[0] for caption, own in metrics.coco_gts["t2i"].items()}
    image_ids = list(dict.fromkeys(owner[caption] for caption in caption_ids))
    row = {image: number for number, image in enumerate(image_ids)}
    random = np.random.default_rng(0)
    images = random.normal(size=(len(image_ids), 16)).astype("f4")
    captions = images[[row[owner[caption]] for caption in caption_ids]]
    captions = (captions + 0.2 * random.normal(size=captions.shape)).astype("f4")
    embeddings = Embeddings(images[:, None], images[:, :0], captions)
    figures = eccv_recalls(embeddings, image_ids, caption_ids)

    place = {caption: number for number, caption in enumerate(caption_ids)}
    asked = metrics.eccv_gts
    known_captions, known_images = np.array(caption_ids), np.array(image_ids)
    by_image = {q: known_captions[np.argsort(-(captions @ images[row[q]]))[:100]].tolist() for q in asked["i2t"]}
    by_caption = {q: known_images[np.argsort(-(images @ captions[place[q]]))[:100]].tolist() for q in asked["t2i"]}
    for direction, ranked in (("i2t", by_image), ("t2i", by_caption)):
        found = [figures[f"{direction}_{name}"] for name in ("map_at_r", "rprecision", "r1")]
        assert found == pytest.approx(precision_figures(ranked, asked[direction]), abs=1e-3)
    assert figures["t2i_r1"] > 50

    reason = eccv_recalls(embeddings.part(slice(0, 4000), slice(0, 25000)), image_ids[:4000], caption_ids)
    assert isinstance(reason, str) and "not COCO's test split, whole and nothing more: 1000 images" in reason
