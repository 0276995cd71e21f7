"""The recalls of a model in training: what `train@R` picks its best epoch by, through the evaluation's own ranks."""

from torch import nn

from eval.embed import embed
from eval.recall import both_ranks, recalls
from train.data import RetrievalData


def validate(model: nn.Module, data: RetrievalData, batch_size: int) -> dict[str, float]:
    """The recalls of `model` on the whole of `data`, without files: what the training loop calls after each epoch."""
    images, captions = embed(model, data, batch_size, run="in training", quiet=True)
    captions_of = [data.captions_of(image) for image in range(len(data.images))]
    i2t, _, t2i = both_ranks(images, captions, captions_of, data.caption_image)
    return recalls(i2t, t2i)
