"""SelfAlign (arXiv 2308.14009), added to any base: concept alignment (LCA), context alignment (CRA), a concept bag."""

from train.selfalign.bag import ConceptBag
from train.selfalign.concept import ConceptAlignment, sinkhorn
from train.selfalign.context import ContextAggregation, context_alignment_loss

__all__ = ["ConceptAlignment", "ConceptBag", "ContextAggregation", "context_alignment_loss", "sinkhorn"]
