"""Retrieval models: a base that encodes each side on its own, and SelfAlign's context on top of it."""

from train.models.retrieval import Encoding, RetrievalModel, build_model

__all__ = ["Encoding", "RetrievalModel", "build_model"]
