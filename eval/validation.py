"""The recalls of a model in training: what `train@R` picks its best epoch by, through the evaluation's own ranks."""

import numpy as np
from torch import nn

from eval.embed import embed
from eval.ranks import retrieval_ranks
from eval.recall import recalls
from train.data import RetrievalData


def validate(model: nn.Module, data: RetrievalData, batch_size: int) -> dict[str, float]:
    """The recalls of `model` on the whole of `data`, without files: what the training loop calls after each epoch."""
    found = embed(model, data, batch_size, run="in training", quiet=True)
    ranks = retrieval_ranks(found, data.caption_image, np.arange(data.num_captions))
    return recalls(ranks.i2t, ranks.t2i)
