"""SelfAlign (arXiv 2308.14009): concept alignment (LCA) and context alignment (CRA), added to any base."""

from train.selfalign.concept import ConceptAlignment, sinkhorn
from train.selfalign.context import ContextAggregation, context_alignment_loss

__all__ = ["ConceptAlignment", "ContextAggregation", "context_alignment_loss", "sinkhorn"]
