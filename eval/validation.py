"""The recalls of a model in training: what `train@R` picks its best epoch by, through the evaluation's own ranks."""

import numpy as np

from eval.ranks import retrieval_ranks
from eval.recall import recalls
from eval.survey import survey
from train.data import RetrievalData
from train.model import RetrievalModel
from train.processes import place


def validate(model: RetrievalModel, data: RetrievalData, batch_size: int) -> dict[str, float]:
    """The recalls of `model` on the whole of `data`, without files: what the training loop calls after each epoch.

    With ALADIN's teacher, `teacher_rsum` is its own R@sum. Of processes that train together each encodes a part, but
    for the teacher, whose vectors don't travel; the first one has the recalls.
    """
    rank, count = place()
    if model.alignment is not None:
        if rank:
            return {}
        count = 1
    found = survey(model, data, batch_size, run="in training", share=(rank, count), quiet=True)
    if rank:
        return {}
    captions = np.arange(data.num_captions)
    ranks = retrieval_ranks(found.embeddings, data.caption_image, captions)
    figures = recalls(ranks.i2t, ranks.t2i)
    if found.teacher is not None:
        teacher = retrieval_ranks(found.teacher, data.caption_image, captions)
        figures["teacher_rsum"] = recalls(teacher.i2t, teacher.t2i)["rsum"]
    return figures
