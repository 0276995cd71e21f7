"""Concept alignment without a model around it."""

from typing import Any

from train.losses.lca import ConceptAlignment, ConceptSettings
from train.losses.loss import Shape


def concept_alignment(dim: int, num_concepts: int, **options: Any) -> ConceptAlignment:
    """The loss over locals of D numbers; `options` are its settings."""
    settings = ConceptSettings(num_concepts=num_concepts, **options)
    return ConceptAlignment(settings, Shape(dim, dim, 20, 8, (2, 3)), {})
