"""Metric `rouge_l`: NDCG@25 of both directions, with ROUGE-L of captions as relevance (`eval.ndcg`)."""

from eval.evaluated import Evaluated
from eval.metrics import METRICS
from eval.metrics.metric import Metric


@METRICS.add("rouge_l")
class LikenessNDCG(Metric):
    place = ("ndcg", "rouge_l")

    def figures(self, run: Evaluated) -> dict[str, float]:
        return {direction: run.likeness[direction] for direction in run.across}
