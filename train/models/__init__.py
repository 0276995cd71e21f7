"""Retrieval models: a base that encodes each side on its own, and SelfAlign's modules on top of it."""

from train.models.encoding import Encoding, similarity
from train.models.retrieval import Pairs, RetrievalModel, build_model

__all__ = ["Encoding", "Pairs", "RetrievalModel", "build_model", "similarity"]
