"""A run on a split, as metrics see it: embeddings, nearest neighbours and captions, each made once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from eval.embeddings import Embeddings
from eval.ndcg import CUTOFF, likeness_ndcg
from eval.nearest import nearest_captions, nearest_images
from eval.rouge import RougeL
from eval.scores import Siblings
from manifests.tables import Manifest
from train.data import RetrievalData
from train.losses.loss import Side
from train.model import RetrievalModel


@dataclass(frozen=True)
class Evaluated:
    """A run on a split of N images and C captions.

    Parameters
    ----------
    manifest : of the data set, all splits.
    """

    model: RetrievalModel
    data: RetrievalData
    embeddings: Embeddings
    manifest: Manifest

    @cached_property
    def texts(self) -> Sequence[str]:
        """The captions."""
        return [self.data.caption_text(caption) for caption in range(self.data.num_captions)]

    @cached_property
    def across(self) -> dict[str, np.ndarray]:
        """The nearest K of the other side, best first: `i2t [N, K]` and `t2i [C, K]`."""
        return {
            "i2t": nearest_captions(self.embeddings, CUTOFF),
            "t2i": nearest_images(self.embeddings, CUTOFF),
        }

    @cached_property
    def within(self) -> dict[str, np.ndarray]:
        """The nearest K others of the same side: `i2i [N, K]` and `t2t [C, K]`; of one item alone there are none."""
        sides: dict[str, Side] = {"i2i": "images", "t2t": "captions"}
        found = {direction: nearest_siblings(self.vectors[side], CUTOFF) for direction, side in sides.items()}
        return {direction: nearest for direction, nearest in found.items() if nearest is not None}

    @cached_property
    def vectors(self) -> dict[Side, np.ndarray]:
        """The vectors `[N, W]` that images, and captions, are compared with each other by: CUSA has heads for that."""
        device = next(self.model.parameters()).device
        found: dict[Side, np.ndarray] = {}
        whole: dict[Side, np.ndarray] = {"images": self.embeddings.images, "captions": self.embeddings.captions}
        with torch.inference_mode():
            for side, vectors in whole.items():
                parts = torch.from_numpy(np.ascontiguousarray(vectors)).split(4096)
                found[side] = torch.cat([self.model.within(side, p.to(device)).float().cpu() for p in parts]).numpy()
        return found

    @cached_property
    def likeness(self) -> dict[str, float]:
        """NDCG by ROUGE-L of all that is in `across` and `within`, in one pass over the pairs of captions."""
        rankings = self.across | self.within
        return likeness_ndcg(RougeL(self.texts), self.data.caption_image, len(self.data.images), rankings)


def nearest_siblings(vectors: np.ndarray, count: int) -> np.ndarray | None:
    """Each item's `count` nearest others, best first, `[N, K]`; None where there is only one item."""
    return nearest_captions(Siblings(vectors), min(count, len(vectors) - 1)) if len(vectors) > 1 else None
