"""Metric `middle`: how far from the middle of all captions a caption lies."""

import numpy as np
from pydantic import Field

from eval.metrics import METRICS
from eval.metrics.metric import Metric
from manifests.typed import Settings


class MiddleSettings(Settings):
    order: float = Field(2.0, gt=0, description="of the norm")


@METRICS.add("middle")
class Middle(Metric):
    Settings = MiddleSettings

    def figures(self, run):
        captions = run.embeddings.captions
        distances = np.linalg.norm(captions - captions.mean(0), ord=self.settings.order, axis=1)
        return {"mean_distance": float(distances.mean()), "captions": float(len(distances))}
